"""Where the numbers of a computed shape come from: the constant behind one element of a shape vector."""

from __future__ import annotations

from ..graph import Graph, Node

_CARRIERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def constant_behind(graph: Graph, node: Node, slot: int, element: int) -> tuple[Node, int, int] | None:
    """The (node, slot, element) at which a constant enters that becomes this element; None when it is computed."""
    while True:
        name = node.inputs[slot]
        if name in graph.constants:
            return node, slot, element
        producer = graph.producer.get(name)
        if producer is None or producer.domain:
            return None
        if producer.op_type in _CARRIERS:
            node, slot = producer, 0
        elif producer.op_type == "Concat":
            sizes = [_length(graph, part) for part in producer.inputs]
            slot = 0
            while element >= sizes[slot]:
                element -= sizes[slot]
                slot += 1
            node = producer
        else:
            return None


def _length(graph: Graph, name: str) -> int:
    shape = graph.shapes[name]
    return shape[0] if shape else 1
