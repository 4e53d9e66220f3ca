"""The file of `--predictor`: the samples that ChamNet's score predictor is made of, as JSON.

The predictor itself follows from them in seconds. What a sample says does not depend on the target, so that one file
serves every budget and every target of a model; where branches may go (`allow_depth`), one whose samples all keep them
does not. Schema 1:

    {"schema_version": 1, "model_sha256": .., "metric": .., "scoring": .., "examples": .., "data": .., "seed": ..,
     "groups": {"g3": 96, ..}, "samples": [{"widths": {"g3": 48, ..}, "score": -0.21}, ..]}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.write import write_atomically
from onnx_netadapt.passes.search.surrogate import Surrogate

SCHEMA_VERSION = 1


class PredictorFile:
    """Samples in a file that is whole at any moment; `widths` and `scores` go together, `surrogate` is not written.

    A file of another model, metric or set of examples is refused (InputError): its scores mean something else.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], groups: Mapping[str, int]) -> None:
        self.path = path
        self._header = {"schema_version": SCHEMA_VERSION, **header, "groups": dict(groups)}
        self.widths: list[dict[str, int]] = []
        self.scores: list[float] = []
        self.surrogate: Surrogate | None = None
        if path.exists():
            self._read()

    def add(self, networks: Sequence[Mapping[str, int]], scores: Sequence[float], /) -> None:
        """Keeps samples."""
        self.widths += [dict(widths) for widths in networks]
        self.scores += [float(score) for score in scores]
        samples = [{"widths": w, "score": s} for w, s in zip(self.widths, self.scores, strict=True)]
        write_atomically(self.path, (json.dumps(self._header | {"samples": samples}) + "\n").encode())

    def _read(self) -> None:
        try:
            told = json.loads(self.path.read_text())
            samples = told.pop("samples")
            self.widths = [{str(k): int(v) for k, v in sample["widths"].items()} for sample in samples]
            self.scores = [float(sample["score"]) for sample in samples]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"--predictor {self.path}: cannot be read ({error!r}); name another file") from error
        different = [name for name, value in self._header.items() if told.get(name) != value]
        if different:
            parts = ", ".join(f"{name} was {told.get(name)!r} and is {self._header[name]!r}" for name in different)
            raise InputError(f"--predictor {self.path} belongs to another run: {parts}; name another file")
