"""Nested orders: the error curve is what brute force finds, and redundant units go first."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from linear_cases import Array, Net, batches_of, coupled, examples, group_read_by, least_squares, tensors_of
from onnx_netadapt.passes import importance, rows
from onnx_netadapt.passes.gram import collect
from onnx_netadapt.passes.importance import UnitOrder, order, weight_order

TINY = 1e-9


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads every position."""
    monkeypatch.setattr(rows, "MIN_POSITIONS", 10**9)


def branches(*, bias: bool = True) -> onnx.ModelProto:
    """One group of 7 units, read by two products of different widths."""
    net = Net((11,))
    net.add("Gemm", "x", net.weight("w", 11, 7), net.weight("b", 7), out="a")
    net.add("Tanh", "a", out="h")
    extra = [net.weight("bp", 3), net.weight("bq", 5)] if bias else []
    net.add("Gemm", "h", net.weight("p", 7, 3), *extra[:1], out="s")
    net.add("Gemm", "h", net.weight("q", 7, 5, scale=3.0), *extra[1:], out="t")
    net.add("Concat", "s", "t", out="y", axis=1)
    return net.model("y", 2)


def flattened() -> onnx.ModelProto:
    """Each unit is one channel of 3 x 1 positions, read by a Gemm after Flatten: 3 columns a unit."""
    net = Net((2, 5, 3))
    net.add("Conv", "x", net.weight("w", 5, 2, 3, 3), net.weight("b", 5), out="a")
    net.add("Relu", "a", out="h")
    net.add("Flatten", "h", out="f")
    net.add("Gemm", "f", net.weight("p", 15, 7), net.weight("c", 7), out="y")
    return net.model("y", 2)


def grouped() -> onnx.ModelProto:
    """A convolution of 3 groups with 2 channels each: removing a unit takes one channel from every group."""
    net = Net((2, 5, 7))
    net.add("Conv", "x", net.weight("w", 6, 2, 1, 1), net.weight("b", 6), out="a")
    net.add("Sigmoid", "a", out="h")
    net.add("Conv", "h", net.weight("p", 9, 2, 3, 2), net.weight("c", 9), out="g", group=3)
    net.add("GlobalAveragePool", "g", out="y")
    return net.model("y", 4)


def _loss(reads: Sequence[tuple[Array, Array]], keep: Sequence[int], *, bias: bool) -> float:
    """The sum over consumers of the share of the output that the best refit of these units still misses."""
    total = 0.0
    for x, y in reads:  # x (rows, units, columns of a unit)
        centre = y.mean(axis=0) if bias else 0.0
        variance = float(((y - centre) ** 2).sum() / len(y))
        total += least_squares(x[:, list(keep)], y, bias=bias) / variance
    return total


