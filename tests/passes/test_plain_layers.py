"""Plain layers: which ones can go whole, that what is left is the original with Identities there, what is made good."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net import Net
from onnx_netadapt.commands import verify_models
from onnx_netadapt.ir import Graph, load
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.models.export import materialize, to_onnx
from onnx_netadapt.models.micro import MICRO_NETS
from onnx_netadapt.network import by_weight
from onnx_netadapt.passes.branches import joined, with_branches
from onnx_netadapt.passes.coupling import Branch, Coupling, couple
from onnx_netadapt.passes.equivalence import check
from onnx_netadapt.passes.fits import plan_fits
from onnx_netadapt.passes.gram import collect
from onnx_netadapt.passes.importance import order
from onnx_netadapt.passes.plain_layers import with_layers
from onnx_netadapt.passes.prune import Pruned, prune
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.passes.sizes import Sizes
from onnx_netadapt.passes.to_torch import to_torch, write_back
from oracle import assert_exact, difference, feeds_for, is_valid, run

NONE = np.zeros(0, dtype=np.int64)
SHAPE = (2, 3, 11, 13)
PAD = {"kernel": (3, 3), "pads": [1] * 4}


def top(net: Net, x: str, width: int) -> Graph:
    """Global pooling and a product; the graph."""
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return load(net.output(net.op("Gemm", pooled, net.weight(5, width), net.weight(5), transB=1)).model())


def separable(net: Net, x: str, inputs: int, outputs: int, *, act: str = "Relu", **attrs: Any) -> str:
    """MobileNetV1's layer: depthwise, then pointwise, an activation behind each."""
    x = net.op(act, net.conv(x, inputs, inputs, group=inputs, **(PAD | attrs)))
    return net.op(act, net.conv(x, inputs, outputs))


def mobilenet(act: str = "Relu") -> Graph:
    """A chain of separable layers: of one width, with a stride, to another width, of one width twice."""
    net = Net()
    x = net.op(act, net.conv(net.input(*SHAPE), 3, 7, **PAD))
    x = separable(net, x, 7, 7, act=act)
    x = separable(net, x, 7, 11, act=act, strides=[2, 2])
    x = separable(net, x, 11, 11, act=act)
    return top(net, separable(net, x, 11, 11, act=act), 11)


def vgg() -> Graph:
    """Full convolutions, some of one width, with batch normalizations behind them and pooling between."""
    net = Net()
    x, width = net.input(*SHAPE), 3
    for number, outputs in enumerate((7, 7, 11, 11, 11)):
        x = net.op("Conv", x, net.weight(outputs, width, 3, 3), pads=[1] * 4)
        ones = [net.positive(outputs), net.weight(outputs), net.weight(outputs), net.positive(outputs)]
        x, width = net.op("Relu", net.op("BatchNormalization", x, *ones)), outputs
        if number == 1:
            x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return top(net, x, 11)


def inverted() -> Graph:
    """MobileNetV2's blocks, in whose branches a depthwise convolution can go, and a layer with a sigmoid's product."""
    net = Net()
    x = net.conv(net.op("Relu", net.conv(net.input(*SHAPE), 3, 7, **PAD)), 7, 7)
    for hidden in (13, 17):
        inner = net.clip(net.conv(x, 7, hidden), 0, 6)
        inner = net.clip(net.conv(inner, hidden, hidden, group=hidden, **PAD), 0, 6)
        x = net.op("Add", x, net.conv(inner, hidden, 7))
    inner = net.op("Mul", x, net.op("Sigmoid", x))
    return top(net, net.op("Relu", net.conv(inner, 7, 7, **PAD)), 7)


def exported(name: str) -> Graph:
    architecture = MICRO_NETS[name]
    return load(to_onnx(materialize(architecture), architecture))


def shallow(graph: Graph) -> Coupling:
    return with_layers(with_branches(couple(graph)))


def layers(coupling: Coupling) -> list[Branch]:
    return [branch for branch in coupling.branches if branch.plain]


def shown(coupling: Coupling) -> list[tuple[str, list[str], bool]]:
    """Of every layer its last node, the others, and whether groups are tied."""
    nodes = coupling.graph.nodes
    return [(nodes[b.total].label, [nodes[i].op_type for i in sorted(b.nodes)], bool(b.tied)) for b in layers(coupling)]


# which ones


