"""Coupling: which channels must be removed together, found from the relations between tensor axes.

The solver (`atoms`) says which positions of axes are one channel and which are frozen; what is left is split into
groups: channels that occupy the same axes equally often are units of one group. The graph of axes (networkx) tells why
the rest is held (`barriers`), and where to set zeros when no weight sums over a channel (`cuts`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Graph
from ..ir.load import reload
from ..ir.relate import relations_of
from ..ir.relations import Axis, Freeze, Relations, is_virtual
from .atoms import Atoms, Ids, expand
from .barriers import Barrier, barriers_of
from .cuts import Cuts, tied_axes

GOES = "(--renormalize may let it go)"
"""Said of channels that are held by a mean over them alone."""

Widths = Mapping[str, int]
Kept = Mapping[str, NDArray[np.int64]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are chosen together: `units` removable units, numbered from 0; `axes` are those they occupy."""

    id: str
    units: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch y = x + f(x), or a plain layer, that can go whole, which leaves y = x (see `branches`).

    It goes when group `id` keeps no unit. `nodes` make `output`, f(x), and nothing else; node `total` adds it to
    `shortcut`, x. Setting the constants' axes `zeros` to zero, throughout, makes f(x) zero; `axis` is its channel axis.
    `inside` are the groups that lie wholly in it. `again`: the nodes (before x, behind y) of one activation, of which
    the second has nothing left to do when y = x.

    Of a `plain` layer (`plain_layers`), y = f(x), `total` is the last node, and `output` is y; nothing is zero. `tied`
    are pairs of groups, of x and of y, that keep the same units while the layer is gone. `lead` are the nodes before
    its first product: the activation of what writes x, in the place of which that behind y stays.
    """

    id: str
    nodes: frozenset[int]
    total: int
    shortcut: str
    output: str
    axis: int
    zeros: tuple[Axis, ...]
    inside: frozenset[str]
    again: tuple[int, int] | None = None
    plain: bool = False
    tied: tuple[tuple[str, str], ...] = ()
    lead: frozenset[int] = frozenset()

    @property
    def idle(self) -> frozenset[int]:
        """The nodes that become Identities when it goes."""
        return frozenset((self.total, *(self.again or ())[1:]))


@dataclass(frozen=True)
class Coupling:
    """The groups of a graph, and for every axis which units its positions belong to.

    `layers[axis]` is an array (layers, positions) of unit numbers, -1 for none; a position goes when any of its units
    goes. `unit_group` and `unit_index` say which unit of which group a number is. `cut` are axes of constants that must
    be zeroed because the consumers of their channels have no weights (see `cuts`). `branches` are those that may go
    whole: their groups may keep no unit at all.
    """

    graph: Graph
    relations: Relations
    groups: tuple[Group, ...]
    layers: Mapping[Axis, Ids]
    unit_group: Ids
    unit_index: Ids
    barriers: tuple[Barrier, ...]
    cut: frozenset[Axis] = frozenset()
    branches: tuple[Branch, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Group]:
        """Groups by their id."""
        return {group.id: group for group in self.groups}

    @cached_property
    def axes_of(self) -> Mapping[str, tuple[Axis, ...]]:
        """The axes of each tensor (by analysis name) on which something can be removed."""
        found: dict[str, tuple[Axis, ...]] = {}
        for axis in self.layers:
            found[axis[0]] = (*found.get(axis[0], ()), axis)
        return found

    @cached_property
    def first_unit(self) -> Mapping[str, int]:
        """The number of each group's unit 0; the units of a group are numbered in a row."""
        starts = np.concatenate([[0], np.cumsum([group.units for group in self.groups])])
        return {group.id: int(start) for group, start in zip(self.groups, starts, strict=False)}

    def removed_units(self, kept: Kept) -> NDArray[np.bool_]:
        """The mask of removed units for the kept unit numbers of each group (groups not named stay whole)."""
        removed = np.zeros(len(self.unit_group), dtype=np.bool_)
        for name, units in self.settled(kept, self.gone(kept)).items():
            start = self.first_unit[name]
            removed[start : start + self.by_id[name].units] = True
            removed[start + np.asarray(units, dtype=np.int64)] = False
        return removed

    def gone(self, kept: Kept) -> tuple[Branch, ...]:
        """The branches that go: those whose group keeps no unit."""
        return self.without({name for name, units in kept.items() if not len(units)})

    def without(self, ids: Collection[str]) -> tuple[Branch, ...]:
        """The branches that go with groups that keep no unit; one within another that goes is part of that."""
        found = [branch for branch in self.branches if branch.id in ids]
        return tuple(branch for branch in found if not any(branch.total in other.nodes for other in found))

    def settled(self, chosen: Mapping[str, T], gone: Sequence[Branch]) -> dict[str, T]:
        """What is chosen by group, where those that are tied by layers that have gone follow the last of them.

        The last, because x stands in for y then: the readers of y say which channels matter.
        """
        found = dict(chosen)
        for name, last in self._followers(gone).items():
            found.pop(name, None)
            if last in chosen:
                found[name] = chosen[last]
        return found

    def _followers(self, gone: Sequence[Branch]) -> dict[str, str]:
        """By group the one that it follows."""
        tied: dict[str, set[str]] = {}
        for pair in (pair for branch in gone for pair in branch.tied):
            together = set(pair).union(*(tied.get(name, ()) for name in pair))
            tied |= dict.fromkeys(together, together)
        lasts = {name: max(together, key=lambda other: self.first_unit[other]) for name, together in tied.items()}
        return {name: last for name, last in lasts.items() if name != last}

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
        return reload(self.graph, shapes) if shapes else self.graph

    def contracted(self) -> frozenset[Axis]:
        """Axes that some node sums over."""
        return frozenset(item.axis for item in self.relations.contracts)


def couple(graph: Graph, *, renormalize: bool = False) -> Coupling:
    """The coupling of a graph; see the module's rules.

    `renormalize` lets go of channels that LayerNormalization and its like (also spelled out, as ReduceMean) take a mean
    over: in the pruned model the mean is that of the kept channels (decision 0005).
    """
    relations = relations_of(graph)
    if not renormalize:
        relations.freezes.extend(Freeze(item.axis, f"{item.reason} {GOES}", item.node) for item in relations.means)
        relations.means.clear()
    cut = _cut_or_freeze(graph, relations)
    atoms = Atoms(relations)
    roots, frozen, bound = atoms.solve()
    layers = {axis: rows for axis in atoms.offset if (rows := expand(atoms.of(axis), roots, frozen, bound)) is not None}
    order, groups = _group(graph, layers)
    numbers = np.full(len(roots) + 1, -1, dtype=np.int64)
    numbers[order] = np.arange(len(order))
    unfrozen = layers
    numbered = {axis: numbers[rows] for axis, rows in layers.items() if not is_virtual(axis)}
    layers = {axis: rows for axis, rows in numbered.items() if (rows >= 0).any()}
    unit_group = np.repeat(np.arange(len(groups)), [group.units for group in groups])
    starts = np.concatenate([[0], np.cumsum([group.units for group in groups])])
    unit_index = np.arange(len(unit_group)) - starts[unit_group] if len(groups) else np.zeros(0, dtype=np.int64)
    return Coupling(
        graph,
        relations,
        groups,
        layers,
        unit_group,
        unit_index,
        barriers_of(graph, relations, layers, atoms.offset, unfrozen, constant_tensors(graph)),
        cut,
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


def _group(graph: Graph, layers: Mapping[Axis, Ids]) -> tuple[Ids, tuple[Group, ...]]:
    """All channels in the order of their groups, and the groups."""
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
