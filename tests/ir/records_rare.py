"""Records of attention, of operators that count positions, of barriers, and of ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from net import MICROSOFT, Net
from onnx import TensorProto, helper
from record import Record, between_convs, between_products

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def _projected(net: Net, x: str, width: int, heads: int, size: int) -> str:
    """Heads as an axis: (n, tokens, heads x size) -> (n, heads, tokens, size)."""
    y = net.op("Add", net.dense(x, width, heads * size), net.weight(heads * size))
    return net.op("Transpose", net.op("Reshape", y, net.ints(0, 0, heads, size)), perm=[0, 2, 1, 3])


def _attention(net: Net, rank: int, queries: int = 3, pairs: int = 3, mask: bool = False, **attrs: Any) -> Net:
    """Heads of width 5 for Q and K, 7 for V; 4 keys for 2 queries."""
    q_in, kv_in = net.input(2, 2, 11), net.input(2, 4, 13)
    extra = [net.weight(1, queries, 2, 4)] if mask else []
    if rank == 4:
        parts = (
            _projected(net, q_in, 11, queries, 5),
            _projected(net, kv_in, 13, pairs, 5),
            _projected(net, kv_in, 13, pairs, 7),
        )
        y = net.op("Attention", *parts, *extra, **attrs)
        y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    else:
        sizes = ((q_in, 11, queries * 5), (kv_in, 13, pairs * 5), (kv_in, 13, pairs * 7))
        parts = tuple(net.op("Add", net.dense(x, i, o), net.weight(o)) for x, i, o in sizes)
        y = net.op("Attention", *parts, *extra, q_num_heads=queries, kv_num_heads=pairs, **attrs)
    return net.output(net.dense(y, queries * 7, 17))


def _spelled_attention(net: Net, form: str) -> Net:
    """As exporters write it: products, a scale from the width, softmax over the keys."""
    x = net.input(2, 4, 11)
    width = 6 if form == "rotated" else 5
    q, k, v = (_projected(net, x, 11, 3, size) for size in (width, width, 7))
    if form == "rotated":
        angles = net.rng.uniform(0, 3, (4, 3))
        q, k = _rotated(net, q, angles), _rotated(net, k, angles)
    k = net.op("Transpose", k, perm=[0, 1, 3, 2])
    if form == "sqrt of shape":  # sqrt(q.shape[-1]) computed while it runs, half of it on each side
        axes = net.op("Gather", net.op("Shape", q), net.const(3, np.int64), axis=0)
        root = net.op("Sqrt", net.op("Sqrt", net.cast(axes, FLOAT)))
        scores = net.op("MatMul", net.op("Div", q, root), net.op("Div", k, root))
    elif form == "normalised":  # cosine attention: each row of Q divided by its length
        q = net.op("LpNormalization", q, axis=-1, p=2)
        scores = net.op("MatMul", q, k)
    else:
        scores = net.op("Mul", net.op("MatMul", q, k), net.const(0.4, np.float32))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    return net.output(net.dense(y, 21, 17))


def _rotated(net: Net, x: str, angles: np.ndarray) -> str:
    """Rotary positions written out: x cos + (-x2, x1) sin, with cos and sin repeated for both halves."""
    cos, sin = (net.const(np.tile(f(angles), 2), np.float32) for f in (np.cos, np.sin))
    low, high = (net.op("Slice", x, net.ints(a), net.ints(b), net.ints(3)) for a, b in ((0, 3), (3, 6)))
    turned = net.op("Concat", net.op("Neg", high), low, axis=3)
    return net.op("Add", net.op("Mul", x, cos), net.op("Mul", turned, sin))


def _sigmoid_attention(net: Net) -> Net:
    """Q behind a Sigmoid is never zero, and K behind an Exp neither: the width stays, the heads can go."""
    x = net.input(2, 4, 11)
    q, k, v = (_projected(net, x, 11, 3, size) for size in (5, 5, 7))
    scores = net.op("MatMul", net.op("Sigmoid", q), net.op("Transpose", net.op("Exp", k), perm=[0, 1, 3, 2]))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    return net.output(net.dense(y, 21, 17))


def _multi_head(net: Net, bias: bool) -> Net:
    x, y = net.input(2, 2, 11), net.input(2, 4, 13)
    parts = net.dense(x, 11, 15), net.dense(y, 13, 15), net.dense(y, 13, 21)
    extra = [net.weight(15 + 15 + 21)] if bias else []
    z = net.op("MultiHeadAttention", *parts, *extra, domain=MICROSOFT, num_heads=3)
    return net.output(net.dense(z, 21, 17))


def _packed(net: Net, values: int) -> Net:
    x = net.op("Relu", net.dense(net.input(2, 4, 3), 3, 11))
    sizes = {"qkv_hidden_sizes": [15, 15, values]} if values != 15 else {}
    w, b = net.weight(11, 30 + values), net.weight(30 + values)
    return net.output(net.dense(net.op("Attention", x, w, b, domain=MICROSOFT, num_heads=3, **sizes), values, 17))


def _rotary(net: Net, rank: int, **attrs: Any) -> Net:
    """Three heads of five pairs."""
    angles = net.rng.uniform(0, 3, (2, 4, 5))
    cos, sin = (net.const(f(angles), np.float32) for f in (np.cos, np.sin))
    if rank == 4:
        x = net.op("RotaryEmbedding", _projected(net, net.input(2, 4, 11), 11, 3, 10), cos, sin, **attrs)
        x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    else:
        x = net.op("RotaryEmbedding", net.dense(net.input(2, 4, 11), 11, 30), cos, sin, num_heads=3, **attrs)
    return net.output(net.dense(net.op("Relu", x), 30, 17))


ATTENTION = [
    *(
        Record("Attention", partial(_attention, rank=rank, **case), units, label=f"{rank}-D {label}")
        for rank in (3, 4)
        for label, case, units in (
            ("plain", {}, (3, 5, 7)),
            ("causal", {"is_causal": 1, "mask": True}, (3, 5, 7)),
            ("shared keys", {"queries": 6, "scale": 0.3}, (3, 5, 7)),
        )
    ),
    Record("MatMul", partial(_spelled_attention, form="plain"), (3, 5, 7), label="attention"),
    Record("MatMul", partial(_spelled_attention, form="sqrt of shape"), (3, 5, 7), label="attention, scale of shape"),
    Record("MatMul", partial(_spelled_attention, form="rotated"), (3, 3, 7), since=(9, 13), label="attention, rotated"),
    Record("MatMul", partial(_spelled_attention, form="normalised"), (3, 5, 7), label="attention, cosine"),
    Record("MatMul", _sigmoid_attention, (3, 7), label="attention, never zero"),
    Record("MultiHeadAttention", partial(_multi_head, bias=False), (3, 5, 7), MICROSOFT, label="no bias"),
    Record("MultiHeadAttention", partial(_multi_head, bias=True), (3, 7), MICROSOFT, label="bias"),
    Record("Attention", partial(_packed, values=15), (3, 5, 11), MICROSOFT, label="packed"),
    Record("Attention", partial(_packed, values=21), (3, 7, 11), MICROSOFT, label="packed, wide values"),
    *(
        Record(
            "RotaryEmbedding", partial(_rotary, rank=rank, **attrs), (3, 5), label=f"{rank}-D {label}", open_batch=False
        )
        for rank in (3, 4)
        for label, attrs in (("halves", {}), ("interleaved", {"interleaved": 1}))
    ),
]


def _indices(net: Net, *shape: int, below: int) -> str:
    return net.const(net.rng.integers(0, below, shape), np.int64)


def _gather_rows(net: Net, x: str) -> str:
    return net.op("GatherElements", x, _indices(net, 2, 7, 3, 11, below=5), axis=2)


def _gather_channels(net: Net, x: str) -> str:
    return net.op("GatherElements", x, _indices(net, 2, 7, 5, 11, below=7), axis=1)


def _gather_nd(net: Net) -> Net:
    """Rows of tokens picked by number, all channels of each."""
    x = net.dense(net.input(2, 5, 3), 3, 7)
    index = net.const([[0, 4], [1, 2], [1, 0]], np.int64)
    return net.output(net.dense(net.op("GatherND", x, index), 7, 13))


def _gather_nd_batch(net: Net) -> Net:
    x = net.dense(net.input(2, 5, 3), 3, 7)
    return net.output(net.dense(net.op("GatherND", x, net.const([[4], [2]], np.int64), batch_dims=1), 7, 13))


def _scatter_rows(net: Net, x: str, op: str) -> str:
    updates = net.op("Sigmoid", net.conv(net.op("MaxPool", "x0", kernel_shape=[3, 1]), 3, 7))
    return net.op(op, x, _rows(net), updates, axis=2)


def _rows(net: Net) -> str:
    """For each place of (2, 7, 3, 11) a row from 0 to 4, all different along the rows."""
    rows = np.argsort(net.rng.random((2, 7, 5, 11)), axis=2)[:, :, :3]
    return net.const(rows, np.int64)


def _scatter_nd(net: Net) -> Net:
    """Two tokens are replaced."""
    x = net.dense(net.input(2, 5, 3), 3, 7)
    new = net.op("Sigmoid", net.dense(net.op("Gather", "x0", net.const(1, np.int64), axis=1), 3, 7))
    return net.output(net.dense(net.op("ScatterND", x, net.const([[0, 4], [1, 2]], np.int64), new), 7, 13))


def _one_hot(net: Net) -> Net:
    x = net.op("ArgMax", net.conv(net.input(2, 3, 5, 11), 3, 7), axis=3, keepdims=0)
    y = net.op("OneHot", x, net.const(11, np.int64), net.const([0, 1], np.float32), axis=-1)
    return net.output(net.conv(y, 7, 13))


def _reverse_sequence(net: Net) -> Net:
    x = net.dense(net.input(4, 2, 3, closed=True), 3, 7)
    return net.output(net.dense(net.op("ReverseSequence", x, net.const([3, 4], np.int64)), 7, 13))


def _compress(net: Net, x: str) -> str:
    return net.op("Compress", x, net.const([1, 0, 1, 1, 0], np.bool_), axis=2)


def _col2im(net: Net) -> Net:
    x = net.op("Reshape", net.conv(net.input(2, 3, 5, 4), 3, 28), net.ints(0, 28, 20))
    return net.output(net.conv(net.op("Col2Im", x, net.ints(10, 8), net.ints(2, 2), strides=[2, 2]), 7, 13))


def _crop_pad(net: Net, x: str, whole: bool) -> str:
    if whole:
        return net.op("CenterCropPad", x, net.ints(2, 7, 4, 13))
    return net.op("CenterCropPad", x, net.ints(4, 13), axes=[2, 3])


def _added(net: Net, x: str, op: str, **attrs: Any) -> str:
    """The operator's result added to what it came from."""
    return net.op("Add", x, net.op(op, x, **attrs))


