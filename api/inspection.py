"""`inspect`: what can be pruned in a model, what cannot, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_netadapt.ir.errors import NetAdaptError
from onnx_netadapt.ir.graph import Shape
from onnx_netadapt.ir.load import Source, load
from onnx_netadapt.network import Narrowing, by_weight, node_names
from onnx_netadapt.passes.coupling import couple


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect --json` gives (CONTRACTS section 5)."""

    model: str
    producer: str
    opset: int
    totals: Mapping[str, int | None]
    groups: tuple[Mapping[str, Any], ...]
    barriers: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    estimate_ms: float | None = None
    granularity: str | None = None

    def __str__(self) -> str:
        totals = self.totals
        lines = [
            f"{self.model}  ({self.producer or 'producer unknown'}, opset {self.opset})",
            f"  {totals['macs']:,} MACs, {totals['params']:,} parameters, {totals['size_bytes']:,} bytes",
            "",
            f"  {'group':>6} {'units':>6} {'params':>7} {'MACs':>7}  made by -> summed by",
        ]
        for group in self.groups:
            made, read = (
                ", ".join(group[key][:2]) + (", ..." if len(group[key]) > 2 else "")
                for key in ("producers", "consumers")
            )
            lines.append(
                f"  {group['id']:>6} {group['units']:>6} {group['share_params']:>7.1%} {group['share_macs']:>7.1%}"
                f"  {made} -> {read}"
            )
        if not self.groups:
            lines.append("  nothing can be pruned")
        lines += ["", "  barriers (weights that stay whole along an axis)"]
        for barrier in self.barriers:
            lines.append(
                f"  {barrier['tensor']} axis {barrier['axis']}: {barrier['reason']}"
                f" [{barrier['node']}{' ' + barrier['op_type'] if barrier['op_type'] else ''}]"
            )
        lines += [f"  note: {note}" for note in self.notes]
        if self.estimate_ms is not None:
            lines.append(f"  estimated latency {self.estimate_ms:.3f} ms, granularity {self.granularity}")
        return "\n".join(lines)


def inspect(
    source: Source, *, shapes: Mapping[str, Shape] | None = None, lut: Path | None = None, target: str = "cpu"
) -> Inspection:
    """The groups, widths and barriers of a model, and its sizes; with a LUT file also latencies."""
    graph = load(source, shapes=shapes)
    coupling = couple(graph)
    narrowing = by_weight(coupling)
    sizes, full = narrowing.sizes, narrowing.full
    params, macs = sizes.params(full), sizes.macs(full)
    latency = _latency(narrowing, lut, target) if lut is not None else None
    groups = []
    for group in coupling.groups:
        without = full | {group.id: 0}
        held_params, held_macs = params - sizes.params(without), macs - sizes.macs(without)
        producers, consumers = node_names(coupling, group)
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
            "size_bytes": graph.model.ByteSize(),
            "peak_activation_bytes": _peak(narrowing),
        },
        groups=tuple(groups),
        barriers=tuple(
            {"tensor": b.tensor, "axis": b.axis, "node": b.node, "op_type": b.op_type, "reason": b.reason}
            for b in coupling.barriers
        ),
        notes=graph.notes,
        estimate_ms=latency.estimate(full) if latency is not None else None,
        granularity=str(latency.plan.granularity) if latency is not None else None,
    )


def _peak(narrowing: Narrowing) -> int | None:
    from onnx_netadapt.profiler import memory

    try:
        return memory(narrowing.graph.model, narrowing.graph.shapes).peak_activation_bytes
    except NetAdaptError:
        return None


def _latency(narrowing: Narrowing, lut: Path, target: str) -> Any:
    from onnx_netadapt.commands import latency_model

    return latency_model(narrowing, lut, target)
