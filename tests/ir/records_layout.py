"""Records of operators that move, shrink, repeat or pick data."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from net import MICROSOFT, Net
from onnx import TensorProto
from record import Record, between_convs

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def _reshape(net: Net, x: str, *shape: int) -> str:
    return net.op("Reshape", x, net.ints(*shape)) if net.opset >= 5 else net.op("Reshape", x, shape=shape)


def _flatten_net(net: Net, op: str) -> Net:
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 4), 3, 7))
    x = net.op("Flatten", x) if op == "Flatten" else _reshape(net, x, 0, -1)
    return net.output(net.dense(x, 7 * 5 * 4, 13))


def _computed_flatten(net: Net) -> Net:
    """x.view(x.size(0), -1), and a product of sizes, as exporters write them."""
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 4), 3, 7))
    axes = [net.ints(0)]
    batch = net.op("Gather", net.op("Shape", x), net.const(0, np.int64), axis=0)
    batch = net.op("Unsqueeze", batch, *axes) if net.opset >= 13 else net.op("Unsqueeze", batch, axes=[0])
    target = net.op("Concat", batch, net.ints(7 * 20), axis=0)
    return net.output(net.dense(net.op("Reshape", x, target), 140, 13))


def _shuffle(net: Net, x: str) -> str:
    """Channel shuffle of 3 x 5 channels: group and place in the group change roles."""
    y = _reshape(net, x, 0, 3, 5, 5, 11)
    return _reshape(net, net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), 0, 15, 5, 11)


def _to_last(net: Net) -> Net:
    """NHWC in the middle: a product over the last axis."""
    x = net.op("Transpose", net.conv(net.input(2, 3, 5, 11), 3, 7), perm=[0, 2, 3, 1])
    return net.output(net.dense(net.op("Relu", x), 7, 13))


def _squeeze(net: Net) -> Net:
    """Global pooling, its two axes of length 1 squeezed away, back in, and away again by another spelling."""
    x = net.op("GlobalAveragePool", net.conv(net.input(2, 3, 5, 11), 3, 7))
    for op in ("Squeeze", "Unsqueeze", "Squeeze"):
        x = net.op(op, x, net.ints(2, 3)) if net.opset >= 13 else net.op(op, x, axes=[2, 3])
    return net.output(net.dense(x, 7, 13))


def _expand(net: Net, x: str) -> str:
    pooled = net.op("GlobalAveragePool", x)
    return net.op("Add", net.op("Expand", pooled, net.ints(1, 7, 5, 11)), x)


def _expand_from_one(net: Net) -> Net:
    """A map of one channel, repeated to seven, times seven maps."""
    one = net.conv(net.input(2, 3, 5, 11), 3, 1)
    x = net.op("Mul", net.op("Expand", one, net.ints(1, 7, 1, 1)), net.conv("x0", 3, 7))
    return net.output(net.conv(x, 7, 13))


def _tile(net: Net, x: str) -> str:
    return net.op("Tile", x, net.ints(1, 2, 1, 3))


def _tile_from_one(net: Net) -> Net:
    one = net.conv(net.input(2, 3, 5, 11), 3, 1)
    x = net.op("Mul", net.op("Tile", one, net.ints(1, 7, 1, 1)), net.conv("x0", 3, 7))
    return net.output(net.conv(x, 7, 13))


def _depth_to_space(net: Net, x: str, **attrs: Any) -> str:
    return net.op("DepthToSpace", x, blocksize=2, **attrs)


def _space_to_depth(net: Net) -> Net:
    x = net.conv(net.input(2, 3, 4, 6), 3, 7)
    return net.output(net.conv(net.op("SpaceToDepth", x, blocksize=2), 28, 13))


LAYOUT = [
    Record("Reshape", partial(_flatten_net, op="Reshape"), label="flatten"),
    Record("Reshape", _computed_flatten, label="computed", since=(5, 13, 14, 19, 21, 23, 24, 25)),
    Record("Reshape", between_convs(_shuffle, channels=15), (3, 5), label="shuffle"),
    Record("Flatten", partial(_flatten_net, op="Flatten")),
    Record("Transpose", _to_last),
    Record("Squeeze", _squeeze),
    Record("Unsqueeze", _squeeze),
    Record("Expand", between_convs(_expand)),
    Record("Expand", _expand_from_one, label="from one channel"),
    Record("Tile", between_convs(_tile, after=14)),
    Record("Tile", _tile_from_one, label="from one channel"),
    Record("DepthToSpace", between_convs(_depth_to_space, channels=28, after=7), label="DCR"),
    Record(
        "DepthToSpace",
        between_convs(partial(_depth_to_space, mode="CRD"), channels=28, after=7),
        label="CRD",
        since=(11, 13, 28),
    ),
    Record("SpaceToDepth", _space_to_depth),
]


def _pool(net: Net, x: str, op: str) -> str:
    attrs = {} if op.startswith("Global") else {"kernel_shape": [3, 2], "strides": [2, 1]}
    return net.op(op, x, **({"p": 2} if "Lp" in op and net.opset > 1 else {}), **attrs)


def _pool_with_indices(net: Net) -> Net:
    """MaxPool's indices count channels too: an output of the model that shows them is a barrier."""
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    values, places = net.ops("MaxPool", x, count=2, kernel_shape=[2, 2])
    return net.output(net.conv(values, 7, 13)).output(places, dtype=INT64)