def _eye(net: Net) -> Net:
    x = net.dense(net.input(5, 3, closed=True), 3, 7)
    return net.output(net.dense(net.op("Add", x, net.op("EyeLike", x)), 7, 13))


def _range(net: Net, x: str) -> str:
    steps = net.op("Range", net.const(0, np.float32), net.op("ReduceMax", "x0", keepdims=0), net.const(1e9, np.float32))
    return net.op("Add", x, steps)


def _image_scaler(net: Net, x: str) -> str:
    return net.op("ImageScaler", x, bias=[0.1 * i for i in range(7)], scale=0.7)


PICKS = [
    Record("GatherElements", between_convs(_gather_rows), label="rows", open_batch=False),
    Record("GatherElements", between_convs(_gather_channels), (), label="channels", barrier="counts", open_batch=False),
    Record("GatherND", _gather_nd, open_batch=False),
    Record("GatherND", _gather_nd_batch, open_batch=False, since=(12, 13), label="batch"),
    *(
        Record(op, between_convs(partial(_scatter_rows, op=op)), open_batch=False)
        for op in ("ScatterElements", "Scatter")
    ),
    Record("ScatterND", _scatter_nd, open_batch=False),
    Record("OneHot", _one_hot),
    Record("ReverseSequence", _reverse_sequence, open_batch=False),
    Record("Compress", between_convs(_compress)),
    Record("Col2Im", _col2im),
    Record("CenterCropPad", between_convs(partial(_crop_pad, whole=False))),
    Record("CenterCropPad", between_convs(partial(_crop_pad, whole=True)), label="all axes", open_batch=False),
    Record("Trilu", between_convs(lambda net, x: net.op("Trilu", x))),
    Record("EyeLike", _eye, (), barrier="EyeLike", open_batch=False),
    Record("Range", between_convs(_range), label="of values"),
    Record("ImageScaler", between_convs(_image_scaler)),
    Record("Crop", between_convs(lambda net, x: net.op("Crop", x, border=[1, 1, 2, 1]))),
    Record("Affine", between_convs(lambda net, x: net.op("Affine", x, alpha=0.7, beta=0.1))),
]


