"""Why weights stay whole: for each weight axis that cannot be pruned, the nearest reason on the graph of axes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..ir.graph import Graph, Node
from ..ir.relations import Axis, Freeze, Relations

_ROOT: Axis = ("", -1)
"""The made-up start of a breadth-first search from all sources at once."""

ALONE = "no two of its channels run through the same places, so there is no width to choose"
NO_CHANNELS = "its positions are rows, columns or steps, not channels"


@dataclass(frozen=True, slots=True)
class Barrier:
    """Channels of a weight that cannot be removed: the node and operator that hold them, and why."""

    tensor: str
    axis: int
    node: str
    op_type: str
    reason: str


def barriers_of(
    graph: Graph,
    relations: Relations,
    live: Collection[Axis],
    known: Collection[Axis],
    unfrozen: Collection[Axis],
    constant: Collection[str],
) -> tuple[Barrier, ...]:
    """For each weight axis that cannot be pruned at all, the nearest reason; `constant` as for `weight_axes`.

    `live` are the axes that can be pruned, `known` all axes of which something is known, `unfrozen` those of them with
    channels that nothing holds fast.
    """
    weights = weight_axes(graph, relations, constant)
    stuck = [(name, axis) for name, axis in weights if axis not in live and axis in known]
    if not stuck:
        return ()
    nearest = _nearest_reasons(relations)
    found = []
    for name, axis in stuck:
        freeze = nearest.get(axis)
        if freeze is None:
            found.append(Barrier(name, axis[1], name, "", ALONE if axis in unfrozen else NO_CHANNELS))
            continue
        node: Node | None = graph.nodes[freeze.node] if freeze.node >= 0 else None
        label, op_type = (node.label, node.op_type) if node else (freeze.axis[0], "")
        found.append(Barrier(name, axis[1], label, op_type, freeze.reason))
    return tuple(found)


def weight_axes(graph: Graph, relations: Relations, constant: Collection[str]) -> list[tuple[str, Axis]]:
    """The channel axes of weights, with the weight's name: those summed over, and those tied to an output.

    A weight is a matrix or a kernel among the tensors that depend on constants alone (`constant`: itself one, or a
    constant that was dequantized or transposed), read by a node that sums over its inputs or that holds it fast.
    """
    sums = {item.node for item in relations.contracts}
    holders = {freeze.node for freeze in relations.freezes if freeze.reason and freeze.axis[0] in constant} - {-1}
    silent = {freeze.axis for freeze in relations.freezes if not freeze.reason}
    found = []
    for index in sorted(sums | holders):
        node = graph.nodes[index]
        for slot, name in enumerate(node.inputs):
            shape = graph.shapes.get(name, ())
            wide = len(shape) if index in sums else sum(size > 1 for size in shape)
            if name in constant and name not in graph.known and wide >= 2:
                axes = [(graph.use(node, slot), number) for number in range(len(shape))]
                found += [(name, axis) for axis in axes if axis not in silent and relations.length(axis) > 1]
    return found


def _nearest_reasons(relations: Relations) -> dict[Axis, Freeze]:
    """For every axis the freeze with a reason that is fewest relations away (breadth first, all sources at once)."""
    import networkx as nx

    graph: Any = nx.Graph()
    graph.add_edges_from((same.a, same.b) for same in relations.same)
    graph.add_edges_from((take.whole, take.part) for take in relations.takes)
    graph.add_edges_from((fold.whole, part) for fold in relations.folds for part in fold.parts)
    found: dict[Axis, Freeze] = {}
    layer: list[Axis] = []
    for freeze in relations.freezes:
        if freeze.reason and freeze.axis not in found:
            found[freeze.axis] = freeze
            layer.append(freeze.axis)
    graph.add_edges_from((_ROOT, axis) for axis in layer)
    for parent, child in nx.bfs_edges(graph, _ROOT):
        if child not in found and parent in found:
            found[child] = found[parent]
    return found
