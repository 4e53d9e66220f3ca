"""Gradients of the torch forms against ONNX Runtime: its outputs change along the gradient as the gradient says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.to_torch import to_torch, write_back

torch = pytest.importorskip("torch")

Array = np.ndarray


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _model(op: str, x: Array, others: dict[int, Array], opset: int, outputs: int, **attrs: Any) -> onnx.ModelProto:
    """The operator on x times a weight of x's shape; `others` are constants at further inputs."""
    places = range(max([0, *others]) + 1)
    names = [f"c{place}" if place in others else "" for place in places]
    names[0] = "scaled"
    made = [f"y{number}" for number in range(outputs)]
    tensors = [numpy_helper.from_array(array, f"c{place}") for place, array in others.items()]
    tensors.append(numpy_helper.from_array(_random(*x.shape, seed=9) + 2, "w"))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["scaled"]), helper.make_node(op, names, made, **attrs)],
        "slope",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_empty_tensor_value_info(name) for name in made],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def assert_right_slope(model: onnx.ModelProto, feeds: dict[str, Array], weights: set[str]) -> None:
    """The named constants are weights, each with a gradient, and along each gradient the slope is right."""
    module = to_torch(load(model))
    assert {name for name, _ in module.weights()} == weights
    outputs = module({name: torch.from_numpy(value) for name, value in feeds.items()})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    places = [place for place, y in enumerate(outputs) if y.is_floating_point()]
    factors = [np.random.default_rng(5).standard_normal(tuple(outputs[place].shape)) for place in places]

    def value(changed: onnx.ModelProto) -> float:
        found = run_plain(changed, [feeds], optimize=False)[0]
        return sum(float((found[p].astype(np.float64) * r).sum()) for p, r in zip(places, factors, strict=True))

    terms = [(outputs[p].double() * torch.from_numpy(r)).sum() for p, r in zip(places, factors, strict=True)]
    torch.stack(terms).sum().backward()
    size = float(np.linalg.norm([float((outputs[p].detach().double() * torch.from_numpy(r)).norm())
                                 for p, r in zip(places, factors, strict=True)]))  # fmt: skip
    for name, weight in module.weights():
        assert weight.grad is not None, name
        norm = float(weight.grad.double().norm())
        assert norm > 0, name
        ratios = []
        for step in (3e-3, 3e-4):
            values = []
            for sign in (1, -1):
                old = weight.detach().clone()
                with torch.no_grad():
                    weight.add_(sign * step * size / norm**2 * weight.grad)
                    values.append(value(write_back(module, model)))
                    weight.copy_(old)
            ratios.append((values[0] - values[1]) / (2 * step * size))
        assert min(abs(ratio - 1) for ratio in ratios) < 0.03, (name, ratios)


def _check(op: str, x: Array, others: dict[int, Array] | None = None, opset: int = 17, outputs: int = 1,
           frozen: tuple[int, ...] = (), **attrs: Any) -> None:  # fmt: skip
    others = others or {}
    trained = {f"c{p}" for p, a in others.items() if a.dtype == np.float32 and a.size > 1 and p not in frozen}
    assert_right_slope(_model(op, x, others, opset, outputs, **attrs), {"x": x}, {"w", *trained})


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("option", ["plain", "lengths and states"])
def test_recurrent_layers(op: str, direction: str, option: str) -> None:
    gates, d, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1, 5
    others = {
        1: _random(d, gates * hidden, 4, seed=1),
        2: _random(d, gates * hidden, hidden, seed=2),
        3: _random(d, 2 * gates * hidden, seed=3),
    }
    if option == "lengths and states":
        others |= {4: np.array([7, 2, 4], np.int32), 5: _random(d, 3, hidden, seed=5)}
        if op == "LSTM":
            others |= {6: _random(d, 3, hidden, seed=6), 7: _random(d, 3 * hidden, seed=7)}
    outputs = 3 if op == "LSTM" else 2
    _check(op, 0.3 * _random(7, 3, 4), others, outputs=outputs, hidden_size=hidden, direction=direction)


