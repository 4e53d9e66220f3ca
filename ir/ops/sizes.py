"""Where the numbers of a computed shape come from, and which constant to change so that one comes out as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..graph import Graph, Node

_CARRIERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Entry:
    """A constant that enters a computation: input `slot` of `node`; `element` of it must become `value`."""

    node: Node
    slot: int
    element: int
    value: int


def constant_behind(
    graph: Graph, known: Mapping[str, NDArray[Any]], node: Node, slot: int, element: int, value: int
) -> Entry | None:
    """The constant to change so that an element of an input becomes `value`; None when no single one decides it.

    `known` are the values of computed sizes after pruning. Followed are operators that carry numbers along, Concat, and
    products and quotients with a constant.
    """
    while True:
        name = node.inputs[slot]
        if name in graph.constants:
            return Entry(node, slot, element, value)
        producer = graph.producer.get(name)
        if producer is None or producer.domain:
            return None
        if producer.op_type in _CARRIERS:
            node, slot = producer, 0
        elif producer.op_type == "Concat":
            sizes = [_length(graph, part) for part in producer.inputs]
            node, slot = producer, 0
            while element >= sizes[slot]:
                element -= sizes[slot]
                slot += 1
        elif producer.op_type in ("Mul", "Div"):
            return _factor(graph, known, producer, value)
        else:
            return None


def _factor(graph: Graph, known: Mapping[str, NDArray[Any]], node: Node, value: int) -> Entry | None:
    """The constant factor or divisor that makes a product or quotient come out as `value`."""
    for slot, name in enumerate(node.inputs):
        other = known.get(node.inputs[1 - slot])
        if name not in graph.constants or other is None or other.size != 1 or value == 0:
            continue
        number = int(other.reshape(-1)[0])
        if node.op_type == "Mul" and number and value % number == 0:
            return Entry(node, slot, 0, value // number)
        if node.op_type == "Div" and slot == 1 and number % value == 0:
            return Entry(node, slot, 0, number // value)
        if node.op_type == "Div" and slot == 0:
            return Entry(node, slot, 0, number * value)
    return None


def _length(graph: Graph, name: str) -> int:
    shape = graph.shapes[name]
    return shape[0] if shape else 1