def test_of_separable_layers_the_depthwise_part_can_go_and_where_the_width_stays_all() -> None:
    coupling = shallow(mobilenet())
    assert shown(coupling) == [
        ("Conv2", ["Relu"], False),
        ("Conv4", ["Relu", "Conv", "Relu"], True),
        ("Conv10", ["Relu"], False),
        ("Conv12", ["Relu", "Conv", "Relu"], True),
        ("Conv14", ["Relu"], False),
        ("Conv16", ["Relu", "Conv", "Relu"], True),
    ]
    units = {coupling.by_id[branch.id].units for branch in coupling.branches}
    assert units == {1}


def test_full_convolutions_of_one_width_can_go_with_their_normalization() -> None:
    coupling = shallow(vgg())
    kinds = [coupling.graph.nodes[branch.total].op_type for branch in layers(coupling)]
    assert kinds == ["BatchNormalization"] * 3
    assert [others for _, others, _ in shown(coupling)] == [["Relu", "Conv"]] * 3
    assert all(tied for *_, tied in shown(coupling))


def test_within_branches_what_keeps_its_channels_can_go_but_not_the_last_layer() -> None:
    coupling = shallow(inverted())
    assert [others for _, others, _ in shown(coupling)] == [["Relu"], ["Clip"], ["Clip"], ["Sigmoid", "Mul"]]
    assert [tied for *_, tied in shown(coupling)] == [True, False, False, True]
    residual = [branch for branch in coupling.branches if not branch.plain]
    assert [branch.id for branch in residual] == [
        branch.id for branch in with_branches(couple(coupling.graph)).branches
    ]


def test_a_normalization_can_go_where_no_branch_would() -> None:
    net = Net()
    x = net.op("Relu", net.op("InstanceNormalization", net.conv(net.input(*SHAPE), 3, 7), net.weight(7), net.weight(7)))
    (layer,) = layers(shallow(top(net, x, 7)))
    assert (layer.nodes, layer.tied) == (frozenset(), ())


def _other_width(net: Net) -> str:
    return net.conv(net.op("Relu", net.conv(net.input(*SHAPE), 3, 11)), 11, 7)


def _other_size(net: Net) -> str:
    x = net.op("Relu", net.conv(net.input(*SHAPE), 3, 7))
    return net.conv(x, 7, 7, kernel=(3, 3), strides=[2, 2], pads=[1] * 4)


def _from_the_input(net: Net) -> str:
    return net.conv(net.conv(net.input(*SHAPE), 3, 3, group=3), 3, 7)


def _shared_weight(net: Net) -> str:
    x, weight = net.conv(net.input(*SHAPE), 3, 7), net.weight(7, 7, 1, 1)
    return net.op("Conv", net.op("Relu", net.op("Conv", x, weight)), weight)


def _half_frozen(net: Net) -> str:
    x = net.conv(net.op("Relu", net.conv(net.input(*SHAPE), 3, 7)), 7, 7)
    return net.op("LRN", x, size=3)


def _inner_output(net: Net) -> str:
    x = net.op("Relu", net.conv(net.input(*SHAPE), 3, 11))
    inner = net.conv(x, 11, 5)
    net.output(inner)
    return net.conv(net.op("Relu", inner), 5, 11)


def _folded_normalization(net: Net) -> str:
    x = net.conv(net.input(*SHAPE), 3, 7)
    return net.op("BatchNormalization", net.op("Relu", x), *(net.positive(7) for _ in range(4)))


@pytest.mark.parametrize(
    "build",
    [
        _other_width, _other_size, _from_the_input, _shared_weight, _half_frozen, _inner_output, _folded_normalization,
    ],
)  # fmt: skip
def test_what_is_no_such_layer_is_left_alone(build: Callable[[Net], str]) -> None:
    net = Net()
    graph = load(net.output(build(net)).model())
    coupling = shallow(graph)
    assert coupling.branches == ()
    assert coupling.groups == couple(graph).groups


def test_a_shape_that_is_the_same_at_one_size_alone_is_not_enough() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(2, 3, 1, 1), 3, 7))
    y = net.op("Relu", net.conv(x, 7, 7, kernel=(3, 3), strides=[2, 2], pads=[1] * 4))
    model = net.output(net.conv(y, 7, 5)).model()
    closed = load(model)
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    opened = load(model, shapes={"x0": (1, 3, 1, 1)})
    assert opened.shapes == closed.shapes
    assert [len(shallow(graph).branches) for graph in (closed, opened)] == [1, 0]


def test_the_activation_stays_where_somebody_else_reads_it() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(*SHAPE), 3, 7))
    y = net.op("Concat", net.op("Relu", net.conv(x, 7, 7)), net.conv(x, 7, 5), axis=1)
    coupling = shallow(top(net, y, 12))
    (layer,) = layers(coupling)
    assert (layer.shortcut, layer.nodes) == (x, frozenset())
    assert_exact(coupling.graph, prune(coupling, {layer.id: NONE}), feeds_for(coupling.graph), optimize=False)