def _resize(net: Net, x: str, by_size: bool) -> str:
    if net.opset < 13:  # Resize of opset 11 demands a region of interest, which nobody writes any longer
        scales = [1.0, 1.0, 2.0, 3.0]
        if net.opset < 7:
            return net.op("Upsample", x, height_scale=2.0, width_scale=3.0)
        if net.opset < 9:
            return net.op("Upsample", x, scales=scales)
        if net.opset < 11:
            return net.op("Upsample" if net.opset < 10 else "Resize", x, net.const(scales, np.float32))
        return net.op("Resize", x, net.const([], np.float32), net.const(scales, np.float32))
    if by_size:
        return net.op("Resize", x, "", "", net.ints(2, 7, 10, 22))
    return net.op("Resize", x, "", net.const([1, 1, 2, 3], np.float32), mode="linear")


def _like(net: Net, x: str) -> str:
    """Resize to the size of another map, as feature pyramids do: its channels come from a Shape of this one."""
    small = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    part = [net.ints(0), net.ints(2)], [net.ints(2), net.ints(4)]
    head, _ = net.op("Slice", net.op("Shape", small), *part[0]), None
    tail = net.op("Slice", net.op("Shape", x), *part[1])
    return net.op("Add", net.op("Resize", small, "", "", net.op("Concat", head, tail, axis=0)), x)


def _roi_align(net: Net) -> Net:
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    boxes = net.const([[0, 0, 3, 4], [1, 1, 7, 4], [2, 0, 8, 3]], np.float32)
    y = net.op("RoiAlign", x, boxes, net.const([0, 1, 1], np.int64), output_height=3, output_width=2)
    return net.output(net.conv(y, 7, 13))


def _roi_pool(net: Net) -> Net:
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    boxes = net.const([[0, 0, 0, 3, 4], [1, 1, 1, 7, 4]], np.float32)
    return net.output(net.conv(net.op("MaxRoiPool", x, boxes, pooled_shape=[3, 2]), 7, 13))


def _grid_sample(net: Net, domain: str = "") -> Net:
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    grid = net.const(net.rng.uniform(-1, 1, (2, 4, 3, 2)), np.float32)
    return net.output(net.conv(net.op("GridSample", x, grid, domain=domain), 7, 13))


POOLS = [
    *(
        Record(op, between_convs(partial(_pool, op=op)))
        for op in ("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
    ),
    Record("MaxPool", _pool_with_indices, (), label="indices", since=(8, 10, 11, 12, 22), barrier="count channels"),
    Record("Resize", between_convs(partial(_resize, by_size=False))),
    Record(
        "Resize", between_convs(partial(_resize, by_size=True)), label="sizes", since=(13, 18, 19), open_batch=False
    ),
    Record("Resize", between_convs(_like), label="like", since=(13, 18, 19)),
    Record("Upsample", between_convs(partial(_resize, by_size=False)), since=(1, 7, 9)),
    Record("RoiAlign", _roi_align, open_batch=False),
    Record("MaxRoiPool", _roi_pool, open_batch=False),
    Record("GridSample", _grid_sample, open_batch=False),
    Record("GridSample", partial(_grid_sample, domain=MICROSOFT), domain=MICROSOFT, open_batch=False),
]


def _reduce(net: Net, x: str, op: str, axes: tuple[int, ...], keep: int = 1) -> str:
    """Of numbers above zero, so that logarithms and products are tame."""
    y = net.op("Sigmoid", x)
    modern = 13 if op == "ReduceSum" else 18
    if net.opset >= modern:
        return net.op(op, y, net.ints(*axes), keepdims=keep)
    return net.op(op, y, axes=list(axes), keepdims=keep)


def _reduce_pixels(net: Net, op: str, keep: int) -> Net:
    x = _reduce(net, net.conv(net.input(2, 3, 5, 4), 3, 7), op, (2, 3) if net.opset < 11 else (-2, -1), keep)
    return net.output(net.conv(x, 7, 13) if keep else net.dense(x, 7, 13))


def _reduce_channels(net: Net, op: str) -> Net:
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 4), 3, 7))
    return net.output(net.conv(_reduce(net, x, op, (1,)), 1, 13))


