"""Refits: as good as an independent least squares, never worse than no refit, exact where nothing is lost."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from linear_cases import Array, Net, batches_of, coupled, examples, group_read_by, least_squares, tensors_of, values_of
from onnx import TensorProto, numpy_helper
from onnx_netadapt.ir import PruneError
from onnx_netadapt.passes import consumers as consumers_module
from onnx_netadapt.passes import rows
from onnx_netadapt.passes.coupling import Coupling
from onnx_netadapt.passes.gram import collect
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.sequential import refit_sequential

TINY = 1e-9


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads every position."""
    monkeypatch.setattr(rows, "MIN_POSITIONS", 10**9)


Built = tuple[onnx.ModelProto, tuple[int, ...]]


def _with(op: str, data: tuple[int, ...], middle: Callable[[Net], str], weight: Mapping[str, Any]) -> Built:
    """x -> something that makes channels `h` -> the consumer `op` -> y."""
    net = Net(data)
    h = middle(net)
    inputs = [h, net.weight("w", *weight["shape"])]
    if weight.get("left"):
        inputs.reverse()
    if "bias" in weight:
        inputs.append(net.weight("b", *weight["bias"]))
    net.add(op, *inputs, out="y", **weight.get("attrs", {}))
    return net.model("y", weight["rank"]), data


def _convolved(channels: int, inputs: int, spatial: int, groups: int = 1) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        net.add("Conv", "x", net.weight("w0", channels, inputs, *(1,) * spatial), net.weight("b0", channels), out="a")
        return net.add("Sigmoid", "a", out="h")

    return build


def _depthwise(net: Net) -> str:
    net.add("Conv", "x", net.weight("w0", 7, 3, 1, 1), net.weight("b0", 7), out="a")
    net.add("Conv", "a", net.weight("wd", 7, 1, 3, 3), out="d", group=7, strides=[2, 1], pads=[1, 1, 1, 1])
    return net.add("Relu", "d", out="h")


def _dense(net: Net) -> str:
    net.add("MatMul", "x", net.weight("w0", 11, 7), out="a")
    return net.add("Tanh", "a", out="h")


def _turned(net: Net) -> str:
    _dense(net)
    return net.add("Transpose", "h", out="ht", perm=[1, 0] if len(net.input_shape) == 1 else [0, 2, 1])


def _grouped_shift(net: Net) -> str:
    net.add("Conv", "x", net.weight("w0", 6, 3, 1, 1), net.weight("b0", 6), out="a")
    return net.add("Sigmoid", "a", out="h")


CASES: dict[str, Built] = {
    "Conv": _with(
        "Conv", (3, 7, 5), _convolved(7, 3, 2),
        {"shape": (5, 7, 3, 2), "bias": (5,), "rank": 4,
         "attrs": {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}},
    ),
    "Conv of one axis": _with(
        "Conv", (3, 11), _convolved(7, 3, 1), {"shape": (5, 7, 3), "rank": 3, "attrs": {"pads": [1, 1]}}
    ),
    "Conv of three axes": _with(
        "Conv", (2, 3, 5, 4), _convolved(5, 2, 3), {"shape": (3, 5, 2, 1, 3), "bias": (3,), "rank": 5}
    ),
    "Conv in groups": _with(
        "Conv", (3, 5, 7), _grouped_shift, {"shape": (9, 2, 2, 3), "bias": (9,), "rank": 4, "attrs": {"group": 3}}
    ),
    "ConvTranspose": _with(
        "ConvTranspose", (3, 5, 4), _convolved(7, 3, 2),
        {"shape": (7, 5, 3, 2), "bias": (5,), "rank": 4, "attrs": {"strides": [2, 3], "pads": [1, 0, 0, 1]}},
    ),
    "behind a depthwise": _with("Conv", (3, 7, 5), _depthwise, {"shape": (5, 7, 1, 1), "bias": (5,), "rank": 4}),
    "Gemm": _with("Gemm", (11,), _dense, {"shape": (7, 5), "bias": (5,), "rank": 2}),
    "Gemm transB": _with(
        "Gemm", (11,), _dense,
        {"shape": (5, 7), "bias": (1, 5), "rank": 2, "attrs": {"transB": 1, "alpha": 0.5, "beta": 2.0}},
    ),
    "Gemm transA": _with("Gemm", (11,), _turned, {"shape": (7, 5), "rank": 2, "attrs": {"transA": 1}}),
    "MatMul": _with("MatMul", (11,), _dense, {"shape": (7, 5), "rank": 2}),
    "MatMul of tokens": _with("MatMul", (3, 11), _dense, {"shape": (7, 5), "rank": 3}),
    "MatMul from the left": _with("MatMul", (3, 11), _turned, {"shape": (5, 7), "rank": 3, "left": True}),
}  # fmt: skip


