"""Consumers: the nodes that sum over a group's units with constant weights, so that the weights can be refitted.

1. A consumer reads columns X of its input and gives Y = W X + b (`ir.ops.maps`). Removing units removes columns.
2. Depthwise convolutions and other per-channel operators are no consumers: the coupling carries the units through
   them to the next node that sums.
3. Weights that several nodes share, or that are computed from other constants, are left as they are sliced; a note
   says so.
4. A bias is the node's own, or a constant added right behind it; a batch normalization behind it has one as well: the
   mean that it subtracts.
5. The Gram matrix of more than COLUMN_LIMIT columns costs too much. Such a kernel is fitted channel by channel: its
   taps count as further outputs, which assumes that a removed channel is the same mix of kept ones under every tap.
   What has no taps and more than LARGEST_GRAM columns (a Gemm behind a large Flatten) is left as it is sliced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Graph, Node, Shape
from ..ir.ops.maps import Floats, LinearMap, Window, added_constant, added_stream, linear_map, subtracted_mean
from .atoms import Ids
from .coupling import Coupling

COLUMN_LIMIT = 2500
LARGEST_GRAM = 6000
Mask = NDArray[np.bool_]
Key = tuple[str, Window]
"""What a Gram matrix is of: the tensor, and the window through which it is read."""


@dataclass(frozen=True, slots=True)
class Bias:
    """A constant that shifts a product's outputs (rule 4): its name, or "" where there is none to change.

    Adding 1 to it adds `gain` to `output`, or would add it there (`inside` is False) as what comes next sees it.
    """

    name: str
    output: str
    gain: float = 1.0
    inside: bool = True


@dataclass(frozen=True, slots=True)
class Consumer:
    """A node whose weight can be refitted: it reads `channels` channels of `data`; `by_channel` is rule 5."""

    node: Node
    map: LinearMap
    data: str
    weight: str
    channels: int
    by_channel: bool
    bias: Bias

    @property
    def output(self) -> str:
        """The tensor that it makes, its bias included where that is part of it."""
        return self.bias.output

    @property
    def window(self) -> Window:
        """How its columns are read."""
        window = self.map.window
        return replace(window, kernel=()) if self.by_channel else window

    @property
    def key(self) -> Key:
        """What its Gram matrix is known by; consumers that read the same columns have the same."""
        return self.data, self.window

    @property
    def taps(self) -> int:
        """Columns per channel."""
        return self.window.taps

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.channels // self.window.groups * self.taps

    def matrix(self, weight: Floats, groups: int) -> Floats:
        """The weight as (groups, outputs, columns); by channel the taps of a kernel are outputs (rule 5)."""
        found = self.map.matrix(weight, groups)
        if not self.by_channel:
            return found
        blocks, outputs, columns = found.shape
        taps = self.map.window.taps
        return (
            found.reshape(blocks, outputs, columns // taps, taps)
            .transpose(0, 1, 3, 2)
            .reshape(blocks, -1, columns // taps)
        )

    def weight_of(self, matrix: Floats, shape: Shape) -> Floats:
        """The weight of a shape for a matrix of this form."""
        if self.by_channel:
            taps = self.map.window.taps
            blocks, rows, columns = matrix.shape
            split = matrix.reshape(blocks, rows // taps, taps, columns).transpose(0, 1, 3, 2)
            matrix = split.reshape(blocks, rows // taps, columns * taps)
        return self.map.weight_of(matrix, shape)

    def kept_columns(self, channels: Mask) -> Mask:
        """The kept columns (groups, columns) for the kept positions of the channel axis."""
        return np.repeat(channels.reshape(self.window.groups, -1), self.taps, axis=1)


@dataclass(frozen=True, slots=True)
class Consumers:
    """All consumers in the order of the graph, those of each group, and notes about weights that cannot be refitted."""

    all: tuple[Consumer, ...]
    by_group: Mapping[str, tuple[Consumer, ...]]
    notes: tuple[str, ...]


def consumers_of(coupling: Coupling) -> Consumers:
    """The consumers of a coupling's graph; see the module's rules."""
    graph = coupling.graph
    found: list[Consumer] = []
    notes: list[str] = []
    for index in sorted({item.node for item in coupling.relations.contracts}):
        node = graph.nodes[index]
        map_ = linear_map(graph, node)
        if map_ is None:
            if _sums_units(coupling, index):
                notes.append(f"{node.label}: its weights are not constants of a plain {node.op_type}; left as sliced")
            continue
        consumer = _consumer(graph, node, map_)
        if consumer is None or map_.window.groups == consumer.channels > 1:
            continue  # rule 2
        if not _is_own(graph, consumer.weight):
            notes.append(f"{node.label}: its weight is shared with other nodes; left as sliced")
            continue
        if consumer.columns > LARGEST_GRAM:
            notes.append(f"{node.label}: more than {LARGEST_GRAM} columns; left as sliced")
            continue
        if consumer.by_channel:
            notes.append(f"{node.label}: more than {COLUMN_LIMIT} columns; fitted channel by channel")
        found.append(consumer)
    by_group: dict[str, list[Consumer]] = {group.id: [] for group in coupling.groups}
    for consumer in found:
        for number in np.unique(coupling.unit_group[(units := unit_layers(coupling, consumer))[units >= 0]]).tolist():
            by_group[coupling.groups[number].id].append(consumer)
    return Consumers(tuple(found), {name: tuple(items) for name, items in by_group.items()}, tuple(notes))


def summed_branch(graph: Graph, consumer: Consumer) -> tuple[str, str] | None:
    """The tensor that brings a consumer's output to a sum with a stream of the same shape, and that sum; or None.

    A batch normalization may stand between the two. Only tensors with channels on axis 1 are looked at.
    """
    if consumer.map.out_axis != 1:
        return None
    name = consumer.output
    users = graph.users.get(name, ())
    if len(users) == 1 and subtracted_mean(graph, users[0][0], name):
        name = users[0][0].outputs[0]
        users = graph.users.get(name, ())
    if len(users) != 1 or added_stream(graph, users[0][0], name) is None:
        return None
    return name, users[0][0].outputs[0]


def has_depthwise(graph: Graph) -> bool:
    """Whether some convolution has as many groups as channels."""
    maps = ((node, linear_map(graph, node)) for node in graph.nodes)
    return any(
        map_.window.groups == graph.shapes[node.inputs[map_.data]][map_.window.axis] > 1
        for node, map_ in maps
        if map_ is not None
    )


def unit_layers(coupling: Coupling, consumer: Consumer) -> Ids:
    """The units (layers, channels) at each position of a consumer's channel axis, -1 for none."""
    none = np.full((1, consumer.channels), -1, dtype=np.int64)
    return coupling.layers.get((consumer.data, consumer.map.window.axis), none)