def _bodies(net: Net, x: str, op: str) -> str:
    """A body that doubles: of an If, or of a Loop of two rounds."""
    flag = helper.make_tensor_value_info
    if op == "If":
        body = helper.make_graph(
            [helper.make_node("Add", [x, x], ["doubled"])], "body", [], [flag("doubled", FLOAT, [2, 7, 5, 11])]
        )
        return net.op("If", net.const(True, np.bool_), then_branch=body, else_branch=body)
    inputs = [flag("round", INT64, []), flag("go", TensorProto.BOOL, []), flag("state", FLOAT, [2, 7, 5, 11])]
    nodes = [helper.make_node("Add", ["state", "state"], ["next"]), helper.make_node("Identity", ["go"], ["on"])]
    body = helper.make_graph(
        nodes, "body", inputs, [flag("on", TensorProto.BOOL, []), flag("next", FLOAT, [2, 7, 5, 11])]
    )
    return net.op("Loop", net.const(2, np.int64), net.const(True, np.bool_), x, body=body)


def _sequence(net: Net, x: str) -> str:
    return net.op("SequenceAt", net.op("SequenceConstruct", x, x), net.const(1, np.int64))


def _non_zero(net: Net) -> Net:
    x = net.op("NonZero", net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7)))
    return net.output(x, dtype=INT64)


