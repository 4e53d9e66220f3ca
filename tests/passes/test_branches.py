"""Branches: which ones can go whole, that what is left is the original with them at zero, and what is made good."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from net import Net
from onnx_netadapt.commands import verify_models
from onnx_netadapt.ir import Graph, load
from onnx_netadapt.ir.errors import InputError, PruneError
from onnx_netadapt.models.export import materialize, to_onnx
from onnx_netadapt.models.micro import MICRO_NETS
from onnx_netadapt.passes.branches import joined, with_branches
from onnx_netadapt.passes.coupling import Coupling, couple
from onnx_netadapt.passes.equivalence import check
from onnx_netadapt.passes.fits import plan_fits
from onnx_netadapt.passes.gram import Statistics, collect
from onnx_netadapt.passes.importance import order
from onnx_netadapt.passes.prune import Pruned, prune
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.search.common import Choice, ListJournal
from onnx_netadapt.passes.search.multiplier import search as multiplier
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.passes.sizes import Sizes
from oracle import assert_exact, difference, feeds_for, is_valid, run

NONE = np.zeros(0, dtype=np.int64)
SHAPE = (2, 3, 11, 13)


def bottom(net: Net) -> str:
    """What the residual nets begin with: 7 channels."""
    return net.op("Relu", net.conv(net.input(*SHAPE), 3, 7, kernel=(3, 3), pads=[1] * 4))


def basic(net: Net, x: str, hidden: int, width: int = 7) -> str:
    """ResNet's block: two convolutions with a Relu between, and one behind the sum."""
    inner = net.op("Relu", net.conv(x, width, hidden, kernel=(3, 3), pads=[1] * 4))
    return net.op("Relu", net.op("Add", net.conv(inner, hidden, width, kernel=(3, 3), pads=[1] * 4), x))


def inverted(net: Net, x: str, hidden: int, width: int = 7) -> str:
    """MobileNetV2's block: wide, depthwise, narrow, and nothing behind the sum."""
    inner = net.clip(net.conv(x, width, hidden), 0, 6)
    inner = net.clip(net.conv(inner, hidden, hidden, kernel=(3, 3), pads=[1] * 4, group=hidden), 0, 6)
    return net.op("Add", x, net.conv(inner, hidden, width))


def top(net: Net, x: str, width: int = 7) -> Graph:
    """Global pooling and a product; the graph."""
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return load(net.output(net.op("Gemm", pooled, net.weight(5, width), net.weight(5), transB=1)).model())


def resnet() -> Graph:
    net = Net()
    x = bottom(net)
    for hidden in (11, 13, 17):
        x = basic(net, x, hidden)
    return top(net, x)


def mobilenet() -> Graph:
    net = Net()
    x = net.conv(bottom(net), 7, 7)
    for hidden in (11, 13, 17):
        x = inverted(net, x, hidden)
    return top(net, x)


def exported(name: str) -> Graph:
    architecture = MICRO_NETS[name]
    return load(to_onnx(materialize(architecture), architecture))


def deep(graph: Graph) -> Coupling:
    return with_branches(couple(graph))


def without(coupling: Coupling, *ids: str) -> Pruned:
    return prune(coupling, {name: NONE for name in ids})


def sums(coupling: Coupling) -> list[str]:
    return [coupling.graph.nodes[branch.total].label for branch in coupling.branches]


# which ones


def test_every_block_of_a_residual_net_is_found_and_goes_with_the_group_inside() -> None:
    for graph in (resnet(), mobilenet()):
        coupling = deep(graph)
        assert [coupling.by_id[branch.id].units for branch in coupling.branches] == [11, 13, 17]
        assert all(branch.inside == {branch.id} for branch in coupling.branches)
        assert coupling.groups == couple(graph).groups


def _no_identity(net: Net) -> Graph:
    x = bottom(net)
    return top(net, net.op("Add", net.conv(x, 7, 7), net.conv(net.conv(x, 7, 11), 11, 7)))