def test_a_layer_is_offered_only_where_both_ends_may_be_narrowed_or_neither() -> None:
    coupling = shallow(mobilenet())
    narrowing = by_weight(coupling)
    first = layers(coupling)[1]
    source, target = first.tied[0]
    ids = {choice.id for choice in narrowing.choices(None, 0.1)}
    assert {branch.id for branch in coupling.branches} <= ids
    assert first.id not in {choice.id for choice in narrowing.choices(None, 0.1, exclude=(source,))}
    assert first.id in {choice.id for choice in narrowing.choices(None, 0.1, exclude=(source, target))}
    assert first.id not in {choice.id for choice in narrowing.choices(None, 0.1, exclude=("Conv4",))}


# what is left

NETS: Mapping[str, Callable[[], Graph]] = {
    "mobilenet": mobilenet,
    "vgg": vgg,
    "inverted": inverted,
    **{
        name: (lambda name=name: exported(name))
        for name in ("unet", "preactivation", "group_norm", "vit_block", "depthwise_chain", "nested_concat")
    },
}


@pytest.fixture(scope="module", params=NETS)
def coupling(request: pytest.FixtureRequest) -> Coupling:
    return shallow(NETS[request.param]())


def chosen(coupling: Coupling, seed: int, share: float = 0.5) -> dict[str, Any]:
    """Some layers and branches gone (at least one layer), every group at a random width of its own."""
    rng = np.random.default_rng(seed)
    widths = {group.id: max(1, int(group.units * rng.uniform(0.2, 1.05))) for group in coupling.groups}
    kept = {g.id: np.sort(rng.permutation(g.units)[: widths[g.id]]) for g in coupling.groups}
    gone = [b.id for b in coupling.branches if rng.random() < share]
    if not any(branch.plain for branch in coupling.without(gone)):
        gone = [layers(coupling)[-1].id]
    return kept | {name: NONE for name in gone}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("optimize", [False, True])
def test_removing_is_an_identity_in_the_zeroed_original(coupling: Coupling, seed: int, optimize: bool) -> None:
    pruned = prune(coupling, chosen(coupling, seed))
    assert any("layer" in entry for entry in pruned.plan["branches"])
    assert_exact(coupling.graph, pruned, feeds_for(coupling.graph), optimize=optimize)


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.sampled_from([5, 7]), min_size=2, max_size=6),
    full=st.lists(st.booleans(), min_size=6, max_size=6),
    act=st.sampled_from(["Relu", "HardSwish", "Sigmoid", "Identity"]),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_any_choice_in_any_chain_is_exact(
    widths: list[int], full: list[bool], act: str, seed: int, share: float
) -> None:
    net = Net(seed=seed)
    x, width = net.op(act, net.conv(net.input(1, 3, 5, 7), 3, 5)), 5
    for outputs, whole in zip(widths, full, strict=False):
        x = net.op(act, net.conv(x, width, outputs, **PAD)) if whole else separable(net, x, width, outputs, act=act)
        width = outputs
    coupling = shallow(top(net, x, width))
    if not coupling.branches:
        return
    kept = chosen(coupling, seed, share)
    pruned = prune(coupling, kept)
    assert_exact(coupling.graph, pruned, feeds_for(coupling.graph), optimize=False)
    assert _counted(coupling, kept) == _written(pruned)


def _counted(coupling: Coupling, kept: Mapping[str, Any]) -> tuple[int, int]:
    """Multiply-accumulates and parameters by widths alone."""
    sizes = Sizes(coupling, {group.id: np.arange(group.units) for group in coupling.groups})
    widths = {name: len(units) for name, units in kept.items()}
    return sizes.macs(widths), sizes.params(widths)


def _written(pruned: Pruned) -> tuple[int, int]:
    """The same of a model as it is."""
    left = couple(load(pruned.model))
    return _counted(left, {group.id: np.arange(group.units) for group in left.groups})


@pytest.mark.parametrize("seed", range(3))
def test_sizes_are_those_of_the_network_that_is_left(coupling: Coupling, seed: int) -> None:
    kept = chosen(coupling, seed)
    assert _counted(coupling, kept) == _written(prune(coupling, kept))


def test_a_plan_without_the_removal_is_noticed(coupling: Coupling) -> None:
    feeds = feeds_for(coupling.graph)
    for layer in layers(coupling):
        pruned = prune(coupling, {layer.id: NONE})
        assert check(coupling.graph.model, pruned.model, pruned.plan, feeds).passed
        assert not check(coupling.graph.model, pruned.model, {**pruned.plan, "branches": []}, feeds).passed


