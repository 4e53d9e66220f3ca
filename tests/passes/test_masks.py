"""Masks: one graph with its units switched off by inputs is every network cut out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx_netadapt.evaluate import Evaluator
from onnx_netadapt.inputs import Data
from onnx_netadapt.ir import TargetError, load
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.metrics import metric_of
from onnx_netadapt.models.digits import digits, digits_model
from onnx_netadapt.network import by_weight
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.masks import MaskedModel, NotMasked, masked
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.scoring import MaskedScorer
from oracle import feeds_for, random_kept
from test_random_networks import RULES, network

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"


def choices_of(coupling, count, seed=0):
    rng = np.random.default_rng(seed)
    return [random_kept(coupling, float(rng.uniform(0.2, 1.0)), rng) for _ in range(count)]


def data_of(graph, x, labels=None):
    return Data(len(x), labels, lambda at: {graph.inputs[0].name: x[at]}, "a test")


def assert_each_row_is_its_own_network(graph, found, choices, feeds, tolerance=1e-4):
    """Example i of the masked model, masked by choice i, against the same example of the network that is cut out."""
    masks = found.feeds(choices)
    outputs = run_plain(found.model, [{**feeds, **masks}], optimize=True)[0]
    for row, kept in enumerate(choices):
        wanted = run_plain(prune(found.coupling, kept).model, [feeds], optimize=True)[0]
        for a, b in zip(wanted, outputs, strict=True):
            np.testing.assert_allclose(b[row], a[row], atol=tolerance * max(np.abs(a).max(), 1e-3), rtol=0)


@settings(max_examples=25, derandomize=True, **RULES)
@given(st.data())
def test_random_networks_with_a_mask_for_each_example(data: st.DataObject) -> None:
    names: list[str] = []
    net = network(data.draw, data.draw(st.integers(2, 7), label="steps"), names)
    note(f"steps {names}")
    graph = load(net.model(), shapes=net.shapes)
    coupling = couple(graph)
    found = masked(coupling)
    if isinstance(found, NotMasked):
        assert found.reason
        return
    onnx.checker.check_model(found.model, full_check=True)
    try:
        assert_each_row_is_its_own_network(graph, found, choices_of(coupling, 2), feeds_for(graph, 1)[0])
    except TargetError:
        pytest.skip("ONNX Runtime has no kernel for one of the operators")


@pytest.mark.parametrize("name", ["derived_torch_cifar10_resnet20.onnx", "vit_cifar10_ibp_3_3_8.onnx"])
@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
def test_real_networks(name):
    graph = load(SHARED / name)
    coupling = couple(graph)
    found = masked(coupling)
    assert isinstance(found, MaskedModel)
    choices = choices_of(coupling, 3)
    port = graph.inputs[0]
    shape = (3, *graph.shapes[port.name][1:])
    feeds = {port.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    assert_each_row_is_its_own_network(graph, found, choices, feeds)


def test_masks_of_ones_change_nothing_and_a_wrong_mask_is_seen():
    graph = load(digits_model())
    coupling = couple(graph)
    found = masked(coupling)
    feeds = {graph.inputs[0].name: digits().x[:4].astype(np.float32)}
    ones = found.feeds([{}] * 4)
    assert all((mask == 1).all() for mask in ones.values())
    same = run_plain(found.model, [{**feeds, **ones}], optimize=True)[0][0]
    np.testing.assert_allclose(same, run_plain(graph.model, [feeds], optimize=True)[0][0], atol=1e-4)
    choices = choices_of(coupling, 4)
    masks = found.feeds(choices)
    first = next(iter(masks))
    masks[first] = np.roll(masks[first], 1, axis=1)
    outputs = run_plain(found.model, [{**feeds, **masks}], optimize=True)[0][0]
    wanted = [run_plain(prune(coupling, kept).model, [feeds], optimize=True)[0][0] for kept in choices]
    assert any(not np.allclose(outputs[row], wanted[row][row], atol=1e-3) for row in range(4))


def all_groups(full, rng):
    return {name: max(1, int(width * rng.uniform(0.7, 1))) for name, width in full.items()}


def one_group(full, rng):
    """A step of `netadapt` from a network that is narrow already."""
    present = {name: max(1, 3 * width // 4) for name, width in full.items()}
    name = str(rng.choice(list(full)))
    return present | {name: int(rng.integers(1, present[name] + 1))}


@pytest.mark.parametrize(
    "metric",
    [
        "kl",
        pytest.param("top1", marks=pytest.mark.slow),
        pytest.param("onnx_netadapt.metrics:_classes_agree", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", [all_groups, one_group])
def test_64_masked_proposals_score_as_64_networks_that_are_cut_out(metric, kind, monkeypatch):
    from onnx_netadapt import metrics

    monkeypatch.setattr(metrics, "_classes_agree", lambda outputs, y: np.mean(outputs[0].argmax(1) == y), raising=False)
    graph = load(digits_model())
    narrowing = by_weight(couple(graph))
    made = digits()
    data = data_of(graph, made.x.astype(np.float32), made.y)
    evaluator = Evaluator(graph, data, made.test[:40], metric_of(metric))
    rng = np.random.default_rng(0)
    networks = [kind(narrowing.full, rng) for _ in range(64)]
    found = MaskedScorer(narrowing, evaluator).many(networks)
    wanted = [evaluator.score(narrowing.build(widths)) for widths in networks]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.argmax(found) == np.argmax(wanted)
    assert len(set(wanted)) > (5 if kind is all_groups else 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [all_groups, one_group])
@pytest.mark.parametrize("examples", [4, 40])
@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
def test_64_masked_proposals_of_a_residual_network(kind, examples):
    graph = load(SHARED / "derived_torch_cifar10_resnet20.onnx")
    narrowing = by_weight(couple(graph))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, 3, 32, 32)).astype(np.float32)
    evaluator = Evaluator(graph, data_of(graph, x), np.arange(examples), metric_of("fidelity"))
    networks = [kind(narrowing.full, rng) for _ in range(64)]
    found = MaskedScorer(narrowing, evaluator).many(networks)
    wanted = [evaluator.score(narrowing.build(widths)) for widths in networks]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.argmax(found) == np.argmax(wanted)
    assert len(set(wanted)) > 5


def test_a_model_that_mixes_the_examples_of_a_batch_is_refused():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        mixed (float[N, 5] x) => (float[N, 3] y) {
            h = MatMul(x, a)
            r = Relu(h)
            g = MatMul(r, b)
            t = Relu(g)
            m = ReduceMean<axes = [0], keepdims = 1>(t)
            s = Add(t, m)
            y = MatMul(s, c)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("a", (5, 7)), ("b", (7, 11)), ("c", (11, 3))):
        weight = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    graph = load(model)
    data = data_of(graph, rng.standard_normal((20, 5)).astype(np.float32))
    evaluator = Evaluator(graph, data, np.arange(8), metric_of("fidelity"))  # few: networks share a batch
    with pytest.raises(InputError, match="--scoring masked"):
        MaskedScorer(by_weight(couple(graph)), evaluator)
