"""Logits made as sure as the original's; cutting; what is put aside on disk; biases behind a product."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_cases import Array, Net, batches_of, coupled, examples, graph_of, group_read_by, tensors_of, values_of
from onnx_netadapt.ir.cut import cut
from onnx_netadapt.passes import rows
from onnx_netadapt.passes.consumers import consumers_of
from onnx_netadapt.passes.gram import collect
from onnx_netadapt.passes.moments import Sums
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.regression import Model, least_squares, spread
from onnx_netadapt.passes.rescale import rescale_logits
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.passes.spill import Spill


def classifier(*, bias: str = "own", end: str = "softmax") -> onnx.ModelProto:
    """x -> 11 hidden -> 5 classes."""
    net = Net((7,))
    net.add("MatMul", "x", net.weight("w0", 7, 11), out="a")
    net.add("Tanh", "a", out="h")
    last = "l" if end == "softmax" or bias == "added" else "y"
    own = [net.weight("b", 5)] if bias == "own" else []
    net.add("Gemm" if own else "MatMul", "h", net.weight("w", 11, 5, scale=4.0), *own, out=last)
    if bias == "added":
        last = net.add("Add", last, net.weight("b", 5), out="t" if end == "softmax" else "y")
    if end == "softmax":
        net.add("Softmax", last, out="y", axis=1)
    elif end == "sigmoid":
        net.nodes[-1].output[0] = "l"
        net.add("Sigmoid", "l", out="y")
    return net.model("y", 2)


def _flattened(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The model with its last layer scaled and its classes shifted."""
    values = values_of(model)
    new = {"w": values["w"].astype(np.float64) * factor}
    if "b" in values:
        new["b"] = values["b"].astype(np.float64) * factor + np.arange(5) / 5
    return apply_weights(model, new)


@pytest.mark.parametrize("bias", ["own", "added"])
@pytest.mark.parametrize("end", ["softmax", "logits"])
def test_a_scale_and_a_shift_of_the_logits_are_found_again(bias: str, end: str) -> None:
    model = classifier(bias=bias, end=end)
    wrong = _flattened(model, 0.5)
    weights = rescale_logits(coupled(model), wrong, batches_of(examples((7,), 200)))
    assert np.allclose(weights["w"], values_of(model)["w"], rtol=0.02)
    x = examples((7,), 50, seed=4)
    want, have, before = (tensors_of(m, ["y"], x)[0] for m in (model, apply_weights(wrong, weights), wrong))
    shift = (want - have).mean() if end == "logits" else 0.0  # softmax does not see what all classes share
    assert np.abs(want - have - shift).max() < 0.1 * np.abs(want - before).max()


def test_without_a_bias_only_the_scale_is_found() -> None:
    model = classifier(bias="none")
    weights = rescale_logits(coupled(model), _flattened(model, 0.5), batches_of(examples((7,), 200)))
    assert set(weights) == {"w"}
    assert np.allclose(weights["w"], values_of(model)["w"], rtol=0.02)


def test_what_does_not_help_on_held_out_examples_is_not_done() -> None:
    model = classifier()
    assert rescale_logits(coupled(model), model, batches_of(examples((7,), 100))) == {}


def test_a_model_that_does_not_end_in_a_product_is_left_alone() -> None:
    model = classifier(end="sigmoid")
    assert rescale_logits(coupled(model), _flattened(model, 0.5), batches_of(examples((7,), 100))) == {}


def _normalised() -> onnx.ModelProto:
    """Two products whose biases stand behind them: in a batch normalization, and in an Add."""
    net = Net((3, 5, 7))
    net.add("Conv", "x", net.weight("w0", 11, 3, 1, 1), net.weight("b0", 11), out="a")
    net.add("Relu", "a", out="h")
    net.add("Conv", "h", net.weight("w1", 7, 11, 3, 3), out="c")
    scale = net.constant("scale", net.rng.uniform(0.5, 2, 7))
    var = net.constant("var", net.rng.uniform(0.5, 2, 7))
    net.add("BatchNormalization", "c", scale, net.weight("shift", 7), net.weight("mean", 7), var, out="n")
    net.add("Relu", "n", out="k")
    net.add("Conv", "k", net.weight("w2", 5, 7, 1, 1), out="d")
    net.add("Add", "d", net.weight("b2", 5, 1, 1), out="y")
    return net.model("y", 4)