def _exact_sum(net: Net, op: str) -> Net:
    """A sum over channels that are zero where their producers are: exact."""
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 4), 3, 7))
    y = net.op(op, x, net.ints(1)) if net.opset >= (13 if op == "ReduceSum" else 18) else net.op(op, x, axes=[1])
    return net.output(net.conv(y, 1, 13))


def _arg(net: Net, op: str, axis: int) -> Net:
    x = net.op(op, net.conv(net.input(2, 3, 5, 11), 3, 7), axis=axis)
    return net.output(net.conv(net.cast(x, FLOAT), 7 if axis == 2 else 1, 13))


def _softmax(net: Net, op: str, axis: int) -> Net:
    x = net.op(op, net.dense(net.input(2, 5, 3), 3, 7), axis=axis)
    return net.output(net.dense(x, 7, 13))


def _softmax_tokens(net: Net, op: str) -> Net:
    """Over the last axis, with the channels in front of it."""
    x = net.op(op, net.conv(net.input(2, 3, 5, 11), 3, 7), axis=3)
    return net.output(net.conv(x, 7, 13))


def _top_k(net: Net, x: str) -> str:
    if net.opset < 10:
        return net.ops("TopK", x, count=2, k=4, axis=3)[0]
    return net.ops("TopK", x, net.ints(4), count=2, axis=3)[0]


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

REDUCTIONS = [
    *(
        Record(f"Reduce{r}", partial(_reduce_pixels, op=f"Reduce{r}", keep=keep), label=f"pixels {keep}")
        for r in _REDUCTIONS
        for keep in (0, 1)
    ),
    *(
        Record(f"Reduce{r}", partial(_reduce_channels, op=f"Reduce{r}"), (), label="channels", barrier=" over ")
        for r in _REDUCTIONS
    ),
    *(
        Record(f"Reduce{r}", partial(_exact_sum, op=f"Reduce{r}"), label="zeros")
        for r in ("L1", "L2", "Sum", "SumSquare")
    ),
    *(Record(op, partial(_arg, op=op, axis=2), label="rows") for op in ("ArgMax", "ArgMin")),
    *(Record(op, partial(_arg, op=op, axis=1), (), label="channels", barrier=op) for op in ("ArgMax", "ArgMin")),
    *(
        Record(
            op, partial(_softmax, op=op, axis=-1), (), label="channels", barrier="mixes all channels", since=(11, 13)
        )
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    ),
    *(Record(op, partial(_softmax_tokens, op=op), label="columns") for op in ("Softmax", "LogSoftmax", "Hardmax")),
    Record("CumSum", between_convs(lambda net, x: net.op("CumSum", x, net.const(2, np.int64)))),
    Record("CumProd", between_convs(lambda net, x: net.op("CumProd", net.op("Sigmoid", x), net.const(2, np.int64)))),
    Record("TopK", between_convs(_top_k)),
]


def _concat(net: Net, x: str) -> str:
    return net.op("Concat", x, net.conv("x0", 3, 4), x, axis=1)


def _single_channels(net: Net) -> Net:
    """Three maps of one channel: none of them can go, what makes them can."""
    x = net.input(2, 3, 5, 11)
    parts = [net.conv(net.op("Relu", net.conv(x, 3, 5)), 5, 1) for _ in range(3)]
    return net.output(net.conv(net.op("Concat", *parts, axis=1), 3, 13))


def _packed_heads(net: Net) -> Net:
    """Q, K and V in one product, told apart by an axis of length 3 (ONNX Runtime writes Split and Squeeze for it)."""
    x = net.dense(net.input(2, 4, 11), 11, 75)
    parts = net.ops("Split", net.op("Reshape", x, net.ints(0, 0, 3, 5, 5)), net.ints(1, 1, 1), count=3, axis=2)
    q, k, v = (net.op("Transpose", net.op("Squeeze", part, net.ints(2)), perm=[0, 2, 1, 3]) for part in parts)
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    return net.output(net.dense(net.op("Reshape", y, net.ints(0, 0, 25)), 25, 13))


def _split(net: Net, x: str, sizes: tuple[int, ...] | None, order: tuple[int, ...]) -> str:
    """Split, and the parts put together in another order."""
    count = len(order)
    if sizes is None:
        parts = net.ops("Split", x, count=count, axis=1, **({"num_outputs": count} if net.opset >= 18 else {}))
    elif net.opset >= 13:
        parts = net.ops("Split", x, net.ints(*sizes), count=count, axis=1)
    else:
        parts = net.ops("Split", x, count=count, axis=1, split=list(sizes))
    return net.op("Concat", *(net.op("Relu", parts[i]) for i in order), axis=1)


