"""Coupling: which channels must be removed together, found from the relations between tensor axes.

The axes of all tensors and their relations form a networkx graph; its connected components are solved by themselves.
Every position of every axis is an *atom*, and within a component (all arrays, no loop over channels):

1. Atoms that `Same` and `Take` tie together are one channel (connected components, scipy).
2. Freezing spreads through components, and through folds: a frozen product position freezes its coordinates, and a
   product of frozen coordinates is frozen.
3. A fold with one part left that is not frozen ties each product position to its coordinate on that part.
4. A fold with several live parts (heads x width, shuffle groups x channels) makes a product position *composite*: it
   goes when any of its coordinates goes. Two folds that disagree about the same channels lose their shortest part to
   freezing, which is always safe, and everything is solved again.
5. What is left is split into groups: channels that occupy the same axes equally often are units of one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Graph, Node
from ..ir.load import load
from ..ir.relate import relations_of
from ..ir.relations import Axis, Fold, Freeze, Relations, is_virtual
from .cuts import Cuts, tied_axes

Ids = NDArray[np.int64]
Widths = Mapping[str, int]
Kept = Mapping[str, NDArray[np.int64]]
Bound = dict[int, tuple[int, ...]]

_ROOT: Axis = ("", -1)
"""The made-up start of a breadth-first search from all sources at once."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are chosen together: `units` removable units, numbered from 0; `axes` are those they occupy."""

    id: str
    units: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Barrier:
    """Channels of a weight that cannot be removed: the node and operator that hold them, and why."""

    tensor: str
    axis: int
    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Coupling:
    """The groups of a graph, and for every axis which units its positions belong to.

    `layers[axis]` is an array (layers, positions) of unit numbers, -1 for none; a position goes when any of its units
    goes. `unit_group` and `unit_index` say which unit of which group a number is. `cut` are axes of constants that must
    be zeroed because the consumers of their channels have no weights (see `cuts`).
    """

    graph: Graph
    relations: Relations
    groups: tuple[Group, ...]
    layers: Mapping[Axis, Ids]
    unit_group: Ids
    unit_index: Ids
    barriers: tuple[Barrier, ...]
    cut: frozenset[Axis] = frozenset()

    @cached_property
    def by_id(self) -> Mapping[str, Group]:
        """Groups by their id."""
        return {group.id: group for group in self.groups}

    @cached_property
    def first_unit(self) -> Mapping[str, int]:
        """The number of each group's unit 0; the units of a group are numbered in a row."""
        starts = np.concatenate([[0], np.cumsum([group.units for group in self.groups])])
        return {group.id: int(start) for group, start in zip(self.groups, starts, strict=False)}

    def removed_units(self, kept: Kept) -> NDArray[np.bool_]:
        """The mask of removed units for the kept unit numbers of each group (groups not named stay whole)."""
        removed = np.zeros(len(self.unit_group), dtype=np.bool_)
        for name, units in kept.items():
            start = self.first_unit[name]
            removed[start : start + self.by_id[name].units] = True
            removed[start + np.asarray(units, dtype=np.int64)] = False
        return removed

    def positions(self, axis: Axis, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask of kept positions of an axis."""
        layers = self.layers.get(axis)
        if layers is None:
            return np.ones(self.relations.length(axis), dtype=np.bool_)
        # unit -1 reads the padding at the end, which is never removed
        return np.asarray(~np.append(removed, False)[layers].any(axis=0), dtype=np.bool_)

    @cached_property
    def opened(self) -> Graph:
        """The graph with every open dimension one longer: sizes that differ there depend on the input's shape."""
        shapes = {
            port.name: tuple(
                old + 1 if dim is None else dim
                for dim, old in zip(port.dims, self.graph.shapes[port.name], strict=True)
            )
            for port in self.graph.inputs
            if None in port.dims
        }
        return load(self.graph.model, shapes=shapes) if shapes else self.graph

    def contracted(self) -> frozenset[Axis]:
        """Axes that some node sums over."""
        return frozenset(item.axis for item in self.relations.contracts)


def couple(graph: Graph) -> Coupling:
    """The coupling of a graph; see the module's rules."""
    relations = relations_of(graph)
    cut = _cut_or_freeze(graph, relations)
    atoms = _Atoms(relations)
    roots, frozen, bound = atoms.solve()
    layers = {
        axis: rows for axis in atoms.offset if (rows := _expand(atoms.of(axis), roots, frozen, bound)) is not None
    }
    order, groups = _group(graph, layers)
    numbers = np.full(len(roots) + 1, -1, dtype=np.int64)
    numbers[order] = np.arange(len(order))
    layers = {axis: numbers[rows] for axis, rows in layers.items() if not is_virtual(axis)}
    unit_group = np.repeat(np.arange(len(groups)), [group.units for group in groups])
    starts = np.concatenate([[0], np.cumsum([group.units for group in groups])])
    unit_index = np.arange(len(unit_group)) - starts[unit_group] if len(groups) else np.zeros(0, dtype=np.int64)
    return Coupling(
        graph, relations, groups, layers, unit_group, unit_index, _barriers(graph, relations, layers, atoms), cut
    )


def constant_tensors(graph: Graph) -> frozenset[str]:
    """Names of tensors that depend on constants alone."""
    found = set(graph.constants) | set(graph.known)
    for node in graph.nodes:
        if node.inputs and not node.captures and all(name in found for name in node.inputs if name):
            found.update(node.outputs)
    return frozenset(found)


def _cut_or_freeze(graph: Graph, relations: Relations) -> frozenset[Axis]:
    """The constants to zero where channels are summed without weights (see `cuts`); where there are none, freezes."""
    constant = constant_tensors(graph)
    by_node: dict[int, list[Axis]] = {}
    for item in relations.contracts:
        by_node.setdefault(item.node, []).append(item.axis)
    uses = frozenset(use for name in graph.constants for _, _, use in graph.constant_uses(name))
    cuts = Cuts(graph, frozenset(freeze.axis for freeze in relations.freezes), uses)
    found: set[Axis] = set()
    for node, axes in by_node.items():
        for same in _same_letter(graph, node, axes):
            if any(axis[0] in constant or axis[0] in uses or axis in cuts.frozen for axis in same):
                continue
            cut = next((cut for axis in same if (cut := cuts.of(axis)) is not None), None)
            if cut is None:
                reason = f"{graph.nodes[node].op_type} sums over it without weights, and its inputs cannot be made zero"
                relations.freezes.extend(Freeze(axis, reason, node) for axis in same)
            else:
                found |= cut
    return frozenset(found)


def _same_letter(graph: Graph, node: int, axes: list[Axis]) -> list[list[Axis]]:
    """The contracted axes of a node, those of the same channels together."""
    if len(axes) == 1:
        return [axes]
    tied = tied_axes(relations_of(graph, [graph.nodes[node]]))
    groups = [[axis for axis in axes if axis in component] for component in tied]
    known = {axis for group in groups for axis in group}
    return [group for group in groups if group] + [[axis] for axis in axes if axis not in known]


class _Atoms:
    """The numbered positions of all axes, and the solution of their relations."""

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.offset: dict[Axis, int] = {}
        self.total = 0
        for axis in _mentioned_axes(relations):
            length = relations.length(axis)
            if axis not in self.offset and length > 1:
                self.offset[axis] = self.total
                self.total += length
        self.dead: set[Axis] = set()
        self.edges: list[tuple[Ids, Ids]] = []
        for same in relations.same:
            if same.a != same.b and same.a in self.offset and same.b in self.offset:
                self.edges.append((self.of(same.a), self.of(same.b)))
        for take in relations.takes:
            if take.whole in self.offset and take.part in self.offset:
                there = take.index >= 0
                self.edges.append((self.of(take.whole)[take.index[there]], self.of(take.part)[there]))
        self.folds = [fold for fold in relations.folds if fold.whole in self.offset]
        self.loose = list(self.folds)

    def of(self, axis: Axis) -> Ids:
        """The atom numbers of an axis."""
        start = self.offset[axis]
        return np.arange(start, start + self.relations.length(axis))

    def solve(self) -> tuple[Ids, NDArray[np.bool_], Bound]:
        """For every atom its channel; which channels are frozen; the coordinates of composite channels."""
        while True:
            roots = self._components()
            frozen = self._frozen(roots)
            if self._tie_single_parts(roots, frozen):
                continue
            bound = self._bind(roots, frozen)
            if bound is not None:
                return roots, frozen, bound

    def _components(self) -> Ids:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self.edges:
            return np.arange(self.total)
        a = np.concatenate([edge[0] for edge in self.edges])
        b = np.concatenate([edge[1] for edge in self.edges])
        matrix = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(self.total, self.total))
        labels = connected_components(matrix, directed=False)[1]
        first = np.full(labels.max() + 1, self.total, dtype=np.int64)
        np.minimum.at(first, labels, np.arange(self.total))
        roots: Ids = first[labels]
        return roots

    def _frozen(self, roots: Ids) -> NDArray[np.bool_]:
        frozen = np.zeros(self.total, dtype=np.bool_)
        for axis in [freeze.axis for freeze in self.relations.freezes] + list(self.dead):
            if axis in self.offset:
                frozen[roots[self.of(axis)]] = True
        while True:
            before = int(frozen.sum())
            for fold in self.folds:
                whole, parts = roots[self.of(fold.whole)], self._coordinates(fold, roots)
                frozen[parts[:, frozen[whole]].reshape(-1)] = True
                frozen[whole[frozen[parts].all(axis=0)]] = True
            if int(frozen.sum()) == before:
                return frozen

    def _coordinates(self, fold: Fold, roots: Ids) -> Ids:
        """The channels of each part at each position of the product: (parts, positions)."""
        grids = np.meshgrid(*(roots[self.of(part)] for part in fold.parts), indexing="ij")
        return np.stack([grid.reshape(-1) for grid in grids])

    def _live(self, fold: Fold, roots: Ids, frozen: NDArray[np.bool_]) -> list[Axis]:
        return [part for part in fold.parts if not frozen[roots[self.of(part)]].all()]

    def _tie_single_parts(self, roots: Ids, frozen: NDArray[np.bool_]) -> bool:
        """Rule 3; whether there was anything to tie."""
        singles = [fold for fold in self.loose if len(self._live(fold, roots, frozen)) == 1]
        for fold in singles:
            live = next(row for row in self._coordinates(fold, roots) if not frozen[row].all())
            self.edges.append((self.of(fold.whole), live))
            self.loose.remove(fold)
        return bool(singles)

    def _bind(self, roots: Ids, frozen: NDArray[np.bool_]) -> Bound | None:
        """Rule 4: the coordinates of each composite channel; None when folds disagreed and all must be solved again."""
        bound: Bound = {}
        owner: dict[int, Fold] = {}
        for fold in self.loose:
            if not self._live(fold, roots, frozen):
                continue
            columns = self._coordinates(fold, roots).T.tolist()
            for root, column in zip(roots[self.of(fold.whole)].tolist(), columns, strict=True):
                value = tuple(sorted(part for part in column if not frozen[part]))
                if frozen[root] or bound.setdefault(root, value) == value:
                    owner.setdefault(root, fold)
                    continue
                self._settle(fold, owner[root], roots, frozen)
                return None
        for root in bound:
            if _cyclic(root, bound):
                self._settle(owner[root], owner[root], roots, frozen)
                return None
        return bound

    def _settle(self, fold: Fold, other: Fold, roots: Ids, frozen: NDArray[np.bool_]) -> None:
        """Ties the parts of two folds of the very same channels to each other, or freezes the shortest live parts."""
        lengths = [[self.relations.length(part) for part in item.parts] for item in (fold, other)]
        twins = np.array_equal(roots[self.of(fold.whole)], roots[self.of(other.whole)])
        ties = [(self.of(a), self.of(b)) for a, b in zip(fold.parts, other.parts, strict=False)]
        if twins and lengths[0] == lengths[1] and any(not np.array_equal(roots[a], roots[b]) for a, b in ties):
            self.edges += ties
            return
        for item in (fold, other):
            self.dead.add(min(self._live(item, roots, frozen), key=self.relations.length))


