"""What training changed comes back into the model: through the operators it stands behind, and nothing else with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.passes.equivalence import random_feeds, run_plain
from onnx_netadapt.passes.to_torch import to_torch, write_back

torch = pytest.importorskip("torch")

QDQ_FILE = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "derived_qdq_cifar10_resnet20.onnx"
HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'


def _model(text: str, seed: int = 0, **values: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text; tensors declared without values are those given, or seeded random numbers.

    Bytes are small enough to stay within 7 bits when they are trained: on processors without dot products of bytes
    ONNX Runtime adds two products in 16 bits, which those of larger ones overflow.
    """
    model = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        most = 40 if dtype.itemsize == 1 else 120
        array = rng.integers(-most, most + 1, shape) if dtype.kind in "iu" else rng.standard_normal(shape)
        model.graph.initializer.append(numpy_helper.from_array(values.get(value.name, array.astype(dtype)), value.name))
    del model.graph.value_info[:]
    return model


def _tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _run(module: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return module({name: torch.from_numpy(value) for name, value in feeds.items()}).numpy()


def _fit(module: Any, feeds: dict[str, np.ndarray], goal: np.ndarray, rates: Callable[[Any], float], steps: int) -> Any:
    """A few steps of Adam towards a goal; the loss before and after."""
    groups = [{"params": [weight], "lr": rates(weight)} for _, weight in module.weights()]
    optimizer = torch.optim.Adam(groups)
    inputs, wanted, losses = {n: torch.from_numpy(v) for n, v in feeds.items()}, torch.from_numpy(goal), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def _assert_trains_through(
    model: onnx.ModelProto, names: set[str], *, tolerance: float = 1e-5, loss: float = 0.7
) -> onnx.ModelProto:
    """The named constants are the weights, training lowers the loss, ONNX Runtime then computes what torch does, and
    all other constants keep their bytes and every constant its type.
    """
    graph = load(model)
    module = to_torch(graph)
    assert {name for name, _ in module.weights()} == names
    assert _bytes(write_back(module, model)) == _bytes(model)
    feeds = random_feeds(graph, 1)[0]
    (before,) = run_plain(model, [feeds], optimize=False)[0]
    span = float(np.abs(before).max())
    assert np.abs(_run(module, feeds) - before).max() <= tolerance * span
    goal = before + np.random.default_rng(1).standard_normal(before.shape).astype(before.dtype) * before.std()
    first, last = _fit(module, feeds, goal, lambda w: 0.02 * float(w.detach().abs().max()), steps=30)
    assert last < loss * first
    after = write_back(module, model)
    old, new = _tensors(model), _tensors(after)
    assert {name: array.dtype for name, array in old.items()} == {name: array.dtype for name, array in new.items()}
    assert {name for name in old if old[name].tobytes() != new[name].tobytes()} == names
    (found,) = run_plain(after, [feeds], optimize=False)[0]
    assert np.abs(_run(module, feeds) - found).max() <= tolerance * span
    assert np.abs(found - before).max() > 0.05 * span
    return after


def test_a_weight_behind_reshape_and_transpose() -> None:
    _assert_trains_through(
        _model("""agraph (float[2, 5] x) => (float[2, 7] y) <float[35] w, int64[2] s = {7, 5}> {
            r = Reshape(w, s)
            t = Transpose(r)
            y = MatMul(x, t) }"""),
        {"w"},
    )


def test_a_float16_weight_behind_a_cast() -> None:
    _assert_trains_through(
        _model("""agraph (float[2, 5] x) => (float[2, 7] y) <float16[5, 7] w> {
            c = Cast<to = 1>(w)
            y = MatMul(x, c) }"""),
        {"w"},
        tolerance=1e-3,
    )


def test_an_int8_weight_that_is_cast_and_scaled_by_hand() -> None:
    scale = np.random.default_rng(3).uniform(0.01, 0.02, 7).astype(np.float32)
    text = """agraph (float[2, 5] x) => (float[2, 7] y) <int8[5, 7] w, float[7] s> {
        c = Cast<to = 1>(w)
        m = Mul(c, s)
        y = MatMul(x, m) }"""
    _assert_trains_through(_model(text, s=scale), {"w", "s"})


@pytest.mark.parametrize("layout", ["Transpose(w)", "Reshape(w, back)", "Identity(w)"])
def test_an_int8_weight_behind_a_layout_and_a_dequantization(layout: str) -> None:
    text = f"""agraph (float[2, 5] x) => (float[2, 5] y)
        <int8[5, 5] w, float s = {{0.02}}, int8 z = {{3}}, int64[2] back = {{5, 5}}> {{
        t = {layout}
        d = DequantizeLinear(t, s, z)
        y = MatMul(x, d) }}"""
    after = _assert_trains_through(_model(text), {"w"})
    assert _tensors(after)["w"].dtype == np.int8


def test_integers_that_index_or_count_are_not_weights() -> None:
    model = _model("""agraph (float[2, 5] x) => (float[2, 3] y)
        <int64[3] places = {0, 2, 4}, int64[3] steps = {1, 2, 3}, int8[2] both> {
        g = Gather<axis = 1>(x, places)
        c = Cast<to = 1>(steps)
        e = Cast<to = 6>(both)
        y = Add(g, c) }""")
    frozen = to_torch(load(model)).frozen
    assert frozen["places"] == frozen["steps"] == frozen["both"] == "it is not floating-point"


def test_quantized_layers_of_onnx_runtime_train() -> None:
    rng = np.random.default_rng(0)
    quantities = "float sx = {0.02}, uint8 zx = {128}, float sy = {0.1}, uint8 zy = {120}"
    text = f"""agraph (float[1, 3, 5, 11] x) => (float[1, 7, 3, 11] y)
        <{quantities}, int8[7, 3, 3, 1] w, float[7] sw, int8[7] zw = {{0, 0, 0, 0, 0, 0, 0}}, int32[7] b> {{
        q = QuantizeLinear(x, sx, zx)
        c = QLinearConv(q, sx, zx, w, sw, zw, sy, zy, b)
        y = DequantizeLinear(c, sy, zy) }}"""
    model = _model(text, sw=rng.uniform(0.01, 0.02, 7).astype(np.float32))
    # one step of the output's grid is 1 / 255 of its range: where a value lies on a tie, one step is no mistake
    after = _assert_trains_through(model, {"w", "b"}, tolerance=0.02, loss=0.85)
    assert {str(_tensors(after)[name].dtype) for name in ("w", "b")} == {"int8", "int32"}


def test_dynamically_quantized_matrices_train() -> None:
    text = """agraph (float[3, 5] x) => (float[3, 7] y) <int8[5, 7] w, int8 zw = {0}, float s = {0.02}> {
        q, sx, zx = DynamicQuantizeLinear(x)
        m = MatMulInteger(q, w, zx, zw)
        f = Cast<to = 1>(m)
        t = Mul(sx, s)
        y = Mul(f, t) }"""
    _assert_trains_through(_model(text), {"w"})


def test_what_was_not_touched_within_a_tensor_keeps_its_digits() -> None:
    text = """agraph (float[2, 3] x) => (float[2, 3] y) <int32[3] b, float s = {0.5}> {
        d = DequantizeLinear(b, s)
        y = Add(x, d) }"""
    exact = np.array([2**30 + 1, -(2**29) - 3, 5], np.int32)  # more digits than a float32 has
    model = _model(text, b=exact)
    module = to_torch(load(model))
    with torch.no_grad():
        dict(module.weights())["b"][2] += 2
    assert _tensors(write_back(module, model))["b"].tolist() == [*exact[:2].tolist(), 7]


def test_a_shared_weight_stays_one() -> None:
    text = """agraph (float[2, 5] x) => (float[2, 5] y) <float[5, 5] w> {
        a = MatMul(x, w)
        t = Transpose(w)
        r = Tanh(a)
        y = MatMul(r, t) }"""
    after = _assert_trains_through(_model(text), {"w"})
    assert len(after.graph.initializer) == 1


LOOP = """agraph (float[2, 5] x, int64 n) => (float[2, 5] y) <float[5, 5] w, float[5] c> {
    go = Constant<value: tensor = bool {1}>()
    y = Loop(n, go, x) <body = one (int64 i, bool on, float[2, 5] s) => (bool next, float[2, 5] t)
        <float[5] b = {0.5, -0.5, 1.0, 0.25, 2.0}> {
        next = Identity(on)
        m = MatMul(s, w)
        o = Add(m, b)
        z = Constant<value: tensor = float[5] {0.1, 0.2, 0.3, 0.4, 0.5}>()
        u = Mul(o, z)
        t = Tanh(u) }>
}"""


def test_weights_in_and_around_a_loop_train_and_are_written() -> None:
    model = _model(LOOP)
    module = to_torch(load(model))
    assert {name for name, _ in module.weights()} == {"w", "b", "z"}
    assert module.frozen["c"] == "no node reads it"
    assert set(module.state_dict()) == {"w", "b", "z"}
    assert _bytes(write_back(module, model)) == _bytes(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32), "n": np.array(3, np.int64)}
    module({name: torch.from_numpy(value) for name, value in feeds.items()}).square().sum().backward()
    assert all(bool(weight.grad.abs().sum() > 0) for _, weight in module.weights())
    with torch.no_grad():
        for _, weight in module.weights():
            weight.sub_(0.1 * weight.grad)
    after = write_back(module, model)
    (wanted,) = run_plain(after, [feeds], optimize=False)[0]
    assert np.abs(_run(module, feeds) - wanted).max() <= 1e-6
    assert np.abs(wanted - run_plain(model, [feeds], optimize=False)[0][0]).max() > 1e-3


