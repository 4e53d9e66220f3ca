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

_ASK = (-1,)  # in place of a constant's shape: only the shapes that are given tell it
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
    return Liveness.of(model)(shapes)


@dataclass(frozen=True, slots=True)
class Liveness:
    """What of a network's memory does not depend on widths: who is alive when, and element types.

    Calling it with the shapes of all tensors at some widths gives the Memory there, without building the network.
    """

    types: Mapping[str, int]
    parameters: Mapping[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    steps: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]

    @staticmethod
    def of(model: onnx.ModelProto) -> "Liveness":
        """The liveness of a model; `parameters` are its constants with their shapes (() where only `shapes` tells)."""
        graph = model.graph
        types = dict(_element_types(model)) | {t.name: t.data_type for t in graph.initializer}
        parameters: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
        held = set(parameters) | {t.values.name for t in graph.sparse_initializer}
        last_use, steps = _last_uses(graph), []
        inputs = tuple(value.name for value in graph.input if value.name not in held)
        alive = set(inputs)
        for i, node in enumerate(graph.node):
            outputs = tuple(t for t in node.output if t)
            if not any(tensors_read(node)):  # a Constant node holds parameters
                parameters.update(dict.fromkeys(outputs, _ASK))
                continue
            alive.update(outputs)
            dead = tuple(t for t in sorted(alive) if last_use.get(t, -1) <= i)
            steps.append((node.name or node.output[0], outputs, dead))
            alive.difference_update(dead)
        return Liveness(types, parameters, inputs, tuple(steps))

    def __call__(self, shapes: Mapping[str, tuple[int, ...]]) -> Memory:
        """The Memory at these shapes; a tensor that matters and has none raises ShapeError."""
        sizes = _Sizes(self.types, shapes)
        held = sum(
            _bytes(self.types.get(t, 0), shapes.get(t, dims)) if dims != _ASK else sizes.of(t)
            for t, dims in self.parameters.items()
        )
        now = peak = sum(sizes.of(t) for t in self.inputs)
        peak_node = ""
        for name, made, dead in self.steps:
            now += sum(sizes.of(t) for t in made)
            if now > peak:
                peak, peak_node = now, name
            now -= sum(sizes.of(t) for t in dead)
        return Memory(held, peak, peak_node)


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
