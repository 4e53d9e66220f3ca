"""The relations of a whole graph: every node's rule applied once, and barriers for whatever has no rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .errors import ShapeError
from .graph import Graph, Node
from .ops import known_nodes, rule_for
from .relations import Axis, Freeze, Relations
from .scope import Scope
from .shapes import INTEGER_TYPES


def relations_of(graph: Graph, nodes: Sequence[Node] | None = None) -> Relations:
    """All relations between the axes of a graph's tensors; with `nodes` only what those nodes say.

    1. Inputs and outputs of the graph keep their shapes, and so does what a sub-graph captures.
    2. Nodes that only compute sizes say nothing about channels; their results follow the new sizes by themselves.
    3. A node without a rule, or whose rule finds something it does not understand, freezes all that it touches.
    4. An axis that a rule leaves unmentioned is frozen: silence is not permission.
    """
    relations = Relations(lambda axis: _length(graph, axis))
    if nodes is not None:
        for node in nodes:
            _relate(graph, relations, node)
        return relations
    for ports, reason in ((graph.inputs, "an input of the model"), (graph.outputs, "an output of the model")):
        for port in ports:
            _freeze_tensor(graph, relations, port.name, reason, -1)
    skipped = known_nodes(graph)
    for node in graph.nodes:
        for name in node.captures:
            _freeze_tensor(graph, relations, name, f"the body of {node.op_type} reads it", node.index)
        if node.index in skipped:
            _freeze_computed(graph, relations, node)
            if any(name not in graph.known and name not in graph.constants for name in node.inputs):
                _relate(graph, relations, node)  # a Shape or Size
        else:
            _relate(graph, relations, node)
    return relations


def _length(graph: Graph, axis: Axis) -> int:
    name, number = axis
    return graph.shapes[name.rpartition("@")[0] if name not in graph.shapes else name][number]


def _freeze_tensor(graph: Graph, relations: Relations, name: str, reason: str, node: int) -> None:
    for number in range(len(graph.shapes.get(name, ()))):
        relations.freezes.append(Freeze((name, number), reason, node))


def _freeze_computed(graph: Graph, relations: Relations, node: Node) -> None:
    for name in node.outputs:
        if name not in graph.constants:
            _freeze_tensor(graph, relations, name, "computed from sizes", node.index)


def _relate(graph: Graph, relations: Relations, node: Node) -> None:
    rule = rule_for(graph, node)
    counts = _counts(relations)
    if rule is None:
        domain = f" of domain '{node.domain}'" if node.domain else ""
        return _freeze_node(graph, relations, node, f"operator {node.op_type}{domain} has no rule", counts)
    try:
        rule.relate(Scope(graph, node, relations))
    except (ShapeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{node.op_type} cannot be followed: {error}"
        return _freeze_node(graph, relations, node, reason, counts)
    return _freeze_node(graph, relations, node, "", counts, skip=_mentioned(relations, counts))


def _counts(relations: Relations) -> tuple[int, int, int, int]:
    return len(relations.same), len(relations.takes), len(relations.folds), len(relations.freezes)


def _mentioned(relations: Relations, counts: tuple[int, int, int, int]) -> frozenset[Axis]:
    """Axes that appear in the relations added since the counts were taken."""
    found: set[Axis] = set()
    for same in relations.same[counts[0] :]:
        found |= {same.a, same.b}
    for take in relations.takes[counts[1] :]:
        found |= {take.whole, take.part}
    for fold in relations.folds[counts[2] :]:
        found |= {fold.whole, *fold.parts}
    found |= {freeze.axis for freeze in relations.freezes[counts[3] :]}
    return frozenset(found)


def _freeze_node(
    graph: Graph,
    relations: Relations,
    node: Node,
    reason: str,
    counts: tuple[int, int, int, int],
    skip: frozenset[Axis] = frozenset(),
) -> None:
    """Freezes every axis of a node's tensors except `skip`; made-up axes of the node too when its rule broke off."""
    for name in _tensors(graph, node):
        for number in range(len(graph.shapes.get(name.rpartition("@")[0] if "@" in name else name, ()))):
            if (name, number) not in skip and _length(graph, (name, number)) != 1:
                relations.freezes.append(Freeze((name, number), reason, node.index))
    if not skip:
        for axis in _mentioned(relations, counts):
            relations.freezes.append(Freeze(axis, reason, node.index))


def _tensors(graph: Graph, node: Node) -> Iterator[str]:
    """Analysis names of the tensors that hold channels: integers that steer the operator are left out."""
    for slot, name in enumerate(node.inputs):
        if name in graph.constants:
            if graph.constants[name].proto.data_type not in INTEGER_TYPES or graph.constants[name].size > 1024:
                yield graph.use(node, slot)
        elif name and name not in graph.known:
            yield name
    yield from (name for name in node.outputs if name)
