"""Residual branches that can go whole: y = x + f(x) becomes y = x. So do plain layers, y = f(x) (`plain_layers`).

1. The branch of a sum of two tensors of one shape is what makes one of them, f(x), and nothing else: walking back from
   it, the nodes whose results nobody else reads. It must read the other one, x, and of what depends on x nothing else:
   a shortcut with a projection is no identity, and a tensor that is read outside as well would leave a part behind.
2. Its contribution must be zero when some constants of its own are (`cuts`), so that removing can be checked against
   zeroing.
3. Of branches within branches only the innermost are offered; they take the outer one away piece by piece. A shortcut
   from the model's input is left alone: without the branch nothing would be computed.
4. Depth is width 0 (channel-level bypass connections, NetAdaptV2: Yang et al., CVPR 2021): a branch goes when the group
   that its last product sums over, if it lies wholly in the branch, keeps no unit. A branch without such a group gets
   one of a single unit without axes.
5. The sum becomes an Identity, so that every name that is left means what it meant. So does a Relu behind it where
   another one stands before the shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..ir.graph import Graph, Node, captured_names
from ..ir.ops.maps import added_stream, repeats
from ..ir.relations import Axis
from .consumers import Consumer
from .coupling import Branch, Coupling, Group
from .cuts import Cuts


def with_branches(coupling: Coupling) -> Coupling:
    """The coupling with the residual branches that can go, and a group for each that has none inside (rule 4)."""
    found = _innermost([branch for node in coupling.graph.nodes for branch in _branches_at(coupling, node)])
    return joining(coupling, [(branch, _carrier(coupling, branch)) for branch in found])


def joining(coupling: Coupling, found: Sequence[tuple[Branch, str | None]]) -> Coupling:
    """The coupling with more branches, each with the group that it goes with; None: one of a single unit."""
    groups, branches = list(coupling.groups), list(coupling.branches)
    for branch, carrier in found:
        if carrier is None:
            carrier = f"b{len(branches)}"
            groups.append(Group(carrier, 1, ()))
            branch = replace(branch, inside=branch.inside | {carrier})
        branches.append(replace(branch, id=carrier))
    new = len(groups) - len(coupling.groups)
    return replace(
        coupling,
        groups=tuple(groups),
        unit_group=np.concatenate([coupling.unit_group, len(coupling.groups) + np.arange(new)]).astype(np.int64),
        unit_index=np.concatenate([coupling.unit_index, np.zeros(new, dtype=np.int64)]),
        branches=tuple(branches),
    )


def _branches_at(coupling: Coupling, node: Node) -> Iterator[Branch]:
    """The branches that end in a sum: at most one."""
    graph = coupling.graph
    for output in dict.fromkeys(node.inputs):
        shortcut = added_stream(graph, node, output) if output else None
        if shortcut is None or shortcut in graph.constants or shortcut in graph.known or output not in graph.shapes:
            continue
        nodes = _own_nodes(graph, output, node)
        if not _reads_only(graph, nodes, shortcut) or shortcut in {port.name for port in graph.inputs}:
            continue
        zeros = _zeros(graph, nodes, output)
        if zeros is not None:
            again = _again(graph, node, shortcut)
            inside = groups_within(coupling, nodes, output)
            yield Branch("", nodes, node.index, shortcut, output, zeros[0], zeros[1], inside, again)
            return


def _own_nodes(graph: Graph, output: str, total: Node) -> frozenset[int]:
    """Rule 1: the nodes that serve nothing but to make `output` for the sum."""
    fixed = {port.name for port in graph.outputs} | graph.captured()
    found: set[int] = set()
    todo = [graph.producer[output]] if output in graph.producer else []
    while todo:
        node = todo.pop()
        readers = [user for name in node.outputs for user, _ in graph.users.get(name, ())]
        own = all(user.index in found or (user.index == total.index and output in node.outputs) for user in readers)
        if node.index in found or not own or not readers or fixed.intersection(node.outputs):
            continue
        found.add(node.index)
        todo += [graph.producer[name] for name in node.inputs if name in graph.producer]
    return frozenset(found)


def _reads_only(graph: Graph, nodes: frozenset[int], shortcut: str) -> bool:
    """Whether some nodes read the shortcut, and of what follows from it only what they make themselves."""
    made = {name for index in nodes for name in graph.nodes[index].outputs}
    read = {name for index in nodes for name in (*graph.nodes[index].inputs, *graph.nodes[index].captures) if name}
    if shortcut not in read:
        return False
    later = {shortcut}
    for node in graph.nodes:
        if later.intersection((*node.inputs, *node.captures)):
            later.update(name for name in node.outputs if name not in graph.known)
    return not (read - made - {shortcut}) & later


def _zeros(graph: Graph, nodes: frozenset[int], output: str) -> tuple[int, tuple[Axis, ...]] | None:
    """Rule 2: a channel axis of the branch's output, and the axes of constants that are zero for it to be."""
    uses = frozenset(
        graph.use(graph.nodes[index], slot)
        for index in nodes
        for slot, name in enumerate(graph.nodes[index].inputs)
        if name in graph.constants
    )
    cuts = Cuts(graph, frozenset(), uses)
    rank = len(graph.shapes[output])
    for axis in dict.fromkeys(number for number in (1, rank - 1) if 0 < number < rank):
        found = cuts.of((output, axis))
        if found:
            return axis, tuple(sorted(found))
    return None


