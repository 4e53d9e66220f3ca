"""What can be pruned: writes docs/coverage.md.

    python benchmarks/coverage.py [--rivals] [--only NAME] [--out docs/coverage.md]

Every model is pruned at keep 0.75, 0.5 and 0.25 with random units, and checked against the zeroed original with ONNX
Runtime's optimizations off and on. Models: the shared files (skipped when absent), the light models of the onnx
package, and the architectures and micro-nets of `models/`, exported by both exporters with shared zero biases.
`--rivals` runs onnxsim and Torch-Pruning beside us at a ratio of 0.5 where they are installed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx_netadapt.ir import Graph, NetAdaptError, load
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import export, materialize
from onnx_netadapt.models.micro import MICRO_NETS
from onnx_netadapt.models.spec import Architecture
from onnx_netadapt.passes.coupling import Coupling, couple
from onnx_netadapt.passes.equivalence import check, random_feeds, run_plain
from onnx_netadapt.passes.prune import prune

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
EXPORTS = (("torchscript", 9), ("torchscript", 17), ("dynamo", 18), ("dynamo", 21))


@dataclass
class Subject:
    """A model, how to get it, and the network it was exported from."""

    name: str
    source: Callable[[], onnx.ModelProto | Path]
    architecture: Architecture | None = None
    key: str = ""


def subjects(only: str) -> Iterator[Subject]:
    for path in [*sorted(SHARED.glob("*.onnx")), *sorted(LIGHT.glob("*.onnx"))]:
        if only in path.stem:
            yield Subject(path.stem, lambda path=path: path)
    for name, full in {**ARCHITECTURES, **MICRO_NETS}.items():
        small = full.quickest if full.quick is not None else full
        for exporter, opset in EXPORTS:
            if only in name and opset >= full.min_opset:
                yield Subject(f"{name}, {exporter} {opset}", exported(small, exporter, opset), small, name)


def exported(architecture: Architecture, exporter: str, opset: int) -> Callable[[], onnx.ModelProto]:
    return lambda: export(
        architecture, exporter=exporter, opset=opset, distinct_biases=False, dynamic_batch=opset != 21
    )


def weight_shares(coupling: Coupling) -> tuple[float, Counter[str]]:
    """The share of contracted weights' elements that a unit can take along, those held by the model's own inputs and
    outputs alone left out; and the elements that other reasons hold, by reason.
    """
    graph = coupling.graph
    nodes = {item.node for item in coupling.relations.contracts}
    reasons: dict[str, list[str]] = {}
    for barrier in coupling.barriers:
        reasons.setdefault(barrier.tensor, []).append(barrier.reason)
    free = total = 0
    held: Counter[str] = Counter()
    for index in sorted(nodes):
        node = graph.nodes[index]
        for slot, name in enumerate(node.inputs):
            constant = graph.constants.get(name)
            if constant is None or len(constant.shape) < 2:
                continue
            axes = range(len(constant.shape))
            if any((graph.use(node, slot), axis) in coupling.layers for axis in axes):
                free += constant.size
                total += constant.size
                continue
            why = [reason for reason in reasons.get(name, ["no reason found"]) if "put of the model" not in reason]
            if why:
                total += constant.size
                held[why[0]] += constant.size
    return (free / total if total else 1.0), held


def examine(subject: Subject) -> dict[str, object]:
    """Everything that the table says of one model."""
    graph = load(subject.source())
    feeds = feeds_of(graph, subject.architecture)
    run_plain(graph.model, feeds, optimize=False)
    began = time.perf_counter()
    coupling = couple(graph)
    found: dict[str, object] = {"groups": len(coupling.groups), "worst": 0.0, "passed": True}
    seconds = time.perf_counter() - began
    for keep in (0.75, 0.5, 0.25):
        rng = np.random.default_rng(int(100 * keep))
        kept = {
            group.id: np.sort(rng.permutation(group.units)[: max(1, round(group.units * keep))])
            for group in coupling.groups
        }
        began = time.perf_counter()
        pruned = prune(coupling, kept)
        if keep == 0.5:
            found["seconds"] = seconds + time.perf_counter() - began
            found["removed"] = 1 - elements(pruned.model) / max(elements(graph.model), 1)
        for optimize in (False, True):
            result = check(graph.model, pruned.model, pruned.plan, feeds, optimize=optimize)
            found["worst"] = max(float(found["worst"]), result.worst)
            found["passed"] = bool(found["passed"]) and result.passed
    found["share"], found["held"] = weight_shares(coupling)
    return found


def feeds_of(graph: Graph, architecture: Architecture | None) -> list[dict[str, np.ndarray]]:
    if architecture is not None and any(one.high for one in architecture.inputs.values()):
        return [architecture.example_inputs(seed=3)]
    return random_feeds(graph, 1)


def elements(model: onnx.ModelProto) -> int:
    constants = [attribute.t for node in model.graph.node if not node.input for attribute in node.attribute]
    return sum(int(np.prod(tensor.dims)) for tensor in [*model.graph.initializer, *constants] if tensor.data_type != 7)


def row(subject: Subject) -> tuple[str, bool]:
    try:
        found = examine(subject)
    except NetAdaptError as error:
        told = " ".join(str(error).split())[:110].replace("|", "/")
        return f"| {subject.name} | - | - | - | exit code {error.exit_code}: {told} | - | - |", True
    held = "; ".join(f"{reason} ({count:,})" for reason, count in found["held"].most_common(2)) or "-"
    good = bool(found["passed"])
    return (
        f"| {subject.name} | {found['groups']} | {found['share']:.1%} | {found['removed']:.0%} "
        f"| {'passed' if good else 'FAILED'}, {found['worst']:.0e} | {found['seconds']:.2f} | {held} |"
    ), good


def rivals(subject: Subject) -> dict[str, float | str]:
    """The share of parameters that onnxsim and Torch-Pruning remove, or why they could not."""
    return {"onnxsim": by_onnxsim(subject), "torch-pruning": by_torch_pruning(subject)}


def by_onnxsim(subject: Subject) -> float | str:
    try:
        import onnxsim
    except ImportError:
        return "not installed"
    model = subject.source()
    try:
        small = onnxsim.apply_structured_pruning(model, sparsity=0.5)
        small = small[0] if isinstance(small, tuple) else small
        run_plain(small, feeds_of(load(small), subject.architecture), optimize=True)
    except Exception as error:
        return f"{type(error).__name__}"
    return 1 - elements(small) / elements(model)


def by_torch_pruning(subject: Subject) -> float | str:
    try:
        import torch
        import torch_pruning
    except ImportError:
        return "not installed"
    module = materialize(subject.architecture, distinct_biases=False, seed=0)
    inputs = tuple(torch.from_numpy(array) for array in subject.architecture.example_inputs().values())
    before = sum(p.numel() for p in module.parameters())
    heads = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1:]
    try:
        torch_pruning.pruner.BasePruner(
            module, inputs, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=heads,
        ).step()  # fmt: skip
        module(*inputs)
    except Exception as error:
        return f"{type(error).__name__}"
    return 1 - sum(p.numel() for p in module.parameters()) / before


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.0%}"


HEADER = """# Coverage

