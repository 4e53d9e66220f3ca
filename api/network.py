"""A model as something that can be narrowed: its groups, which units go first, and what a choice of widths gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph, Shape
from onnx_netadapt.ir.relations import Axis
from onnx_netadapt.passes.barriers import weight_axes
from onnx_netadapt.passes.coupling import Branch, Coupling, Group, constant_tensors
from onnx_netadapt.passes.prune import Pruned, prune
from onnx_netadapt.passes.search import Choice
from onnx_netadapt.passes.search.common import without_depth
from onnx_netadapt.passes.sizes import Order, Sizes, kept_units
from onnx_netadapt.profiler import Granularity, Network
from onnx_netadapt.profiler.trace import node_id


def by_weight(coupling: Coupling) -> "Narrowing":
    """The graph with its units ordered by the norms of their weights: no data needed."""
    from onnx_netadapt.passes.importance import weight_order

    return Narrowing(coupling, {name: found.order for name, found in weight_order(coupling).items()})


LEVELS = 24
"""Widths of a group that are proposed when no target says which ones are worth it."""


@dataclass(frozen=True)
class Narrowing:
    """A coupled graph with a nested order of the units of every group.

    `curves` and `amounts` are the errors of every width by group, as `UnitOrder.error` and `UnitOrder.amount`; `least`
    are widths that no choice goes below (1 where it has none).
    """

    coupling: Coupling
    order: Order
    curves: Mapping[str, NDArray[np.float64]] | None = None
    amounts: Mapping[str, NDArray[np.float64]] | None = None
    least: Mapping[str, int] = field(default_factory=dict)

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

    def settled(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The widths as they are built: groups that layers between have gone from are equally wide (`Coupling`)."""
        return self.coupling.settled(widths, self.coupling.without({n for n, width in widths.items() if width == 0}))

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
        """The groups that may be narrowed, with the widths worth proposing; 0 where a branch may go whole."""
        chosen = selected_groups(self.coupling, exclude, only)
        depth, names = set(), {group.id for group in chosen}
        for branch in self.coupling.branches:
            # what is to stay as it is must neither go with a branch nor follow a group that does not
            if branch.inside <= names and all((a in names) == (b in names) for a, b in branch.tied):
                depth.add(branch.id)
        found = []
        for group in chosen:
            least = max(self.least.get(group.id, 1), int(np.ceil(group.units * min_keep)))
            widths = self._widths(group, granularity, least)
            if group.id in depth:
                widths = (0, *widths)
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
            edges={choice.id: choice.widths for choice in without_depth(choices)},
            feeds_for=lambda model: feeds,
            removable={branch.id: self._names(branch) for branch in self.coupling.branches},
        )

    def _names(self, branch: Branch) -> frozenset[str]:
        """The nodes that are not there without a branch, as the profiler names them."""
        # the lead runs in one with what writes x, and what comes behind y will take its place there
        gone = (branch.nodes | branch.idle) - branch.lead
        return frozenset(node_id(self.graph.model.graph.node[index]) for index in gone)


def channels_per_unit(coupling: Coupling, group: Group) -> int:
    """Channels of a unit where it is made: several for grouped convolutions, heads and pixel shuffles."""
    unit = coupling.first_unit[group.id]
    for axis in group.axes:
        if axis[0] in coupling.graph.constants or axis[0].rpartition("@")[0] in coupling.graph.constants:
            return max(1, int((coupling.layers[axis] == unit).sum()))
    return 1


def check_prunable(coupling: Coupling) -> None:
    """Raises InputError for a model without weights that sum over channels: no operator of it can be narrowed."""
    graph = coupling.graph
    if weight_axes(graph, coupling.relations, constant_tensors(graph)):
        return
    names = sorted({f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.nodes})
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    raise InputError(
        f"the model has no weights that sum over channels (it consists of {', '.join(names[:6])}{more}), "
        "so there is nothing to prune in it: this tool narrows convolutions, matrix products and recurrent layers"
    )


def means_note(plan: Mapping[str, Any]) -> list[str]:
    """What to say of a plan that removes channels over which the model takes means."""
    nodes = {entry["node"] for group in plan["groups"] for entry in group.get("means", ())}
    if not nodes:
        return []
    return [
        f"{len(nodes)} normalizations are over fewer channels now, which changes what they give for those left; "
        "the zeroing check takes their means over the kept channels in the original as well"
    ]


def why_whole(coupling: Coupling) -> str:
    """The first few reasons why nothing can be pruned, for a message."""
    reasons = sorted({f"{b.reason} ({b.op_type or 'model'})" for b in coupling.barriers})[:3]
    return f": {'; '.join(reasons)}" if reasons else ""


Ends = tuple[list[str], list[str]]


def node_names(coupling: Coupling) -> dict[str, Ends]:
    """For every group the nodes that make its channels with weights, and those that sum over them."""
    graph, contracted = coupling.graph, coupling.contracted()
    owners: dict[Axis, list[str]] = {}
    found: dict[str, Ends] = {}
    for group in coupling.groups:
        found[group.id] = ([], [])
        for axis in group.axes:
            owners.setdefault(axis, []).append(group.id)
    for index in sorted({item.node for item in coupling.relations.contracts}):
        node = graph.nodes[index]
        read = {graph.use(node, slot) for slot, name in enumerate(node.inputs) if name}
        for end, names in ((1, read), (0, node.outputs)):
            axes = {axis for name in names for axis in coupling.axes_of.get(name, ())}
            axes = axes & contracted if end else axes
            for name in {name for axis in axes for name in owners.get(axis, ())}:
                found[name][end].append(node.label)
    for branch in coupling.branches:
        if not coupling.by_id[branch.id].axes:
            own = branch.nodes | ({branch.total} if branch.plain else set())
            found[branch.id][0].extend(graph.nodes[index].label for index in sorted(own))
    return found


def selected_groups(coupling: Coupling, exclude: Sequence[str], only: Sequence[str]) -> list[Group]:
    """The groups that the patterns leave; InputError when a pattern matches nothing."""
    names = {name: {name, *made, *read} for name, (made, read) in node_names(coupling).items()}
    for option, patterns in (("--exclude", exclude), ("--only", only)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for known in names.values() for name in known):
                raise InputError(f"{option} {pattern}: no group or node has such a name; `inspect` lists them")

    def matches(group: Group, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names[group.id] for pattern in patterns)

    return [group for group in coupling.groups if (not only or matches(group, only)) and not matches(group, exclude)]