def _loss(want: Array, have: Array) -> float:
    return float(((want.astype(np.float64) - have) ** 2).mean())


def _halved(coupling: Coupling) -> dict[str, np.ndarray]:
    """All units but the first and the last of every group that is read."""
    return {g.id: np.arange(g.units)[1 : max(2, g.units - 1)] for g in coupling.groups}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["symmetric", "sequential"])
def test_a_refit_is_the_best_there_is(name: str, way: str) -> None:
    model, shape = CASES[name]
    x = examples(shape, 150)
    coupling = coupled(model)
    kept = _halved(coupling)
    assert len(kept) == 1
    pruned = prune(coupling, kept).model
    statistics = collect(coupling, batches_of(x))
    if way == "symmetric":
        weights = refit_symmetric(coupling, statistics, kept, ridge=TINY)
    else:
        weights = refit_sequential(coupling, kept, pruned, batches_of(x), statistics)
    assert weights
    want, have = tensors_of(model, ["y"], x)[0], tensors_of(apply_weights(pruned, weights), ["y"], x)[0]
    plain = tensors_of(pruned, ["y"], x)[0]
    assert want.shape == have.shape
    assert _loss(want, have) < 0.9 * _loss(want, plain)
    # perturbing any weight in any direction must not help: the gradient of the loss is nothing beside its curvature
    for tensor, value in weights.items():
        rng = np.random.default_rng(0)
        step = 1e-2 * np.abs(value).max() * rng.standard_normal(value.shape)
        sides = [
            _loss(want, tensors_of(apply_weights(pruned, weights | {tensor: value + sign * step}), ["y"], x)[0])
            for sign in (-1.0, 1.0)
        ]
        assert min(sides) > _loss(want, have) * (1 - 1e-6), tensor


