"""Records of operators with weights: convolutions, matrix products, recurrent layers, normalisations."""

from __future__ import annotations

from functools import partial

import numpy as np
from net import MICROSOFT, Net
from record import Record, between_convs, between_products


def _conv(net: Net, x: str, channels: int, outputs: int, group: int, **attrs: object) -> str:
    return net.conv(x, channels, outputs, kernel=(3, 1), group=group, pads=[1, 0, 1, 0], **attrs)


def _conv_rank(net: Net, spatial: tuple[int, ...]) -> Net:
    kernel = [2] * len(spatial)
    x = net.conv(net.input(2, 3, *spatial), 3, 7, kernel=kernel)
    return net.output(net.conv(net.op("Relu", x), 7, 13, kernel=kernel))


def _conv_without_bias(net: Net, x: str) -> str:
    return net.op("Conv", x, net.weight(11, 7, 3, 3), pads=[1, 1, 1, 1])


def _fused_conv(net: Net, x: str) -> str:
    return net.op(
        "FusedConv", x, net.weight(11, 7, 3, 1), net.weight(11), domain=MICROSOFT, activation="Relu", pads=[1, 0, 1, 0]
    )


def _transposed(net: Net, x: str, channels: int, per_group: int, group: int) -> str:
    w, b = net.weight(channels, per_group, 2, 3), net.weight(per_group * group)
    return net.op("ConvTranspose", x, w, b, strides=[2, 1], group=group)


