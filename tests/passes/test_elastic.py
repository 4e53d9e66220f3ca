"""Ordered dropout: every example trains its own prefix, and what is cut out is what was trained."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_netadapt.ir import load
from onnx_netadapt.models.digits import digits_model
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.elastic import Widths, train, unmasked
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.finetune_settings import FinetuneSettings
from onnx_netadapt.passes.masks import Prefixes, masked
from onnx_netadapt.passes.to_torch import to_torch

torch = pytest.importorskip("torch")

SETTINGS = FinetuneSettings(
    steps=60, lr=2e-2, batch=32, threads=1, precision="float32", check_every=20, loss="mse", patience=9
)


def residual_net(batch="N"):
    """Two convolutions around a sum, a mean over pixels, a Gemm: two groups, of 7 and 11 units."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[{batch}, 3, 5, 5] x) => (float[{batch}, 4] y) {{
            s = Conv<pads = [1, 1, 1, 1]>(x, a, ab)
            r = Relu(s)
            h = Conv<pads = [1, 1, 1, 1]>(r, b, bb)
            g = Sigmoid(h)
            t = Conv(g, c, cb)
            u = Add(r, t)
            p = GlobalAveragePool(u)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, d, db)
        }}"""
    )
    rng = np.random.default_rng(0)
    shapes = {
        "a": (7, 3, 3, 3), "ab": (7,), "b": (11, 7, 3, 3), "bb": (11,),
        "c": (7, 11, 1, 1), "cb": (7,), "d": (4, 7), "db": (4,),
    }  # fmt: skip
    for name, shape in shapes.items():
        fan = float(np.prod(shape[1:])) or 1.0
        weight = (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


class Bed:
    """A model with its masks in a random nested order, examples, and a score of its networks."""

    def __init__(self, model=None):
        self.graph = load(model or residual_net())
        self.coupling = couple(self.graph)
        rng = np.random.default_rng(1)
        self.order = {group.id: rng.permutation(group.units) for group in self.coupling.groups}
        self.narrowing = Narrowing(self.coupling, self.order)
        self.full = np.array(list(self.narrowing.full.values()))
        self.least = np.maximum(self.full // 3, 1)
        self.ladder = np.linspace(self.full, self.least, 5).round().astype(np.int64)
        self.masked = masked(self.coupling)
        self.prefixes = Prefixes(self.masked, self.order)
        x = rng.standard_normal((96, 3, 5, 5)).astype(np.float32)
        self.batches = [{"x": x[:64]}]
        self.held_out = {"x": x[64:]}

    def widths(self, seed=0):
        return Widths(self.ladder, self.least, self.full, np.random.default_rng(seed))

    def outputs(self, model, row):
        """What the network of a row of widths gives for the examples that are not trained on, by masks."""
        rows = self.prefixes.feeds(np.repeat(np.asarray(row)[None], 32, axis=0))
        return run_plain(model, [{**self.held_out, **rows}], optimize=True)[0][0]

    def validate(self, model):
        """Minus the mean squared error of the ladder's networks from the original."""
        wanted = run_plain(self.graph.model, [self.held_out], optimize=True)[0][0]
        return -float(np.mean([np.square(self.outputs(model, row) - wanted).mean() for row in self.ladder]))

    def train(self, settings=SETTINGS):
        return train(self.masked, self.order, self.widths(), self.batches, settings, self.validate)


@pytest.fixture(scope="module")
def bed():
    return Bed()


@pytest.fixture(scope="module")
def trained(bed):
    return bed.train()


def test_widths_lie_between_the_least_and_the_full_ones_and_both_ends_are_drawn(bed):
    rows = bed.widths().draw(2000)
    assert rows.shape == (2000, 2)
    assert (rows >= bed.least).all()
    assert (rows <= bed.full).all()
    for end in (bed.full, bed.least):
        assert 0.1 < (rows == end).all(axis=1).mean() < 0.4
    assert {tuple(row) for row in bed.ladder} < {tuple(row) for row in rows}
    assert len({tuple(row) for row in rows}) > 20
    np.testing.assert_array_equal(rows, bed.widths().draw(2000))
    assert (rows != bed.widths(seed=1).draw(2000)).any()


def test_a_group_that_stays_whole_is_drawn_whole(bed):
    widths = Widths(np.array([[7, 11], [7, 4]]), np.array([7, 4]), bed.full, np.random.default_rng(0))
    assert (widths.draw(500)[:, 0] == 7).all()


