"""The memory that a network needs, worked out without running it: activations alive at once, and parameters.

Rule: nodes run in the order of the file. A tensor is alive from the node that writes it to the last node that reads it;
graph inputs from the start, graph outputs to the end. The peak is the largest sum of tensors alive while a node runs,
its inputs and outputs included. Runtimes that write in place or plan otherwise may need less, padding may need more;
the figure is deterministic and comparable between variants of one network.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from ..ir.errors import ShapeError
from .trace import tensors_read

_UNKNOWN_ITEM = 4  # bytes: a tensor whose element type the file does not tell is taken for float32


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all parameters, and of the activations alive at the peak, which is reached while `peak_node` runs."""

    parameter_bytes: int
    peak_activation_bytes: int
    peak_node: str

    @property
    def total_bytes(self) -> int:
        """Parameters plus the peak of activations."""
        return self.parameter_bytes + self.peak_activation_bytes


def memory(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Memory:
    """The Memory of `model` with tensors of these shapes; a tensor that matters and has no shape raises ShapeError."""
    graph = model.graph
    constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    sizes = _Sizes(_element_types(model), shapes)
    last_use = _last_uses(graph)
    alive = {value.name: sizes.of(value.name) for value in graph.input if value.name not in constants}
    peak, peak_node = sum(alive.values()), ""
    parameters = sum(_bytes(t.data_type, t.dims) for t in graph.initializer)
    for i, node in enumerate(graph.node):
        if not any(tensors_read(node)):  # a Constant node holds parameters
            parameters += sum(sizes.of(t) for t in node.output if t)
            constants.update(node.output)
            continue
        alive.update({t: sizes.of(t) for t in node.output if t})
        if sum(alive.values()) > peak:
            peak, peak_node = sum(alive.values()), node.name or node.output[0]
        alive = {t: size for t, size in alive.items() if last_use.get(t, -1) > i}
    return Memory(parameters, peak, peak_node)


def _last_uses(graph: onnx.GraphProto) -> dict[str, int]:
    last = {t: i for i, node in enumerate(graph.node) for t in tensors_read(node)}
    return {**last, **{value.name: len(graph.node) for value in graph.output}}


@dataclass(frozen=True, slots=True)
class _Sizes:
    types: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    def of(self, tensor: str) -> int:
        shape = self.shapes.get(tensor)
        if shape is None:
            raise ShapeError(f"memory: tensor '{tensor}' has no shape among {len(self.shapes)}; run shape inference")
        return _bytes(self.types.get(tensor, 0), shape)


def _bytes(elem_type: int, dims: Iterable[int]) -> int:
    return math.prod(dims) * _item_bytes(elem_type)


def _item_bytes(elem_type: int) -> int:
    if elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return _UNKNOWN_ITEM
    return max(1, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).itemsize)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by tensor, as far as the file and type inference tell."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # e.g. a model above 2 GB, or of custom operators
        graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