def _again(graph: Graph, total: Node, shortcut: str) -> tuple[int, int] | None:
    """The second half of rule 5."""
    before, users = graph.producer.get(shortcut), graph.users.get(total.outputs[0], ())
    if before is None or len(users) != 1 or total.outputs[0] in {port.name for port in graph.outputs}:
        return None
    return (before.index, users[0][0].index) if repeats(graph, users[0][0], before) else None


def groups_within(coupling: Coupling, nodes: frozenset[int], output: str) -> frozenset[str]:
    """The groups all of whose axes are of tensors that only these nodes know, their `output` aside."""
    graph = coupling.graph
    own = {name for index in nodes for name in graph.nodes[index].outputs} - {output}
    for index in nodes:
        node = graph.nodes[index]
        for slot, name in enumerate(node.inputs):
            use = graph.use(node, slot) if name in graph.constants else ""
            if use and (use != name or all(user.index in nodes for user, _ in graph.users[name])):
                own.add(use)
    return frozenset(group.id for group in coupling.groups if group.axes and all(axis[0] in own for axis in group.axes))


def _innermost(branches: list[Branch]) -> list[Branch]:
    """Rule 3."""
    totals = {branch.total for branch in branches}
    return [branch for branch in branches if not totals & branch.nodes]


def _carrier(coupling: Coupling, branch: Branch) -> str | None:
    """The group inside a branch that the last product sums over (rule 4)."""
    summed = [item for item in coupling.relations.contracts if item.node in branch.nodes]
    for item in sorted(summed, key=lambda item: -item.node):
        for group in coupling.groups:
            if group.id in branch.inside and item.axis in group.axes:
                return group.id
    return None


def nodes_of(branches: Sequence[Branch]) -> frozenset[int]:
    """The indices of the nodes that go with some branches."""
    return frozenset[int]().union(*(branch.nodes for branch in branches))


def touched(branches: Sequence[Branch]) -> frozenset[int]:
    """The same, and of those that become Identities."""
    return nodes_of(branches).union(*(branch.idle for branch in branches))


def freed_constants(graph: Graph, nodes: frozenset[int]) -> frozenset[str]:
    """Names of the constants that no other nodes than these read."""
    names = {name for index in nodes for name in graph.nodes[index].inputs if name in graph.constants}
    names -= graph.captured() | {port.name for port in graph.outputs}
    return frozenset(name for name in names if all(user.index in nodes for user, _ in graph.users[name]))


