"""Operators that make tensors out of sizes, and those that only look at sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph import Node, Shape
from . import Edit, OpRule, Scope


def relate_constant_of_shape(s: Scope) -> None:
    """ConstantOfShape: every position is alike, any axis may shrink."""
    for axis in s.out_axes():
        s.same(axis, axis)


def patch_constant_of_shape(edit: Edit) -> None:
    """The shape follows."""
    if edit.ints("", 0) is not None:
        edit.set_ints("", 0, edit.new_out_shape())


def relate_size(s: Scope) -> None:
    """Shape looks at sizes only: it holds no channel fast, the numbers follow by themselves."""
    for axis in s.in_axes(0):
        s.same(axis, axis)


def relate_count(s: Scope) -> None:
    """Size: where it depends on an open dimension, a removed channel would change what is computed from it."""
    relate_size(s)
    if any(None in port.dims for port in s.graph.inputs):
        for axis in s.in_axes(0):
            s.freeze(axis, "Size counts it, together with a dimension that is open")


def constant_value(op_type: str, domain: str, attrs: Mapping[str, Any]) -> onnx.TensorProto | None:
    """The tensor of a Constant node; None for other nodes and for values that are no dense numbers."""
    if op_type != "Constant" or domain:
        return None
    if "value" in attrs:
        tensor: onnx.TensorProto = attrs["value"]
        return tensor
    for name, dtype in _PLAIN_CONSTANTS.items():
        if name in attrs:
            return onnx.numpy_helper.from_array(np.asarray(attrs[name], dtype=dtype))
    return None


_PLAIN_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def filled_tensor(proto: onnx.NodeProto, length: Mapping[str, onnx.TensorProto], room: int) -> onnx.TensorProto | None:
    """The tensor that a ConstantOfShape makes of a constant shape; None for other nodes, and for integers.

    `length` are the model's small constants by name; a tensor of more than `room` bytes is not made either. Integers
    are left to the arithmetic of shapes.
    """
    if proto.op_type != "ConstantOfShape" or proto.domain not in ("", "ai.onnx") or proto.input[0] not in length:
        return None
    shape = onnx.numpy_helper.to_array(length[proto.input[0]])
    fill = next((onnx.numpy_helper.to_array(item.t) for item in proto.attribute), np.zeros(1, np.float32))
    if fill.dtype.kind in "iub" or np.prod(shape, dtype=np.float64) * fill.itemsize > room:
        return None
    return onnx.numpy_helper.from_array(np.full(shape, fill.reshape(-1)[0], fill.dtype), proto.output[0])


def size_value(node: Node, shape: Shape) -> NDArray[Any] | None:
    """What a Shape or Size node gives for an input of this shape; None for other nodes."""
    if node.domain or node.op_type not in ("Shape", "Size"):
        return None
    if node.op_type == "Size":
        return np.asarray(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)
    return np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))], dtype=np.int64)


def is_random(node: Node) -> bool:
    """Whether a node gives other numbers at each run."""
    return "Random" in node.op_type or node.op_type in ("Bernoulli", "Multinomial")


RULES = {
    "ConstantOfShape": OpRule(relate_constant_of_shape, (9, 20, 21, 23, 24, 25), patch_constant_of_shape),
    "Shape": OpRule(relate_size, (1, 13, 15, 19, 21, 23, 24, 25)),
    "Size": OpRule(relate_count, (1, 13, 19, 21, 23, 24, 25)),
}
