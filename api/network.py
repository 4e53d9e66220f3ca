"""A model as something that can be narrowed: its groups, which units go first, and what a choice of widths gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph, Shape
from onnx_netadapt.passes.coupling import Coupling, Group
from onnx_netadapt.passes.prune import Pruned, prune
from onnx_netadapt.passes.search import Choice
from onnx_netadapt.passes.sizes import Order, Sizes, kept_units
from onnx_netadapt.profiler import Granularity, Network


def by_weight(coupling: Coupling) -> "Narrowing":
    """The graph with its units ordered by the norms of their weights: no data needed."""
    from onnx_netadapt.passes.importance import weight_order

    return Narrowing(coupling, {name: found.order for name, found in weight_order(coupling).items()})


LEVELS = 24
"""Widths of a group that are proposed when no target says which ones are worth it."""


@dataclass(frozen=True)
class Narrowing:
    """A coupled graph with a nested order of the units of every group."""

    coupling: Coupling
    order: Order
    curves: Mapping[str, NDArray[np.float64]] | None = None

    @property
    def graph(self) -> Graph:
        """The original."""
        return self.coupling.graph

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes by widths."""
        return Sizes(self.coupling, self.order)

    @cached_property
    def full(self) -> dict[str, int]:
        """Every group's original width."""
        return {group.id: group.units for group in self.coupling.groups}

    def kept(self, widths: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
        """The units kept at these widths."""
        return kept_units(self.order, {name: width for name, width in widths.items() if width < self.full[name]})

    def build(self, widths: Mapping[str, int]) -> onnx.ModelProto:
        """The network at these widths, its weights sliced and nothing else."""
        return self.pruned(widths).model

    def pruned(self, widths: Mapping[str, int]) -> Pruned:
        """The same, with its plan."""
        return prune(self.coupling, self.kept(widths))

    def shapes(self, widths: Mapping[str, int]) -> dict[str, Shape]:
        """Shapes of all tensors at these widths."""
        return self.sizes.shapes(widths)

    def choices(
        self,
        granularity: Granularity | None,
        min_keep: float,
        exclude: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> list[Choice]:
        """The groups that may be narrowed, with the widths worth proposing."""
        chosen = selected_groups(self.coupling, exclude, only)
        found = []
        for group in chosen:
            least = max(1, int(np.ceil(group.units * min_keep)))
            widths = self._widths(group, granularity, least)
            if len(widths) > 1:
                found.append(Choice(group.id, widths))
        return found

    def _widths(self, group: Group, granularity: Granularity | None, least: int) -> tuple[int, ...]:
        per_unit = channels_per_unit(self.coupling, group)
        widths = set(np.linspace(least, group.units, min(LEVELS, group.units - least + 1)).round().astype(int).tolist())
        if granularity is not None:
            edges = granularity.right_edges(group.units, least, channels_per_unit=per_unit)
            widths = {width for width in edges if width >= least}
        return tuple(sorted(widths | {group.units}))

    def measurable(self, choices: Sequence[Choice], feeds: Mapping[str, NDArray[Any]]) -> Network:
        """The form in which the profiler takes a network of changeable widths."""
        return Network(
            base=self.full,
            build=self.build,
            shapes=self.shapes,
            edges={choice.id: choice.widths for choice in choices},
            feeds_for=lambda model: feeds,
        )


def channels_per_unit(coupling: Coupling, group: Group) -> int:
    """Channels of a unit where it is made: several for grouped convolutions, heads and pixel shuffles."""
    unit = coupling.first_unit[group.id]
    for axis in group.axes:
        if axis[0] in coupling.graph.constants or axis[0].rpartition("@")[0] in coupling.graph.constants:
            return max(1, int((coupling.layers[axis] == unit).sum()))
    return 1


def node_names(coupling: Coupling, group: Group) -> tuple[list[str], list[str]]:
    """The nodes that make a group's channels with weights, and those that sum over them."""
    graph, contracted = coupling.graph, coupling.contracted()
    weighted = {item.node for item in coupling.relations.contracts}
    producers: list[str] = []
    consumers: list[str] = []
    axes = set(group.axes)
    for node in graph.nodes:
        if node.index not in weighted:
            continue
        read = {(graph.use(node, slot), axis) for slot, name in enumerate(node.inputs) if name for axis in range(8)}
        if read & axes & contracted:
            consumers.append(node.label)
        if any((name, axis) in axes for name in node.outputs for axis in range(8)):
            producers.append(node.label)
    return producers, consumers


def selected_groups(coupling: Coupling, exclude: Sequence[str], only: Sequence[str]) -> list[Group]:
    """The groups that the patterns leave; InputError when a pattern matches nothing."""
    names = {
        group.id: {group.id, *(n for part in node_names(coupling, group) for n in part)} for group in coupling.groups
    }
    for option, patterns in (("--exclude", exclude), ("--only", only)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for known in names.values() for name in known):
                raise InputError(f"{option} {pattern}: no group or node has such a name; `inspect` lists them")

    def matches(group: Group, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names[group.id] for pattern in patterns)

    return [group for group in coupling.groups if (not only or matches(group, only)) and not matches(group, exclude)]
