"""The round trip: torch computes what ONNX Runtime computes, and weights come back bit for bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.passes.equivalence import random_feeds, run_plain
from onnx_netadapt.passes.to_torch import to_torch, write_back
from onnx_netadapt.passes.torch_module import escape, unescape

torch = pytest.importorskip("torch")


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _weights(text: str, dtype: Any = np.float32, seed: int = 0) -> onnx.ModelProto:
    """A model from ONNX text; tensors that are declared without values become seeded random weights."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), value.name))
    del model.graph.value_info[:]
    return model


def _named(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """The model with some tensors called otherwise (ONNX text has no dots in names)."""
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return model


def _small() -> onnx.ModelProto:
    """A network with an open batch, whose flattening computes the batch, with dotted and odd names."""
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[batch, 3, 5, 11] x) => (float[batch, 13] y)
        <float[7, 3, 3, 1] w1, float[7] b1, float[7] s, float[7] t, float[7] m, float[7] v,
         float[385, 13] w2, float[13] b2, int64[1] zero = {0}, int64[1] rest = {-1}> {
            c = Conv<pads = [1, 0, 1, 0]>(x, w1, b1)
            n = BatchNormalization(c, s, t, m, v)
            r = Relu(n)
            shape = Shape(x)
            batch = Gather(shape, zero)
            target = Concat<axis = 0>(batch, rest)
            f = Reshape(r, target)
            p = MatMul(f, w2)
            y = Add(p, b2)
        }"""
    model = _weights(text)
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)) + 0.5, "v"))
    names = {"w1": "features.0.weight", "b1": "a~b.c", "s": "training", "w2": "fc/kernel:0", "b2": "~1"}
    return _named(model, names)


def _run(module: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        found = module({name: torch.from_numpy(value) for name, value in feeds.items()})
    return [y.numpy() for y in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_runs_where_the_model_leaves_it_open(batch: int) -> None:
    model = _small()
    feeds = {"x": np.random.default_rng(batch).standard_normal((batch, 3, 5, 11)).astype(np.float32)}
    (found,), (wanted,) = _run(to_torch(load(model)), feeds), run_plain(model, [feeds], optimize=False)[0]
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_state_dict_speaks_the_models_own_names() -> None:
    module = to_torch(load(_small()))
    names = {"features.0.weight", "a~b.c", "training", "t", "m", "v", "fc/kernel:0", "~1"}
    assert set(module.state_dict()) == names
    assert {name for name, _ in module.weights()} == names - {"m", "v"}
    assert "statistics" in module.frozen["m"]
    other = to_torch(load(_small()))
    other.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}, strict=True)
    assert torch.equal(other.state_dict()["features.0.weight"], module.state_dict()["features.0.weight"] + 1)
    with pytest.raises(RuntimeError, match=r"features\.0\.weight"):
        other.load_state_dict({n: v for n, v in module.state_dict().items() if n != "features.0.weight"})


@pytest.mark.parametrize("name", ["a.b", "a~b", "~0", "~1.", "..", "w_", "", "a~1b"])
def test_names_come_back_from_their_spelling(name: str) -> None:
    assert unescape(escape(name)) == name
    assert "." not in escape(name)


def test_untouched_weights_are_written_back_bit_for_bit() -> None:
    model = _small()
    module = to_torch(load(model))
    assert _bytes(write_back(module, model)) == _bytes(model)


def test_a_changed_weight_changes_alone() -> None:
    model = _small()
    module = to_torch(load(model))
    with torch.no_grad():
        dict(module.weights())["fc/kernel:0"][3, 4] += 0.25
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in each.graph.initializer}
        for each in (model, write_back(module, model))
    )
    assert {name for name in before if before[name].tobytes() != after[name].tobytes()} == {"fc/kernel:0"}
    assert np.flatnonzero(after["fc/kernel:0"] - before["fc/kernel:0"]).tolist() == [3 * 13 + 4]


def test_gradients_reach_all_weights_and_no_statistics() -> None:
    module = to_torch(load(_small()))
    module(torch.randn(2, 3, 5, 11)).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for _, weight in module.weights())


def test_a_choice_of_weights_is_trained_alone() -> None:
    module = to_torch(load(_small()), trainable=lambda name: name.startswith("fc"))
    assert [name for name, _ in module.weights()] == ["fc/kernel:0"]
    assert module.frozen["features.0.weight"] == "not chosen"


def test_half_precision_models_have_float32_masters() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float16[2, 5] x) => (float16[2, 7] y) <float16[5, 7] w> { y = MatMul(x, w) }"""
    model = _weights(text, np.float16)
    module = to_torch(load(model))
    (weight,) = (w for _, w in module.weights())
    assert weight.dtype == torch.float32
    assert _bytes(write_back(module, model)) == _bytes(model)
    with torch.no_grad():
        weight.add_(1 / 3)
    (tensor,) = write_back(module, model).graph.initializer
    assert tensor.data_type == onnx.TensorProto.FLOAT16
    assert np.array_equal(numpy_helper.to_array(tensor), weight.detach().numpy().astype(np.float16))


QDQ = """
    <ir_version: 8, opset_import: ["": 17]>
    agraph (float[2, 5] x) => (float[2, 7] y)
    <int8[7, 5] w, float[7] sw, int8[7] zw = {0, 0, 0, 0, 0, 0, 0}, float sx = {0.02}, uint8 zx = {128}> {
        q = QuantizeLinear(x, sx, zx)
        d = DequantizeLinear(q, sx, zx)
        f = DequantizeLinear<axis = 0>(w, sw, zw)
        y = Gemm<transB = 1>(d, f)
    }"""


