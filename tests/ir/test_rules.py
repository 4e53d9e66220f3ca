"""Every operator rule on a tiny network of its own: what it couples, and that zeroing equals removing."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import onnx
import pytest
import records_elementwise
from _pytest.mark.structures import ParameterSet
from net import MICROSOFT, Net
from onnx import helper
from onnx_netadapt.ir import load
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.ops import OpRule, all_rules
from onnx_netadapt.ir.ops.opaque import relate_opaque
from onnx_netadapt.passes.coupling import Coupling, Group, couple
from onnx_netadapt.passes.equivalence import zeroed
from onnx_netadapt.passes.prune import prune
from oracle import assert_exact, difference, feeds_for, planted, prune_randomly, run
from record import Record
from records import RECORDS

ORT_NEWEST = 26
"""The newest opset that ONNX Runtime 1.31 runs; for operators that are newer, ONNX's reference evaluator runs them."""


@cache
def _versions(domain: str, op: str) -> tuple[int, ...]:
    return tuple(sorted(since for d, name, since in all_rules() if (d, name) == (domain, op)))


@cache
def _defined(op: str) -> tuple[int, ...]:
    history = onnx.defs.get_all_schemas_with_history()
    return tuple(sorted(s.since_version for s in history if s.name == op and s.domain == ""))


def _opset(record: Record, since: int) -> int:
    """The newest opset that selects this version of the operator, and that ONNX Runtime runs.

    ONNX Runtime had some operators before ONNX: version 1 of LayerNormalization is what it writes up to opset 16.
    """
    if record.domain:
        return 17
    if not _defined(record.op):
        return 7  # withdrawn long ago, but ONNX Runtime still runs them
    later = [version for version in _defined(record.op) if version > since]
    newest = min(onnx.defs.onnx_opset_version(), later[0] - 1 if later else 1000)
    return max(since, min(newest, ORT_NEWEST))


def _is_tested(op: str, since: int) -> bool:
    """Whether some opset of the installed onnx selects this version: ONNX's own, or ONNX Runtime's before them."""
    defined = _defined(op)
    return not defined or since in defined or since < defined[0]


def _cases(wanted: range) -> list[ParameterSet]:
    """A case for every record and version of its operator, as far as the opset that selects it is wanted.

    Daily tests are the newest version and, where definitions differ in more than the types they take, the oldest.
    """
    found = []
    for record in RECORDS:
        versions = [
            (since, opset)
            for since in record.since or _versions(record.domain, record.op)
            if record.domain or _is_tested(record.op, since)
            if (opset := _opset(record, since)) in wanted
        ]
        newest = [pair for pair in versions if pair[1] <= ORT_NEWEST][-1:] or versions[-1:]
        oldest = [] if record in records_elementwise.RECORDS else versions[:1]
        for pair in versions:
            marks = () if pair in newest + oldest else pytest.mark.slow
            found.append(pytest.param(record, pair[1], id=f"{record.name}-{pair[0]}", marks=marks))
    return found


def _is_opaque(rule: OpRule) -> bool:
    return isinstance(rule.relate, partial) and rule.relate.func is relate_opaque


CASES = _cases(range(7, 1000))
OLD_CASES = _cases(range(7))
"""ONNX Runtime has no kernels for opsets 1 to 6, so that nothing but the structure can be tested there."""


def _units(record: Record, graph: Graph) -> tuple[int, ...]:
    """The groups to find: none where ONNX Runtime cannot run the opset and ONNX does not infer the shapes."""
    known = all(name in graph.shapes for node in graph.nodes for name in node.outputs)
    return record.units if known or 7 <= graph.opsets[""] <= ORT_NEWEST else ()


@cache
def _graph(record: Record, opset: int) -> Graph:
    net = Net(opset, open_batch=record.open_batch)
    record.build(net)
    model = net.model()
    return load(model, shapes=net.shapes)


@cache
def _coupling(record: Record, opset: int) -> Coupling:
    return couple(_graph(record, opset))


@pytest.mark.parametrize(("record", "opset"), CASES)
def test_a_rule_finds_the_groups_that_it_should(record: Record, opset: int) -> None:
    coupling = _coupling(record, opset)
    assert tuple(sorted(group.units for group in coupling.groups)) == _units(record, coupling.graph), coupling.barriers
    if not record.units:
        assert record.barrier in " ".join(barrier.reason for barrier in coupling.barriers)


