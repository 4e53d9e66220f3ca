"""Records of quantized operators. Zero points are never 0, so that a slice set to 0 instead of "zero" would show."""

from __future__ import annotations

from functools import partial

import numpy as np
from net import Net
from onnx import TensorProto
from record import Record, between_convs

FLOAT = TensorProto.FLOAT


def _bytes(net: Net, *shape: int) -> str:
    return net.const(net.rng.integers(90, 170, shape), np.uint8)


def _scales(net: Net, *shape: int) -> str:
    return net.const(net.rng.uniform(0.01, 0.03, shape), np.float32)


def _zeros(net: Net, *shape: int) -> str:
    return net.const(net.rng.integers(110, 140, shape), np.uint8)


def _dequantized(net: Net, shape: tuple[int, ...], axis: int | None) -> str:
    """Stored bytes behind a DequantizeLinear; one scale, or one for each position of an axis."""
    size = () if axis is None else (shape[axis],)
    attrs = {} if axis is None or net.opset < 13 else {"axis": axis}
    return net.op("DequantizeLinear", _bytes(net, *shape), _scales(net, *size), _zeros(net, *size), **attrs)


def _stored_weights(net: Net, axis: int | None) -> Net:
    x = net.op("Conv", net.input(2, 3, 5, 11), _dequantized(net, (7, 3, 1, 1), axis), net.weight(7))
    return net.output(net.op("Conv", net.op("Relu", x), _dequantized(net, (13, 7, 1, 1), axis)))


def _stored_bias(net: Net, scales: int) -> Net:
    """A bias of 32-bit integers, as ONNX Runtime's static quantization writes it: a scale for each or one in a list."""
    bias = net.op("DequantizeLinear", net.const(net.rng.integers(-999, 999, 7), np.int32), _scales(net, scales), axis=0)
    x = net.op("Conv", net.input(2, 3, 5, 11), _dequantized(net, (7, 3, 1, 1), 0), bias)
    return net.output(net.op("Conv", net.op("Relu", x), _dequantized(net, (13, 7, 1, 1), 0)))


def _blocked(net: Net) -> Net:
    """Blocks of 2 along the inputs share a scale: the outputs can go, the inputs cannot."""
    x = net.dense(net.input(2, 5), 5, 8)
    w = net.op("DequantizeLinear", _bytes(net, 8, 7), _scales(net, 4, 7), _zeros(net, 4, 7), axis=0, block_size=2)
    return net.output(net.dense(net.op("Relu", net.op("MatMul", x, w)), 7, 13))


def _fake_quantized(net: Net, x: str, channels: int = 0) -> str:
    """QuantizeLinear and DequantizeLinear of an activation, per tensor or per channel."""
    size = (channels,) if channels else ()
    scale, zero = _scales(net, *size), _zeros(net, *size)
    attrs = {"axis": 1} if channels else {}
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero, **attrs), scale, zero, **attrs)


def _quantized(net: Net, x: str, scale: str, zero: str) -> str:
    return net.op("QuantizeLinear", x, scale, zero)


