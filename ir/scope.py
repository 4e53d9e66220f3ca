"""What an operator rule sees of its node, and how it states relations.

`Scope` serves coupling (before pruning), `Edit` the patching of a node (after the kept positions are known).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError
from .graph import Graph, Node, Shape
from .relations import Axis, Contract, Fold, Freeze, Mean, Relations, Same, Take
from .signature import Operand, Token, parse

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class View:
    """A node with its graph: shapes, constant values and attributes, however the opset spells them."""

    graph: Graph
    node: Node

    def has(self, slot: int) -> bool:
        """Whether an optional input is given."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] != ""

    def shape(self, slot: int) -> Shape:
        """The shape of an input; ShapeError when it is unknown."""
        return self._shape(self.node.inputs[slot])

    def out_shape(self, number: int = 0) -> Shape:
        """The shape of an output; ShapeError when it is unknown."""
        return self._shape(self.node.outputs[number])

    def _shape(self, name: str) -> Shape:
        if name not in self.graph.shapes:
            raise ShapeError(f"the shape of '{name}' is unknown")
        return self.graph.shapes[name]

    def rank(self, slot: int = 0) -> int:
        """The number of axes of an input."""
        return len(self.shape(slot))

    def value(self, slot: int) -> NDArray[Any] | None:
        """The value of an input that is a small constant or follows from shapes; None when it is not known."""
        name = self.node.inputs[slot] if self.has(slot) else ""
        if name in self.graph.known:
            return self.graph.known[name]
        return self.graph.constants[name].array() if name in self.graph.constants else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.node.attrs.get(name, default)

    def ints(self, name: str, slot: int, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        """Integers that older opsets keep in an attribute and newer ones in an input; None when not known."""
        if name in self.node.attrs:
            found = self.node.attrs[name]
            return tuple(found) if isinstance(found, Sequence) else (int(found),)
        if not self.has(slot):
            return None if default is None else tuple(default)
        value = self.value(slot)
        return None if value is None else tuple(int(item) for item in value.reshape(-1))

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """An axis attribute, counted from the front."""
        found = int(self.attr(name, default))
        return found + rank if found < 0 else found

    @property
    def version(self) -> int:
        """The opset version that the model imports for this node's domain."""
        return self.graph.opsets.get(self.node.domain, 1)


@dataclass(frozen=True, slots=True)
class Scope(View):
    """A view through which a rule adds to the graph's relations."""

    relations: Relations = field(default_factory=lambda: Relations(lambda _: 1))

    def inp(self, slot: int, axis: int) -> Axis:
        """An axis of an input."""
        return (self.graph.use(self.node, slot), axis % max(self.rank(slot), 1))

    def out(self, axis: int, number: int = 0) -> Axis:
        """An axis of an output."""
        return (self.node.outputs[number], axis % max(len(self.out_shape(number)), 1))

    def in_axes(self, slot: int) -> list[Axis]:
        """All axes of an input."""
        return [self.inp(slot, axis) for axis in range(self.rank(slot))]

    def out_axes(self, number: int = 0) -> list[Axis]:
        """All axes of an output."""
        return [self.out(axis, number) for axis in range(len(self.out_shape(number)))]

    def same(self, a: Axis, b: Axis) -> None:
        """States that two axes are the same channels; axes of length 1 broadcast and say nothing."""
        one, other = self.relations.length(a), self.relations.length(b)
        if one == other and one != 1:
            self.relations.same.append(Same(a, b))
        elif 1 not in (one, other):
            raise ShapeError(f"axes of {one} and {other} positions meet")

    def take(self, whole: Axis, part: Axis, index: NDArray[Any]) -> None:
        """States that `part` consists of the positions `index` of `whole` (-1: of none)."""
        self.relations.takes.append(Take(whole, part, np.asarray(index, dtype=np.int64)))
        for one, other in ((whole, part), (part, whole)):
            if self.relations.length(one) == 1 != self.relations.length(other):
                self.freeze(one, "is the only position on an axis of its own")

    def fold(self, whole: Axis, parts: Sequence[Axis]) -> None:
        """States that `whole` is the row-major product of `parts`."""
        live = [part for part in parts if self.relations.length(part) != 1]
        if len(live) == 1:
            self.same(whole, live[0])
        elif live:
            self.relations.folds.append(Fold(whole, tuple(live)))

    def freeze(self, axis: Axis, reason: str = "") -> None:
        """States that nothing on an axis can be removed."""
        self.relations.freezes.append(Freeze(axis, reason, self.node.index))

    def mean(self, axes: Sequence[Axis], reason: str) -> None:
        """States that the node takes one mean over all of these axes together."""
        for axis in axes:
            self.same(axis, axis)
            self.relations.means.append(Mean(axis, tuple(axes), reason, self.node.index))

    def contract(self, axis: Axis) -> None:
        """States that the node sums over an axis with weights."""
        self.relations.contracts.append(Contract(axis, self.node.index))

    def regroup(self, left: Sequence[Axis], right: Sequence[Axis]) -> None:
        """States that two groupings hold the same elements in the same order."""
        self.relations.regroup(left, right, f"{self.node.index}", self.node.index)

    def signature(self, text: str, **sizes: int) -> None:
        """States all that an axis signature says (see `signature`); `sizes` gives lengths that no axis shows."""
        _Reading(self, dict(sizes)).read(text)


class _Reading:
    """One reading of a signature for one node: collects where each name stands, then relates the places."""

    def __init__(self, scope: Scope, sizes: dict[str, int]) -> None:
        self.scope = scope
        self.sizes = sizes
        self.places: dict[str, list[Axis]] = {}
        self.marks: list[Axis] = []

    def read(self, text: str) -> None:
        signature = parse(text)
        operands: list[tuple[Operand, list[Axis], bool]] = []
        for slot, operand in enumerate(signature.inputs):
            if self.scope.has(slot):
                operands.append((operand, self.scope.in_axes(slot), True))
        for number, operand in enumerate(signature.outputs):
            if number < len(self.scope.node.outputs) and self.scope.node.outputs[number]:
                operands.append((operand, self.scope.out_axes(number), False))
        composites: list[tuple[Token, Axis]] = []
        for operand, axes, is_input in operands:
            if operand.ignored:
                for axis in axes:
                    self.scope.freeze(axis)
                continue
            for token, axis in self._match(operand, axes, text):
                contracted = token.contracted or (
                    token.kind == "plain" and token.names[0][0].isupper() and token.names[0] not in signature.kept
                )
                if is_input and contracted:
                    self.marks.append(axis)
                if token.kind == "plain":
                    self._place(token.names[0], axis)
                else:
                    composites.append((token, axis))
        for token, axis in composites:
            self._composite(token, axis)
        self._relate()

    def _match(self, operand: Operand, axes: list[Axis], text: str) -> list[tuple[Token, Axis]]:
        count = len(operand.tokens)
        if len(axes) < count or (len(axes) > count and not operand.leading):
            raise ShapeError(f"a tensor of {len(axes)} axes does not fit the signature '{text}'")
        leading = axes[: len(axes) - count]
        for place, axis in enumerate(reversed(leading)):
            self._place(f"Leading{place}", axis)
        return list(zip(operand.tokens, axes[len(leading) :], strict=True))

    def _place(self, name: str, axis: Axis) -> None:
        length = self.scope.relations.length(axis)
        if length != 1:
            self.sizes.setdefault(name, length)
        self.places.setdefault(name, []).append(axis)

    def _composite(self, token: Token, axis: Axis) -> None:
        if token.kind == "sum":
            return self._sum(token, axis)
        self._solve_sizes(token, self.scope.relations.length(axis))
        live = [name for name in token.names if self._size(name) != 1]
        if len(live) == 1:
            self.places.setdefault(live[0], []).append(axis)
        elif live:
            self.scope.relations.folds.append(Fold(axis, tuple(self._made_up(name) for name in live)))
        return None

    def _sum(self, token: Token, axis: Axis) -> None:
        start = 0
        for name in token.names:
            size = self._size(name)
            self.scope.take(axis, self._made_up(name), np.arange(start, start + size))
            start += size

    def _made_up(self, name: str) -> Axis:
        """The axis that stands for a name inside a product: made up once per node, tied to the plain places."""
        size = self._size(name)
        axis = self.scope.relations.invent(f"{self.scope.node.index}/{name}", size)
        if axis not in self.places.setdefault(name, []):
            self.places[name].append(axis)
        return axis

    def _size(self, name: str) -> int:
        return int(name) if name.isdigit() else self.sizes.get(name, 1)

    def _solve_sizes(self, token: Token, length: int) -> None:
        """Works out the one unknown factor of a product."""
        unknown = [name for name in token.names if not name.isdigit() and name not in self.sizes]
        known = int(np.prod([self._size(name) for name in token.names if name not in unknown], dtype=np.int64))
        if length % known or (len(unknown) != 1 and known != length) or len(unknown) > 1:
            raise ShapeError(f"an axis of {length} positions is not the product ({' '.join(token.names)})")
        if unknown:
            self.sizes[unknown[0]] = length // known

    def _relate(self) -> None:
        for name, axes in self.places.items():
            live = [axis for axis in axes if self.scope.relations.length(axis) != 1]
            for axis in live[1:]:
                self.scope.same(live[0], axis)
            if live and not name[0].isupper():
                self.scope.freeze(live[0])
        for axis in self.marks:
            self.scope.contract(axis)


@dataclass(frozen=True, slots=True)
class Edit(View):
    """A view through which a rule says how its node changes once it is known what is kept.

    `kept` gives the mask of kept positions of an axis (of a tensor by analysis name), `new_shapes` the shapes after
    pruning by tensor name. `attrs` and `values` collect the answers: new attributes, and the value that an input which
    holds shapes, indices or sizes must have.
    """

    kept: Callable[[Axis], Mask] = field(default=lambda _: np.ones(1, dtype=np.bool_))
    new_shapes: Mapping[str, Shape] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    values: dict[int, NDArray[Any]] = field(default_factory=dict)

    def new_shape(self, slot: int) -> Shape:
        """The shape of an input after pruning."""
        return self.new_shapes[self.graph.use(self.node, slot)]

    def new_out_shape(self, number: int = 0) -> Shape:
        """The shape of an output after pruning."""
        return self.new_shapes[self.node.outputs[number]]

    def kept_in(self, slot: int, axis: int) -> Mask:
        """The kept positions of an input axis."""
        return self.kept((self.graph.use(self.node, slot), axis % self.rank(slot)))

    def kept_out(self, axis: int, number: int = 0) -> Mask:
        """The kept positions of an output axis."""
        return self.kept((self.node.outputs[number], axis % len(self.out_shape(number))))

    def set_ints(self, name: str, slot: int, value: Sequence[int]) -> None:
        """Sets integers where the node keeps them: in the attribute when it has one, else in the input."""
        if name in self.node.attrs:
            self.attrs[name] = [int(item) for item in value]
        elif self.has(slot):
            old = self.value(slot)
            dtype = np.int64 if old is None else old.dtype
            self.values[slot] = np.asarray(value, dtype=dtype)