def test_masks_of_widths_are_nested_and_those_of_the_kept_units():
    graph = load(digits_model())
    coupling = couple(graph)
    rng = np.random.default_rng(0)
    order = {group.id: rng.permutation(group.units) for group in coupling.groups}
    narrowing, model = Narrowing(coupling, order), masked(coupling)
    full = np.array(list(narrowing.full.values()))
    rows = np.sort(
        rng.integers(1, full + 1, (6, len(full))), axis=0
    )  # each row is nowhere narrower than the one before
    found = Prefixes(model, order).feeds(rows)
    wanted = model.feeds([narrowing.kept(dict(zip(narrowing.full, map(int, row), strict=True))) for row in rows])
    assert found.keys() == wanted.keys()
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, wanted[name])
        assert mask.dtype == wanted[name].dtype
        assert (np.diff(mask, axis=0) >= 0).all()
    assert any((np.diff(mask, axis=0) > 0).any() for mask in found.values())


def test_gradients_reach_the_kept_units_alone(bed):
    module = to_torch(load(bed.masked.model))
    row = [3, 4]
    rows = bed.prefixes.feeds(np.repeat([row], 8, axis=0))
    feeds = {**bed.batches[0], **rows}
    module({name: torch.from_numpy(value[:8].copy()) for name, value in feeds.items()}).square().sum().backward()
    stream, inner = (order[:width] for order, width in zip(bed.order.values(), row, strict=True))
    gradients = {name: parameter.grad.numpy() for name, parameter in module.weights()}
    for name, axes in {
        "a": {0: stream},
        "b": {0: inner, 1: stream},
        "c": {0: stream, 1: inner},
        "d": {1: stream},
    }.items():
        found = gradients[name]
        for axis, kept in axes.items():
            size = found.shape[axis]
            gone = np.setdiff1d(np.arange(size), kept)
            assert not np.take(found, gone, axis=axis).any()
            found = np.take(found, kept, axis=axis)
        assert found.all()


def test_training_makes_narrow_networks_better_and_the_best_is_kept(bed, trained):
    assert trained.step > 0
    assert trained.score > 0.5 * bed.validate(bed.masked.model)
    assert trained.score == max(check.score for check in trained.history)


def test_what_is_cut_out_is_what_was_trained(bed, trained):
    model = unmasked(trained.model, bed.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [node.SerializeToString() for node in model.graph.node] == [
        node.SerializeToString() for node in bed.graph.model.graph.node
    ]
    narrowing = Narrowing(couple(load(model)), bed.order)
    for row in bed.widths(seed=3).draw(6):
        widths = dict(zip(narrowing.full, map(int, row), strict=True))
        cut = run_plain(narrowing.build(widths), [bed.held_out], optimize=True)[0][0]
        np.testing.assert_allclose(cut, bed.outputs(trained.model, row), atol=1e-5)
    whole = run_plain(model, [bed.held_out], optimize=True)[0][0]
    before = run_plain(bed.graph.model, [bed.held_out], optimize=True)[0][0]
    assert np.abs(whole - before).max() > 1e-4  # it is another model


def test_the_same_seed_gives_the_same_weights(bed, trained):
    assert bed.train().model.SerializeToString(deterministic=True) == trained.model.SerializeToString(
        deterministic=True
    )


def test_training_that_harms_leaves_the_weights_alone(bed):
    result = bed.train(FinetuneSettings(steps=20, lr=50.0, batch=32, threads=1, precision="float32", check_every=10))
    assert result.step == 0
    assert unmasked(result.model, bed.graph).SerializeToString() == bed.graph.model.SerializeToString()


def test_a_model_of_one_example_at_a_time_is_trained_as_well():
    bed = Bed(residual_net(batch="1"))
    rows = bed.prefixes.feeds(np.array([bed.least]))

    def validate(model):
        feeds = [{"x": bed.held_out["x"][k : k + 1], **rows} for k in range(8)]
        plain = [{"x": feed["x"]} for feed in feeds]
        pairs = zip(
            run_plain(model, feeds, optimize=True), run_plain(bed.graph.model, plain, optimize=True), strict=True
        )
        return -float(np.mean([np.square(have[0] - want[0]).mean() for have, want in pairs]))

    settings = FinetuneSettings(steps=8, lr=1e-2, batch=4, threads=1, precision="float32", check_every=4)
    result = train(bed.masked, bed.order, bed.widths(), bed.batches, settings, validate)
    assert result.step > 0
    assert unmasked(result.model, bed.graph).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