def _qlinear_conv(net: Net, group: int = 1) -> Net:
    """Three QLinearConv in a row: bytes in between, a scale and a zero point for each channel of the weights."""
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = _quantized(net, net.input(2, 3, 5, 11), scale, zero)
    for inputs, outputs, groups in ((3, 7, 1), (7, 7, group), (7, 13, 1)):
        w, w_scale, w_zero = _bytes(net, outputs, inputs // groups, 1, 1), _scales(net), _zeros(net)
        bias = net.const(net.rng.integers(-200, 200, outputs), np.int32)
        x = net.op("QLinearConv", x, scale, zero, w, w_scale, w_zero, scale, zero, bias, group=groups)
    return net.output(net.op("DequantizeLinear", x, scale, zero))


def _qlinear_matmul(net: Net) -> Net:
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = _quantized(net, net.input(2, 5, 3), scale, zero)
    for inputs, outputs in ((3, 7), (7, 13)):
        size = (outputs,)
        x = net.op(
            *("QLinearMatMul", x, scale, zero, _bytes(net, inputs, outputs)),
            *(_scales(net, *size), _zeros(net, *size), scale, zero),
        )
    return net.output(net.op("DequantizeLinear", x, scale, zero))


def _integer_conv(net: Net, x: str, zero: str, inputs: int, outputs: int) -> str:
    return net.cast(net.op("ConvInteger", x, _bytes(net, outputs, inputs, 1, 1), zero, _zeros(net)), FLOAT)


def _convs_of_bytes(net: Net) -> Net:
    """ConvInteger twice, with a fixed quantization between."""
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = _integer_conv(net, _quantized(net, net.input(2, 3, 5, 11), scale, zero), zero, 3, 7)
    x = _quantized(net, net.op("Mul", x, net.const(1e-4, np.float32)), scale, zero)
    return net.output(_integer_conv(net, x, zero, 7, 13))


def _dynamic(net: Net, between: str) -> Net:
    """ONNX Runtime's dynamic quantization: the range of all channels together sets the scale."""
    x, scale, zero = net.ops("DynamicQuantizeLinear", net.input(2, 3, 5, 11), count=3)
    y = _integer_conv(net, x, zero, 3, 7)
    y = net.op("Mul", y, net.op("Mul", scale, net.const(0.02, np.float32)))
    y = net.op(between, net.op("Add", y, net.weight(1, 7, 1, 1)))
    x, scale, zero = net.ops("DynamicQuantizeLinear", y, count=3)
    return net.output(net.op("Mul", _integer_conv(net, x, zero, 7, 13), scale))


def _products_of_bytes(net: Net) -> Net:
    scale, zero = net.const(0.03, np.float32), net.const(120, np.uint8)
    x = _quantized(net, net.input(2, 5, 3), scale, zero)
    x = net.cast(net.op("MatMulInteger", x, _bytes(net, 3, 7), zero, _zeros(net, 7)), FLOAT)
    x = _quantized(net, net.op("Mul", x, net.const(1e-4, np.float32)), scale, zero)
    x = net.op("MatMulInteger", x, _bytes(net, 7, 13), zero, _zeros(net, 13))
    return net.output(net.cast(x, FLOAT))


RECORDS = [
    Record("DequantizeLinear", partial(_stored_weights, axis=None), label="per tensor"),
    Record(
        "DequantizeLinear", partial(_stored_weights, axis=0), label="per channel", since=(13, 19, 21, 23, 24, 25, 28)
    ),
    Record("DequantizeLinear", partial(_stored_weights, axis=1), label="per input", since=(13, 19, 21, 23, 24, 25, 28)),
    *(
        Record(
            "DequantizeLinear",
            partial(_stored_bias, scales=count),
            label=f"bias, {count} scales",
            since=(13, 19, 21, 23, 24, 25, 28),
        )
        for count in (1, 7)
    ),
    Record("DequantizeLinear", _blocked, label="blocked", since=(21, 23, 24, 25, 28)),
    Record("QuantizeLinear", between_convs(_fake_quantized), label="per tensor"),
    Record(
        "QuantizeLinear",
        between_convs(partial(_fake_quantized, channels=7)),
        label="per channel",
        since=(13, 19, 21, 23, 24, 25, 28),
    ),
    Record("QLinearConv", _qlinear_conv, (7, 7)),
    Record("QLinearConv", partial(_qlinear_conv, group=7), (7,), label="depthwise"),
    Record("QLinearMatMul", _qlinear_matmul),
    Record("ConvInteger", _convs_of_bytes),
    Record("DynamicQuantizeLinear", partial(_dynamic, between="Relu")),
    Record(
        "DynamicQuantizeLinear",
        partial(_dynamic, between="Sigmoid"),
        (),
        label="not zero at zero",
        barrier="cannot be made zero",
    ),
    Record("MatMulInteger", _products_of_bytes),
]
