"""Masks: one graph that stands for every narrower network, its units switched off by inputs.

1. Removing a unit equals zeroing it where it is summed over. So every tensor that a node sums over with weights is
   multiplied by a mask in front of that node: the product of units that are kept is exact, whatever lies between.
   A depthwise convolution or an activation behind the mask would revive a channel by its bias; in front of the sum
   nothing comes after it.
2. A mask is an input of shape (batch, 1, .., positions, .., 1): every example of a batch carries its own network, so
   that one batch evaluates many proposals without a graph built or a session opened for any (the idea of NetAdaptV2's
   ordered dropout, there for training).
3. Masks save no arithmetic: a proposal costs as much as the network that is masked, the `base`, from which units that
   no proposal keeps may be cut out first. What proposals have in common is run once: see `sharing`.

Weights are those of the original: a network whose weights are refitted for its widths is another one (`recover`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..ir.graph import Graph, Node
from ..ir.ops.maps import linear_map
from ..ir.relations import Axis
from .coupling import Coupling, Kept
from .sizes import Order

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
Mask = NDArray[Any]


@dataclass(frozen=True, slots=True)
class MaskInput:
    """An input of the masked model: its name, the axis of the tensor that it multiplies, its rank and numpy type."""

    name: str
    axis: Axis
    rank: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class MaskedModel:
    """A model with a mask in front of every sum over units; `base` are the units that it has at all."""

    coupling: Coupling
    model: onnx.ModelProto
    inputs: tuple[MaskInput, ...]
    base: Kept = field(default_factory=dict)

    def feeds(self, kept: Sequence[Kept]) -> dict[str, Mask]:
        """The masks by input name, one row for each choice of kept units (groups not named stay whole)."""
        removed = [self.coupling.removed_units(choice) for choice in kept]
        absent = self.coupling.removed_units(self.base)
        found = {}
        for item in self.inputs:
            here = self.coupling.positions(item.axis, absent)
            rows = np.stack([self.coupling.positions(item.axis, mask)[here] for mask in removed])
            number = item.axis[1]
            found[item.name] = rows.reshape(len(kept), *(1,) * (number - 1), -1, *(1,) * (item.rank - number - 1))
            found[item.name] = found[item.name].astype(item.dtype)
        return found


class Prefixes:
    """The masks of nested widths: every group keeps the first units of its order.

    A row of widths has a number for each group, in the order of `coupling.groups`.
    """

    def __init__(self, model: MaskedModel, order: Order) -> None:
        coupling = model.coupling
        rank = np.full(len(coupling.unit_group) + 1, -1, dtype=np.int64)  # unit -1 is none: it is always kept
        for group in coupling.groups:
            rank[coupling.first_unit[group.id] + np.asarray(order[group.id])] = np.arange(group.units)
        self.inputs = model.inputs
        layers = [coupling.layers[item.axis] for item in model.inputs]
        self._ranks = [rank[rows] for rows in layers]
        self._groups = [np.where(rows >= 0, coupling.unit_group[rows], 0) for rows in layers]

    def feeds(self, widths: NDArray[np.int64]) -> dict[str, Mask]:
        """The masks by input name, one row for each row of `widths` (rows, groups)."""
        found = {}
        for item, ranks, groups in zip(self.inputs, self._ranks, self._groups, strict=True):
            kept = (ranks < widths[:, groups]).all(axis=1)  # (rows, positions)
            number = item.axis[1]
            shape = (len(widths), *(1,) * (number - 1), -1, *(1,) * (item.rank - number - 1))
            found[item.name] = kept.reshape(shape).astype(item.dtype)
        return found


@dataclass(frozen=True, slots=True)
class NotMasked:
    """Why a graph cannot be masked."""

    reason: str


Places = Mapping[Axis, Sequence[tuple[Node, int]]]
"""The axes that need a mask, with the nodes and slots that read them."""


def masked(coupling: Coupling) -> MaskedModel | NotMasked:
    """The masked model of a coupled graph; NotMasked with the reason where a sum cannot have a mask in front of it."""
    places = mask_places(coupling)
    return places if isinstance(places, NotMasked) else with_masks(coupling, places)


def mask_places(coupling: Coupling) -> Places | NotMasked:
    """Where masks stand (rule 1)."""
    graph = coupling.graph
    wanted: dict[Axis, list[tuple[Node, int]]] = {}
    for index in sorted({item.node for item in coupling.relations.contracts}):
        node = graph.nodes[index]
        if not _sums_units(coupling, index):
            continue
        places = _places(coupling, node)
        if isinstance(places, NotMasked):
            return places
        for axis, slot in places:
            problem = _problem(coupling, axis)
            if problem:
                return NotMasked(f"{node.label}: {problem}")
            wanted.setdefault(axis, []).append((node, slot))
    return wanted or NotMasked("no node sums over removable channels")


def _sums_units(coupling: Coupling, index: int) -> bool:
    """Whether a node sums over channels of some group."""
    axes = [item.axis for item in coupling.relations.contracts if item.node == index]
    return any((rows := coupling.layers.get(axis)) is not None and (rows >= 0).any() for axis in axes)


def _places(coupling: Coupling, node: Node) -> list[tuple[Axis, int]] | NotMasked:
    """The axes that need a mask in front of a node, and the slots that read them."""
    graph = coupling.graph
    map_ = linear_map(graph, node)
    if map_ is not None:
        return [((node.inputs[map_.data], map_.window.axis), map_.data)]
    summed = {item.axis for item in coupling.relations.contracts if item.node == node.index}
    slots = {name: slot for slot, name in enumerate(node.inputs) if name and name not in graph.constants}
    found = [(axis, slots[axis[0]]) for axis in sorted(summed) if axis[0] in slots and axis in coupling.layers]
    if not found:
        return NotMasked(f"{node.label}: {node.op_type} reads its channels in a way that no mask fits")
    return found


def _problem(coupling: Coupling, axis: Axis) -> str:
    """Why a tensor cannot be masked per example; "" when it can."""
    name, number = axis
    if coupling.graph.dtypes.get(name) not in FLOATS:
        return f"'{name}' is not of a float type"
    if number == 0 or not counts_examples(coupling, name):
        return f"the first axis of '{name}' does not count examples"
    return ""


def counts_examples(coupling: Coupling, name: str) -> bool:
    """Whether the first axis of a tensor is as long as that of every input, also when that changes."""
    graph = coupling.graph
    shape, ports = graph.shapes.get(name, ()), graph.inputs
    batches = {graph.shapes[port.name][0] for port in ports if graph.shapes[port.name]}
    if len(batches) != 1 or not shape or shape[0] not in batches:
        return False
    open_batch = all(port.dims and port.dims[0] is None for port in ports)
    return not open_batch or coupling.opened.shapes.get(name, shape)[0] == shape[0] + 1


def with_masks(
    coupling: Coupling, places: Places, base: Kept | None = None, model: onnx.ModelProto | None = None
) -> MaskedModel:
    """The model with masks at these places; `model` is the graph's with only the units of `base` (None: all)."""
    graph, base = coupling.graph, base or {}
    absent = coupling.removed_units(base)
    changed = onnx.ModelProto()
    changed.CopyFrom(graph.model if model is None else model)
    before: dict[int, list[onnx.NodeProto]] = {}
    inputs = []
    for number, (axis, readers) in enumerate(places.items()):
        item = _input(graph, axis, number)
        product = f"{item.name}_product"
        first = min(node.index for node, _ in readers)
        before.setdefault(first, []).append(helper.make_node("Mul", [axis[0], item.name], [product], name=product))
        for node, slot in readers:
            changed.graph.node[node.index].input[slot] = product
        length = int(coupling.positions(axis, absent).sum())
        dims = ["masks", *[1] * (axis[1] - 1), length, *[1] * (item.rank - axis[1] - 1)]
        kind = graph.dtypes[axis[0]]
        changed.graph.input.append(helper.make_tensor_value_info(item.name, kind, _fixed(graph, dims)))
        inputs.append(item)
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    for index, node in enumerate(nodes):
        changed.graph.node.extend([*before.get(index, ()), node])
    return MaskedModel(coupling, changed, tuple(inputs), base)


def _input(graph: Graph, axis: Axis, number: int) -> MaskInput:
    taken = graph.shapes.keys() | graph.constants.keys()
    name = f"mask_{number}"
    while name in taken or f"{name}_product" in taken:
        name += "_"
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(graph.dtypes[axis[0]]))
    return MaskInput(name, axis, len(graph.shapes[axis[0]]), dtype)


def _fixed(graph: Graph, dims: list[Any]) -> list[Any]:
    """The dimensions with the model's batch size where that is fixed."""
    sizes = [port.dims[0] for port in graph.inputs if port.dims and port.dims[0] is not None]
    return [sizes[0] if sizes else dims[0], *dims[1:]]
