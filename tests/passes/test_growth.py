"""Analysis and pruning grow linearly with the nodes: counted in Python calls, which no busy machine can disturb."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from net import Net
from onnx_netadapt.commands import prune_model
from onnx_netadapt.inspection import inspect
from onnx_netadapt.ir import load
from onnx_netadapt.network import node_names
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.sizes import Sizes

FEW, MANY = 8, 64  # blocks


def residual(blocks: int) -> Net:
    """Every fourth block begins a stream of its own; in each two convolutions stand beside it."""
    net = Net(open_batch=False)
    x = net.conv(net.input(1, 3, 4, 4), 3, 4)
    for number in range(blocks):
        if number % 4 == 0:
            x = net.op("Relu", net.conv(x, 4, 4))
        x = net.op("Relu", net.op("Add", x, net.conv(net.op("Relu", net.conv(x, 4, 4)), 4, 4)))
    return net.output(net.conv(x, 4, 2))


def attention(blocks: int) -> Net:
    """Blocks of two heads and a hidden layer around a stream that LayerNormalization holds."""
    net = Net(open_batch=False)
    x = net.dense(net.input(1, 5, 3), 3, 4)
    for _ in range(blocks):
        normal = net.op("LayerNormalization", x, net.positive(4))
        perms = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]
        rows = [(net.op("Reshape", net.dense(normal, 4, 4), net.ints(0, 0, 2, 2)), perm) for perm in perms]
        q, k, v = (net.op("Transpose", row, perm=perm) for row, perm in rows)
        mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k)), v)
        x = net.op("Add", x, net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, -1)))
        x = net.op("Add", x, net.dense(net.op("Relu", net.dense(x, 4, 6)), 6, 4))
    return net.output(net.dense(x, 4, 2))


def calls(work: Callable[..., Any], *arguments: Any) -> int:
    profile = cProfile.Profile()
    profile.runcall(work, *arguments)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [residual, attention])
def test_analysis_and_pruning_grow_linearly(build: Callable[[int], Net]) -> None:
    counts = []
    for blocks in (2, FEW, MANY):  # the first fills caches and imports
        model = build(blocks).model()
        graph = load(model)
        coupling = couple(graph)
        kept = {group.id: np.arange(max(1, group.units // 2)) for group in coupling.groups}
        counts.append([calls(load, model), calls(couple, graph), calls(prune, coupling, kept), len(graph.nodes)])
    for few, many in zip(counts[1][:3], counts[2][:3], strict=True):
        assert many / few < 1.1 * counts[2][3] / counts[1][3]


@pytest.mark.parametrize("build", [residual, attention])
def test_inspect_and_prune_as_commands_grow_linearly(build: Callable[[int], Net]) -> None:
    counts = []
    for blocks in (2, FEW, MANY):
        model = build(blocks).model()
        counts.append([calls(inspect, model), calls(lambda m: prune_model(m, keep=0.5), model), len(model.graph.node)])
    for few, many in zip(counts[1][:2], counts[2][:2], strict=True):
        assert many / few < 1.1 * counts[2][2] / counts[1][2]


@pytest.mark.parametrize("build", [residual, attention])
def test_what_a_group_holds_is_the_difference_that_it_makes(build: Callable[[int], Net]) -> None:
    coupling = couple(load(build(5).model()), renormalize=True)
    sizes = Sizes(coupling, {group.id: np.arange(group.units) for group in coupling.groups})
    full = {group.id: group.units for group in coupling.groups}
    for group in coupling.groups:
        without = full | {group.id: 0}
        difference = sizes.params(full) - sizes.params(without), sizes.macs(full) - sizes.macs(without)
        assert sizes.held(group.id) == difference
        assert min(difference) > 0


def test_ends_of_groups_are_named() -> None:
    net = Net(open_batch=False)
    x = net.op("Relu", net.conv(net.input(1, 3, 4, 4), 3, 7))
    graph = load(net.output(net.conv(x, 7, 2), net.conv(x, 7, 3)).model())
    assert node_names(couple(graph)) == {"g0": (["Conv0"], ["Conv2", "Conv3"])}