@pytest.mark.parametrize(("record", "opset"), OLD_CASES)
def test_before_opset_7_a_rule_finds_the_same_groups_where_shapes_are_known(record: Record, opset: int) -> None:
    coupling = _coupling(record, opset)
    assert tuple(sorted(group.units for group in coupling.groups)) == _units(record, coupling.graph)


@pytest.mark.parametrize(("record", "opset"), CASES)
def test_zeroing_equals_removing(record: Record, opset: int) -> None:
    graph = _graph(record, opset)
    feeds = feeds_for(graph)
    for seed, (keep, optimize) in enumerate(((0.75, True), (0.5, False), (0.25, True), (0.25, False))):
        coupling, _, pruned = prune_randomly(graph, keep, seed)
        assert (pruned.model.SerializeToString() != graph.model.SerializeToString()) == bool(coupling.groups)
        assert_exact(graph, pruned, feeds, optimize=optimize)


def _consumers(coupling: Coupling, group: Group) -> bool:
    """Whether anything reads the group's channels (what a Slice drops is read by nobody)."""
    plan = prune(coupling, {group.id: np.arange(1)}).plan
    return any(member["role"] == "consumer" for member in plan["groups"][0]["members"])


@pytest.mark.parametrize(("record", "opset"), CASES)
def test_a_wrong_index_is_noticed(record: Record, opset: int) -> None:
    graph, coupling = _graph(record, opset), _coupling(record, opset)
    feeds = feeds_for(graph)
    with_consumers = [group for group in coupling.groups if _consumers(coupling, group)]
    assert bool(with_consumers) == bool(coupling.groups)
    for group in with_consumers:
        pruned = prune(coupling, {group.id: np.delete(np.arange(group.units), group.units // 2)})
        wanted = run(zeroed(graph.model, planted(pruned.plan, group.id)), feeds, optimize=False)
        assert difference(wanted, run(pruned.model, feeds, optimize=False)) > 1e-3, group


@pytest.mark.parametrize(("record", "opset"), CASES)
def test_removing_nothing_changes_nothing(record: Record, opset: int) -> None:
    coupling = _coupling(record, opset)
    everything = {group.id: np.arange(group.units) for group in coupling.groups}
    for kept in ({}, everything):
        assert prune(coupling, kept).model.SerializeToString() == coupling.graph.model.SerializeToString()


@pytest.mark.parametrize(
    ("record", "opset"), [case for case in CASES if case.values[0].open_batch and case.values[0].units]
)
def test_a_pruned_model_runs_at_other_batch_sizes(record: Record, opset: int) -> None:
    graph = _graph(record, opset)
    _, _, pruned = prune_randomly(graph, 0.5, 11)
    for batch in (1, 3):
        shapes = {port.name: (batch, *graph.shapes[port.name][1:]) for port in graph.inputs}
        assert_exact(graph, pruned, feeds_for(load(graph.model, shapes=shapes), 1), optimize=False)


OPAQUE = sorted({(domain, op) for (domain, op, _), rule in all_rules().items() if _is_opaque(rule)})


@pytest.mark.parametrize(("domain", "op"), OPAQUE)
def test_an_opaque_operator_holds_what_it_touches_and_says_why(domain: str, op: str) -> None:
    since = _versions(domain, op)[-1]
    net = Net(17 if domain else max(since, 17))
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    model = net.output(net.conv(x, 7, 13)).model()
    model.graph.node.append(helper.make_node(op, [x], ["opaque"], domain=domain))
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    graph = load(model, shapes=net.shapes)
    coupling = couple(graph)
    assert coupling.groups == ()
    said = any(barrier.reason.startswith(f"{op} ") for barrier in coupling.barriers)
    assert said or x not in graph.shapes  # where ONNX cannot infer anything from such a node, nothing is known


def test_every_rule_has_a_record() -> None:
    recorded = {
        (record.domain, record.op, since)
        for record in RECORDS
        for since in record.since or _versions(record.domain, record.op)
    }
    missing = {key for key, rule in all_rules().items() if not _is_opaque(rule)} - recorded
    assert sorted(missing) == []
    assert sorted(recorded - all_rules().keys()) == []
