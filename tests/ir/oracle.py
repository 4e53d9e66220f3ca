"""The checks that every pruned model in these tests must pass, and the runs behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx_netadapt.ir import Graph, TargetError
from onnx_netadapt.passes.coupling import Coupling, Kept, couple
from onnx_netadapt.passes.equivalence import DEFAULT_TOLERANCE, random_feeds, run_plain, zeroed
from onnx_netadapt.passes.prune import Pruned, prune

Outputs = list[list[Any]]
Feeds = Sequence[Mapping[str, np.ndarray]]


def is_valid(model: onnx.ModelProto) -> bool:
    """Whether ONNX's checker with full shape inference passes (it does not for operators that it has withdrawn)."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def run(model: onnx.ModelProto, feeds: Feeds, *, optimize: bool) -> Outputs:
    """The outputs on ONNX Runtime, and where it has no kernel, on ONNX's reference evaluator."""
    try:
        return run_plain(model, feeds, optimize=optimize)
    except TargetError:
        for opset in (22, 21):  # the newest definitions of some operators differ in nothing but the types they take
            try:
                return run_plain(_at_opset(model, opset), feeds, optimize=optimize)
            except TargetError:
                pass
        evaluator = ReferenceEvaluator(model)
        return [evaluator.run(None, dict(feed)) for feed in feeds]


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.opset_import:
        if item.domain == "":
            item.version = min(item.version, opset)
    return copy


def difference(wanted: Outputs, found: Outputs) -> float:
    """The largest difference as a share of the wanted outputs' largest magnitude; infinite when shapes differ."""
    worst = 0.0
    for want, have in zip(wanted, found, strict=True):
        for a, b in zip(want, have, strict=True):
            a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
            if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
                return float("inf")
            a, b = np.nan_to_num(a), np.nan_to_num(b)
            worst = max(worst, float(np.abs(a - b).max(initial=0.0) / (np.abs(a).max(initial=0.0) or 1.0)))
    return worst


def random_kept(coupling: Coupling, keep: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random units of every group, a share of them."""
    return {
        group.id: np.sort(rng.permutation(group.units)[: max(1, round(group.units * keep))])
        for group in coupling.groups
    }


def planted(plan: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The plan with the consumers' slices of one group moved by one position: a wrong index."""
    return {
        "groups": [
            {
                **entry,
                "members": [
                    {**m, "removed": [place - 1 if place else place + 1 for place in m["removed"]]}
                    if entry["id"] == group and m["role"] == "consumer"
                    else m
                    for m in entry["members"]
                ],
            }
            for entry in plan["groups"]
        ]
    }


def assert_exact(
    graph: Graph, pruned: Pruned, feeds: Feeds, *, optimize: bool, tolerance: float = DEFAULT_TOLERANCE
) -> None:
    """Zeroing equals removing, and the pruned model passes ONNX's checker with full shape inference."""
    assert is_valid(pruned.model) or not is_valid(graph.model)
    wanted = run(zeroed(graph.model, pruned.plan), feeds, optimize=optimize)
    found = run(pruned.model, feeds, optimize=optimize)
    assert all(np.isfinite(np.asarray(a, dtype=np.float64)).all() for outputs in wanted for a in outputs)
    assert difference(wanted, found) <= tolerance


def prune_randomly(graph: Graph, keep: float, seed: int) -> tuple[Coupling, Kept, Pruned]:
    """A graph's coupling, random units to keep and the model that keeps them."""
    coupling = couple(graph)
    kept = random_kept(coupling, keep, np.random.default_rng(seed))
    return coupling, kept, prune(coupling, kept)


def feeds_for(graph: Graph, count: int = 2) -> Feeds:
    """Seeded inputs of the graph's shapes."""
    return random_feeds(graph, count, seed=5)
