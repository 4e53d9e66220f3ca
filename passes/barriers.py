"""Why weights stay whole: for each weight axis that cannot be pruned, the nearest reason on the graph of axes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..ir.graph import Graph, Node
from ..ir.relations import Axis, Freeze, Relations

_ROOT: Axis = ("", -1)
"""The made-up start of a breadth-first search from all sources at once."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """Channels of a weight that cannot be removed: the node and operator that hold them, and why."""

    tensor: str
    axis: int
    node: str
    op_type: str
    reason: str


def barriers_of(
    graph: Graph, relations: Relations, live: Collection[Axis], known: Collection[Axis]
) -> tuple[Barrier, ...]:
    """For each weight axis that cannot be pruned at all, the nearest reason."""
    weights = _weight_axes(graph, relations)
    stuck = [axis for axis in weights if axis not in live and axis in known]
    if not stuck:
        return ()
    nearest = _nearest_reasons(relations)
    found = []
    for name, number in stuck:
        freeze = nearest.get((name, number))
        if freeze is not None:
            node: Node | None = graph.nodes[freeze.node] if freeze.node >= 0 else None
            found.append(
                Barrier(
                    name.rpartition("@")[0] if name not in graph.constants else name,
                    number,
                    node.label if node else freeze.axis[0],
                    node.op_type if node else "",
                    freeze.reason,
                )
            )
    return tuple(found)


def _weight_axes(graph: Graph, relations: Relations) -> list[Axis]:
    """The channel axes of the constants that nodes sum over: those summed, and those tied to an output."""
    nodes = {item.node for item in relations.contracts}
    silent = {freeze.axis for freeze in relations.freezes if not freeze.reason}
    found = []
    for index in sorted(nodes):
        node = graph.nodes[index]
        for slot, name in enumerate(node.inputs):
            if name in graph.constants and len(graph.constants[name].shape) >= 2:
                axes = [(graph.use(node, slot), number) for number in range(len(graph.constants[name].shape))]
                found += [axis for axis in axes if axis not in silent and relations.length(axis) > 1]
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