def test_both_branches_of_an_if_may_name_a_weight_alike() -> None:
    text = """agraph (float[2, 3] x, bool c) => (float[2, 3] y) {
        y = If(c) <
            then_branch = yes () => (float[2, 3] p) <float[3] w = {1, 2, 3}> { p = Mul(x, w) },
            else_branch = no () => (float[2, 3] q) <float[3] w = {4, 5, 6}> { q = Mul(x, w) }>
    }"""
    model = _model(text)
    module = to_torch(load(model))
    assert {name for name, _ in module.weights()} == {"0:then_branch:w", "0:else_branch:w"}
    with torch.no_grad():
        dict(module.weights())["0:else_branch:w"].mul_(2)
    after = write_back(module, model)
    x = np.ones((2, 3), np.float32)
    for condition, row in ((True, [1, 2, 3]), (False, [8, 10, 12])):
        feeds = {"x": x, "c": np.array(condition)}
        assert run_plain(after, [feeds], optimize=False)[0][0][0].tolist() == row
        assert _run(module, feeds)[0].tolist() == row


def test_a_weight_that_load_writes_out_is_not_lost() -> None:
    """In a local function or as a sparse tensor a weight has no place of its own in the file."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "my": 1]>
        agraph (float[2, 3] x) => (float[2, 3] y) { y = my.scaled(x) }
        <domain: "my", opset_import: ["": 17]>
        scaled (a) => (b) { w = Constant<value: tensor = float[3] {1, 2, 3}>()
            b = Mul(a, w) }""")
    module = to_torch(load(model))
    assert _bytes(write_back(module, model)) == _bytes(model)
    ((_, weight),) = module.weights()
    with torch.no_grad():
        weight.add_(1)
    after = write_back(module, model)
    assert run_plain(after, [{"x": np.ones((2, 3), np.float32)}], optimize=False)[0][0][0].tolist() == [2, 3, 4]


