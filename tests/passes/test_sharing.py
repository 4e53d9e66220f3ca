"""Sharing: networks that start behind what they have in common are the networks that are cut out, for less work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx_netadapt.ir import TargetError, load
from onnx_netadapt.models.digits import digits, digits_model
from onnx_netadapt.network import by_weight
from onnx_netadapt.passes import sharing
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.masks import NotMasked, mask_places
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.sharing import Base, shared
from onnx_netadapt.passes.sizes import Sizes
from oracle import feeds_for, random_kept
from test_random_networks import RULES, network

RESNET20 = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "derived_torch_cifar10_resnet20.onnx"
MANY = 10**9
"""Examples for which every start is worth a session."""


def base_of(coupling, networks):
    """The network with the units that any of the networks keeps."""
    kept = {group.id: [np.arange(group.units) for _ in networks] for group in coupling.groups}
    for place, choice in enumerate(networks):
        for name, units in choice.items():
            kept[name][place] = units
    union = {name: np.unique(np.concatenate(units)) for name, units in kept.items()}
    sizes = Sizes(coupling, {group.id: np.arange(group.units) for group in coupling.groups})
    model = prune(coupling, union).model
    return Base(model, union, sizes.node_macs(sizes.shapes({name: len(units) for name, units in union.items()})))


def outputs_by_network(parts, feeds):
    """What every network gives for one batch: leads hand on to leads, and parts read what is left there."""
    found = {}
    for part in parts:
        if part.lead is not None:
            names = [value.name for value in part.lead.graph.output]
            feeds = {**feeds, **dict(zip(names, run(part.lead, feeds), strict=True))}
        feeds = {name: feeds[name] for name in part.fed}
        for place, row in enumerate(part.rows):
            examples = len(next(iter(feeds.values())))
            masks = {name: np.repeat(mask[place : place + 1], examples, axis=0) for name, mask in part.masks.items()}
            found[row] = run(part.model, {**feeds, **masks})
    return found


def run(model, feeds):
    taken = {value.name for value in model.graph.input}
    return run_plain(model, [{name: value for name, value in feeds.items() if name in taken}], optimize=True)[0]


def assert_all_are_the_networks_cut_out(coupling, networks, feeds, examples):
    parts = shared(coupling, mask_places(coupling), base_of(coupling, networks), networks, examples)
    assert sorted(row for part in parts for row in part.rows) == list(range(len(networks)))
    found = outputs_by_network(parts, feeds)
    for row, kept in enumerate(networks):
        for a, b in zip(run(prune(coupling, kept).model, feeds), found[row], strict=True):
            np.testing.assert_allclose(b, a, atol=1e-4 * max(np.abs(a).max(), 1e-3), rtol=0)
    return parts


def singles(coupling, present, share, seed=0):
    """For every group the network that is narrower there than `present`, down to a share of its units."""
    rng = np.random.default_rng(seed)
    found = []
    for group in coupling.groups:
        units = present.get(group.id, np.arange(group.units))
        keep = max(1, int(share * len(units)))
        found.append({**present, group.id: np.sort(rng.choice(units, keep, replace=False))})
    return found


@settings(max_examples=25, derandomize=True, **RULES)
@given(st.data())
def test_random_networks_from_every_start(data: st.DataObject) -> None:
    names: list[str] = []
    net = network(data.draw, data.draw(st.integers(2, 7), label="steps"), names)
    note(f"steps {names}")
    graph = load(net.model(), shapes=net.shapes)
    coupling = couple(graph)
    if isinstance(mask_places(coupling), NotMasked):
        return
    feeds = feeds_for(graph, 1)[0]
    try:
        run(graph.model, feeds)
    except TargetError:
        return  # ONNX Runtime has no kernel for one of the operators
    networks = singles(coupling, random_kept(coupling, 0.8, np.random.default_rng(0)), 0.5)
    assert_all_are_the_networks_cut_out(coupling, networks, feeds, MANY)


def digits_case():
    graph = load(digits_model())
    return couple(graph), {graph.inputs[0].name: digits().x[:2].astype(np.float32)}


def test_on_many_examples_single_groups_start_where_they_differ():
    coupling, feeds = digits_case()
    networks = singles(coupling, random_kept(coupling, 0.8, np.random.default_rng(0)), 0.5)
    parts = assert_all_are_the_networks_cut_out(coupling, networks, feeds, MANY)
    assert len(parts) > 4
    assert len(parts[-1].model.graph.node) < len(parts[0].model.graph.node) / 3
    assert all(len(part.masks) <= 2 * len(part.rows) for part in parts)


def test_on_few_examples_no_start_is_worth_its_session():
    coupling, feeds = digits_case()
    networks = singles(coupling, {}, 0.5)
    assert len(assert_all_are_the_networks_cut_out(coupling, networks, feeds, 1)) == 1


def test_of_a_large_model_no_more_parts_are_held_than_fit(monkeypatch):
    coupling, feeds = digits_case()
    monkeypatch.setattr(sharing, "HELD_BYTES", 3 * coupling.graph.model.ByteSize())
    parts = assert_all_are_the_networks_cut_out(coupling, singles(coupling, {}, 0.5), feeds, MANY)
    assert 1 < len(parts) <= 3


def test_equal_networks_need_no_masks_and_one_run():
    coupling, feeds = digits_case()
    networks = [random_kept(coupling, 0.5, np.random.default_rng(0))] * 3
    (part,) = assert_all_are_the_networks_cut_out(coupling, networks, feeds, 1)
    assert part.rows == (0, 1, 2)
    assert not part.masks


def test_a_unit_that_is_masked_in_the_wrong_network_is_seen():
    coupling, feeds = digits_case()
    networks = singles(coupling, {}, 0.5)
    parts = shared(coupling, mask_places(coupling), base_of(coupling, networks), networks, MANY)
    found = outputs_by_network(parts, feeds)
    wanted = [run(prune(coupling, kept).model, feeds)[0] for kept in networks]
    assert not any(np.allclose(found[row][0], wanted[row - 1], atol=1e-3) for row in range(len(networks)))


@pytest.mark.skipif(not RESNET20.exists(), reason="the shared models are not here")
def test_resnet20_shares_half_of_the_work_of_single_groups():
    graph = load(RESNET20)
    coupling = couple(graph)
    networks = [kept for seed in range(3) for kept in singles(coupling, {}, 0.75 - 0.1 * seed, seed)]
    port = graph.inputs[0]
    x = np.random.default_rng(0).standard_normal((2, *graph.shapes[port.name][1:])).astype(np.float32)
    parts = assert_all_are_the_networks_cut_out(coupling, networks, {port.name: x}, 64)
    sizes = by_weight(coupling).sizes
    macs = {graph.nodes[i].name: count for i, count in sizes.node_macs(graph.shapes).items()}
    whole = sum(macs.values())
    spent = sum(len(part.rows) * sum(macs.get(node.name, 0) for node in part.model.graph.node) for part in parts)
    assert spent < 0.6 * whole * len(networks)