def _read_outside(net: Net) -> Graph:
    x = bottom(net)
    inner = net.conv(x, 7, 11)
    y = net.op("Add", x, net.conv(inner, 11, 7))
    return top(net, net.op("Add", net.conv(inner, 11, 7), y))


def _half_read_outside(net: Net) -> Graph:
    x = bottom(net)
    one, other = net.conv(x, 7, 7), net.conv(x, 7, 7)
    y = net.op("Add", x, net.conv(net.op("Mul", one, other), 7, 7))
    return top(net, net.op("Mul", other, y))


def _inner_output(net: Net) -> Graph:
    x = bottom(net)
    inner = net.conv(x, 7, 11)
    y = net.op("Add", x, net.conv(inner, 11, 7))
    return load(net.output(y, inner).model())


def _no_weights(net: Net) -> Graph:
    x = bottom(net)
    return top(net, net.op("Add", x, net.op("Sigmoid", x)))


def _bias_behind_a_sigmoid(net: Net) -> Graph:
    x = bottom(net)
    return top(net, net.op("Add", x, net.op("Sigmoid", net.conv(x, 7, 7))))


def _broadcast(net: Net) -> Graph:
    x = bottom(net)
    return top(net, net.op("Add", x, net.conv(net.op("GlobalAveragePool", x), 7, 7)))


def _from_the_input(net: Net) -> Graph:
    x = net.input(*SHAPE)
    return load(net.output(net.op("Add", x, net.conv(x, 3, 3))).model())


@pytest.mark.parametrize(
    "build",
    [
        _no_identity, _read_outside, _half_read_outside, _inner_output, _no_weights, _bias_behind_a_sigmoid, _broadcast,
        _from_the_input,
    ],
)  # fmt: skip
def test_what_is_no_branch_is_left_alone(build: Callable[[Net], Graph]) -> None:
    graph = build(Net())
    coupling = deep(graph)
    assert coupling.branches == ()
    assert coupling.groups == couple(graph).groups


def test_of_nested_branches_the_innermost_are_offered() -> None:
    net = Net()
    x = bottom(net)
    coupling = deep(top(net, net.op("Add", x, net.conv(inverted(net, x, 11), 7, 7))))
    assert [coupling.by_id[branch.id].units for branch in coupling.branches] == [11]


def test_a_branch_without_a_group_of_its_own_gets_one() -> None:
    net = Net()
    x = bottom(net)
    coupling = deep(top(net, net.op("Add", x, net.conv(x, 7, 7))))
    (branch,) = coupling.branches
    assert coupling.groups[-1].id == branch.id == "b0"
    assert (coupling.groups[-1].units, coupling.groups[-1].axes) == (1, ())
    pruned = without(coupling, "b0")
    assert_exact(coupling.graph, pruned, feeds_for(coupling.graph), optimize=False)
    assert len(pruned.model.graph.initializer) == len(coupling.graph.model.graph.initializer) - 2


# what is left

NETS: Mapping[str, Callable[[], Graph]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    **{
        name: (lambda name=name: exported(name))
        for name in ("preactivation", "c2f", "vit_block", "nhwc_linear", "group_norm", "depthwise_residual")
    },
}


@pytest.fixture(scope="module", params=NETS)
def coupling(request: pytest.FixtureRequest) -> Coupling:
    return deep(NETS[request.param]())