def _slice(net: Net, x: str, start: int, end: int, step: int = 1, axis: int = 1) -> str:
    if net.opset < 10:
        return net.op("Slice", x, starts=[start], ends=[end], axes=[axis])
    return net.op("Slice", x, net.ints(start), net.ints(end), net.ints(axis), net.ints(step))


def _slices(net: Net, x: str) -> str:
    """Two overlapping runs, one counted from the end."""
    return net.op("Concat", _slice(net, x, 0, 5), _slice(net, x, -4, 2**31 - 1), axis=1)


def _gather(net: Net, x: str, *index: int) -> str:
    return net.op("Gather", x, net.ints(*index), axis=1)


def _gather_table(net: Net) -> Net:
    """An embedding table: tokens pick rows, the columns are channels."""
    tokens = net.input(2, 5, dtype=INT64)
    return net.output(net.dense(net.op("Gather", net.weight(19, 7), tokens), 7, 13))


def _pad(net: Net, x: str, pads: tuple[int, ...], **attrs: Any) -> str:
    if net.opset < 2:
        return net.op("Pad", x, paddings=list(pads))
    if net.opset < 11:
        return net.op("Pad", x, pads=list(pads), **attrs)
    return net.op("Pad", x, net.ints(*pads), **attrs)


def _shortcut(net: Net, x: str) -> str:
    """ResNet's option A: 7 channels padded to 12 (2 before, 3 after), added to a convolution of 12."""
    return net.op("Add", _pad(net, x, (0, 2, 0, 0, 0, 3, 0, 0)), net.conv(x, 7, 12))


def _pad_pixels(net: Net, x: str) -> str:
    return _pad(net, x, (0, 0, 1, 0, 0, 0, 2, 1), mode="reflect" if net.opset > 2 else "constant")


PIECES = [
    Record("Concat", between_convs(_concat, after=18), (4, 7)),
    Record("Split", between_convs(partial(_split, sizes=(2, 5), order=(1, 0))), (2, 5), label="sizes"),
    Record(
        "Split",
        between_convs(partial(_split, sizes=None, order=(2, 0, 1)), channels=15),
        (5, 5, 5),
        label="equal",
        since=(2, 11, 13, 18),
    ),
    Record("Split", between_convs(partial(_split, sizes=(3, 4), order=(0, 1))), (3, 4), label="order"),
    Record("Split", _packed_heads, (5, 5), label="into parts of one", since=(13,)),
    Record("Concat", _single_channels, (5, 5, 5), label="of single channels"),
    Record("Slice", between_convs(partial(_slice, start=2, end=6), after=4), (3, 4)),
    Record("Slice", between_convs(_slices, after=9), (2, 2, 3), label="overlap"),
    Record("Slice", between_convs(partial(_slice, start=0, end=4, axis=2)), label="rows"),
    Record("Slice", between_convs(partial(_slice, start=0, end=10, step=3, axis=3)), label="steps", since=(10, 11, 13)),
    Record("Gather", between_convs(lambda net, x: _gather(net, x, 6, 0, 3, 3, 1), after=5), (3, 3), label="picked"),
    Record("Gather", between_convs(lambda net, x: _gather(net, x, 6, 5, 4, 3, 2, 1, 0)), label="reversed"),
    Record("Gather", _gather_table, label="table"),
    Record(
        "Pad", between_convs(_shortcut, after=12), (5, 7), label="channels", since=(2, 11, 13, 18, 19, 21, 23, 24, 25)
    ),
    Record("Pad", between_convs(_pad_pixels), label="pixels"),
]


def _filled(net: Net, x: str) -> str:
    """Concat with a block of 4 channels of ones, of computed size; only what the shape says may shrink."""
    value = net.op("ConstantOfShape", net.op("Shape", x), value=_one())
    return net.op("Add", x, net.op("Mul", value, net.positive(7, 1, 1)))


def _fixed_fill(net: Net, x: str) -> str:
    return net.op(
        "Mul", x, net.op("Add", net.op("ConstantOfShape", net.ints(7, 1, 1), value=_one()), net.positive(7, 1, 1))
    )


def _one() -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ones(1, np.float32))


def _by_size(net: Net, x: str) -> str:
    """Divided by the number of elements, which the model computes while it runs."""
    return net.op("Mul", x, net.cast(net.op("Size", x), FLOAT))


SOURCES = [
    Record("ConstantOfShape", between_convs(_filled), label="computed"),
    Record("ConstantOfShape", between_convs(_fixed_fill), label="fixed"),
    Record("Shape", between_convs(_filled)),
    Record("Size", between_convs(_by_size), open_batch=False),
    Record("Size", between_convs(_by_size), (), label="open", barrier="Size counts it"),
]

RECORDS = [*LAYOUT, *POOLS, *REDUCTIONS, *PIECES, *SOURCES]