def _consumer(graph: Graph, node: Node, map_: LinearMap) -> Consumer | None:
    weight = node.inputs[map_.weight]
    if graph.constants[weight].array().dtype.kind != "f":
        return None
    channels = graph.shapes[node.inputs[map_.data]][map_.window.axis]
    wide = channels // map_.window.groups * map_.window.taps > COLUMN_LIMIT and map_.window.taps > 1
    return Consumer(node, map_, node.inputs[map_.data], weight, channels, wide, _bias(graph, node, map_))


def _bias(graph: Graph, node: Node, map_: LinearMap) -> Bias:
    """Rule 4."""
    out = node.outputs[0]
    none = Bias("", out)
    users = graph.users.get(out, ())
    if map_.bias >= 0:
        found = Bias(node.inputs[map_.bias], out, map_.offset)
        fits = bool(map_.window.kernel) or _is_along(graph, out, map_, found.name)
    elif len(users) != 1 or out in graph.captured() or out in {port.name for port in graph.outputs}:
        return none
    elif name := added_constant(graph, users[0][0], out):
        found, fits = Bias(name, users[0][0].outputs[0]), _is_along(graph, out, map_, name)
    elif name := subtracted_mean(graph, users[0][0], out):
        found, fits = Bias(name, out, -1.0, inside=False), map_.out_axis == 1
    else:
        return none
    return found if fits and found.gain and _is_own(graph, found.name) else none


def _is_along(graph: Graph, output: str, map_: LinearMap, constant: str) -> bool:
    """Whether a broadcast constant has one number for each output channel, laid along the channel axis."""
    out, shape = graph.shapes[output], graph.shapes[constant]
    place = map_.out_axis - (len(out) - len(shape))
    return 0 <= place < len(shape) and shape[place] == out[map_.out_axis] == int(np.prod(shape, dtype=np.int64))


def _is_own(graph: Graph, name: str) -> bool:
    """Whether a tensor is a constant that one node alone reads."""
    return name in graph.constants and len(graph.users.get(name, ())) == 1 and name not in graph.captured()


def _sums_units(coupling: Coupling, index: int) -> bool:
    return any(item.node == index and item.axis in coupling.layers for item in coupling.relations.contracts)