def _check(found: UnitOrder, reads: Sequence[tuple[Array, Array]], *, bias: bool) -> None:
    """Every width's error is right for its units, and each removal is the one that brute force would make."""
    units = len(found.order)
    for width in range(units, 0, -1):
        kept = found.order[:width].tolist()
        assert found.error[width] == pytest.approx(_loss(reads, kept, bias=bias), abs=2e-5)
        if width > 1:
            options = {unit: _loss(reads, [k for k in kept if k != unit], bias=bias) for unit in kept}
            assert options[kept[-1]] <= min(options.values()) + 1e-6
    assert found.error[units] == 0
    assert (np.diff(found.error) <= 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_curve_of_a_group_with_two_consumers_is_that_of_brute_force(bias: bool) -> None:
    model, x = branches(bias=bias), examples((11,), 400)
    coupling = coupled(model)
    found = order(coupling, collect(coupling, batches_of(x)), ridge=TINY)
    h, s, t = tensors_of(model, ["h", "s", "t"], x)
    _check(found[group_read_by(coupling, "h")], [(h[:, :, None], s), (h[:, :, None], t)], bias=bias)


def test_the_curve_of_units_with_several_columns_is_that_of_brute_force() -> None:
    model, x = flattened(), examples((2, 5, 3), 400)
    coupling = coupled(model)
    found = order(coupling, collect(coupling, batches_of(x)), ridge=TINY)
    h, y = tensors_of(model, ["h", "y"], x)
    _check(found[group_read_by(coupling, "h")], [(h.reshape(len(x), 5, 3), y)], bias=True)


def test_the_curve_of_a_grouped_convolution_adds_up_its_groups() -> None:
    model, x = grouped(), examples((2, 5, 7), 60)
    coupling = coupled(model)
    statistics = collect(coupling, batches_of(x))
    group = coupling.by_id[group_read_by(coupling, "h")]
    found = order(coupling, statistics, ridge=TINY)[group.id]
    assert (np.diff(found.error) <= 0).all()
    h, y = tensors_of(model, ["h", "g"], x)
    patches = np.stack([h[:, :, i : i + 3, j : j + 2] for i in range(3) for j in range(6)], axis=1)  # (n, 18, 6, 3, 2)
    rows_ = patches.reshape(-1, 3, 2, 6)
    outs = y.transpose(0, 2, 3, 1).reshape(-1, 3, 3)
    units = sorted(found.order.tolist())
    layout = coupling.layers["h", 1][0] - coupling.first_unit[group.id]
    variance = sum(((outs[:, g] - outs[:, g].mean(axis=0)) ** 2).sum() / len(outs) for g in range(3))
    for width in range(1, len(units) + 1):
        kept = found.order[:width]
        missed = 0.0
        for g in range(3):
            own = np.isin(layout[2 * g : 2 * g + 2], kept)
            columns = rows_[:, g, own] if own.any() else np.zeros((len(rows_), 1))
            missed += least_squares(columns, outs[:, g], bias=True)
        assert found.error[width] == pytest.approx(missed / variance, abs=2e-5)


def residual(*, normalised: bool) -> onnx.ModelProto:
    """A branch of 11 hidden units whose 5 outputs are added to a stream four times as large, perhaps normalised."""
    net = Net((7, 3))
    net.add("Conv", "x", net.weight("ws", 5, 7, 1, scale=4.0), out="s")
    net.add("Conv", "x", net.weight("wa", 11, 7, 1), net.weight("ba", 11), out="a")
    net.add("Tanh", "a", out="h")
    net.add("Conv", "h", net.weight("wb", 5, 11, 1), net.weight("bb", 5), out="b")
    if normalised:
        ones = [net.constant(n, v * np.ones(5)) for n, v in (("g", 1.0), ("z", 0.0), ("m", 0.0), ("v", 1.0 / 9))]
        net.add("BatchNormalization", "b", *ones, out="n", epsilon=0.0)
    net.add("Add", "n" if normalised else "b", "s", out="t")
    net.add("Flatten", "t", out="f")
    net.add("Gemm", "f", net.weight("p", 15, 3), net.weight("c", 3), out="y")
    return net.model("y", 2)


@pytest.mark.parametrize("normalised", [False, True])
def test_an_error_in_a_branch_is_a_share_of_the_sum_that_it_goes_into(normalised: bool) -> None:
    model, x = residual(normalised=normalised), examples((7, 3), 60)
    coupling = coupled(model)
    found = order(coupling, collect(coupling, batches_of(x)), ridge=TINY)[group_read_by(coupling, "h")]
    h, b, t = (value.transpose(0, 2, 1).reshape(180, -1) for value in tensors_of(model, ["h", "b", "t"], x))
    gain = 9.0 if normalised else 1.0  # the normalization makes three times as much of the branch
    for width in range(1, 12):
        missed = least_squares(h[:, found.order[:width]], b, bias=True)
        # the part of the sum is measured batch by batch, around each batch's own mean
        assert found.error[width] == pytest.approx(gain * missed / t.var(axis=0).sum(), rel=0.1, abs=1e-5)
        own = found.amount[width] * found.error[1] / found.amount[1]
        assert own == pytest.approx(found.error[width], rel=1e-6, abs=1e-12)
    assert found.error[1] < 0.25 * gain * least_squares(h[:, found.order[:1]], b, bias=True) / b.var(axis=0).sum()


def test_of_two_equal_units_one_goes_first_and_only_one() -> None:
    net = Net((11,))
    weight = net.rng.standard_normal((11, 5))
    net.add("MatMul", "x", net.constant("w", np.concatenate([weight, weight[:, :2]], axis=1)), out="a")
    net.add("Tanh", "a", out="h")
    net.add("Gemm", "h", net.weight("p", 7, 3), net.weight("c", 3), out="y")
    coupling = coupled(net.model("y", 2))
    found = order(coupling, collect(coupling, batches_of(examples((11,), 200))), ridge=1e-6)[
        group_read_by(coupling, "h")
    ]
    first, second = sorted(found.order[-2:].tolist(), key=lambda unit: unit % 5)
    assert (first % 5, second % 5) == (0, 1)  # one of the twins 0 and 5, one of 1 and 6
    assert found.error[5] < 1e-4 < found.error[4]


def test_widths_are_nested_and_sorted() -> None:
    found = UnitOrder(np.array([3, 0, 2, 1]), np.linspace(1, 0, 5), np.linspace(2, 0, 5), measured=True)
    assert [found.kept(width).tolist() for width in (1, 2, 3, 4)] == [[3], [0, 3], [0, 2, 3], [0, 1, 2, 3]]


def test_without_data_the_filters_with_the_largest_norm_stay() -> None:
    model = flattened()
    coupling = coupled(model)
    found = weight_order(coupling)[group_read_by(coupling, "h")]
    weight = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")
    norms = np.linalg.norm(weight.reshape(5, -1), axis=1)
    assert found.order.tolist() == np.argsort(-norms).tolist()
    assert not found.measured
    assert found.error[0] == pytest.approx(1)
    assert found.error[5] == 0
    assert (np.diff(found.error) <= 0).all()


def test_a_group_that_nothing_measures_falls_back_to_norms() -> None:
    net = Net((3,))
    net.add("MatMul", "x", net.weight("w", 3, 7), out="a")
    net.add("Transpose", net.weight("v", 5, 7), out="t", perm=[1, 0])
    net.add("MatMul", "a", "t", out="y")
    coupling = coupled(net.model("y", 2))
    name = group_read_by(coupling, "a")
    found = order(coupling, collect(coupling, batches_of(examples((3,), 50))))[name]
    assert not found.measured
    assert np.array_equal(found.order, weight_order(coupling)[name].order)


@pytest.mark.parametrize("pending", [1, 4])
def test_multiplying_out_early_changes_nothing(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors are multiplied out, and columns that are gone left out, again and again: the same answer."""
    for model, shape in ((branches(), (11,)), (flattened(), (2, 5, 3)), (grouped(), (2, 5, 7))):
        coupling = coupled(model)
        statistics = collect(coupling, batches_of(examples(shape, 90)))
        late = order(coupling, statistics)
        with monkeypatch.context() as patch:
            patch.setattr(importance, "PENDING", pending)
            early = order(coupling, statistics)
        for name in late:
            assert early[name].order.tolist() == late[name].order.tolist()
            assert np.allclose(early[name].error, late[name].error, atol=1e-9)