def chosen(coupling: Coupling, seed: int) -> dict[str, Any]:
    """Some branches gone (at least one), the groups narrowed."""
    rng = np.random.default_rng(seed)
    kept = {g.id: np.sort(rng.permutation(g.units)[: max(1, g.units * 2 // 3)]) for g in coupling.groups}
    gone = [b.id for b in coupling.branches if rng.random() < 0.5] or [coupling.branches[-1].id]
    return kept | {name: NONE for name in gone}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("optimize", [False, True])
def test_zeroing_equals_removing(coupling: Coupling, seed: int, optimize: bool) -> None:
    pruned = prune(coupling, chosen(coupling, seed))
    assert_exact(coupling.graph, pruned, feeds_for(coupling.graph), optimize=optimize)


def test_a_plan_that_names_another_branch_is_noticed(coupling: Coupling) -> None:
    first, feeds = coupling.branches[0].id, feeds_for(coupling.graph)
    pruned = without(coupling, first)
    assert check(coupling.graph.model, pruned.model, pruned.plan, feeds).passed
    silent = {**pruned.plan, "branches": []}
    assert not check(coupling.graph.model, pruned.model, silent, feeds).passed
    if len(coupling.branches) > 1:
        wrong = without(coupling, coupling.branches[1].id).plan
        assert not check(coupling.graph.model, pruned.model, wrong, feeds).passed


def test_verify_needs_the_plan_alone(coupling: Coupling) -> None:
    pruned = prune(coupling, chosen(coupling, 1))
    plan = json.loads(json.dumps(pruned.plan))
    assert verify_models(coupling.graph.model, pruned.model, plan).passed
    del plan["branches"][0]
    assert not verify_models(coupling.graph.model, pruned.model, plan).passed


def test_sizes_are_those_of_the_network_that_is_left(coupling: Coupling) -> None:
    kept = chosen(coupling, 2)
    pruned = prune(coupling, kept)
    left = couple(load(pruned.model))
    widths = {group.id: len(kept[group.id]) for group in coupling.groups}
    found, wanted = (Sizes(c, {group.id: np.arange(group.units) for group in c.groups}) for c in (coupling, left))
    full = {group.id: group.units for group in left.groups}
    assert found.macs(widths) == wanted.macs(full)
    assert found.params(widths) == wanted.params(full)


def test_only_what_is_read_stays_and_names_mean_what_they_meant() -> None:
    coupling = deep(resnet())
    model = without(coupling, *(branch.id for branch in coupling.branches[1:])).model
    assert is_valid(model)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert [v.name for v in model.graph.output] == [v.name for v in coupling.graph.model.graph.output]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 3
    assert operators.count("Relu") == 3  # a second one behind the first has nothing to do
    assert operators.count("Identity") == 4
    before = {name for node in coupling.graph.model.graph.node for name in node.output}
    assert {name for node in model.graph.node for name in node.output} < before


def test_an_activation_stays_where_another_one_stands_before() -> None:
    net = Net()
    x = net.clip(net.conv(net.input(*SHAPE), 3, 7), 0, 6)
    inner = net.op("Relu", net.conv(x, 7, 11))
    coupling = deep(top(net, net.clip(net.op("Add", x, net.conv(inner, 11, 7)), 0, 5)))
    pruned = without(coupling, coupling.branches[0].id)
    assert [node.op_type for node in pruned.model.graph.node].count("Clip") == 2
    assert_exact(coupling.graph, pruned, feeds_for(coupling.graph), optimize=False)


def test_a_branch_that_ends_in_an_output_leaves_the_output() -> None:
    net = Net()
    x = bottom(net)
    graph = load(net.output(inverted(net, x, 11)).model())
    pruned = without(deep(graph), deep(graph).branches[0].id)
    assert_exact(graph, pruned, feeds_for(graph), optimize=False)
    assert [v.name for v in pruned.model.graph.output] == [v.name for v in graph.model.graph.output]


def test_constants_that_others_read_stay() -> None:
    net = Net()
    x = bottom(net)
    weight = net.weight(7, 7, 1, 1)
    y = net.op("Add", x, net.op("Conv", x, weight))
    coupling = deep(top(net, net.op("Conv", y, weight)))
    pruned = without(coupling, coupling.branches[0].id)
    assert weight in {tensor.name for tensor in pruned.model.graph.initializer}
    assert pruned.plan["branches"][0]["members"][0]["node"] == "Conv2"
    assert_exact(coupling.graph, pruned, feeds_for(coupling.graph), optimize=False)


def test_without_being_asked_no_group_may_lose_all_its_units() -> None:
    graph = resnet()
    with pytest.raises(PruneError, match="at least one"):
        prune(couple(graph), {deep(graph).branches[0].id: NONE})


def test_removing_nothing_changes_nothing(coupling: Coupling) -> None:
    kept = {group.id: np.arange(group.units) for group in coupling.groups}
    pruned = prune(coupling, kept)
    assert pruned.plan == {"schema_version": 1, "groups": []}
    assert pruned.model.SerializeToString() == coupling.graph.model.SerializeToString()


def test_joined_models_compute_the_same_with_nothing_idle_between(coupling: Coupling) -> None:
    kept = chosen(coupling, 0)
    gone = coupling.gone(kept)
    model = prune(coupling, kept).model
    found = joined(model, coupling.graph, gone)
    assert is_valid(found)
    feeds = feeds_for(coupling.graph)
    assert difference(run(model, feeds, optimize=False), run(found, feeds, optimize=False)) == 0
    idle = [node for node in found.graph.node if node.op_type == "Identity"]
    assert len(idle) == sum(node.op_type == "Identity" for node in coupling.graph.model.graph.node)
    assert list(found.graph.output) == list(coupling.graph.model.graph.output)


def test_an_identity_that_makes_an_output_stays() -> None:
    net = Net()
    graph = load(net.output(inverted(net, bottom(net), 11)).model())
    coupling = deep(graph)
    model = without(coupling, coupling.branches[0].id).model
    found = joined(model, graph, coupling.branches)
    assert [node.op_type for node in found.graph.node].count("Identity") == 1
    assert is_valid(found)


# what is made good


def examples(graph: Graph, count: int = 40) -> Callable[[], Any]:
    rng = np.random.default_rng(9)
    feeds = [{graph.inputs[0].name: rng.standard_normal(SHAPE, dtype=np.float32)} for _ in range(count)]
    return lambda: iter(feeds)


def linear_blocks() -> Graph:
    """A stream without activations: what writes it can do all that the branches do."""
    net = Net()
    x = net.conv(net.op("Relu", net.conv(net.input(*SHAPE), 3, 19)), 19, 7)
    for hidden in (11, 13):
        x = net.op("Add", x, net.conv(net.conv(x, 7, hidden), hidden, 7))
    return top(net, net.op("Relu", net.conv(x, 7, 7)))


@pytest.mark.parametrize("number", [(0,), (1,), (0, 1)])
def test_the_writer_of_the_stream_takes_over_all_that_it_can(number: tuple[int, ...]) -> None:
    graph = linear_blocks()
    coupling, batches = deep(graph), examples(graph)
    statistics = collect(coupling, batches)
    kept = {coupling.branches[place].id: NONE for place in number}
    sliced = prune(coupling, kept).model
    feeds = list(batches())[:5]
    wanted = run(graph.model, feeds, optimize=False)
    symmetric = apply_weights(sliced, refit_symmetric(coupling, statistics, kept))
    final = apply_weights(sliced, refit_sequential(coupling, kept, sliced, batches, statistics))
    lost = difference(wanted, run(sliced, feeds, optimize=False))
    assert lost > 0.1
    assert difference(wanted, run(symmetric, feeds, optimize=False)) < 0.05 * lost
    assert difference(wanted, run(final, feeds, optimize=False)) < 0.05 * lost


@pytest.mark.parametrize("build", [resnet, mobilenet])
def test_refits_bring_the_outputs_nearer_also_where_the_rest_is_narrowed(build: Callable[[], Graph]) -> None:
    graph = build()
    coupling, batches = deep(graph), examples(graph)
    statistics = collect(coupling, batches)
    orders = order(coupling, statistics)
    kept = {g.id: np.sort(orders[g.id].order[: max(1, g.units * 3 // 4)]) for g in coupling.groups}
    kept[coupling.branches[1].id] = NONE
    sliced = prune(coupling, kept).model
    feeds = list(batches())[:8]
    wanted = _stacked(graph.model, feeds)
    found = [
        apply_weights(sliced, refit_symmetric(coupling, statistics, kept)),
        apply_weights(sliced, refit_sequential(coupling, kept, sliced, batches, statistics)),
    ]
    errors = [float(((_stacked(model, feeds) - wanted) ** 2).mean()) for model in (sliced, *found)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < errors[1]
    assert all(is_valid(model) for model in found)


def _stacked(model: onnx.ModelProto, feeds: Any) -> np.ndarray:
    return np.concatenate([outputs[0] for outputs in run(model, feeds, optimize=False)])


@pytest.fixture(scope="module")
def told() -> tuple[Coupling, Statistics]:
    graph = mobilenet()
    coupling = deep(graph)
    return coupling, collect(coupling, examples(graph))


def test_moments_are_those_of_the_branches(told: tuple[Coupling, Statistics]) -> None:
    coupling, statistics = told
    graph = coupling.graph
    for branch in coupling.branches:
        found = statistics.branches[branch.id]
        model = copy.deepcopy(graph.model)
        ends = [branch.output, graph.nodes[branch.total].outputs[0]]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ends)
        rows = [outputs[1:] for outputs in run(model, list(examples(graph)()), optimize=False)]
        output, total = (np.concatenate([np.moveaxis(r[k], 1, 0).reshape(7, -1) for r in rows], 1) for k in (0, 1))
        np.testing.assert_allclose(found.mean, output.mean(axis=1), rtol=1e-4, atol=1e-4)
        assert found.amount == pytest.approx(output.var(axis=1).sum(), rel=1e-3)
        assert found.share == pytest.approx(output.var(axis=1).sum() / total.var(axis=1).sum(), rel=1e-3)
        assert 0 < found.left < 1


def test_the_error_of_width_0_is_what_nobody_takes_over(told: tuple[Coupling, Statistics]) -> None:
    coupling, statistics = told
    orders = order(coupling, statistics)
    plain = order(couple(coupling.graph), collect(couple(coupling.graph), examples(coupling.graph)))
    for branch in coupling.branches:
        found = statistics.branches[branch.id]
        assert orders[branch.id].error[0] == pytest.approx(found.share * found.left)
        np.testing.assert_allclose(orders[branch.id].error[1:], plain[branch.id].error[1:])


def test_what_is_behind_a_missing_branch_is_fitted_and_what_is_in_it_is_not(told: tuple[Coupling, Statistics]) -> None:
    coupling, statistics = told
    branch = coupling.branches[1]
    fits, _ = plan_fits(coupling, {branch.id: NONE}, statistics.consumers.all)
    assert not {fit.item.node.index for fit in fits} & branch.nodes
    (writer,) = [fit for fit in fits if fit.absorbs]
    assert writer.target == coupling.graph.nodes[branch.total].outputs[0]
    assert writer.item.node.index in coupling.branches[0].nodes


# what searches make of it


def test_the_uniform_baseline_narrows_only() -> None:
    class Cost:
        def __call__(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
            return {"macs": float(sum(widths.values()))}

        measure = __call__

    groups = [Choice("g0", (0, 1, 2, 3, 4)), Choice("b0", (0, 1))]
    rng = np.random.default_rng(0)
    found = multiplier(resnet(), groups, Cost(), lambda widths: 0.0, {"macs": 2.0}, rng=rng, journal=ListJournal())
    assert found.widths == {"g0": 2}


def test_a_plan_of_another_model_is_refused() -> None:
    coupling = deep(resnet())
    pruned = without(coupling, coupling.branches[0].id)
    pruned.plan["branches"][0]["members"][0]["tensor"] = "elsewhere"
    with pytest.raises(InputError, match="elsewhere"):
        check(coupling.graph.model, pruned.model, pruned.plan, feeds_for(coupling.graph))