def take_out(model: onnx.ModelProto, graph: Graph, branches: Sequence[Branch]) -> None:
    """Takes branches out of a model that has the graph's nodes, in place (rule 5)."""
    gone, freed = nodes_of(branches), freed_constants(graph, touched(branches))
    idle = {branch.total: branch.shortcut for branch in branches}
    for branch in branches:
        if branch.again is not None:
            idle[branch.again[1]] = graph.nodes[branch.total].outputs[0]
    nodes = [_left(node, idle.get(index)) for index, node in enumerate(model.graph.node) if index not in gone]
    made = {name for index in gone for name in graph.nodes[index].outputs}
    read = {name for node in nodes for name in (*node.input, *captured_names(node))}
    for fields in (model.graph.initializer, model.graph.input, model.graph.value_info):
        _delete(fields, (made | freed) - read)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _delete(fields: Any, names: set[str]) -> None:
    """Deletes the fields of these names."""
    for place in reversed(range(len(fields))):
        if fields[place].name in names:
            del fields[place]


def _left(node: onnx.NodeProto, source: str | None) -> onnx.NodeProto:
    """A copy of a node; an Identity of `source` in its place where that is given."""
    if source is None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        return copy
    return helper.make_node("Identity", [source], [node.output[0]], name=node.name, doc_string=node.doc_string)


def joined(model: onnx.ModelProto, graph: Graph, branches: Sequence[Branch]) -> onnx.ModelProto:
    """A copy of a model that branches were taken out of, without the Identities that stand in for their sums.

    Those that make an output of the model, or what the body of a control flow operator reads, stay.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    kept = {value.name for value in model.graph.output} | graph.captured()
    idle = {name for branch in branches for place in branch.idle for name in graph.nodes[place].outputs} - kept
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.output[0] in idle}
    for name in source:
        while source[name] in source:
            source[name] = source[source[name]]
    nodes = [_left(node, None) for node in model.graph.node if node.output[0] not in source]
    for node in nodes:
        node.input[:] = [source.get(name, name) for name in node.input]
    _delete(found.graph.value_info, set(source))
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What the writer of a shortcut can take over: its output, plus `stream` if there is one, is to become `target`."""

    target: str
    stream: str
    branches: tuple[Branch, ...]


def absorbed(graph: Graph, consumers: Sequence[Consumer], branches: Sequence[Branch]) -> dict[int, Absorbed]:
    """By node, the consumers whose output reaches what is left of the network only where branches have gone.

    Their weights can make good, as far as they can, what the branches gave: y = x + f(x) where they wrote x.
    """
    found: dict[str, tuple[int, Absorbed]] = {}  # of two that write one sum, the later
    by_total = {branch.total: branch for branch in branches}
    gone = nodes_of(branches) | by_total.keys()
    by_before = {branch.again[0]: branch for branch in branches if branch.again is not None}
    fixed = {port.name for port in graph.outputs} | graph.captured()

    def reader(name: str) -> Node | None:
        users = {user.index: user for user, _ in graph.users.get(name, ()) if user.index not in gone}
        users |= {branch.total: graph.nodes[branch.total] for branch in branches if branch.shortcut == name}
        return next(iter(users.values())) if len(users) == 1 and name not in fixed else None

    for item in consumers:
        if item.node.index in gone or item.by_channel:
            continue
        name, stream, taken = item.output, "", list[Branch]()
        node = reader(name)
        if node is not None and node.index not in by_total and (other := added_stream(graph, node, name)):
            name, stream = node.outputs[0], other
        while (node := reader(name)) is not None:
            branch = by_total.get(node.index)
            if branch is None and node.index in by_before and reader(node.outputs[0]) is not None:
                # Relu(s) + f(x) and another Relu behind it: what s is below zero does not matter
                branch = by_before[node.index]
            if branch is None or graph.nodes[branch.total].outputs[0] in fixed:
                break
            name = graph.nodes[branch.total].outputs[0]
            taken.append(branch)
        if taken:
            found[name] = item.node.index, Absorbed(name, stream, tuple(taken))
    return dict(found.values())
