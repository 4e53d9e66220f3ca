"""Cuts: how a channel is cut off where no consumer has a weight that could be set to zero.

A product of two activations (Q K^T), a sum of squares over channels, a dynamic quantization's range: each is
indifferent to a channel that is zero, but has no weights of its own. There the channel is zeroed at its producers:

1. `OpRule.zeros` says for each operator which inputs must be zero on a channel for its output to be zero there.
2. From the contracted axis these facts are followed backwards until constants are reached; setting the removed slices
   of those constants to zero makes the channel zero where it is summed, which is the same as its absence.
3. An axis that several axes of the input become (a Reshape) needs a cut for each of them. A graph input, or an operator
   that does not keep zero at zero, has no cut: the axis is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..ir.graph import Graph, Node
from ..ir.ops import rule_for
from ..ir.relate import relations_of
from ..ir.relations import Axis, Relations
from ..ir.scope import View

Alternative = tuple[Axis, ...]


@dataclass(frozen=True)
class Cuts:
    """Finds cuts in a graph; answers are kept, so that every node is looked at once. `frozen` axes need no cut."""

    graph: Graph
    frozen: frozenset[Axis]
    uses: frozenset[str]
    _found: dict[Axis, frozenset[Axis] | None] = field(default_factory=dict)
    _alternatives: dict[Axis, tuple[Alternative, ...]] = field(default_factory=dict)
    _ties: dict[int, dict[Axis, frozenset[Axis]]] = field(default_factory=dict)

    def of(self, axis: Axis) -> frozenset[Axis] | None:
        """The axes of constants to zero so that a removed channel of `axis` is zero; None when that cannot be done."""
        for place in sorted(self._reachable(axis), key=self._position):
            self._found[place] = self._cut(place)
        return self._found[axis]

    def _reachable(self, axis: Axis) -> set[Axis]:
        seen: set[Axis] = set()
        todo = [axis]
        while todo:
            place = todo.pop()
            if place not in seen and place not in self._found:
                seen.add(place)
                todo += [other for alternative in self._sources(place) for other in alternative]
        return seen

    def _position(self, axis: Axis) -> int:
        node = self.graph.producer.get(axis[0])
        return -1 if node is None or axis[0] in self.uses else node.index

    def _cut(self, axis: Axis) -> frozenset[Axis] | None:
        if axis in self.frozen:
            return frozenset()
        if axis[0] in self.uses:
            return frozenset({axis})
        for alternative in self._sources(axis):
            parts = [self._found[other] for other in alternative]
            if all(part is not None for part in parts):
                return frozenset().union(*(part for part in parts if part is not None))
        return None

    def _sources(self, axis: Axis) -> tuple[Alternative, ...]:
        """Rules 1 and 3: alternatives of axes that must all be zero for `axis` to be."""
        if axis not in self._alternatives:
            ready = axis in self.frozen or axis[0] in self.uses or axis[0] not in self.graph.producer
            self._alternatives[axis] = () if ready else tuple(self._look(axis, self.graph.producer[axis[0]]))
        return self._alternatives[axis]

    def _look(self, axis: Axis, node: Node) -> Iterator[Alternative]:
        rule = rule_for(self.graph, node)
        if rule is None:
            return
        tied = self._tied(node).get(axis, frozenset())
        for slots in rule.zeros(View(self.graph, node)):
            given = [
                slot
                for slot in (range(len(node.inputs)) if slots == (-1,) else slots)
                if slot < len(node.inputs) and node.inputs[slot]
            ]
            names = [self.graph.use(node, slot) for slot in given]
            places = [[other for other in sorted(tied) if other[0] == name] for name in names]
            if given and all(places):
                yield tuple(place for some in places for place in some)

    def _tied(self, node: Node) -> dict[Axis, frozenset[Axis]]:
        """For every axis of a node's tensors the axes that its rule ties to it."""
        if node.index not in self._ties:
            table: dict[Axis, frozenset[Axis]] = {}
            for component in tied_axes(relations_of(self.graph, [node])):
                table.update(dict.fromkeys(component, component))
            self._ties[node.index] = table
        return self._ties[node.index]


def tied_axes(relations: Relations) -> list[frozenset[Axis]]:
    """The sets of axes that relations tie together, in whole or in part."""
    import networkx as nx

    graph: Any = nx.Graph()
    graph.add_edges_from((same.a, same.b) for same in relations.same)
    graph.add_edges_from((take.whole, take.part) for take in relations.takes)
    graph.add_edges_from((fold.whole, part) for fold in relations.folds for part in fold.parts)
    return [frozenset(component) for component in nx.connected_components(graph)]