def test_a_plan_that_keeps_other_channels_on_one_side_is_noticed() -> None:
    coupling = shallow(mobilenet())
    layer = layers(coupling)[1]
    _, last = layer.tied[0]
    pruned = prune(coupling, {layer.id: NONE, last: np.arange(4)})
    assert check(coupling.graph.model, pruned.model, pruned.plan, feeds_for(coupling.graph)).passed
    wrong = json.loads(json.dumps(pruned.plan))
    (entry,) = [entry for entry in wrong["groups"] if entry["id"] == last]
    for member in entry["members"]:
        member["removed"] = [place - 1 for place in member["removed"]]
    assert not check(coupling.graph.model, pruned.model, wrong, feeds_for(coupling.graph)).passed


def test_verify_needs_the_plan_alone_and_names_what_it_does_not_find(coupling: Coupling) -> None:
    pruned = prune(coupling, chosen(coupling, 1))
    plan = json.loads(json.dumps(pruned.plan))
    assert verify_models(coupling.graph.model, pruned.model, plan).passed
    (entry, *_) = [entry for entry in plan["branches"] if "layer" in entry]
    entry["output"] = "elsewhere"
    with pytest.raises(InputError, match="elsewhere"):
        verify_models(coupling.graph.model, pruned.model, plan)


def test_both_ends_keep_what_the_last_one_keeps_while_the_layer_is_gone() -> None:
    coupling = shallow(mobilenet())
    ends = [layer for layer in layers(coupling) if layer.tied]
    middle, last = ends[1], ends[2]
    (a, b), (_, c) = middle.tied[0], last.tied[0]
    kept = {a: np.array([0, 1]), b: np.array([2, 3, 4]), c: np.array([5, 7])}
    one, both = (coupling.settled(kept, gone) for gone in ([middle], [middle, last]))
    assert {name: units.tolist() for name, units in one.items()} == {a: [2, 3, 4], b: [2, 3, 4], c: [5, 7]}
    assert {name: units.tolist() for name, units in both.items()} == {key: [5, 7] for key in (a, b, c)}
    assert coupling.settled({a: 2}, [middle]) == {}  # b is whole, and so is a
    assert coupling.settled(kept, []) == kept


def test_of_two_that_lie_within_each_other_the_outer_one_counts() -> None:
    coupling = shallow(mobilenet())
    inner, outer = layers(coupling)[:2]
    both = prune(coupling, {inner.id: NONE, outer.id: NONE})
    alone = prune(coupling, {outer.id: NONE})
    assert both.plan == alone.plan
    assert both.model.SerializeToString() == alone.model.SerializeToString()
    assert coupling.without({inner.id, outer.id}) == (outer,)


def test_the_finished_file_has_nothing_idle_in_it() -> None:
    coupling = shallow(mobilenet())
    kept = {branch.id: NONE for branch in coupling.branches}
    pruned = prune(coupling, kept)
    found = joined(pruned.model, coupling.graph, coupling.gone(kept))
    assert is_valid(found)
    operators = [node.op_type for node in found.graph.node]
    assert operators.count("Conv") == 3  # the first, the strided depthwise one, and the one to another width
    assert "Identity" not in operators
    feeds = feeds_for(coupling.graph)
    assert difference(run(pruned.model, feeds, optimize=False), run(found, feeds, optimize=False)) == 0
    read = {name for node in found.graph.node for name in node.input}
    assert {tensor.name for tensor in found.graph.initializer} <= read


def test_removing_nothing_changes_nothing(coupling: Coupling) -> None:
    pruned = prune(coupling, {group.id: np.arange(group.units) for group in coupling.groups})
    assert pruned.plan == {"schema_version": 1, "groups": []}
    assert pruned.model.SerializeToString() == coupling.graph.model.SerializeToString()


@pytest.mark.parametrize("name", ["mobilenet", "vgg", "inverted"])
def test_what_is_left_goes_to_torch_and_back(name: str) -> None:
    torch = pytest.importorskip("torch")
    coupling = shallow(NETS[name]())
    pruned, (feeds, *_) = prune(coupling, chosen(coupling, 2)), feeds_for(coupling.graph)
    graph = load(pruned.model)
    module = to_torch(graph)
    with torch.no_grad():
        found = module({key: torch.from_numpy(value) for key, value in feeds.items()})
    found = found[0] if isinstance(found, tuple) else found
    (wanted,) = run(pruned.model, [feeds], optimize=False)
    np.testing.assert_allclose(found.numpy(), wanted[0], rtol=1e-4, atol=1e-4 * np.abs(wanted[0]).max())
    back = write_back(module, pruned.model)
    for before, after in zip(pruned.model.graph.initializer, back.graph.initializer, strict=True):
        assert before.raw_data == after.raw_data


