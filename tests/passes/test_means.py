"""Means over channels: a barrier unless asked for, and then exact for the original normalized over those kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from net import MICROSOFT, Net
from onnx_netadapt.ir import InputError, load
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import export
from onnx_netadapt.passes.coupling import Coupling, couple
from onnx_netadapt.passes.equivalence import check, random_feeds, zeroed
from onnx_netadapt.passes.prune import Pruned, prune
from oracle import prune_randomly


def layer_norm(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.positive(7), net.weight(7), epsilon=1e-3)


def bare_layer_norm(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.positive(7), axis=2)


def with_statistics(net: Net, x: str) -> str:
    y, mean, inverse = net.ops("LayerNormalization", x, net.positive(7), count=3)
    return net.op("Add", net.op("Mul", y, inverse), mean)


def over_rows_too(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.positive(5, 7), axis=1)


def rms_norm(net: Net, x: str) -> str:
    return net.op("RMSNormalization", x, net.positive(7))


def simplified(net: Net, x: str) -> str:
    return net.op("SimplifiedLayerNormalization", x, net.positive(7), axis=-1, epsilon=1e-5)


def skip_layer_norm(net: Net, x: str) -> str:
    other = net.dense("x0", 3, 7)
    weights = net.positive(7), net.weight(7), net.weight(7)
    y, *_, total = net.ops("SkipLayerNormalization", x, other, *weights, count=4, domain=MICROSOFT)
    return net.op("Add", y, total)


def skip_rms_norm(net: Net, x: str) -> str:
    other = net.dense("x0", 3, 7)
    return net.op("SkipSimplifiedLayerNormalization", x, other, net.positive(7), domain=MICROSOFT)


def spelled_out(net: Net, x: str) -> str:
    """As exporters write a LayerNormalization for opsets that have none."""
    axes, more = ({"axes": [-1]}, []) if net.opset < 18 else ({}, [net.ints(-1)])
    centred = net.op("Sub", x, net.op("ReduceMean", x, *more, **axes))
    squares = net.op("Pow", centred, net.const(2.0, np.float32))
    variance = net.op("ReduceMean", squares, *more, **axes)
    root = net.op("Sqrt", net.op("Add", variance, net.const(1e-5, np.float32)))
    return net.op("Add", net.op("Mul", net.op("Div", centred, root), net.positive(7)), net.weight(7))


CASES: list[tuple[Callable[[Net, str], str], int]] = [
    (layer_norm, 17), (bare_layer_norm, 18), (with_statistics, 17), (over_rows_too, 21), (rms_norm, 23),
    (simplified, 17), (skip_layer_norm, 17), (skip_rms_norm, 18), (spelled_out, 9), (spelled_out, 13),
    (spelled_out, 18),
]  # fmt: skip


def case(norm: Callable[[Net, str], str], opset: int, *, renormalize: bool) -> Coupling:
    """A stream of 7 channels through a normalization, beside which it goes on by itself."""
    net = Net(opset)
    x = net.dense(net.input(2, 5, 3), 3, 7)
    y = net.op("Add", x, net.dense(norm(net, x), 7, 7))
    return couple(load(net.output(net.dense(y, 7, 2)).model(), shapes=net.shapes), renormalize=renormalize)


def pruned(coupling: Coupling) -> Pruned:
    return prune(coupling, {group.id: np.array([1, 2, 4, 6]) for group in coupling.groups})


@pytest.mark.parametrize(("norm", "opset"), CASES)
def test_it_is_a_barrier_unless_asked_for(norm: Callable[[Net, str], str], opset: int) -> None:
    coupling = case(norm, opset, renormalize=False)
    assert coupling.groups == ()
    assert any("--renormalize" in barrier.reason for barrier in coupling.barriers)


@pytest.mark.parametrize(("norm", "opset"), CASES)
def test_removing_equals_normalizing_over_the_kept_channels(norm: Callable[[Net, str], str], opset: int) -> None:
    coupling = case(norm, opset, renormalize=True)
    assert [group.units for group in coupling.groups] == [7]
    found, feeds = pruned(coupling), random_feeds(coupling.graph, 2)
    assert check(coupling.graph.model, found.model, found.plan, feeds).passed
    onnx.checker.check_model(zeroed(coupling.graph.model, found.plan))


@pytest.mark.parametrize(("norm", "opset"), CASES)
def test_without_the_plans_means_the_check_fails(norm: Callable[[Net, str], str], opset: int) -> None:
    coupling = case(norm, opset, renormalize=True)
    found, feeds = pruned(coupling), random_feeds(coupling.graph, 2)
    plan = copy.deepcopy(found.plan)
    assert plan["groups"][0].pop("means")
    assert not check(coupling.graph.model, found.model, plan, feeds).passed


def test_a_mean_over_the_wrong_channels_fails() -> None:
    coupling = case(layer_norm, 17, renormalize=True)
    found, feeds = pruned(coupling), random_feeds(coupling.graph, 2)
    plan = copy.deepcopy(found.plan)
    plan["groups"][0]["means"][0]["removed"] = [1, 3, 5]
    assert not check(coupling.graph.model, found.model, plan, feeds).passed


@pytest.mark.parametrize("node", ["nowhere", "Add"])
def test_a_plan_of_another_model_is_refused(node: str) -> None:
    coupling = case(layer_norm, 17, renormalize=True)
    plan = copy.deepcopy(pruned(coupling).plan)
    names = {node.op_type: node.name for node in coupling.graph.model.graph.node}
    plan["groups"][0]["means"][0]["node"] = names.get(node, node)
    with pytest.raises(InputError, match="does not have" if node == "nowhere" else "takes a mean, which Add does not"):
        zeroed(coupling.graph.model, plan)


def test_removing_nothing_changes_nothing() -> None:
    coupling = case(spelled_out, 13, renormalize=True)
    whole = prune(coupling, {group.id: np.arange(group.units) for group in coupling.groups})
    assert whole.model.SerializeToString() == coupling.graph.model.SerializeToString()
    assert whole.plan["groups"] == []


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny"])
@pytest.mark.parametrize("opset", [13, 17])
def test_the_embedding_stream_of_real_architectures_goes(name: str, opset: int) -> None:
    graph = load(export(ARCHITECTURES[name].quickest, opset=opset))
    narrow, wide = couple(graph), couple(graph, renormalize=True)
    assert len(wide.groups) > len(narrow.groups)
    kept = {group.id: np.arange(0, group.units, 2) for group in wide.groups}
    found = prune(wide, kept)
    result = check(graph.model, found.model, found.plan, random_feeds(graph, 2))
    assert result.passed
    assert sum(len(group.get("means", ())) for group in found.plan["groups"]) >= 3
    numbers = [sum(int(np.prod(t.dims)) for t in model.graph.initializer) for model in (found.model, graph.model)]
    assert numbers[0] < 0.45 * numbers[1]


def test_by_default_plans_have_no_means() -> None:
    graph = load(export(ARCHITECTURES["vit_b_16"].quickest))
    assert not any("means" in group for group in prune_randomly(graph, 0.5, 0)[2].plan["groups"])