@pytest.mark.parametrize(
    "attrs",
    [
        {"pads": (1, 0, 2, 1)},
        {"strides": (2, 3), "auto_pad": "SAME_UPPER"},
        {"strides": (2, 1), "auto_pad": "SAME_LOWER"},
        {"dilations": (2, 3), "pads": (2, 3, 2, 3)},
        {"group": 3},
    ],
    ids=str,
)
def test_convolutions(attrs: dict[str, Any]) -> None:
    group = attrs.get("group", 1)
    _check("Conv", _random(2, 3, 11, 13), {1: _random(6, 3 // group, 3, 3, seed=1), 2: _random(6, seed=2)}, **attrs)
    _check(
        "ConvTranspose", _random(2, 3, 5, 7), {1: _random(3, 4, 3, 3, seed=1), 2: _random(4 * group, seed=2)}, **attrs
    )


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("sizes", [(4, 23), (7, 5)])
def test_resize(mode: str, coordinates: str, sizes: tuple[int, int]) -> None:
    none = np.zeros(0, np.float32)
    others = {1: none, 2: none, 3: np.array([2, 3, *sizes], np.int64)}
    _check("Resize", _random(2, 3, 5, 11), others, opset=19, mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_with_antialias(mode: str) -> None:
    none = np.zeros(0, np.float32)
    others = {1: none, 2: none, 3: np.array([1, 3, 3, 5], np.int64)}
    _check("Resize", _random(1, 3, 7, 17), others, opset=18, mode=mode, antialias=1)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("MaxPool", {"ceil_mode": 1, "strides": (2, 2), "pads": (1, 0, 1, 1)}),
        ("MaxPool", {"dilations": (2, 1)}),
        ("AveragePool", {"ceil_mode": 1, "strides": (2, 2), "pads": (1, 0, 1, 1), "count_include_pad": 1}),
        ("AveragePool", {"strides": (2, 2), "auto_pad": "SAME_UPPER"}),
        ("LpPool", {"p": 3, "pads": (0, 1, 1, 0)}),
    ],
    ids=str,
)
def test_pools(op: str, attrs: dict[str, Any]) -> None:
    _check(op, _random(2, 3, 7, 11), opset=19, kernel_shape=(3, 2), **attrs)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pads(mode: str) -> None:
    _check("Pad", _random(2, 5, 7), {1: np.array([0, 1, 2, 0, 2, 1], np.int64)}, opset=19, mode=mode)


@pytest.mark.parametrize(
    ("op", "x", "others", "opset", "attrs"),
    [
        ("InstanceNormalization", (2, 3, 5, 7), {1: (3,), 2: (3,)}, 17, {}),
        ("LayerNormalization", (2, 3, 5), {1: (3, 5), 2: (3, 5)}, 17, {"axis": 1}),
        ("GroupNormalization", (2, 6, 5), {1: (6,), 2: (6,)}, 21, {"num_groups": 2}),
        ("LRN", (2, 7, 5, 3), {}, 17, {"size": 3, "alpha": 0.1}),
        ("LpNormalization", (2, 7, 5), {}, 17, {"axis": 1}),
        ("MeanVarianceNormalization", (2, 3, 5, 7), {}, 13, {}),
        ("Gemm", (3, 5), {1: (7, 5), 2: (7,)}, 17, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ("PRelu", (2, 3, 5), {1: (3, 1)}, 17, {}),
        ("Softmax", (2, 3, 5), {}, 11, {"axis": 1}),
        ("LogSoftmax", (2, 3, 5), {}, 13, {"axis": 1}),
        ("ReduceLogSumExp", (2, 3, 5), {}, 17, {"axes": [1]}),
        ("ReduceL2", (2, 3, 5), {}, 17, {"axes": [0, 2]}),
        ("CumSum", (2, 3, 5), {1: None}, 17, {"reverse": 1, "exclusive": 1}),
        ("DepthToSpace", (2, 12, 3, 5), {}, 17, {"blocksize": 2, "mode": "CRD"}),
        ("Einsum", (2, 3, 5), {1: (2, 5, 7)}, 17, {"equation": "bij,bjk->bik"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_layers(op: str, x: Any, others: Any, opset: int, attrs: dict[str, Any]) -> None:
    arrays = {p: np.array(1, np.int64) if s is None else _random(*s, seed=p) for p, s in others.items()}
    _check(op, _random(*x), arrays, opset, **attrs)


CONTROL = {
    "Loop with rows and a condition": """
        agraph (float[3] x, int64 n) => (float[3] s, float[k, 3] rows) <float[3] w, float limit = {9}> {
            go = Constant<value: tensor = bool {1}>()
            s, rows = Loop(n, go, x) <body = one (int64 i, bool on, float[3] a) => (bool next, float[3] b, float[3] r) {
                m = Mul(a, w)
                f = Cast<to = 1>(i)
                b = Add(m, f)
                size = ReduceSum<keepdims = 0>(b)
                next = Less(size, limit)
                r = Tanh(b) }>
        }""",
    "If within a Loop": """
        agraph (float[3] x, int64 n) => (float[3] s) <float[3] w, float[3] v, int64 two = {2}, int64 none = {0}> {
            go = Constant<value: tensor = bool {1}>()
            s = Loop(n, go, x) <body = one (int64 i, bool on, float[3] a) => (bool next, float[3] b) {
                next = Identity(on)
                odd = Mod(i, two)
                even = Equal(odd, none)
                b = If(even) <
                    then_branch = yes () => (float[3] p) { p = Mul(a, w) },
                    else_branch = no () => (float[3] q) { q = Add(a, v) }>
            }>
        }""",
    "Scan from behind": """
        agraph (float[5, 3] x, int64 n) => (float[3] e, float[5, 3] y) <float[3] w, float[3] start> {
            e, y = Scan<num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
                body = one (float[3] a, float[3] b) => (float[3] c, float[3] d) {
                    m = Mul(a, w)
                    c = Add(m, b)
                    d = Tanh(c) }>(start, x)
            k = Identity(n)
        }""",
}


@pytest.mark.parametrize("text", CONTROL.values(), ids=CONTROL)
@pytest.mark.parametrize("count", [1, 3])
def test_control_flow(text: str, count: int) -> None:
    """Numbers and slopes."""
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>' + text)
    for place, value in enumerate(model.graph.value_info):
        model.graph.initializer.append(numpy_helper.from_array(_random(3, seed=place), value.name))
    names = {value.name for value in model.graph.value_info}
    del model.graph.value_info[:]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": _random(*shape, seed=7), "n": np.array(count, np.int64)}
    wanted = run_plain(model, [feeds], optimize=False)[0]
    with torch.no_grad():
        found = to_torch(load(model))({name: torch.from_numpy(value) for name, value in feeds.items()})
    for want, have in zip(wanted, found if isinstance(found, tuple) else (found,), strict=True):
        assert want.shape == tuple(have.shape)
        assert np.abs(want - have.numpy()).max() <= 1e-5
    influential = names - ({"v"} if count == 1 else set())
    if influential == names:
        assert_right_slope(model, feeds, names)