OPAQUE_OPERATORS: dict[str, tuple[Callable[[Net, str], str], str]] = {
    "If": (partial(_bodies, op="If"), "body"),
    "Loop": (partial(_bodies, op="Loop"), "body"),
    "SequenceConstruct": (_sequence, "sequence"),
    "SequenceAt": (_sequence, "sequence"),
}

OPAQUE = [
    *(
        Record(op, between_convs(middle), (), barrier=reason, open_batch=False)
        for op, (middle, reason) in OPAQUE_OPERATORS.items()
    ),
    Record("NonZero", _non_zero, (), barrier="size depends on values", open_batch=False),
]


def _quantized_pair(net: Net, op: str) -> Net:
    """com.microsoft.QLinearAdd or QLinearMul between QLinearConv."""
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = net.op("QuantizeLinear", net.input(2, 3, 5, 11), scale, zero)
    a, b = (_byte_conv(net, x, scale, zero, 3, 7) for _ in range(2))
    y = net.op(op, a, scale, zero, b, scale, zero, scale, zero, domain=MICROSOFT)
    return net.output(net.op("DequantizeLinear", _byte_conv(net, y, scale, zero, 7, 13), scale, zero))


def _quantized_choice(net: Net) -> Net:
    """com.microsoft.QLinearWhere between QLinearConv: one of two maps, by the sign of the input's first channel."""
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    image = net.input(2, 3, 5, 11)
    x = net.op("QuantizeLinear", image, scale, zero)
    a, b = (_byte_conv(net, x, scale, zero, 3, 7) for _ in range(2))
    positive = net.op("Greater", net.op("ReduceMax", image, axes=[1]), net.const(1, np.float32))
    y = net.op("QLinearWhere", positive, a, scale, zero, b, scale, zero, scale, zero, domain=MICROSOFT)
    return net.output(net.op("DequantizeLinear", _byte_conv(net, y, scale, zero, 7, 13), scale, zero))


def _quantized_single(net: Net, op: str, **attrs: Any) -> Net:
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = net.op("QuantizeLinear", net.input(2, 3, 5, 11), scale, zero)
    x = _byte_conv(net, x, scale, zero, 3, 7)
    if op == "QLinearConcat":
        y = net.op(
            op,
            scale,
            zero,
            x,
            scale,
            zero,
            _byte_conv(net, "t0", scale, zero, 3, 4),
            scale,
            zero,
            domain=MICROSOFT,
            axis=1,
        )
        return net.output(net.op("DequantizeLinear", _byte_conv(net, y, scale, zero, 11, 13), scale, zero))
    y = net.op(op, x, scale, zero, scale, zero, domain=MICROSOFT, **attrs)
    return net.output(net.op("DequantizeLinear", _byte_conv(net, y, scale, zero, 7, 13), scale, zero))


