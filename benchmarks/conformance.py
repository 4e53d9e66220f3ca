"""How much of ONNX's own conformance suite passes on the torch form: writes docs/conformance.md.

    python benchmarks/conformance.py [docs/conformance.md]

`tests/api/suite.py` runs the suite and holds the list of what does not pass; a failure outside that list ends this
script with an error, as it does the tests.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "api"))
import suite

HEADER = """# Conformance

Made by `python benchmarks/conformance.py` with onnx {onnx}, torch {torch} (ONNX Runtime {onnxruntime}). ONNX's own
runner (`onnx.backend.test`) judges `onnx_netadapt.backend`, which runs models in the very form that is fine-tuned.
`pytest tests/api/test_backend.py` runs the same tests.

| tests | passed | of | share |
|---|---|---|---|
"""

TITLES = {
    "SimpleModel": "`simple` models",
    "PyTorchConvertedModel": "`pytorch-converted` models",
    "PyTorchOperatorModel": "`pytorch-operator` models",
}


def row(title: str, outcomes: Sequence[suite.Outcome]) -> str:
    passed = sum(not one.failure for one in outcomes)
    return f"| {title} | {passed:,} | {len(outcomes):,} | {passed / len(outcomes):.1%} |"


def light() -> Iterator[suite.Outcome]:
    """The `light` models, which lie in the onnx package; nothing is fetched."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONNX_MODELS"] = folder
        yield from suite.outcomes("RealModel")


def listed(outcomes: Sequence[suite.Outcome]) -> Iterator[str]:
    for reason in suite.EXPECTED:
        names = [one.name.removesuffix("_cpu") for one in outcomes if one.failure and one.reason == reason]
        counted = sum(one.counts for one in outcomes if one.failure and one.reason == reason)
        yield f"- {reason}: {len(names)} tests, {counted} of them counted in the first line ({', '.join(names)})"


def main() -> None:
    """Writes the page and prints its table."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/conformance.md")
    nodes = suite.outcomes("NodeModel")
    rows = [
        row(
            "node tests: operators of the default domain, numbers or truth values as results",
            [o for o in nodes if o.counts],
        ),
        row("all node tests", nodes),
        *(row(title, suite.outcomes(kind)) for kind, title in TITLES.items()),
        row("`light` models", list(light())),
    ]
    every = [one for kind in suite.KINDS for one in suite.outcomes(kind)]
    surprises = [one.name for one in every if one.failure and not one.reason]
    if surprises:
        sys.exit(f"failures that the list does not name: {', '.join(surprises)}")
    versions = {"onnx": onnx.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    print("\n".join(rows))
    lines = [HEADER.format(**versions) + "\n".join(rows), "", "## What does not pass, and why", "", *listed(every)]
    target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