def _heads(heads: int, width: int, tokens: int) -> onnx.ModelProto:
    """Attention of several heads over tokens, and the product that sums over what they give."""
    net = Net((tokens, 7))
    for name, sizes in (("split", [0, 0, heads, width]), ("join", [0, 0, heads * width])):
        net.tensors.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
    for part in "qkv":
        net.add("MatMul", "x", net.weight(f"w{part}", 7, heads * width), out=part)
        net.add("Reshape", part, "split", out=f"{part}s")
        net.add("Transpose", f"{part}s", out=f"{part}t", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
    net.add("MatMul", "qt", "kt", out="scores")
    net.add("Softmax", "scores", out="shares", axis=-1)
    net.add("MatMul", "shares", "vt", out="mixed")
    net.add("Transpose", "mixed", out="back", perm=[0, 2, 1, 3])
    net.add("Reshape", "back", "join", out="joined")
    net.add("MatMul", "joined", net.weight("wo", heads * width, 11), out="y")
    return net.model("y", 3)


@pytest.mark.parametrize("way", ["symmetric", "sequential"])
def test_the_product_behind_removed_heads_is_refitted(way: str) -> None:
    model, x = _heads(5, 3, 13), examples((13, 7), 150)
    coupling = coupled(model)
    group = next(g for g in coupling.groups if g.units == 5 and any(axis[0] == "joined" for axis in g.axes))
    kept = {group.id: np.array([0, 2, 3])}
    pruned = prune(coupling, kept).model
    statistics = collect(coupling, batches_of(x))
    if way == "symmetric":
        weights = refit_symmetric(coupling, statistics, kept, ridge=TINY)
    else:
        weights = refit_sequential(coupling, kept, pruned, batches_of(x), statistics)
    assert set(weights) == {"wo"}
    assert weights["wo"].shape == (9, 11)
    want, have = tensors_of(model, ["y"], x)[0], tensors_of(apply_weights(pruned, weights), ["y"], x)[0]
    joined = tensors_of(pruned, ["joined"], x)[0].reshape(-1, 9)
    best = least_squares(joined, want.reshape(-1, 11), bias=False) / 11
    assert _loss(want, have) == pytest.approx(best, rel=1e-2)
    assert _loss(want, have) < _loss(want, tensors_of(pruned, ["y"], x)[0])


def test_the_loss_is_that_of_an_independent_solver() -> None:
    model, shape = CASES["MatMul of tokens"]
    x = examples(shape, 150)
    coupling = coupled(model)
    kept = _halved(coupling)
    pruned = prune(coupling, kept).model
    weights = refit_symmetric(coupling, collect(coupling, batches_of(x)), kept, ridge=TINY)
    h, y = tensors_of(model, ["h", "y"], x)
    units = next(iter(kept.values()))
    best = least_squares(h.reshape(-1, 7)[:, units], y.reshape(-1, 5), bias=False)
    found = tensors_of(apply_weights(pruned, weights), ["y"], x)[0]
    assert _loss(y, found) * 5 == pytest.approx(best, rel=1e-4)


def redundant(kept_units: int = 4) -> onnx.ModelProto:
    """Units 4, 5, 6 of h are exact mixtures of units 0 to 3 (linear between, so that they stay so)."""
    net = Net((3, 7, 5))
    base = net.rng.standard_normal((4, 3, 1, 1))
    mixed = np.tensordot(net.rng.standard_normal((3, 4)), base, axes=1)
    net.add("Conv", "x", net.constant("w0", np.concatenate([base, mixed])), out="h")
    net.add("Conv", "h", net.weight("w", 5, 7, 3, 3), net.weight("b", 5), out="a", pads=[1, 1, 1, 1])
    net.add("Relu", "a", out="r")
    net.add("Conv", "r", net.weight("v", 2, 5, 1, 1), out="y")
    return net.model("y", 4)


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("way", ["symmetric", "sequential"])
def test_what_kept_units_can_make_up_is_restored_exactly(
    way: str, by_channel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_channel:
        monkeypatch.setattr(consumers_module, "COLUMN_LIMIT", 40)
    model = redundant()
    x = examples((3, 7, 5), 60)
    coupling = coupled(model)
    group = group_read_by(coupling, "h")
    statistics = collect(coupling, batches_of(x))
    assert any(item.by_channel for item in statistics.consumers.all) == by_channel
    unseen = examples((3, 7, 5), 9, seed=5)
    want = tensors_of(model, ["y"], unseen)[0]
    for kept, exact in (([0, 1, 2, 3], True), ([0, 1], False)):
        choice = {group: np.array(kept)}
        pruned = prune(coupling, choice).model
        if way == "symmetric":
            weights = refit_symmetric(coupling, statistics, choice, ridge=1e-12)
        else:
            monkeypatch.setattr("onnx_netadapt.passes.sequential.RIDGES", (1e-12,))
            weights = refit_sequential(coupling, choice, pruned, batches_of(x))
        found = tensors_of(apply_weights(pruned, weights), ["y"], unseen)[0]
        error = np.abs(found - want).max() / np.abs(want).max()
        assert (error < 1e-4) == exact, (kept, error)


def residual() -> onnx.ModelProto:
    """Two blocks s + conv(relu(conv(s))), as in a residual network."""
    net = Net((5, 6, 7))
    stream = "x"
    for block in ("p", "q"):
        net.add("Conv", stream, net.weight(f"{block}1", 11, 5, 1, 1), net.weight(f"{block}1b", 11), out=f"{block}a")
        net.add("Relu", f"{block}a", out=f"{block}h")
        net.add("Conv", f"{block}h", net.weight(f"{block}2", 5, 11, 1, 1), net.weight(f"{block}2b", 5), out=f"{block}c")
        stream = net.add("Add", f"{block}c", stream, out=f"{block}s")
    net.add("GlobalAveragePool", stream, out="y")
    return net.model("y", 4)


def _rows(tensor: Array) -> Array:
    """(examples, channels, height, width) as rows of channels."""
    return tensor.transpose(0, 2, 3, 1).reshape(-1, tensor.shape[1])


def test_the_second_block_makes_good_what_the_first_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_netadapt.passes.sequential.SPREAD", 0.0)
    model, x = residual(), examples((5, 6, 7), 200)
    coupling = coupled(model)
    kept = {group_read_by(coupling, name): np.arange(4) for name in ("ph", "qh")}
    pruned = prune(coupling, kept).model
    found = apply_weights(pruned, refit_sequential(coupling, kept, pruned, batches_of(x)))
    h, lost = tensors_of(found, ["qh", "ps"], x)
    want = tensors_of(model, ["qs"], x)[0]
    best = least_squares(_rows(h), _rows(want) - _rows(lost), bias=True)
    have = tensors_of(found, ["qs"], x)[0]
    assert _loss(_rows(want), _rows(have)) * 5 == pytest.approx(best, rel=1e-3)
    # a fit to the block's own output instead of the corrected one is worse for the stream
    own = least_squares(_rows(h), _rows(tensors_of(model, ["qc"], x)[0]), bias=True)
    assert own != pytest.approx(best, rel=1e-2)


def test_a_consumer_that_keeps_its_inputs_is_refitted_to_what_they_have_become() -> None:
    model, x = residual(), examples((5, 6, 7), 200)
    coupling = coupled(model)
    kept = {group_read_by(coupling, "ph"): np.arange(4)}
    pruned = prune(coupling, kept).model
    weights = refit_sequential(coupling, kept, pruned, batches_of(x))
    assert {"p2", "q1", "q2"} <= set(weights)  # behind the removed units
    assert "p1" not in weights  # in front of them


def test_nothing_removed_changes_nothing() -> None:
    model, x = residual(), examples((5, 6, 7), 20)
    coupling = coupled(model)
    statistics = collect(coupling, batches_of(x))
    assert refit_symmetric(coupling, statistics, {}) == {}
    assert refit_sequential(coupling, {}, model, batches_of(x), statistics) == {}


def test_only_what_changed_is_solved_again() -> None:
    model, x = residual(), examples((5, 6, 7), 40)
    coupling = coupled(model)
    statistics = collect(coupling, batches_of(x))
    one, two = group_read_by(coupling, "ph"), group_read_by(coupling, "qh")
    first = refit_symmetric(coupling, statistics, {one: np.arange(4)})
    solved = len(statistics.cache)
    both = refit_symmetric(coupling, statistics, {one: np.arange(4), two: np.arange(7)})
    assert (solved, len(statistics.cache)) == (1, 2)
    assert np.array_equal(first["p2"], both["p2"])


def test_the_order_of_the_disk_is_the_order_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room on the disk the network runs from its start for each level: the same numbers."""
    model, x = residual(), examples((5, 6, 7), 60)
    coupling = coupled(model)
    kept = {group_read_by(coupling, name): np.arange(4) for name in ("ph", "qh")}
    pruned = prune(coupling, kept).model
    one = refit_sequential(coupling, kept, pruned, batches_of(x))
    monkeypatch.setattr("onnx_netadapt.passes.sequential._bytes", lambda *_: float("inf"))
    two = refit_sequential(coupling, kept, pruned, batches_of(x))
    assert one.keys() == two.keys()
    assert all(np.allclose(one[name], two[name], rtol=1e-4, atol=1e-6) for name in one)


def test_half_precision_stays_half_precision() -> None:
    net = Net((3, 7, 5), dtype=np.float16)
    net.add("Conv", "x", net.weight("w0", 7, 3, 1, 1), net.weight("b0", 7), out="a")
    net.add("Relu", "a", out="h")
    net.add("Conv", "h", net.weight("w", 5, 7, 3, 3), net.weight("b", 5), out="y")
    model, x = net.model("y", 4), examples((3, 7, 5), 80).astype(np.float16)
    coupling = coupled(model)
    kept = {group_read_by(coupling, "h"): np.array([0, 2, 3, 5])}
    pruned = prune(coupling, kept).model
    want, plain = (tensors_of(m, ["y"], x)[0] for m in (model, pruned))
    for weights in (
        refit_symmetric(coupling, collect(coupling, batches_of(x)), kept),
        refit_sequential(coupling, kept, pruned, batches_of(x)),
    ):
        new = apply_weights(pruned, weights)
        assert {t.data_type for t in new.graph.initializer} == {TensorProto.FLOAT16}
        assert _loss(want, tensors_of(new, ["y"], x)[0]) < 0.8 * _loss(want, plain)


def test_constant_nodes_are_written_and_the_given_model_is_not() -> None:
    net = Net((11,))
    net.add("MatMul", "x", net.weight("w0", 11, 7), out="a")
    value = numpy_helper.from_array(net.rng.standard_normal((7, 5)).astype(np.float32))
    net.nodes.append(onnx.helper.make_node("Constant", [], ["w"], value=value))
    net.add("MatMul", "a", "w", out="y")
    model, x = net.model("y", 2), examples((11,), 50)
    coupling = coupled(model)
    kept = {group_read_by(coupling, "a"): np.arange(4)}
    pruned = prune(coupling, kept).model
    before = pruned.SerializeToString()
    weights = refit_symmetric(coupling, collect(coupling, batches_of(x)), kept)
    new = apply_weights(pruned, weights)
    assert pruned.SerializeToString() == before
    written = next(node.attribute[0].t for node in new.graph.node if node.op_type == "Constant")
    assert np.allclose(numpy_helper.to_array(written), weights["w"], rtol=1e-6)


@pytest.mark.parametrize("weights", [{"nothing": np.zeros(3)}, {"q2": np.zeros((3, 3))}])
def test_a_value_that_does_not_fit_is_refused(weights: dict[str, Array]) -> None:
    with pytest.raises(PruneError, match="constant"):
        apply_weights(residual(), weights)


def test_the_names_are_those_of_the_pruned_model() -> None:
    model, x = residual(), examples((5, 6, 7), 40)
    coupling = coupled(model)
    kept = {group_read_by(coupling, "ph"): np.arange(4)}
    pruned = prune(coupling, kept).model
    shapes = {name: value.shape for name, value in values_of(pruned).items()}
    for weights in (
        refit_symmetric(coupling, collect(coupling, batches_of(x)), kept),
        refit_sequential(coupling, kept, pruned, batches_of(x)),
    ):
        assert {name: value.shape for name, value in weights.items()}.items() <= shapes.items()