def test_a_half_precision_network_is_trained_from_float32_masters() -> None:
    text = """agraph (float16[4, 5] x) => (float16[4, 7] y) <float16[5, 11] a, float16[11] b, float16[11, 7] c> {
        m = MatMul(x, a)
        n = Add(m, b)
        t = Tanh(n)
        y = MatMul(t, c) }"""
    model = _model(text)
    module = to_torch(load(model))
    assert {str(weight.dtype) for _, weight in module.weights()} == {"torch.float32"}
    feeds = random_feeds(load(model), 1)[0]
    first, last = _fit(module, feeds, np.zeros((4, 7), np.float32), lambda w: 1e-5, steps=2)
    moved = {name: weight.detach().numpy() for name, weight in module.weights()}
    old = {name: value.astype(np.float32) for name, value in _tensors(model).items()}
    small = sum(int(((moved[n] != old[n]) & (moved[n].astype(np.float16) == old[n])).sum()) for n in old)
    assert small > 20  # steps below the last digit of float16 are kept by the masters
    assert last < first
    _fit(module, feeds, np.zeros((4, 7), np.float32), lambda w: 0.02, steps=20)
    after = write_back(module, model)
    assert {value.dtype for value in _tensors(after).values()} == {np.dtype(np.float16)}
    (wanted,) = run_plain(after, [feeds], optimize=False)[0]
    span = float(np.abs(run_plain(model, [feeds], optimize=False)[0][0]).max())
    assert np.abs(_run(module, feeds) - wanted.astype(np.float32)).max() <= 5e-3 * span


@pytest.mark.skipif(not QDQ_FILE.is_file(), reason="needs ../shared/models")
def test_an_int8_network_is_fine_tuned_and_stays_int8() -> None:
    """ResNet20 with QuantizeLinear and DequantizeLinear around every layer: straight-through gradients."""
    model = onnx.load(QDQ_FILE)
    graph = load(model)
    module = to_torch(graph)
    feeds = {port.name: np.random.default_rng(0).random((8, 3, 32, 32)).astype(np.float32) for port in graph.inputs}
    (before,) = run_plain(model, [feeds], optimize=False)[0]
    goal = np.roll(before, 1, axis=1)  # what no rounding could give by chance
    first, last = _fit(module, feeds, goal, lambda w: 0.003 * float(w.detach().abs().max()), steps=15)
    assert last < 0.2 * first
    after = write_back(module, model)
    old, new = _tensors(model), _tensors(after)
    assert {name: array.dtype for name, array in old.items()} == {name: array.dtype for name, array in new.items()}
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {name for name, _ in module.weights()}
    assert {str(new[name].dtype) for name in changed} <= {"int8", "int32"}
    (wanted,) = run_plain(after, [feeds], optimize=False)[0]
    grid = np.abs(_run(module, feeds) - wanted).max() / np.ptp(wanted)
    assert grid <= 0.02, grid  # ties on the activations' 8-bit grid
    assert np.square(wanted - goal).mean() < 0.3 * np.square(before - goal).mean()