def _deformed(net: Net, x: str, group: int, channels: int) -> str:
    offset = net.conv("x0", 3, 2 * 3 * 1)
    w, b = net.weight(channels, channels // group, 3, 1), net.weight(channels)
    return net.op("DeformConv", x, w, offset, b, kernel_shape=[3, 1], pads=[1, 0, 1, 0], group=group, offset_group=1)


CONVOLUTIONS = [
    Record("Conv", between_convs(partial(_conv, channels=7, outputs=11, group=1), after=11), (7, 11), label="plain"),
    Record("Conv", between_convs(partial(_conv, channels=7, outputs=7, group=7)), label="depthwise"),
    Record(
        "Conv",
        between_convs(partial(_conv, channels=7, outputs=14, group=7), after=14),
        (2, 7),
        label="depthwise multiplier",
    ),
    Record(
        "Conv",
        between_convs(partial(_conv, channels=15, outputs=21, group=3), channels=15, after=21),
        (3, 5, 7),
        label="grouped",
    ),
    Record("Conv", between_convs(_conv_without_bias, after=11), (7, 11), label="no bias"),
    Record("Conv", partial(_conv_rank, spatial=(11,)), label="1-D"),
    Record("Conv", partial(_conv_rank, spatial=(5, 3, 4)), label="3-D"),
    Record("FusedConv", between_convs(_fused_conv, after=11), (7, 11), MICROSOFT),
    Record("ConvTranspose", between_convs(partial(_transposed, channels=7, per_group=11, group=1), after=11), (7, 11)),
    Record(
        "ConvTranspose",
        between_convs(partial(_transposed, channels=15, per_group=7, group=3), channels=15, after=21),
        (3, 5, 7),
        label="grouped",
    ),
    Record("ConvTranspose", between_convs(partial(_transposed, channels=7, per_group=1, group=7)), label="depthwise"),
    Record("DeformConv", between_convs(partial(_deformed, group=1, channels=7)), (7, 7), label="plain"),
    Record("DeformConv", between_convs(partial(_deformed, group=7, channels=7)), (7,), label="depthwise"),
]


def _gemm_net(net: Net, a: int, b: int, bias: tuple[int, ...] | None) -> Net:
    """x (2, 3) -> 7 -> 11 -> 5 features; the middle product in the given form, alpha and beta on."""
    x = net.dense(net.input(2, 3), 3, 7)
    x = net.op("Transpose", x, perm=[1, 0]) if a else x
    w = net.weight(11, 7) if b else net.weight(7, 11)
    c = [net.weight(*bias)] if bias is not None else [] if net.opset >= 11 else [net.weight(1)]
    if net.opset < 7:
        x = net.op("Gemm", x, w, *c, transA=a, transB=b, alpha=0.7, beta=0.9, broadcast=1)
    else:
        x = net.op("Gemm", x, w, *c, transA=a, transB=b, alpha=0.7, beta=0.9)
    return net.output(net.dense(net.op("Sigmoid", x), 11, 5))


def _weight_first(net: Net) -> Net:
    """Products with the constant on the left: features are rows."""
    x = net.op("MatMul", net.weight(7, 3), net.input(3, 5, closed=True))
    return net.output(net.op("MatMul", net.weight(13, 7), net.op("Relu", x)))


def _vector(net: Net) -> Net:
    """A product with a constant vector: the summed axis goes."""
    return net.output(net.op("MatMul", net.op("Relu", net.dense(net.input(2, 3), 3, 7)), net.weight(7)))


def _batched_weights(net: Net) -> Net:
    """(5, 3, 7) weights: each of the 5 has its own matrix."""
    x = net.op("MatMul", net.input(2, 5, 4, 3), net.weight(5, 3, 7))
    return net.output(net.op("MatMul", net.op("Relu", x), net.weight(5, 7, 13)))


def _transposed_constant(net: Net) -> Net:
    """The weights are stored as (out, in) and transposed by a node, as from PyTorch's `x @ w.T`."""
    x = net.op("MatMul", net.input(2, 5, 3), net.op("Transpose", net.weight(7, 3), perm=[1, 0]))
    return net.output(net.op("MatMul", net.op("Relu", x), net.op("Transpose", net.weight(13, 7), perm=[1, 0])))


def _einsum(net: Net, first: str, second: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Net:
    x = net.op("Einsum", net.input(2, 5, 3), net.weight(*shapes[0]), equation=first)
    return net.output(net.op("Einsum", net.op("Relu", x), net.weight(*shapes[1]), equation=second))


def _einsum_chain(net: Net) -> Net:
    """Heads as an axis of their own: (n t i), (h d i) -> (n t h d), back with (o h d)."""
    x = net.op("Einsum", net.input(2, 5, 3), net.weight(7, 11, 3), equation="nti,hdi->nthd")
    return net.output(net.op("Einsum", net.op("Relu", x), net.weight(13, 7, 11), equation="nthd,ohd->nto"))


def _fused(net: Net, x: str, op: str) -> str:
    return net.op(op, x, net.weight(11, 7), domain=MICROSOFT, transB=1, alpha=0.5)


def _batch_transposed(net: Net) -> Net:
    """FusedMatMul whose left factor has its batch and its rows in the other order: (5 tokens, 2, 3 channels)."""
    x = net.dense(net.input(5, 2, 3, closed=True), 3, 7)
    y = net.op("FusedMatMul", x, net.weight(2, 7, 11), domain=MICROSOFT, transBatchA=1)
    return net.output(net.dense(net.op("Relu", y), 11, 13))


def _fused_gemm(net: Net) -> Net:
    x = net.dense(net.input(2, 3), 3, 7)
    x = net.op("FusedGemm", x, net.weight(11, 7), net.weight(11), domain=MICROSOFT, transB=1, activation="Relu")
    return net.output(net.dense(x, 11, 5))


PRODUCTS = [
    *(
        Record("Gemm", partial(_gemm_net, a=a, b=b, bias=bias), (7, 11), label=f"{a}{b} {bias}", open_batch=not a)
        for a in (0, 1)
        for b in (0, 1)
        for bias in ((11,), (1, 11), (1,), None)
    ),
    Record("MatMul", between_products(lambda net, x: net.op("Relu", x))),
    Record("MatMul", _weight_first, label="weight first", open_batch=False),
    Record("MatMul", _vector, label="vector"),
    Record("MatMul", _batched_weights, label="batched weights"),
    Record("MatMul", _transposed_constant, label="transposed constant"),
    Record("Einsum", partial(_einsum, first="nti,oi->nto", second="nti,io->nto", shapes=((7, 3), (7, 13)))),
    Record("Einsum", partial(_einsum, first="...i,oi", second="...i,oi->o...", shapes=((7, 3), (13, 7))), label="dots"),
    Record("Einsum", _einsum_chain, (7, 11), label="heads"),
    *(
        Record(op, between_products(partial(_fused, op=op), after=11), (7, 11), MICROSOFT)
        for op in ("FusedMatMul", "TransposeMatMul")
    ),
    Record(
        "FusedMatMul",
        _batch_transposed,
        (),
        MICROSOFT,
        label="batch transposed",
        barrier="axes of the batch are transposed",
        open_batch=False,
    ),
    Record("FusedGemm", _fused_gemm, (7, 11), MICROSOFT),
]


def _recurrent(net: Net, op: str, gates: int, direction: str, full: bool = False, final: bool = False) -> Net:
    """x (4, 2, 3) -> recurrent layer of 7 units -> features of all steps, or the last state, -> 13."""
    d = 2 if direction == "bidirectional" else 1
    x = net.dense(net.input(4, 2, 3, closed=True), 3, 5)
    inputs = [x, net.weight(d, gates * 7, 5), net.weight(d, gates * 7, 7), net.weight(d, 2 * gates * 7)]
    if full:
        states = [net.weight(d, 2, 7)] * (2 if op == "LSTM" else 1)
        inputs += [net.const([4, 3], np.int32), *states, *([net.weight(d, 21)] if op == "LSTM" else [])]
    y = net.ops(op, *inputs, count=3 if op == "LSTM" else 2, hidden_size=7, direction=direction)
    if final:
        return net.output(net.dense(y[1], 7, 13))
    flat = net.op("Transpose", y[0], perm=[0, 2, 1, 3])
    flat = net.op("Reshape", flat, net.ints(0, 0, -1))
    return net.output(net.dense(flat, 7 * d, 13))


def _stacked(net: Net, op: str, gates: int) -> Net:
    """Two bidirectional layers: both directions' units, one behind the other, are the next layer's inputs."""
    x = net.input(4, 2, 3, closed=True)
    for inputs, hidden in ((3, 7), (14, 5)):
        w, r, b = (
            net.weight(2, gates * hidden, inputs),
            net.weight(2, gates * hidden, hidden),
            net.weight(2, 2 * gates * hidden),
        )
        y = net.ops(op, x, w, r, b, count=1, hidden_size=hidden, direction="bidirectional")[0]
        x = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(4, 2, -1))
    return net.output(net.dense(x, 10, 13))


def _recurrent_records() -> list[Record]:
    found = []
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        build = partial(_recurrent, op=op, gates=gates)
        since = tuple(v for v in (7, 14, 22))
        found += [
            Record(op, partial(build, direction="forward"), (5, 7), label="forward", since=since, open_batch=False),
            Record(op, partial(build, direction="bidirectional"), (5, 7), label="both", since=since, open_batch=False),
            Record(
                op, partial(build, direction="reverse", full=True), (5, 7), label="full", since=since, open_batch=False
            ),
            Record(
                op,
                partial(build, direction="forward", final=True),
                (5, 7),
                label="final",
                since=since,
                open_batch=False,
            ),
            Record(
                *(op, partial(build, direction="forward", final=True), (5, 7)),
                label="old",
                since=(1, 3) if op == "GRU" else (1,),
                open_batch=False,
            ),
            Record(op, partial(_stacked, op=op, gates=gates), (5, 7), label="stacked", since=since, open_batch=False),
        ]
    return found


def _batch_norm(net: Net, x: str) -> str:
    return net.op("BatchNormalization", x, net.positive(7), net.weight(7), net.weight(7), net.positive(7))


def _batch_norm_flat(net: Net) -> Net:
    x = net.dense(net.input(2, 3), 3, 7)
    return net.output(net.dense(_batch_norm(net, x), 7, 13))


def _two_constants(net: Net, x: str, op: str, **attrs: float) -> str:
    return net.op(op, x, net.positive(7), net.weight(7), **attrs)


def _group_norm(net: Net, x: str) -> str:
    size = 3 if net.opset < 21 else 15
    return net.op("GroupNormalization", x, net.positive(size), net.weight(size), num_groups=3)


def _spelled_group_norm(net: Net, x: str) -> str:
    """As PyTorch's exporter spells GroupNorm: InstanceNormalization over reshaped groups, then scale and shift."""
    y = net.op("Reshape", x, net.ints(0, 3, -1))
    y = net.op("InstanceNormalization", y, net.const([1] * 3, np.float32), net.const([0] * 3, np.float32))
    y = net.op("Reshape", y, net.op("Shape", x))
    return net.op("Add", net.op("Mul", y, net.positive(15, 1, 1)), net.weight(15, 1, 1))


def _spelled_instance_norm(net: Net, x: str) -> str:
    """Mean and variance over rows and columns, written out."""
    axes = {"axes": [2, 3]} if net.opset < 18 else {}
    more = [net.ints(2, 3)] if net.opset >= 18 else []
    centred = net.op("Sub", x, net.op("ReduceMean", x, *more, **axes))
    variance = net.op("ReduceMean", net.op("Mul", centred, centred), *more, **axes)
    spread = net.op("Sqrt", net.op("Add", variance, net.const(1e-3, np.float32)))
    return net.op("Mul", net.op("Div", centred, spread), net.positive(7, 1, 1))


def _layer_norm(net: Net, x: str, op: str, inputs: int) -> str:
    extra = [net.positive(7), net.weight(7)][:inputs]
    return net.op(op, x, *extra)


def _layer_norm_rows(net: Net, x: str) -> str:
    """Over rows and columns of each channel, which leaves channels apart."""
    return net.op("LayerNormalization", x, net.positive(5, 11), net.weight(5, 11), axis=2)


def _spelled_layer_norm(net: Net, x: str) -> str:
    axes = {"axes": [-1]} if net.opset < 18 else {}
    more = [net.ints(-1)] if net.opset >= 18 else []
    return net.op("Sub", x, net.op("ReduceMean", x, *more, **axes))


def _skip_norm(net: Net, x: str, op: str) -> str:
    extra = [net.positive(7), net.weight(7)] if op == "SkipLayerNormalization" else [net.positive(7)]
    return net.op(op, x, net.op("Tanh", net.dense("x0", 3, 7)), *extra, domain=MICROSOFT)


NORMALISATIONS = [
    Record("BatchNormalization", between_convs(_batch_norm), since=(7, 9, 14, 15)),
    Record("BatchNormalization", _batch_norm_flat, since=(7, 9, 14, 15), label="rank 2"),
    Record("BatchNormalization", between_convs(_batch_norm), since=(1, 6), label="old"),
    Record("InstanceNormalization", between_convs(partial(_two_constants, op="InstanceNormalization"))),
    Record("InstanceNormalization", between_convs(_spelled_instance_norm), label="spelled out", since=(6, 22)),
    Record(
        "InstanceNormalization", between_convs(_spelled_group_norm, channels=15), (3,), label="group norm", since=(6,)
    ),
    Record("GroupNormalization", between_convs(_group_norm, channels=15), (3,)),
    Record(
        "LayerNormalization",
        between_products(partial(_layer_norm, op="LayerNormalization", inputs=2)),
        (),
        barrier="mixes all channels",
    ),
    Record("LayerNormalization", between_convs(_layer_norm_rows), label="over pixels"),
    Record(
        "RMSNormalization",
        between_products(partial(_layer_norm, op="RMSNormalization", inputs=1)),
        (),
        barrier="mixes all channels",
    ),
    Record(
        "SimplifiedLayerNormalization",
        between_products(partial(_layer_norm, op="SimplifiedLayerNormalization", inputs=1)),
        (),
        barrier="mixes all channels",
    ),
    *(
        Record(op, between_products(partial(_skip_norm, op=op)), (), MICROSOFT, barrier="mixes all channels")
        for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    ),
    Record("LpNormalization", between_convs(lambda net, x: net.op("LpNormalization", x, axis=2)), label="over rows"),
    Record(
        "LpNormalization", between_convs(lambda net, x: net.op("LpNormalization", x, axis=1)), label="over channels"
    ),
    Record("LRN", between_convs(lambda net, x: net.op("LRN", x, size=3)), (), barrier="neighbouring channels"),
    Record("MeanVarianceNormalization", between_convs(lambda net, x: net.op("MeanVarianceNormalization", x))),
    Record(
        "MeanVarianceNormalization",
        between_convs(lambda net, x: net.op("MeanVarianceNormalization", x, axes=[1])),
        (),
        label="over channels",
        barrier="mixes all positions",
    ),
]


RECORDS = [*CONVOLUTIONS, *PRODUCTS, *_recurrent_records(), *NORMALISATIONS]