# what is made good


def examples(graph: Graph, count: int = 60) -> Callable[[], Any]:
    rng = np.random.default_rng(9)
    feeds = [{graph.inputs[0].name: rng.standard_normal(SHAPE, dtype=np.float32)} for _ in range(count)]
    return lambda: iter(feeds)


def _stacked(model: onnx.ModelProto, feeds: Any) -> np.ndarray:
    return np.concatenate([outputs[0] for outputs in run(model, feeds, optimize=False)])


def linear_layers() -> Graph:
    """Layers without activations, of which the writer of x can do all that is done there."""
    net = Net()
    x = net.conv(net.op("Relu", net.conv(net.input(*SHAPE), 3, 19)), 19, 7)
    for _ in range(2):
        x = net.conv(x, 7, 7)
    return top(net, net.op("Relu", x), 7)


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1)])
def test_the_writer_of_x_is_fitted_to_y(places: tuple[int, ...]) -> None:
    graph = linear_layers()
    coupling, batches = shallow(graph), examples(graph)
    statistics = collect(coupling, batches)
    kept = {layers(coupling)[place].id: NONE for place in places}
    sliced, feeds = prune(coupling, kept).model, list(batches())[:5]
    wanted = run(graph.model, feeds, optimize=False)
    symmetric = apply_weights(sliced, refit_symmetric(coupling, statistics, kept))
    final = apply_weights(sliced, refit_sequential(coupling, kept, sliced, batches, statistics))
    lost = difference(wanted, run(sliced, feeds, optimize=False))
    assert lost > 0.1
    assert difference(wanted, run(symmetric, feeds, optimize=False)) < 0.05 * lost
    assert difference(wanted, run(final, feeds, optimize=False)) < 0.05 * lost


@pytest.mark.parametrize("act", ["Relu", "HardSwish"])
@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("share", [1.0, 0.75])
def test_refits_bring_the_outputs_nearer(act: str, place: int, share: float) -> None:
    graph = mobilenet(act)
    coupling, batches = shallow(graph), examples(graph)
    statistics = collect(coupling, batches)
    orders = order(coupling, statistics)
    kept = {g.id: np.sort(orders[g.id].order[: max(1, int(g.units * share))]) for g in coupling.groups}
    kept[layers(coupling)[place].id] = NONE
    sliced, feeds = prune(coupling, kept).model, list(batches())[:8]
    wanted = _stacked(graph.model, feeds)
    closed = apply_weights(sliced, refit_symmetric(coupling, statistics, kept))
    final = apply_weights(sliced, refit_sequential(coupling, kept, sliced, batches, statistics))
    errors = [float(((_stacked(model, feeds) - wanted) ** 2).mean()) for model in (sliced, closed, final)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < errors[1]
    assert is_valid(final)


def test_moments_are_those_of_what_the_layer_changes() -> None:
    graph = mobilenet()
    coupling, batches = shallow(graph), examples(graph)
    statistics = collect(coupling, batches)
    orders = order(coupling, statistics)
    for layer in layers(coupling):
        model = onnx.ModelProto.FromString(graph.model.SerializeToString())
        ends = (layer.output, layer.shortcut)
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ends)
        rows = [outputs[1:] for outputs in run(model, list(batches()), optimize=False)]
        width = graph.shapes[layer.output][1]
        y, x = (np.concatenate([np.moveaxis(r[k], 1, 0).reshape(width, -1) for r in rows], 1) for k in (0, 1))
        found = statistics.branches[layer.id]
        np.testing.assert_allclose(found.mean, (y - x).mean(axis=1), rtol=1e-3, atol=1e-3)
        assert found.share == pytest.approx((y - x).var(axis=1).sum() / y.var(axis=1).sum(), rel=1e-3)
        assert 0 < found.left < 1
        assert orders[layer.id].error[0] == pytest.approx(found.share * found.left)


def test_what_writes_x_has_y_for_its_target_and_what_went_is_not_fitted() -> None:
    coupling = shallow(mobilenet())
    layer = layers(coupling)[3]
    fits, _ = plan_fits(coupling, {layer.id: NONE}, collect(coupling, examples(coupling.graph, 5)).consumers.all)
    assert not {fit.item.node.index for fit in fits} & (layer.nodes | {layer.total})
    (writer,) = [fit for fit in fits if fit.absorbs]
    assert (writer.item.output, writer.target) == (layer.shortcut, layer.output)
