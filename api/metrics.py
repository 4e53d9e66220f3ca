"""Metrics: how good the outputs of a changed model are, from labels or from the original's outputs.

1. `top1` needs labels and is accuracy. `agreement` (same class as the original) and `cosine` (same direction of every
   output) compare with the original and are never called accuracy.
2. `kl` and `fidelity` are finer than what they stand in for, and rank proposals during the search: the divergence of
   the original's class probabilities from the model's, and one minus the squared error over the output's variance.
3. Higher is better for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx_netadapt.functions import load_function
from onnx_netadapt.ir.errors import InputError

Array = NDArray[Any]
Outputs = Sequence[Array]

PerExample = Callable[[Outputs, Outputs, Array | None], Array]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by name: `per_example(outputs, original's outputs, labels)` gives one value for each example, or
    `whole(outputs, labels)` one value for a whole set; `labelled` says that it needs labels.
    """

    name: str
    labelled: bool
    per_example: PerExample | None = None
    whole: Callable[[Outputs, Array | None], float] | None = None


def is_classifier(outputs: Outputs) -> bool:
    """Whether there is one output with one row of class scores for each example."""
    return len(outputs) == 1 and outputs[0].ndim >= 2 and _rows(outputs[0]).shape[1] == max(outputs[0].shape[1:])


def metric_of(name: str) -> Metric:
    """The metric of a `--metric` option; InputError when there is none of that name."""
    known = {
        "top1": Metric("top1", True, _top1),
        "agreement": Metric("agreement", False, _agreement),
        "cosine": Metric("cosine", False, _cosine),
        "kl": Metric("kl", False, _kl),
        "fidelity": Metric("fidelity", False, _fidelity),
    }
    if name in known:
        return known[name]
    if ":" in name:
        function = load_function(name, "--metric")
        return Metric(name, False, whole=lambda outputs, labels: float(function(outputs, labels)))
    raise InputError(f"there is no metric '{name}'; choose {', '.join(known)}, or package.module:function")


def search_metric(outputs: Outputs) -> Metric:
    """The metric that ranks proposals when the user chose none."""
    return metric_of("kl" if is_classifier(outputs) else "fidelity")


def report_metric(outputs: Outputs, labelled: bool) -> Metric:
    """The metric that is reported when the user chose none."""
    return metric_of("cosine" if not is_classifier(outputs) else "top1" if labelled else "agreement")


def _rows(output: Array) -> Array:
    return output.reshape(len(output), -1).astype(np.float64)


def _classes(outputs: Outputs) -> Array:
    return np.asarray(_rows(outputs[0]).argmax(axis=1))


def _top1(outputs: Outputs, original: Outputs, labels: Array | None) -> Array:
    if labels is None:
        raise InputError("metric top1 needs labels: give `y` in the .npz, or sub-folders for the classes")
    return np.asarray(_classes(outputs) == labels, dtype=np.float64)


def _agreement(outputs: Outputs, original: Outputs, labels: Array | None) -> Array:
    return np.asarray(_classes(outputs) == _classes(original), dtype=np.float64)


def _over_outputs(outputs: Outputs, original: Outputs, compare: Callable[[Array, Array], Array]) -> Array:
    """The mean of a row-wise comparison over all float outputs."""
    pairs = [(a, b) for a, b in zip(outputs, original, strict=True) if np.issubdtype(b.dtype, np.floating)]
    values = [compare(_rows(a), _rows(b)) if a.shape == b.shape else np.zeros(len(outputs[0])) for a, b in pairs]
    return np.mean(values, axis=0) if values else np.ones(len(outputs[0]))


def _cosine(outputs: Outputs, original: Outputs, labels: Array | None) -> Array:
    def compare(a: Array, b: Array) -> Array:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.asarray((a * b).sum(axis=1) / np.maximum(norms, 1e-30))

    return _over_outputs(outputs, original, compare)


def _fidelity(outputs: Outputs, original: Outputs, labels: Array | None) -> Array:
    def compare(a: Array, b: Array) -> Array:
        spread = ((b - b.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return np.asarray(1 - ((a - b) ** 2).sum(axis=1) / np.maximum(spread, 1e-30))

    return _over_outputs(outputs, original, compare)


def _kl(outputs: Outputs, original: Outputs, labels: Array | None) -> Array:
    p, q = _log_probabilities(_rows(original[0])), _log_probabilities(_rows(outputs[0]))
    return np.asarray(-(np.exp(p) * (p - q)).sum(axis=1))


def _log_probabilities(rows: Array) -> Array:
    """Log-probabilities of class scores, which may be probabilities already."""
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-2):
        return np.asarray(np.log(np.maximum(rows, 1e-12)))
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
