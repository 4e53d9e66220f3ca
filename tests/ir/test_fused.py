"""What exporters spell out runs as one torch function where it is exactly that function, and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_netadapt.ir import load
from onnx_netadapt.ir.lowering import build
from onnx_netadapt.passes.equivalence import random_feeds, run_plain
from onnx_netadapt.passes.to_torch import to_torch

torch = pytest.importorskip("torch")

SIZES = "float[2, 5, 7] x) => (float[2, 5, 7] y"
LINEAR = f"""agraph ({SIZES}) <float[7, 7] w, float[7] b> {{ m = MatMul(x, w)
    y = Add(ORDER) }}"""
GELU = f"""agraph ({SIZES}) <float r = {{1.4142135}}, float one = {{1}}, float half = {{0.5}}> {{ d = Div(x, r)
    e = Erf(d)
    a = Add(e, one)
    PRODUCT }}"""
NORM = f"""agraph ({SIZES})
    <float two = {{2}}, float eps = {{0.00001}}, float[7] s, float[7] b, int64[1] last = {{-1}}> {{
    m = MEAN(x)
    c = Sub(x, m)
    p = Pow(c, two)
    v = MEAN(p)
    w = Add(v, eps)
    q = Sqrt(w)
    d = Div(c, q)
    n = Mul(d, s)
    y = Add(n, b) }}"""
SILU = f"agraph ({SIZES}) {{ g = Sigmoid(x) y = Mul(x, g) }}"

WHOLE = {
    "linear": LINEAR.replace("ORDER", "m, b"),
    "linear, bias first": LINEAR.replace("ORDER", "b, m"),
    "gelu as torch has it": GELU.replace("PRODUCT", "t = Mul(x, a) y = Mul(t, half)"),
    "gelu as keras has it": GELU.replace("PRODUCT", "t = Mul(half, x) y = Mul(t, a)"),
    "gelu with the half inside": GELU.replace("PRODUCT", "t = Mul(a, half) y = Mul(x, t)"),
    "layer norm, axes as attribute": NORM.replace("MEAN", "ReduceMean<axes = [-1]>"),
    "layer norm, axes as input": NORM.replace("MEAN(x)", "ReduceMean(x, last)").replace(
        "MEAN(p)", "ReduceMean(p, last)"
    ),
    "silu": SILU,
}
HALVED = "t = Mul(x, a) y = Mul(t, half)"
PARTS = {
    "an output between": LINEAR.replace("=> (", "=> (float[2, 5, 7] m, ").replace("ORDER", "m, b"),
    "another reader": LINEAR.replace("y = Add(ORDER)", "z = Relu(m) k = Add(m, b) y = Add(k, z)"),
    "a wrong root": GELU.replace("1.4142135", "1.4").replace("PRODUCT", HALVED),
    "another factor": GELU.replace("half = {0.5}", "half = {0.25}").replace("PRODUCT", HALVED),
    "another axis": NORM.replace("MEAN", "ReduceMean<axes = [1]>"),
    "a cube": NORM.replace("MEAN", "ReduceMean<axes = [-1]>").replace("two = {2}", "two = {3}"),
    "the mean read once more": NORM.replace("MEAN", "ReduceMean<axes = [-1]>").replace(
        "y = Add(n, b)", "k = Add(n, b) y = Add(k, m)"
    ),
    "a gate of something else": SILU.replace("Sigmoid(x)", "Sigmoid(t)").replace("{ g", "{ t = Tanh(x) g"),
}  # fmt: skip


def _model(text: str) -> onnx.ModelProto:
    opset = 18 if ", last)" in text else 17
    if opset == 17:
        text = text.replace(", int64[1] last = {-1}", "")
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        array = rng.random([dim.dim_value for dim in value.type.tensor_type.shape.dim], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    return model


def _assert_right(model: onnx.ModelProto) -> int:
    """Torch agrees with ONNX Runtime; the number of calls that it makes."""
    graph = load(model)
    feeds = random_feeds(graph, 1)[0]
    wanted = run_plain(model, [feeds], optimize=False)[0]
    with torch.no_grad():
        found = to_torch(graph)(torch.from_numpy(feeds["x"]))
    found = found if isinstance(found, tuple) else (found,)
    for want, have in zip(wanted, found, strict=True):
        mask = np.isfinite(want)
        assert np.array_equal(mask, np.isfinite(have.numpy()))
        assert np.abs(want - have.numpy())[mask].max() <= 1e-5 * np.abs(want[mask]).max()
    return len(build(graph, torch).steps)


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_what_is_one_function_is_one_call(text: str) -> None:
    assert _assert_right(_model(text)) == 1


@pytest.mark.parametrize("text", PARTS.values(), ids=PARTS)
def test_what_is_not_stays_as_it_is(text: str) -> None:
    model = _model(text)
    assert _assert_right(model) >= len(model.graph.node)


def test_gradients_reach_the_weights_of_fused_nodes() -> None:
    for text in (WHOLE["linear"], WHOLE["layer norm, axes as attribute"]):
        module = to_torch(load(_model(text)))
        module(torch.randn(2, 5, 7)).square().sum().backward()
        weights = list(module.weights())
        assert len(weights) == 2
        assert all(bool((weight.grad != 0).all()) for _, weight in weights)