@pytest.mark.parametrize("way", ["symmetric", "sequential"])
def test_a_bias_behind_the_product_is_refitted_with_it(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MIN_POSITIONS", 10**9)
    monkeypatch.setattr("onnx_netadapt.passes.sequential.SPREAD", 0.0)
    model, x = _normalised(), examples((3, 5, 7), 300)
    coupling = coupled(model)
    assert [item.bias.name for item in consumers_of(coupling).all[-2:]] == ["mean", "b2"]
    for read, inner in (("h", "c"), ("k", "y")):
        kept = {group_read_by(coupling, read): np.array([0, 2, 3, 5])}
        pruned = prune(coupling, kept).model
        if way == "symmetric":
            weights = refit_symmetric(coupling, collect(coupling, batches_of(x)), kept, ridge=1e-9)
        else:
            weights = refit_sequential(coupling, kept, pruned, batches_of(x))
        behind = "n" if read == "h" else inner
        want, have = (tensors_of(m, [behind], x)[0] for m in (model, apply_weights(pruned, weights)))
        error = np.abs((want - have).mean(axis=(0, 2, 3))).max() / np.abs(want).max()
        assert error < 1e-5, (read, error)  # the free bias makes the mean error of every channel vanish
        without = {name: value for name, value in weights.items() if name not in ("mean", "b2")}
        lost = tensors_of(apply_weights(pruned, without), [behind], x)[0]
        assert np.abs((want - lost).mean(axis=(0, 2, 3))).max() / np.abs(want).max() > 1e-3


def _sums(x: Array, t: Array) -> Sums:
    found = Sums.empty(1, t.shape[1], x.shape[1])
    found.add(x[None].astype(np.float64), t[None].astype(np.float64))
    return found


@pytest.mark.parametrize("centred", [True, False])
def test_the_spread_goes_from_the_fit_s_to_the_target_s(centred: bool) -> None:
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((500, 3)) + 1
    noisy, t = clean + rng.standard_normal((500, 3)), clean @ rng.standard_normal((3, 2))
    sums = _sums(noisy, t)
    model = Model(np.zeros((1, 2, 3)), np.zeros((1, 2)), centred)
    matrix, bias = least_squares(sums, model, 1e-9)

    def size(w: Array, b: Array) -> float:
        y = noisy @ w[0].T + b[0]
        return float(y.var(axis=0).sum() if centred else (y**2).sum(axis=1).mean())

    goal = float(t.var(axis=0).sum() if centred else (t**2).sum(axis=1).mean())
    before = size(matrix, bias)
    assert before < 0.8 * goal
    for power in (0.0, 0.5, 1.0):
        assert size(*spread(sums, model, matrix, power)) == pytest.approx(before * (goal / before) ** power)


def test_the_loss_from_sums_is_the_mean_square() -> None:
    rng = np.random.default_rng(0)
    x, t, w, b = (rng.standard_normal(shape) for shape in ((97, 3), (97, 2), (1, 2, 3), (1, 2)))
    one, two = _sums(x[:40], t[:40]), _sums(x[40:], t[40:])
    assert one.plus(two).loss(w, b) == pytest.approx(float(((t - x @ w[0].T - b[0]) ** 2).sum(axis=1).mean()))


@pytest.mark.parametrize("held", [0, 16, 10**6])
def test_what_is_put_aside_comes_back_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spill = Spill(held)
    arrays = [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.int64), np.float16([[1], [2]]), np.array(3)]
    for number, array in enumerate(arrays):
        spill.put(("a", number), array)
    for number, array in reversed(list(enumerate(arrays))):
        found = spill.get(("a", number))
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    spill.close()
    assert list(tmp_path.iterdir()) == []


def test_a_cut_holds_what_its_outputs_need_and_no_more() -> None:
    model, x = _normalised(), examples((3, 5, 7), 4)
    h, n, y = tensors_of(model, ["h", "n", "y"], x)
    front = cut(model, ["h"])
    assert [node.output[0] for node in front.graph.node] == ["a", "h"]
    assert {tensor.name for tensor in front.graph.initializer} == {"w0", "b0"}
    back = cut(model, ["n", "y"], {"h": onnx.TensorProto.FLOAT})
    assert [value.name for value in back.graph.input] == ["h"]
    found = Net.run(back, {"h": h})
    assert np.allclose(found["n"], n, atol=1e-5)
    assert np.allclose(found["y"], y, atol=1e-5)


def test_a_cut_through_one_of_several_outputs_keeps_the_others() -> None:
    net = Net((6, 5))
    net.nodes.append(onnx.helper.make_node("Split", ["x"], ["s", "t"], axis=1))
    net.add("Relu", "s", out="r")
    net.add("Sub", "r", "t", out="y")
    model, x = net.model("y", 3), examples((6, 5), 4)
    part = cut(model, ["y"], {"s": onnx.TensorProto.FLOAT})
    found = Net.run(part, {"x": x, "s": np.zeros((4, 3, 5), np.float32)})["y"]
    assert np.array_equal(found, -x[:, 3:])


def test_the_ir_reads_a_cut() -> None:
    assert graph_of(cut(_normalised(), ["k"])).outputs[0].name == "k"
