"""The oracle itself: it must fail whenever pruning or a plan is wrong."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from net import Net
from onnx_netadapt.ir import Graph, InputError, TargetError, load
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import check, random_feeds, run_plain, tolerance_of, zeroed
from onnx_netadapt.passes.prune import Pruned, prune


def case() -> tuple[Graph, Pruned]:
    net = Net()
    x = net.op("Sigmoid", net.conv(net.input(2, 3, 5, 11), 3, 7))
    graph = load(net.output(net.conv(x, 7, 13)).model(), shapes=net.shapes)
    coupling = couple(graph)
    return graph, prune(coupling, {coupling.groups[0].id: np.array([1, 2, 5])})


def consumer(plan: dict[str, Any]) -> dict[str, Any]:
    return next(m for m in plan["groups"][0]["members"] if m["role"] == "consumer")


@pytest.mark.parametrize("optimize", [False, True])
def test_a_right_plan_passes_on_all_samples(optimize: bool) -> None:
    graph, pruned = case()
    result = check(graph.model, pruned.model, pruned.plan, random_feeds(graph, 3), optimize=optimize)
    assert result.passed
    assert result.worst < 1e-5
    assert result.samples == 3
    assert list(result.by_output) == [graph.outputs[0].name]


def test_a_plan_that_names_another_channel_fails() -> None:
    graph, pruned = case()
    plan = copy.deepcopy(pruned.plan)
    consumer(plan)["removed"] = [0, 3, 4, 5]
    assert not check(graph.model, pruned.model, plan, random_feeds(graph, 1)).passed


def test_zeroing_the_producers_instead_fails_behind_a_sigmoid() -> None:
    graph, pruned = case()
    plan = copy.deepcopy(pruned.plan)
    for member in plan["groups"][0]["members"]:
        member["role"] = "producer" if member["role"] == "consumer" else "consumer"
    assert not check(graph.model, pruned.model, plan, random_feeds(graph, 1)).passed


def test_a_pruned_model_with_channels_in_another_order_fails() -> None:
    graph, pruned = case()
    model = copy.deepcopy(pruned.model)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "c0")
    array = np.frombuffer(weight.raw_data, np.float32).reshape(3, 3, 1, 1)
    weight.raw_data = np.ascontiguousarray(array[::-1]).tobytes()
    assert not check(graph.model, model, pruned.plan, random_feeds(graph, 1)).passed


def test_an_empty_plan_fails_unless_nothing_was_removed() -> None:
    graph, pruned = case()
    assert not check(graph.model, pruned.model, {"groups": []}, random_feeds(graph, 1)).passed
    assert check(graph.model, graph.model, {"groups": []}, random_feeds(graph, 1)).worst == 0


def test_another_shape_of_output_is_infinitely_wrong() -> None:
    graph, pruned = case()
    model = copy.deepcopy(pruned.model)
    del model.graph.output[:]
    model.graph.output.add(name="t1")
    other = copy.deepcopy(graph.model)
    other.graph.output[0].name = "t1"
    assert check(other, model, pruned.plan, random_feeds(graph, 1)).worst == float("inf")


def test_quantized_slices_are_set_to_their_zero_point() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7))
    w, scale = net.const(net.rng.integers(90, 170, (13, 7, 1, 1)), np.uint8), net.const([0.02] * 13, np.float32)
    zero = net.const(np.arange(110, 123), np.uint8)
    y = net.op("Conv", x, net.op("DequantizeLinear", w, scale, zero, axis=0))
    graph = load(net.output(y).model(), shapes=net.shapes)
    coupling = couple(graph)
    pruned = prune(coupling, {coupling.groups[0].id: np.array([0, 6])})
    member = consumer(pruned.plan)
    assert member["zero"] == {"tensor": zero, "axis": 0}
    feeds = random_feeds(graph, 1)
    assert check(graph.model, pruned.model, pruned.plan, feeds).passed
    without = copy.deepcopy(pruned.plan)
    del consumer(without)["zero"]
    assert not check(graph.model, pruned.model, without, feeds).passed


def test_a_plan_for_another_model_is_refused() -> None:
    graph, pruned = case()
    plan = copy.deepcopy(pruned.plan)
    consumer(plan)["tensor"] = "somewhere.else"
    with pytest.raises(InputError, match=r"somewhere\.else"):
        zeroed(graph.model, plan)


def test_a_model_that_does_not_run_is_the_targets_fault() -> None:
    graph, _ = case()
    broken = copy.deepcopy(graph.model)
    broken.graph.node[0].op_type = "Mystery"
    with pytest.raises(TargetError, match="cannot run"):
        run_plain(broken, random_feeds(graph, 1), optimize=False)


def test_activations_that_are_rounded_widen_the_tolerance_and_stored_weights_do_not() -> None:
    net = Net()
    scale, zero = net.const(0.05, np.float32), net.const(3, np.int8)
    stored = net.const(net.rng.integers(-99, 99, (7, 3, 1, 1)), np.int8)
    x = net.op("Conv", net.input(2, 3, 5, 11), net.op("DequantizeLinear", stored, scale, zero))
    assert tolerance_of(net.output(x).model()) == 1e-4
    net.outputs.clear()
    rounded = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
    assert tolerance_of(net.output(rounded).model()) == 3e-2


def test_coarse_weights_widen_the_tolerance() -> None:
    graph, _ = case()
    assert tolerance_of(graph.model) == 1e-4
    half = copy.deepcopy(graph.model)
    half.graph.initializer[0].data_type = 10
    assert tolerance_of(half) == 2e-2
