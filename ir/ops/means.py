"""Normalizations over some of the channels: what a model with fewer channels does, said of the original.

A LayerNormalization whose channels are pruned takes mean and variance over those that are left, which is not what the
original computes. It is exactly this, with K of C channels kept and m_i = C/K on them, 0 on the others:

    mean = mean_i(m_i x_i),  var = mean_i(m_i (x_i - mean)^2),  y_i = (x_i - mean) / sqrt(var + eps) * scale_i + bias_i

Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4, for the form without a mean. `restricted`
writes it in plain operators, so that the zeroing check proves pruned transformers as it does all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph import attributes


@dataclass(slots=True)
class _Writer:
    """Nodes and constants in the making, in the place of one node; `over` are the axes of its means, from the end."""

    node: onnx.NodeProto
    over: Sequence[int]
    dtype: np.dtype[Any]
    opset: int
    masks: list[str] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def __call__(self, op_type: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        """The output of a new node."""
        made = name or self._fresh()
        self.nodes.append(helper.make_node(op_type, inputs, [made], **attrs))
        return made

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a new constant, by default of the type of the data."""
        name = self._fresh()
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype=dtype or self.dtype), name))
        return name

    def _fresh(self) -> str:
        return f"{self.node.output[0]}/restricted{len(self.nodes) + len(self.tensors)}"

    def mean(self, x: str) -> str:
        """The mean of x over the kept channels."""
        for mask in self.masks:
            x = self("Mul", x, mask)
        if self.opset < 18:
            return self("ReduceMean", x, axes=list(self.over), keepdims=1)
        return self("ReduceMean", x, self.constant(self.over, np.int64), keepdims=1)

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes of the node."""
        return attributes(self.node)


def restricted(
    node: onnx.NodeProto,
    removed: Mapping[int, Sequence[int]],
    lengths: Mapping[int, int],
    over: Sequence[int],
    dtype: int,
    opset: int,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]] | None:
    """Nodes and constants that compute what the node does, its means taken over the channels that are kept.

    `removed` are positions by axis, `lengths` the axes' lengths and `over` all axes of the means, counted from the end;
    `dtype` is the ONNX element type of the data. None for a node that takes no mean.
    """
    build = _FORMS.get(node.op_type)
    if build is None:
        return None
    write = _Writer(node, tuple(over), np.dtype(helper.tensor_dtype_to_np_dtype(dtype)), opset)
    for axis, gone in sorted(removed.items()):
        mask = np.ones(lengths[axis])
        mask[list(gone)] = 0.0
        mask *= lengths[axis] / mask.sum()
        write.masks.append(write.constant(mask.reshape(-1, *[1] * (-axis - 1))))
    build(write)
    return write.nodes, write.tensors


def _reduce_mean(write: _Writer) -> None:
    node = onnx.NodeProto()
    node.CopyFrom(write.node)
    for mask in write.masks:
        node.input[0] = write("Mul", node.input[0], mask)
    write.nodes.append(node)


def _normalize(write: _Writer, x: str, scale: str, bias: str, *, centred: bool) -> None:
    """Outputs 0 to 2 of a normalization of x: y, and where they are asked for the mean and 1 / sqrt(var + eps)."""
    outputs = dict(enumerate(write.node.output))
    epsilon = write.constant(float(write.attrs.get("epsilon", 1e-5)))
    if centred:
        mean = write.mean(x)
        x = write("Sub", x, mean)
        if outputs.get(1):
            write("Identity", mean, name=outputs[1])
    root = write("Sqrt", write("Add", write.mean(write("Mul", x, x)), epsilon))
    number = 2 if centred else 1
    if outputs.get(number):
        write("Reciprocal", root, name=outputs[number])
    y = write("Mul", write("Div", x, root), scale)
    write("Add", y, bias, name=outputs[0]) if bias else write("Identity", y, name=outputs[0])


def _inputs(write: _Writer, count: int) -> Iterator[str]:
    given = list(write.node.input)
    yield from (given[slot] if slot < len(given) else "" for slot in range(count))


def _layer_norm(write: _Writer) -> None:
    x, scale, bias = _inputs(write, 3)
    _normalize(write, x, scale, bias, centred=True)


def _rms_norm(write: _Writer) -> None:
    x, scale = _inputs(write, 2)
    _normalize(write, x, scale, "", centred=False)


def _skip(write: _Writer, x: str, skip: str, bias: str) -> str:
    """The sum of the two streams (and a bias), which is output 3."""
    total = write("Add", x, skip)
    total = write("Add", total, bias) if bias else total
    if len(write.node.output) > 3 and write.node.output[3]:
        write("Identity", total, name=write.node.output[3])
    return total


def _skip_layer_norm(write: _Writer) -> None:
    x, skip, scale, shift, bias = _inputs(write, 5)
    _normalize(write, _skip(write, x, skip, bias), scale, shift, centred=True)


def _skip_rms_norm(write: _Writer) -> None:
    x, skip, scale, bias = _inputs(write, 4)
    total = _skip(write, x, skip, bias)
    _normalize(write, total, scale, "", centred=False)


_FORMS: Mapping[str, Callable[[_Writer], None]] = {
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "ReduceMean": _reduce_mean,
    "SimplifiedLayerNormalization": _rms_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
}