def _byte_conv(net: Net, x: str, scale: str, zero: str, inputs: int, outputs: int) -> str:
    w = net.const(net.rng.integers(90, 170, (outputs, inputs, 1, 1)), np.uint8)
    w_scale, w_zero = net.const(0.02, np.float32), net.const(133, np.uint8)
    bias = net.const(net.rng.integers(-200, 200, outputs), np.int32)
    return net.op("QLinearConv", x, scale, zero, w, w_scale, w_zero, scale, zero, bias)


def _qgemm(net: Net, transposed: int) -> Net:
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = net.op("QuantizeLinear", net.input(2, 3), scale, zero)
    for inputs, outputs in ((3, 7), (7, 13)):
        shape = (outputs, inputs) if transposed else (inputs, outputs)
        w = net.const(net.rng.integers(90, 170, shape), np.uint8)
        w_scale, w_zero = (
            net.const(net.rng.uniform(0.01, 0.03, outputs), np.float32),
            net.const([133] * outputs, np.uint8),
        )
        bias = net.const(net.rng.integers(-200, 200, outputs), np.int32)
        x = net.op("QGemm", x, scale, zero, w, w_scale, w_zero, bias, scale, zero, domain=MICROSOFT, transB=transposed)
    return net.output(net.op("DequantizeLinear", x, scale, zero))


def _integer_to_float(net: Net) -> Net:
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = net.input(2, 5, 3)
    for inputs, outputs in ((3, 7), (7, 13)):
        w = net.const(net.rng.integers(90, 170, (inputs, outputs)), np.uint8)
        rest = (
            *(scale, net.const(net.rng.uniform(0.01, 0.03, outputs), np.float32)),
            *(zero, net.const(net.rng.integers(110, 140, outputs), np.uint8), net.weight(outputs)),
        )
        x = net.op("MatMulIntegerToFloat", net.op("QuantizeLinear", x, scale, zero), w, *rest, domain=MICROSOFT)
    return net.output(x)


def _dynamic_product(net: Net, x: str) -> str:
    w = net.const(net.rng.integers(90, 170, (7, 11)), np.uint8)
    scale, zero = (
        net.const(net.rng.uniform(0.01, 0.03, 11), np.float32),
        net.const(net.rng.integers(110, 140, 11), np.uint8),
    )
    return net.op("DynamicQuantizeMatMul", x, w, scale, zero, net.weight(11), domain=MICROSOFT)


def _steps(net: Net, x: str) -> str:
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    return net.op(
        "DequantizeLinear", net.op("QuantizeLinear", x, scale, zero, domain=MICROSOFT), scale, zero, domain=MICROSOFT
    )


RUNTIME = [
    *(Record(op, partial(_quantized_pair, op=op), domain=MICROSOFT) for op in ("QLinearAdd", "QLinearMul")),
    *(Record(op, partial(_quantized_single, op=op), domain=MICROSOFT) for op in ("QLinearSigmoid", "QLinearLeakyRelu")),
    Record("QLinearGlobalAveragePool", partial(_quantized_single, op="QLinearGlobalAveragePool"), domain=MICROSOFT),
    Record(
        "QLinearAveragePool",
        partial(_quantized_single, op="QLinearAveragePool", kernel_shape=[2, 3]),
        domain=MICROSOFT,
    ),
    Record("QLinearSoftmax", partial(_quantized_single, op="QLinearSoftmax", axis=3, opset=13), domain=MICROSOFT),
    Record(
        "QLinearSoftmax",
        partial(_quantized_single, op="QLinearSoftmax", axis=1, opset=12),
        (),
        MICROSOFT,
        label="before opset 13",
        barrier="QLinearSoftmax mixes",
    ),
    Record("QLinearWhere", _quantized_choice, domain=MICROSOFT),
    Record("QLinearConcat", partial(_quantized_single, op="QLinearConcat"), (4, 7), MICROSOFT),
    *(Record("QGemm", partial(_qgemm, transposed=t), domain=MICROSOFT, label=str(t)) for t in (0, 1)),
    Record("MatMulIntegerToFloat", _integer_to_float, domain=MICROSOFT),
    Record("DynamicQuantizeMatMul", between_products(_dynamic_product, after=11), (11,), MICROSOFT),
    Record("QuantizeLinear", between_convs(_steps), domain=MICROSOFT),
    Record("DequantizeLinear", between_convs(_steps), domain=MICROSOFT),
]

RECORDS = [*ATTENTION, *PICKS, *OPAQUE, *RUNTIME]
