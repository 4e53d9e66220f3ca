"""Operators that exporters spell out, run as the one torch function that they are: less time, and fewer tensors kept.

1. x W + b with a matrix W and a vector b is `linear`.
2. 0.5 x (1 + erf(x / sqrt 2)) is `gelu`.
3. (x - mean x) / sqrt(mean (x - mean x)^2 + e) * s + b over the last axis is `layer_norm`.
4. x sigmoid(x) is `silu`.
Only what is exactly such a function is taken together, and only where nothing else reads what lies between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph import Graph, Node
from .runtime import Lowered

CLOSE = 1e-6
"""How near a constant must be to the number that it stands for, relatively: float32 rounding."""


@dataclass(frozen=True, slots=True)
class Fused:
    """Several nodes as one function of the tensors it reads; it stands at the place of the last of them."""

    nodes: frozenset[int]
    reads: tuple[str, ...]
    function: Lowered


@dataclass(frozen=True, slots=True)
class _Finder:
    """Looks for what stands before a tensor of a graph."""

    graph: Graph

    def made_by(self, name: str, *kinds: str) -> Node | None:
        """The node of one of these operators that makes a tensor."""
        node = self.graph.producer.get(name)
        return node if node is not None and node.op_type in kinds and not node.domain else None

    def number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        constant = self.graph.constants.get(name)
        return float(constant.array().reshape(-1)[0]) if constant is not None and constant.size == 1 else None

    def scaled(self, name: str, factor: float) -> tuple[str, Node] | None:
        """(x, node) where a tensor is x times a factor."""
        node = self.made_by(name, "Mul", "Div")
        if node is None:
            return None
        pairs = [tuple(node.inputs)] if node.op_type == "Div" else [tuple(node.inputs), tuple(reversed(node.inputs))]
        for x, other in pairs:
            value = self.number(other)
            value = 1 / value if value and node.op_type == "Div" else value
            if value is not None and math.isclose(value, factor, rel_tol=CLOSE):
                return x, node
        return None

    def summed(self, name: str) -> Iterator[tuple[str, float, Node]]:
        """(x, c, node) for each way in which a tensor is x plus a constant."""
        node = self.made_by(name, "Add")
        for x, other in _orders(node):
            value = self.number(other)
            if value is not None and node is not None:
                yield x, value, node


def _orders(node: Node | None) -> list[tuple[str, str]]:
    if node is None or len(node.inputs) != 2:
        return []
    a, b = node.inputs
    return [(a, b), (b, a)]


def _linear(find: _Finder, node: Node, torch: Any) -> Fused | None:
    shapes, linear = find.graph.shapes, torch.nn.functional.linear
    for product, bias in _orders(node) if node.op_type == "Add" else ():
        inner = find.made_by(product, "MatMul")
        if inner is None:
            continue
        x, w = inner.inputs
        matrix, rank = shapes.get(w, ()), len(shapes.get(x, ()))
        if len(matrix) == 2 and rank >= 2 and shapes.get(bias) == matrix[1:] and _is_float(find.graph, x):
            return Fused(
                frozenset({inner.index, node.index}), (x, w, bias), lambda x, w, b: linear(x, w.transpose(0, 1), b)
            )
    return None


def _factors(find: _Finder, node: Node) -> tuple[list[str], list[Node]]:
    """The factors of a product of products, and the nodes that multiply them."""
    names, nodes = [], [node]
    for name in node.inputs:
        inner = find.made_by(name, "Mul")
        if inner is None:
            names.append(name)
        else:
            further, below = _factors(find, inner)
            names += further
            nodes += below
    return names, nodes


def _gelu(find: _Finder, node: Node, torch: Any) -> Fused | None:
    if node.op_type != "Mul":
        return None
    names, nodes = _factors(find, node)
    numbers = [find.number(name) for name in names]
    rest = [name for name, number in zip(names, numbers, strict=True) if number is None]
    half = math.prod(number for number in numbers if number is not None)
    if len(rest) != 2 or len(names) != 3 or not math.isclose(half, 0.5, rel_tol=CLOSE):
        return None
    for x, term in (rest, rest[::-1]):
        for inner, one, add in find.summed(term):
            erf = find.made_by(inner, "Erf")
            scaled = find.scaled(erf.inputs[0], math.sqrt(0.5)) if erf is not None else None
            if erf is not None and scaled is not None and scaled[0] == x and one == 1:
                indices = frozenset({*(each.index for each in nodes), add.index, erf.index, scaled[1].index})
                return Fused(indices, (x,), torch.nn.functional.gelu)
    return None


def _layer_norm(find: _Finder, node: Node, torch: Any) -> Fused | None:
    for product, bias in _orders(node) if node.op_type == "Add" else ():
        scaled = find.made_by(product, "Mul")
        for quotient, scale in _orders(scaled):
            found = _standardized(find, quotient)
            if scaled is None or found is None:
                continue
            x, epsilon, indices = found
            width = find.graph.shapes.get(x, ())[-1:]
            if all(find.graph.shapes.get(name) == width for name in (scale, bias)):
                return Fused(
                    frozenset({*indices, scaled.index, node.index}), (x, scale, bias), _normalize(torch, epsilon)
                )
    return None


def _normalize(torch: Any, epsilon: float) -> Lowered:
    norm = torch.nn.functional.layer_norm
    return lambda x, scale, bias: norm(x, scale.shape, scale, bias, epsilon)


def _standardized(find: _Finder, name: str) -> tuple[str, float, set[int]] | None:
    """(x, e, nodes) where a tensor is (x - mean) / sqrt(variance + e) over the last axis."""
    quotient = find.made_by(name, "Div")
    root = find.made_by(quotient.inputs[1], "Sqrt") if quotient is not None else None
    if quotient is None or root is None:
        return None
    centred = find.graph.producer.get(quotient.inputs[0])
    for variance, epsilon, add in find.summed(root.inputs[0]):
        mean = _mean(find, variance)
        square = find.made_by(mean.inputs[0], "Pow") if mean is not None else None
        if mean is None or square is None or find.number(square.inputs[1]) != 2 or centred is None:
            continue
        other = find.graph.producer.get(square.inputs[0])
        first, second = _centred(find, centred), _centred(find, other) if other is not None else None
        if other is not None and first is not None and second is not None and first[0] == second[0]:
            inside = {first[1], second[1], centred.index, square.index, mean.index, add.index, root.index}
            return first[0], epsilon, {*inside, square.index, other.index, quotient.index}
    return None


def _centred(find: _Finder, node: Node) -> tuple[str, int] | None:
    """(x, the mean's node) where a node takes the mean of x from x."""
    if node.op_type != "Sub" or node.domain:
        return None
    x, average = node.inputs
    mean = _mean(find, average)
    return None if mean is None or mean.inputs[0] != x else (x, mean.index)


def _mean(find: _Finder, name: str) -> Node | None:
    """The node that makes a tensor as the mean over the last axis, which stays."""
    node = find.made_by(name, "ReduceMean")
    if node is None or not node.attrs.get("keepdims", 1):
        return None
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in find.graph.constants:
        axes = find.graph.constants[node.inputs[1]].array().reshape(-1).tolist()
    rank = len(find.graph.shapes.get(node.inputs[0], ()))
    return node if rank and axes is not None and [int(axis) % rank for axis in axes] == [rank - 1] else None


def _silu(find: _Finder, node: Node, torch: Any) -> Fused | None:
    for x, gate in _orders(node) if node.op_type == "Mul" else ():
        inner = find.made_by(gate, "Sigmoid")
        if inner is not None and inner.inputs[0] == x:
            return Fused(frozenset({inner.index, node.index}), (x,), torch.nn.functional.silu)
    return None


_PATTERNS: Sequence[Callable[[_Finder, Node, Any], Fused | None]] = (_gelu, _layer_norm, _linear, _silu)


def _is_float(graph: Graph, name: str) -> bool:
    return graph.dtypes.get(name) in (1, 10, 11, 16)


def fusions(graph: Graph, nodes: Sequence[Node], torch: Any) -> Mapping[int, Fused]:
    """What runs as one function, by the index of the last node of each; no node is in two of them."""
    find, taken, found = _Finder(graph), set[int](), dict[int, Fused]()
    for node in reversed(nodes):
        if node.domain or node.index in taken or len(node.outputs) != 1:
            continue
        for pattern in _PATTERNS:
            match = pattern(find, node, torch)
            if match is not None and not match.nodes & taken and _is_closed(graph, match.nodes - {node.index}, node):
                taken |= match.nodes
                found[node.index] = match
                break
    return found


def _is_closed(graph: Graph, inside: Collection[int], last: Node) -> bool:
    """Whether nothing but the pattern reads what its inner nodes make."""
    kept = {port.name for port in graph.outputs} | graph.captured()
    made = {name for index in inside for name in graph.nodes[index].outputs}
    readers = {user.index for name in made for user, _ in graph.users.get(name, ())}
    return not made & kept and readers <= {*inside, last.index}
