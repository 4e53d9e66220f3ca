"""Sizes of a pruned network by widths, without building it: shapes, multiply-accumulates, parameters, bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ..ir.graph import Graph, Node, Shape
from ..ir.ops import View, known_nodes, rule_for
from ..ir.relations import Axis
from .branches import freed_constants, nodes_of, touched
from .coupling import Branch, Coupling

GONE: Shape = (0,)
"""The shape of a tensor that is not there."""

Order = Mapping[str, NDArray[np.int64]]
"""For each group its units from the last to be removed to the first."""


def kept_units(order: Order, widths: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """The units to keep for the given widths: the first of each group's order, sorted."""
    return {name: np.sort(order[name][:width]) for name, width in widths.items()}


class Sizes:
    """Sizes by widths for one nested order of every group; lengths of axes are remembered."""

    def __init__(self, coupling: Coupling, order: Order) -> None:
        self.coupling = coupling
        self._rank = np.full(len(coupling.unit_group) + 1, -1, dtype=np.int64)
        for group in coupling.groups:
            start = coupling.first_unit[group.id]
            self._rank[start + np.asarray(order[group.id])] = np.arange(group.units)
        self._names = [group.id for group in coupling.groups]
        self._full = {group.id: group.units for group in coupling.groups}
        self._axes = {axis: self._parts(rows) for axis, rows in coupling.layers.items()}
        self._gone: dict[tuple[str, ...], dict[str, Shape]] = {}
        self._lengths: dict[tuple[Axis, tuple[int, ...]], int] = {}
        self._counted: dict[tuple[Any, ...], int] = {}
        self._constant_uses = [
            (use, constant.shape, constant.proto.data_type)
            for name, constant in coupling.graph.constants.items()
            for _, _, use in list(coupling.graph.constant_uses(name))[:1]
        ]
        skipped = known_nodes(coupling.graph)
        self._nodes = [node for node in coupling.graph.nodes if node.index not in skipped]

    def _parts(self, rows: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]]:
        """Groups on an axis; for each layer and position the place of its group among them, and the unit's rank."""
        groups = np.where(rows >= 0, self.coupling.unit_group[rows], -1)
        present = np.unique(groups[groups >= 0])
        place = np.searchsorted(present, groups).clip(0, len(present) - 1)
        return tuple(self._names[number] for number in present), place, np.where(rows >= 0, self._rank[rows], -1)

    def length(self, axis: Axis, widths: Mapping[str, int]) -> int:
        """The number of kept positions of an axis."""
        names, place, rank = self._axes[axis]
        key = (axis, tuple(widths.get(name, self._full[name]) for name in names))
        found = self._lengths.get(key)
        if found is None:
            found = int((rank < np.array(key[1])[place]).all(axis=0).sum())
            self._lengths[key] = found
        return found

    def shapes(self, widths: Mapping[str, int]) -> dict[str, Shape]:
        """The shape of every tensor, constants by their analysis names and by their own; what went is GONE."""
        return self._shapes(self._axes, widths)

    def _shapes(self, axes: Iterable[Axis], widths: Mapping[str, int]) -> dict[str, Shape]:
        """The same with these axes alone at their new lengths."""
        gone = self.coupling.without({name for name, width in widths.items() if width == 0})
        changed = self._changed(axes, self.coupling.settled(widths, gone) if gone else widths)
        return dict(self.coupling.graph.shapes) | changed | self._vanished(gone)

    def _vanished(self, branches: tuple[Branch, ...]) -> dict[str, Shape]:
        """The tensors of branches that have gone."""
        key = tuple(branch.id for branch in branches)
        if key not in self._gone:
            graph, nodes = self.coupling.graph, nodes_of(branches)
            names = [name for index in nodes for name in graph.nodes[index].outputs]
            for name in freed_constants(graph, touched(branches)):
                names += [name, *(use for _, _, use in graph.constant_uses(name))]
            self._gone[key] = dict.fromkeys(names, GONE)
        return self._gone[key]

    def _changed(self, axes: Iterable[Axis], widths: Mapping[str, int]) -> dict[str, Shape]:
        """The new shapes of the tensors that have these axes."""
        shapes = self.coupling.graph.shapes
        found: dict[str, list[int]] = {}
        for name, number in axes:
            base = name if name in shapes else name.rpartition("@")[0]
            found.setdefault(name, list(shapes[base]))[number] = self.length((name, number), widths)
        changed = {name: tuple(shape) for name, shape in found.items()}
        return changed | {name.rpartition("@")[0]: shape for name, shape in changed.items() if name not in shapes}

    def held(self, name: str) -> tuple[int, int]:
        """Parameters and multiply-accumulates that go when a whole group goes and all others stay."""
        shapes = self.coupling.graph.shapes
        changed = self._changed(self.coupling.by_id[name].axes, {name: 0})
        params = sum(
            int(np.prod(shape)) - int(np.prod(changed[use]))
            for use in changed
            if (shape := self._floats.get(use)) is not None
        )
        nodes = {index: node for use in changed for index, node in self._touching.get(use, {}).items()}
        macs = 0
        for node in nodes.values():
            near = {name: shapes[name] for name in (*node.inputs, *node.outputs) if name in shapes}
            macs += self._node_macs(node, near) - self._node_macs(node, near | changed)
        return params, macs

    @cached_property
    def _floats(self) -> dict[str, Shape]:
        """Shapes of the constants that count as parameters, by analysis name."""
        return {use: shape for use, shape, dtype in self._constant_uses if dtype != TensorProto.INT64}

    @cached_property
    def _touching(self) -> dict[str, dict[int, Node]]:
        """For each tensor (by analysis name) the nodes that read or make it, by index."""
        found: dict[str, dict[int, Node]] = {}
        for node in self._nodes:
            for use in (*(self.coupling.graph.use(node, slot) for slot in _given(node)), *node.outputs):
                found.setdefault(use, {})[node.index] = node
        return found

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates of one run at the graph's input shapes."""
        return sum(self.node_macs(self._shapes(self._weighing, widths)).values())

    def node_macs(self, shapes: Mapping[str, Shape]) -> dict[int, int]:
        """Multiply-accumulates of every node that has any, by node index."""
        counts = {node.index: self._node_macs(node, shapes) for node in self._computing}
        return {index: count for index, count in counts.items() if count}

    def _node_macs(self, node: Node, shapes: Mapping[str, Shape]) -> int:
        """Those of one node, remembered by the shapes around it: two networks of a search differ in few."""
        ins = [shapes.get(use, shapes.get(name, ())) for use, name in self._read[node.index]]
        outs = [shapes.get(name, ()) for name in node.outputs]
        key = (node.index, *ins, *outs)
        if key not in self._counted:
            self._counted[key] = _macs_of(self.coupling.graph, node, ins, outs, shapes)
        return self._counted[key]

    @cached_property
    def _read(self) -> dict[int, list[tuple[str, str]]]:
        """For each node, by index, the analysis name and the name of every input."""
        use = self.coupling.graph.use
        return {node.index: [(use(node, slot), name) for slot, name in enumerate(node.inputs)] for node in self._nodes}

    @cached_property
    def _computing(self) -> list[Node]:
        """The nodes that have multiply-accumulates."""
        return [node for node in self._nodes if self._node_macs(node, self.coupling.graph.shapes)]

    @cached_property
    def _weighing(self) -> list[Axis]:
        """The axes of the tensors that those nodes read and make."""
        near = {name for node in self._computing for pair in (node.outputs, *self._read[node.index]) for name in pair}
        return [axis for axis in self._axes if axis[0] in near or axis[0].rpartition("@")[0] in near]

    def params(self, widths: Mapping[str, int]) -> int:
        """Elements of all float constants."""
        shapes = self.shapes(widths)
        return sum(int(np.prod(shapes.get(use, shape))) for use, shape in self._floats.items())

    def weight_bytes(self, widths: Mapping[str, int]) -> int:
        """Bytes of all constants."""
        from onnx import helper

        shapes = self.shapes(widths)
        return sum(
            int(np.prod(shapes.get(use, shape))) * helper.tensor_dtype_to_np_dtype(dtype).itemsize
            for use, shape, dtype in self._constant_uses
        )


def _given(node: Node) -> list[int]:
    return [slot for slot, name in enumerate(node.inputs) if name]


def _macs_of(graph: Graph, node: Node, ins: list[Shape], outs: list[Shape], shapes: Mapping[str, Shape]) -> int:
    rule: Any = rule_for(graph, node)
    if rule is None:
        return 0
    if any(ins[slot] == GONE for slot, name in enumerate(node.inputs) if name in graph.constants and name in shapes):
        return 0  # an Identity stands there now
    try:
        return int(rule.macs(View(graph, node), ins, outs))
    except (IndexError, KeyError, TypeError, ValueError):
        return 0