Made by `python benchmarks/coverage.py`. "prunable": share of the weights of convolutions and matrix products that some
removable unit runs through, weights held by the model's own inputs and outputs alone left out. "removed": share of all
parameters gone at keep 0.5. "check": zeroing equals removing at keep 0.75, 0.5 and 0.25, optimizations off and on, with
the worst difference. "s": analysis and one pruning.

| model | groups | prunable | removed | check | s | held by |
|---|---|---|---|---|---|---|
"""

RIVALS = """
## Beside others

Share of parameters removed at a ratio of 0.5; an error's name where the rival fails or ONNX Runtime refuses its model.

| net | ours | onnxsim | Torch-Pruning |
|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines, compared, failed = [], [], 0
    for subject in subjects(arguments.only):
        try:
            line, good = row(subject)
        except Exception as error:
            line, good = f"| {subject.name} | {type(error).__name__}: {str(error)[:80]} ||||||", False
        failed += not good
        lines.append(line)
        print(line, flush=True)
        if arguments.rivals and subject.architecture is not None and subject.name.endswith("torchscript 17"):
            ours = line.split("|")[4].strip()
            theirs = rivals(subject)
            compared.append(
                f"| {subject.key} | {ours} | {shown(theirs['onnxsim'])} | {shown(theirs['torch-pruning'])} |"
            )
            print(compared[-1], flush=True)
    text = HEADER + "\n".join(lines) + "\n"
    if compared:
        text += RIVALS + "\n".join(compared) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=arguments.out.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(arguments.out)
    print(f"{len(lines)} models, {failed} failed")


if __name__ == "__main__":
    main()
