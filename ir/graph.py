"""The IR: a read-only view of an ONNX model that keeps the original ModelProto beside it.

Rules of the room:
1. A `Graph` never changes; whatever transforms a model writes a new ModelProto by patching a copy of the original.
2. Everything irregular about ONNX is made regular here: the default domain is "", an absent optional input is "",
   attributes are plain Python values, constants are found wherever the exporter put them.
3. A vector that several nodes use is, for analysis, one tensor per use when it is small (`Graph.use`): exporters merge
   equal vectors (all zero biases become one), which must not tie their users together. Matrices that layers share stay
   one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from .external import Lazy, Weights

Shape = tuple[int, ...]

SHARED_COPY_LIMIT = 4096
"""Elements up to which a vector with several users is copied for each of them when they are pruned differently."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call; `index` is its place in the original node list, `captures` what its sub-graphs use."""

    index: int
    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    captures: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name for messages: the node's own, else its first output's."""
        return self.name or (self.outputs[0] if self.outputs else f"node {self.index}")


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output: dims are ints, or None where the model leaves them open; dtype is ONNX's number."""

    name: str
    dims: tuple[int | None, ...]
    dtype: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant tensor of the model: an initializer, or the value of a Constant node (`node` is its index).

    `lazy` is its value where the model holds a placeholder only (see `external`).
    """

    name: str
    proto: onnx.TensorProto
    node: int | None
    lazy: Lazy | None = None

    @property
    def shape(self) -> Shape:
        """The tensor's shape."""
        return tuple(self.proto.dims)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_small_vector(self) -> bool:
        """Whether a copy for each user is cheap and natural: a bias or a scale, not a matrix that layers share."""
        return self.size <= SHARED_COPY_LIMIT and sum(dim > 1 for dim in self.shape) <= 1

    def array(self) -> np.ndarray[Any, Any]:
        """The tensor's value; decoded at each call, so that a large model is not held twice."""
        return numpy_helper.to_array(self.proto) if self.lazy is None else self.lazy.make()


@dataclass(frozen=True)
class Graph:
    """A loaded model; see `onnx_netadapt.ir.load`.

    `shapes` are the concrete shapes of all tensors at the input shapes the graph was loaded with, `known` the values of
    small tensors that follow from shapes alone (shape arithmetic), `dtypes` ONNX element types by tensor name. `file`
    is the model file where large weights were left on the disk, and `model` has placeholders for them.
    """

    model: onnx.ModelProto
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, int]
    known: Mapping[str, np.ndarray[Any, Any]]
    opsets: Mapping[str, int]
    notes: tuple[str, ...] = ()
    file: Path | None = None

    @property
    def weights(self) -> Weights:
        """The values of the model's placeholders."""
        return {name: constant.lazy for name, constant in self.constants.items() if constant.lazy is not None}

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def users(self) -> Mapping[str, Sequence[tuple[Node, int]]]:
        """For each tensor the (node, input slot) pairs that read it, sub-graph captures not counted."""
        table: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for slot, name in enumerate(node.inputs):
                if name:
                    table.setdefault(name, []).append((node, slot))
        return table

    def use(self, node: Node, slot: int) -> str:
        """The analysis name of an input: the tensor's own, or one of its own for each use of a small shared vector."""
        name = node.inputs[slot]
        constant = self.constants.get(name)
        if constant is None or len(self.users[name]) == 1 or not constant.is_small_vector:
            return name
        return f"{name}@{node.index}.{slot}"

    def constant_uses(self, name: str) -> Iterator[tuple[Node, int, str]]:
        """Each (node, slot, analysis name) at which a constant is read."""
        for node, slot in self.users.get(name, ()):
            yield node, slot, self.use(node, slot)

    def captured(self) -> frozenset[str]:
        """Outer tensors that bodies of If, Loop and Scan read."""
        return self._captured

    @cached_property
    def _captured(self) -> frozenset[str]:
        return frozenset(name for node in self.nodes for name in node.captures)


def attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as plain values (bytes decoded where they are text)."""
    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        found[attribute.name] = value
    return found


def domain_of(proto: onnx.NodeProto) -> str:
    """The operator's domain, with the default one always spelled ""."""
    return "" if proto.domain == "ai.onnx" else proto.domain


def captured_names(proto: onnx.NodeProto) -> tuple[str, ...]:
    """Names of outer tensors that the sub-graphs of a node read."""
    names: set[str] = set()
    for attribute in proto.attribute:
        for body in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            names |= _outer_names(body)
    return tuple(sorted(names))


def _outer_names(body: onnx.GraphProto) -> set[str]:
    inner = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    read: set[str] = set()
    for node in body.node:
        read |= {name for name in node.input if name} | set(captured_names(node))
        inner |= set(node.output)
    read |= {value.name for value in body.output}
    return read - inner


def node_view(index: int, proto: onnx.NodeProto) -> Node:
    """The IR's view of a NodeProto."""
    return Node(
        index=index,
        name=proto.name,
        op_type=proto.op_type,
        domain=domain_of(proto),
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attrs=attributes(proto),
        captures=captured_names(proto),
    )