def _cyclic(root: int, bound: Bound) -> bool:
    """Whether a composite channel is made of itself."""
    seen: set[int] = set()
    todo = list(bound[root])
    while todo:
        part = todo.pop()
        if part == root:
            return True
        if part not in seen:
            seen.add(part)
            todo += bound.get(part, ())
    return False


def _expand(atoms: Ids, roots: Ids, frozen: NDArray[np.bool_], bound: Bound) -> Ids | None:
    """The channels that each position of an axis consists of: (layers, positions), -1 for none; None: all frozen."""
    columns = [_leaves(root, bound) for root in np.where(frozen[roots[atoms]], -1, roots[atoms]).tolist()]
    depth = max(map(len, columns))
    rows = np.array([[*column, *[-1] * (depth - len(column))] for column in columns], dtype=np.int64).T
    return rows if (rows >= 0).any() else None


def _leaves(root: int, bound: Bound) -> list[int]:
    if root not in bound:
        return [root]
    return [leaf for part in bound[root] for leaf in _leaves(part, bound)]


def _group(graph: Graph, layers: Mapping[Axis, Ids]) -> tuple[Ids, tuple[Group, ...]]:
    """Rule 5: all channels in the order of their groups, and the groups."""
    real = {axis: rows for axis, rows in layers.items() if not is_virtual(axis)}
    places: dict[int, list[tuple[int, int]]] = {}
    names = list(real)
    for number, rows in enumerate(real.values()):
        channels, counts = np.unique(rows[rows >= 0], return_counts=True)
        for channel, count in zip(channels.tolist(), counts.tolist(), strict=True):
            places.setdefault(channel, []).append((number, count))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for channel, where in places.items():
        alike.setdefault(tuple(where), []).append(channel)
    sliced = _sliceable(graph)
    found = [
        (where, channels)
        for where, channels in alike.items()
        if len(channels) > 1 and any(names[number][0] in sliced for number, _ in where)
    ]
    groups = tuple(
        Group(f"g{place}", len(channels), tuple(names[number] for number, _ in where))
        for place, (where, channels) in enumerate(found)
    )
    order = np.array([channel for _, channels in found for channel in sorted(channels)], dtype=np.int64)
    return order, groups


def _sliceable(graph: Graph) -> frozenset[str]:
    """Analysis names of constants."""
    return frozenset(use for name in graph.constants for _, _, use in graph.constant_uses(name))


def _barriers(graph: Graph, relations: Relations, layers: Mapping[Axis, Ids], atoms: _Atoms) -> tuple[Barrier, ...]:
    """For each weight axis that cannot be pruned at all, the nearest reason."""
    weights = _weight_axes(graph, relations)
    stuck = [axis for axis in weights if axis not in layers and axis in atoms.offset]
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


def _mentioned_axes(relations: Relations) -> Iterable[Axis]:
    """All axes in the order in which nodes mention them."""
    for same in relations.same:
        yield same.a
        yield same.b
    for take in relations.takes:
        yield take.whole
        yield take.part
    for fold in relations.folds:
        yield fold.whole
        yield from fold.parts
    for freeze in relations.freezes:
        yield freeze.axis