def _qdq() -> onnx.ModelProto:
    model = onnx.parser.parse_model(QDQ)
    rng = np.random.default_rng(0)
    values = {"w": rng.integers(-120, 121, (7, 5)).astype(np.int8), "sw": rng.uniform(0.01, 0.02, 7).astype(np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    del model.graph.value_info[:]
    return model


def test_int8_weights_are_trained_and_stay_int8() -> None:
    model = _qdq()
    graph = load(model)
    module = to_torch(graph)
    feeds = random_feeds(graph, 1)[0]
    wanted = run_plain(model, [feeds], optimize=False)[0][0]
    assert np.abs(_run(module, feeds)[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert [name for name, _ in module.weights()] == ["w"]
    assert _bytes(write_back(module, model)) == _bytes(model)
    x = torch.from_numpy(feeds["x"]).requires_grad_(True)
    module(x).square().sum().backward()
    weight = dict(module.weights())["w"]
    assert bool((weight.grad != 0).all())
    assert bool((x.grad != 0).any())
    with torch.no_grad():
        weight.add_(torch.where(weight > 0, 30.4, -30.4))
    changed = write_back(module, model)
    (stored,) = (numpy_helper.to_array(t) for t in changed.graph.initializer if t.name == "w")
    assert stored.dtype == np.int8
    assert stored.max() == 127  # clipped to the grid
    wanted = run_plain(changed, [feeds], optimize=False)[0][0]
    assert np.abs(_run(module, feeds)[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_shared_weight_stays_shared() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[2, 5] x) => (float[2, 5] y) <float[5, 5] w> { a = MatMul(x, w)
            b = Transpose(w)
            y = MatMul(a, b) }"""
    model = _weights(text)
    module = to_torch(load(model))
    (weight,) = (w for _, w in module.weights())
    x = torch.randn(2, 5)
    assert torch.allclose(module(x), x @ weight @ weight.T, atol=1e-5)
    with torch.no_grad():
        weight.mul_(2)
    assert len(write_back(module, model).graph.initializer) == 1


def test_masks_and_single_numbers_are_not_trained() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[2, 5] x) => (float[2, 5] y)
        <float[5] mask = {0, 0, -10000, 0, 0}, float half = {0.5}, float[5] shift = {1, 2, 3, 4, 5}> {
            a = Add(x, mask)
            b = Mul(a, half)
            y = Add(b, shift) }"""
    module = to_torch(load(onnx.parser.parse_model(text)))
    assert [name for name, _ in module.weights()] == ["shift"]


def test_modules_can_be_copied_and_pickled() -> None:
    module = to_torch(load(_small()))
    x = torch.randn(3, 3, 5, 11)
    wanted = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), wanted)
        assert dict(other.weights()).keys() == dict(module.weights()).keys()


def test_torch_export_and_compile_take_the_module() -> None:
    module = to_torch(load(_small()))
    x = torch.randn(3, 3, 5, 11)
    wanted = module(x)
    assert torch.allclose(torch.export.export(module, (x,)).module()(x), wanted, atol=1e-5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), wanted, atol=1e-5)


def test_wrong_inputs_are_named() -> None:
    module = to_torch(load(_small()))
    with pytest.raises(InputError, match="1 inputs"):
        module(torch.zeros(1), torch.zeros(1))
    with pytest.raises(InputError, match="needs the inputs x"):
        module({"z": torch.zeros(1)})


def test_a_frozen_batch_runs_others_where_nothing_fixes_it() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[1, 3, 5] x) => (float[1, 30] y) <float[5, 10] w, int64[2] s = {1, 30}> {
            a = MatMul(x, w)
            y = SHAPE(a)
        }"""
    free = _weights(text.replace("SHAPE(a)", "Flatten(a)"))
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    (found,) = _run(to_torch(load(free)), {"x": x})
    rows = [run_plain(free, [{"x": x[k : k + 1]}], optimize=False)[0][0] for k in range(4)]
    assert np.allclose(found, np.concatenate(rows), atol=1e-5)
    fixed = _weights(text.replace("SHAPE(a)", "Reshape(a, s)"))
    with pytest.raises(RuntimeError):
        _run(to_torch(load(fixed)), {"x": x})


def test_strided_depthwise_convolutions_are_exact_within_autocast() -> None:
    """Their gradients are slow in bfloat16 on processors, so that they run in float32 and hand on bfloat16."""
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[2, 6, 9, 9] x) => (float[2, 6, 5, 5] y) <float[6, 1, 3, 3] w, float[6] b> {
            y = Conv<pads = [1, 1, 1, 1], strides = [2, 2], group = 6>(x, w, b)
        }"""
    model = _weights(text)
    module, x = to_torch(load(model)), torch.randn(2, 6, 9, 9)
    plain = module(x)
    plain.square().sum().backward()
    wanted = {name: weight.grad.clone() for name, weight in module.weights()}
    module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, plain.to(torch.bfloat16))  # rounded once, at the end
    found.float().square().sum().backward()
    assert wanted.keys() == {"w", "b"}
    for name, weight in module.weights():
        assert weight.grad.dtype == torch.float32
        assert torch.allclose(weight.grad, wanted[name], rtol=0.05, atol=0.05 * float(wanted[name].abs().max()))
