"""Operators as matrix products: Y = W X + b, with X the columns that the operator reads (what refitting weights needs).

1. A convolution reads, for every output position, one element of each input channel under each tap of its kernel. The
   columns are (C, taps) and the weight is (G, O, C x taps), for G groups with C input and O output channels each.
2. Which elements those are is one table (output positions, taps) of flat input positions, -1 where the kernel hangs
   over the border. ConvTranspose has such a table too: output p reads input (p + pad - tap * dilation) / stride where
   that divides. So stride, padding, dilation, transposition and the number of spatial axes need no further code.
3. Gemm and MatMul are the case of one tap: every position is its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Graph, Node, Shape
from ..scope import View

Floats = NDArray[Any]
Ints = NDArray[np.int64]
Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Which input elements each output reads: `axis` is that of the input's channels, `pads` begins then ends.

    `auto` is ONNX's auto_pad; the fields after `groups` are empty for products without a kernel.
    """

    axis: int
    groups: int = 1
    kernel: Sizes = ()
    strides: Sizes = ()
    dilations: Sizes = ()
    pads: Sizes = ()
    auto: str = "NOTSET"
    transposed: bool = False
    extra: Sizes = ()

    @property
    def taps(self) -> int:
        """The number of input elements of a channel that an output reads."""
        return int(np.prod(self.kernel, dtype=np.int64))

    def table(self, spatial: Shape) -> Ints:
        """Flat input positions, (output positions, taps), -1 outside, for an input of these spatial sizes (rule 2)."""
        if not self.kernel:
            return np.arange(int(np.prod(spatial, dtype=np.int64)), dtype=np.int64)[:, None]
        lines = list(starmap(self._line, enumerate(spatial)))
        flat = np.zeros((1, 1), dtype=np.int64)
        for line, size in zip(lines, spatial, strict=True):
            inside = (flat[:, None, :, None] >= 0) & (line[None, :, None, :] >= 0)
            grid = np.where(inside, flat[:, None, :, None] * size + line[None, :, None, :], -1)
            flat = grid.reshape(flat.shape[0] * line.shape[0], flat.shape[1] * line.shape[1])
        return flat

    def _line(self, number: int, size: int) -> Ints:
        """The table of one spatial axis: (outputs, taps)."""
        stride, dilation = self.strides[number], self.dilations[number]
        reach = dilation * (self.kernel[number] - 1) + 1
        count, begin = (self._transposed_size if self.transposed else self._size)(number, size, reach)
        tap = np.arange(self.kernel[number]) * dilation
        out = np.arange(count)[:, None]
        if self.transposed:
            found = out + begin - tap
            inner, inside = found // stride, found % stride == 0
        else:
            inner = out * stride - begin + tap
            inside = np.ones_like(inner, dtype=np.bool_)
        return np.where(inside & (inner >= 0) & (inner < size), inner, -1)

    def _size(self, number: int, size: int, reach: int) -> tuple[int, int]:
        """Outputs along an axis, and the padding before it."""
        stride, rank = self.strides[number], len(self.kernel)
        if self.auto.startswith("SAME"):
            count = -(-size // stride)
            total = max(0, (count - 1) * stride + reach - size)
            return count, total // 2 if self.auto == "SAME_UPPER" else total - total // 2
        begin, end = (0, 0) if self.auto == "VALID" else (self.pads[number], self.pads[number + rank])
        return (size + begin + end - reach) // stride + 1, begin

    def _transposed_size(self, number: int, size: int, reach: int) -> tuple[int, int]:
        begin, end = self.pads[number], self.pads[number + len(self.kernel)]
        return self.strides[number] * (size - 1) + self.extra[number] + reach - begin - end, begin


@dataclass(frozen=True, slots=True)
class LinearMap:
    """A node as Y = gain W X + offset b: the slots of X, W and b (-1: none), the window, and the axis of Y's channels.

    `transposed` tells whether the weight keeps its inputs first.
    """

    data: int
    weight: int
    bias: int
    window: Window
    out_axis: int
    transposed: bool
    gain: float = 1.0
    offset: float = 1.0

    def matrix(self, weight: Floats, groups: int) -> Floats:
        """The weight as (groups, outputs, columns) in float64."""
        flat = np.asarray(weight, dtype=np.float64).reshape(*weight.shape[:2], -1)
        if not self.transposed:  # (G O, C, k)
            return self.gain * flat.reshape(groups, flat.shape[0] // groups, -1)
        rows = flat.reshape(groups, flat.shape[0] // groups, *flat.shape[1:])  # (G, C, O, k)
        return self.gain * rows.transpose(0, 2, 1, 3).reshape(groups, flat.shape[1], -1)

    def weight_of(self, matrix: Floats, shape: Shape) -> Floats:
        """The weight of a given shape that a matrix (groups, outputs, columns) stands for."""
        taps = int(np.prod(shape[2:], dtype=np.int64))
        if self.transposed:
            groups, outputs, columns = matrix.shape
            matrix = matrix.reshape(groups, outputs, columns // taps, taps).transpose(0, 2, 1, 3)
        return (matrix / self.gain).reshape(shape)


def linear_map(graph: Graph, node: Node) -> LinearMap | None:
    """The node as a matrix product with constant weights; None when it is not one, or not one of a known kind."""
    build = MAPS.get(node.op_type)
    if build is None or node.domain or any(name and name not in graph.shapes for name in node.inputs):
        return None
    return build(View(graph, node))


def added_stream(graph: Graph, node: Node, name: str) -> str | None:
    """The other operand of a plain sum of two tensors of one shape of which `name` is one; None for other nodes."""
    names = [other for other in node.inputs if other != name]
    if node.op_type not in ("Add", "Sum") or node.domain or len(node.inputs) != 2 or len(names) != 1:
        return None
    return names[0] if graph.shapes.get(names[0]) == graph.shapes.get(name) else None


def added_constant(graph: Graph, node: Node, name: str) -> str | None:
    """The constant that a node adds to `name`, numpy's broadcasting given; None for other nodes."""
    others = [other for other in node.inputs if other != name]
    if node.op_type not in ("Add", "Sum") or node.domain or "axis" in node.attrs or len(others) != 1:
        return None
    same = graph.shapes.get(node.outputs[0]) == graph.shapes.get(name)
    return others[0] if same and others[0] in graph.constants else None


def subtracted_mean(graph: Graph, node: Node, name: str) -> str | None:
    """The constant that a node subtracts from each channel (axis 1) of `name` before it scales; None for others."""
    if node.op_type != "BatchNormalization" or node.domain or len([out for out in node.outputs if out]) != 1:
        return None
    return node.inputs[3] if node.inputs[0] == name and node.inputs[3] in graph.constants else None


def is_normalization(node: Node) -> bool:
    """Whether a node normalises by statistics of its input, which no runtime folds into the weights around it."""
    kinds = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")
    return node.op_type in kinds and not node.domain and len([name for name in node.outputs if name]) == 1


def is_softmax(node: Node) -> bool:
    """Whether a node turns logits into shares."""
    return node.op_type in ("Softmax", "LogSoftmax") and not node.domain


def repeats(graph: Graph, node: Node, before: Node) -> bool:
    """Whether a node does once more what `before` has done to its input: f(f(x)) = f(x)."""
    if node.op_type not in ("Relu", "Clip", "Abs") or (node.op_type, node.domain) != (before.op_type, before.domain):
        return False
    bounds = [[_value(graph, name) for name in one.inputs[1:]] for one in (node, before)]
    known = all(value is not None for one in bounds for value in one)
    return known and bounds[0] == bounds[1] and dict(node.attrs) == dict(before.attrs)


def _value(graph: Graph, name: str) -> list[float] | None:
    """The numbers of a constant; none for an input that is left out, None where it is not constant."""
    if not name:
        return []
    found = graph.constants.get(name)
    return None if found is None else [float(item) for item in found.array().reshape(-1)]


def _conv(view: View) -> LinearMap | None:
    if not _is_constant(view, 1):
        return None
    window = _window(view, view.shape(1)[2:])
    return LinearMap(0, 1, 2 if view.has(2) else -1, window, 1, transposed=False)


def _conv_transpose(view: View) -> LinearMap | None:
    if not _is_constant(view, 1) or "output_shape" in view.node.attrs or view.attr("auto_pad", "NOTSET") != "NOTSET":
        return None
    window = _window(view, view.shape(1)[2:], transposed=True)
    return LinearMap(0, 1, 2 if view.has(2) else -1, window, 1, transposed=True)


def _window(view: View, kernel: Shape, *, transposed: bool = False) -> Window:
    rank = len(kernel)
    return Window(
        axis=1,
        groups=int(view.attr("group", 1)),
        kernel=tuple(kernel),
        strides=_sizes(view, "strides", rank, 1),
        dilations=_sizes(view, "dilations", rank, 1),
        pads=_sizes(view, "pads", 2 * rank, 0),
        auto=str(view.attr("auto_pad", "NOTSET")),
        transposed=transposed,
        extra=_sizes(view, "output_padding", rank, 0),
    )


def _sizes(view: View, name: str, count: int, default: int) -> Sizes:
    return tuple(int(item) for item in view.attr(name, ())) or (default,) * count


def _gemm(view: View) -> LinearMap | None:
    trans = bool(view.attr("transA", 0)), bool(view.attr("transB", 0))
    gain, offset = float(view.attr("alpha", 1.0)), float(view.attr("beta", 1.0))
    return _product(view, trans, gain, offset, 2 if view.has(2) else -1)


def _matmul(view: View) -> LinearMap | None:
    return _product(view, (False, False), 1.0, 1.0, -1)


def _product(view: View, trans: tuple[bool, bool], gain: float, offset: float, bias: int) -> LinearMap | None:
    """A product of which exactly one factor is a constant matrix: Y = X W (the constant on the right) or Y = W X."""
    sides = [side for side in (0, 1) if _is_constant(view, side) and view.rank(side) == 2]
    if len(sides) != 1 or gain == 0 or view.rank(1 - sides[0]) < 2:
        return None
    side = sides[0]
    rank, outer = view.rank(1 - side), len(view.out_shape())
    # the data's summed axis is its last when it stands on the left, its last but one on the right, unless transposed
    axis = (rank - 1 if side == 1 else rank - 2) if not trans[1 - side] else (rank - 2 if side == 1 else rank - 1)
    # the weight keeps its inputs first when it stands on the right untransposed, or on the left transposed
    inputs_first = (side == 1) != trans[side]
    return LinearMap(
        1 - side, side, bias, Window(axis), outer - 1 if side == 1 else outer - 2, inputs_first, gain, offset
    )


def _is_constant(view: View, slot: int) -> bool:
    return view.has(slot) and view.node.inputs[slot] in view.graph.constants


MAPS: Mapping[str, Callable[[View], LinearMap | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def channels_first(tensor: Floats, axis: int) -> Floats:
    """The tensor as (examples, channels, positions): axis 0 stays, the channel axis moves behind it."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1, 1)
    moved = np.moveaxis(tensor, axis, 1)
    return moved.reshape(*moved.shape[:2], -1)


def spatial_sizes(shape: Sequence[int], axis: int) -> Shape:
    """The sizes of the axes that `channels_first` makes into positions."""
    moved = [size for number, size in enumerate(shape) if number != axis]
    return tuple(moved[1:])
