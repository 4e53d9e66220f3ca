"""`inspect`: what can be pruned in a model, what cannot, and why."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx_netadapt.ir.errors import NetAdaptError, TargetError
from onnx_netadapt.ir.external import byte_size, split
from onnx_netadapt.ir.graph import Graph, Shape
from onnx_netadapt.ir.load import Source, load
from onnx_netadapt.network import Narrowing, by_weight, check_prunable, node_names
from onnx_netadapt.passes.barriers import weight_axes
from onnx_netadapt.passes.coupling import Coupling, constant_tensors, couple
from onnx_netadapt.passes.equivalence import check_runs


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect --json` gives (CONTRACTS section 5)."""

    model: str
    producer: str
    opset: int
    totals: Mapping[str, int | None]
    weights: Mapping[str, float]
    groups: tuple[Mapping[str, Any], ...]
    barriers: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    estimate_ms: float | None = None
    granularity: str | None = None
    problem: str | None = None
    schema_version: int = 1

    def __str__(self) -> str:
        from onnx_netadapt.inspection_text import text_of

        return text_of(self)


def inspect(
    source: Source,
    *,
    shapes: Mapping[str, Shape] | None = None,
    lut: Path | None = None,
    target: str = "cpu",
    renormalize: bool = False,
) -> Inspection:
    """The groups, widths and barriers of a model, and its sizes; with a LUT file also latencies.

    `renormalize` also takes channels that LayerNormalization and its like mix (see `passes.coupling.couple`).
    """
    graph = load(source, shapes=shapes, on_disk=lut is None)
    coupling = couple(graph, renormalize=renormalize)
    check_prunable(coupling)
    narrowing = by_weight(coupling)
    sizes, full = narrowing.sizes, narrowing.full
    params, macs = sizes.params(full), sizes.macs(full)
    latency = _latency(narrowing, lut, target) if lut is not None else None
    groups = []
    ends = node_names(coupling)
    for group in coupling.groups:
        held_params, held_macs = sizes.held(group.id)
        producers, consumers = ends[group.id]
        row: dict[str, Any] = {
            "id": group.id,
            "units": group.units,
            "params": held_params,
            "macs": held_macs,
            "share_params": held_params / params if params else 0.0,
            "share_macs": held_macs / macs if macs else 0.0,
            "producers": producers,
            "consumers": consumers,
        }
        if latency is not None:
            narrow = full | {group.id: 1}
            row["latency_ms"] = latency.estimate(full) - latency.estimate(narrow)
        groups.append(row)
    return Inspection(
        model=str(source) if isinstance(source, str | Path) else "model",
        producer=f"{graph.model.producer_name} {graph.model.producer_version}".strip(),
        opset=graph.opsets.get("", 0),
        totals={
            "macs": macs,
            "params": params,
            "size_bytes": byte_size(graph.model, graph.weights),
            "peak_activation_bytes": _peak(narrowing),
        },
        weights=_weights(coupling),
        groups=tuple(groups),
        barriers=tuple(
            {
                **asdict(barrier),
                "share_params": int(np.prod(graph.shapes[barrier.tensor])) / params if params else 0.0,
            }
            for barrier in coupling.barriers
        ),
        notes=graph.notes,
        problem=_problem(graph, Path(source) if isinstance(source, str | Path) else None),
        estimate_ms=latency.estimate(full) if latency is not None else None,
        granularity=str(latency.plan.granularity) if latency is not None else None,
    )


def _problem(graph: Graph, file: Path | None) -> str | None:
    """Why the model cannot run here; None when it can."""
    try:
        check_runs(graph, file)
    except TargetError as error:
        return str(error)
    return None


def _weights(coupling: Coupling) -> dict[str, float]:
    """The numbers of all weights, and the shares that can be pruned along all channel axes, along some, along none."""
    graph, stuck = coupling.graph, {(barrier.tensor, barrier.axis) for barrier in coupling.barriers}
    axes: dict[str, set[int]] = {}
    for name, axis in weight_axes(graph, coupling.relations, constant_tensors(graph)):
        axes.setdefault(name, set()).add(axis[1])
    sums = [0, 0, 0]
    for name, numbers in axes.items():
        held = sum((name, number) in stuck for number in numbers)
        sums[0 if held == 0 else 2 if held == len(numbers) else 1] += int(np.prod(graph.shapes[name]))
    total = sum(sums)
    shares = (found / total if total else 0.0 for found in sums)
    return {"params": total, **dict(zip(("all_axes", "some_axes", "no_axis"), shares, strict=True))}


def _peak(narrowing: Narrowing) -> int | None:
    from onnx_netadapt.profiler import memory

    try:
        return memory(split(narrowing.graph.model)[0], narrowing.graph.shapes).peak_activation_bytes
    except NetAdaptError:
        return None


def _latency(narrowing: Narrowing, lut: Path, target: str) -> Any:
    from onnx_netadapt.commands import latency_model

    return latency_model(narrowing, lut, target)
