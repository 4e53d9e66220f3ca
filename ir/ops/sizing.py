"""Which sizes depend on values: a trial run finds them too, but they hold for that run only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ..graph import Graph, Node
from . import MICROSOFT

_SIZE_SLOTS: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4), "ConstantOfShape": (0,), "Range": (0, 1, 2),
    "Resize": (1, 2, 3), "Upsample": (1,), "TopK": (1,), "OneHot": (1,), "Pad": (1, 3), "Squeeze": (1,),
    "Unsqueeze": (1,), "Split": (1,), "CenterCropPad": (1,), "MaxUnpool": (2,), "AffineGrid": (1,), "Col2Im": (1, 2),
}  # fmt: skip
_DATA_SIZED = frozenset({
    "NonZero", "NonMaxSuppression", "Unique", "Compress", "If", "Loop", "Scan", "SequenceAt", "ConcatFromSequence",
    "SplitToSequence", "OptionalGetElement", "StringSplit",
})  # fmt: skip


def _sized_by_values(graph: Graph, node: Node, loose: Collection[str]) -> bool:
    """Whether the sizes of a node's outputs depend on values that are only there when the model runs."""
    if node.op_type in _DATA_SIZED or node.domain not in ("", MICROSOFT):
        return True
    slots = (1,) if node.op_type.startswith("Reduce") else _SIZE_SLOTS.get(node.op_type, ())
    names = [node.inputs[slot] for slot in slots if slot < len(node.inputs) and node.inputs[slot]]
    return any(name not in graph.constants and (name not in graph.known or name in loose) for name in names)


def settled(graph: Graph) -> Graph:
    """The graph without known values that rest on sizes which depend on values."""
    open_sizes: set[str] = set()
    loose: set[str] = set()
    for node in graph.nodes if graph.known else ():
        looks = node.op_type in ("Shape", "Size") and node.inputs[0] in open_sizes
        if looks or any(name in loose for name in node.inputs):
            loose.update(name for name in node.outputs if name in graph.known)
        if any(name in open_sizes for name in node.inputs) or _sized_by_values(graph, node, loose):
            open_sizes.update(node.outputs)
    if not loose:
        return graph
    return replace(graph, known={name: value for name, value in graph.known.items() if name not in loose})
