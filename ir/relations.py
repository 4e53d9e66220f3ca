"""Relations between tensor axes: what a node says about which channels belong together.

A channel is a position on an axis of a tensor. Four relations are enough to describe every operator:

1. `Same(a, b)`: position i of both axes is one channel.
2. `Take(whole, part, index)`: position j of `part` is position index[j] of `whole`; -1 means that it comes from nowhere
   (padding). Slices, splits, concatenations and gathers are all of this kind.
3. `Fold(whole, parts)`: `whole` is the row-major product of `parts`; a channel of `whole` goes when its coordinate on
   any of the parts goes. Flatten, attention heads, channel shuffles and grouped convolutions are of this kind.
4. `Freeze(axis, reason)`: nothing on this axis can be removed. An empty reason marks an axis that nobody would expect
   to prune (batch, image rows): it is no barrier worth reporting.

`Contract(axis)` marks an axis that the node sums over with weights: setting a slice of it to zero there cuts a channel
off, which is what makes removal exact. `Mean(axis)` marks an axis over which the node takes a mean: to remove a channel
changes it. It holds the axis fast, unless means over the kept channels were asked for (decision 0005).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Axis = tuple[str, int]
"""A tensor's analysis name (`Graph.use`) and the axis number; a made-up axis is known by `is_virtual`."""

Index = NDArray[np.int64]

_VIRTUAL = "\0"


def is_virtual(axis: Axis) -> bool:
    """Whether an axis is made up: a coordinate that no tensor shows."""
    return axis[0].startswith(_VIRTUAL)


@dataclass(frozen=True, slots=True)
class Same:
    """Rule 1."""

    a: Axis
    b: Axis


@dataclass(frozen=True, slots=True)
class Take:
    """Rule 2."""

    whole: Axis
    part: Axis
    index: Index


@dataclass(frozen=True, slots=True)
class Fold:
    """Rule 3."""

    whole: Axis
    parts: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Freeze:
    """Rule 4; `node` is the index of the node that says so, -1 for the graph's own inputs and outputs."""

    axis: Axis
    reason: str
    node: int


@dataclass(frozen=True, slots=True)
class Contract:
    """The axis is summed over by this node; `node` is its index."""

    axis: Axis
    node: int


@dataclass(frozen=True, slots=True)
class Mean:
    """The node normalises by a mean over this axis (`over`: over all of these axes of the same tensor together)."""

    axis: Axis
    over: tuple[Axis, ...]
    reason: str
    node: int


@dataclass(slots=True)
class Relations:
    """All relations of a graph, collected node by node; `size` gives the length of every axis."""

    size: Callable[[Axis], int]
    same: list[Same] = field(default_factory=list)
    takes: list[Take] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    contracts: list[Contract] = field(default_factory=list)
    means: list[Mean] = field(default_factory=list)
    virtual: dict[Axis, int] = field(default_factory=dict)

    def length(self, axis: Axis) -> int:
        """The number of positions on an axis, made-up ones included."""
        return self.virtual[axis] if axis in self.virtual else self.size(axis)

    def invent(self, name: str, size: int) -> Axis:
        """A made-up axis (a coordinate of a product that no tensor shows); the same name gives the same axis."""
        axis = (_VIRTUAL + name, 0)
        if self.virtual.setdefault(axis, size) != size:
            raise ValueError(f"axis {name} has {self.virtual[axis]} and {size} positions")
        return axis

    def regroup(self, left: Sequence[Axis], right: Sequence[Axis], name: str, node: int) -> None:
        """Relates two row-major groupings of the same elements (a Reshape), finest common factors first.

        Sizes that have no common factorisation (6x4 and 4x6 do not nest) freeze what they touch.
        """
        for number, (some, others) in enumerate(_segments(left, right, self.length)):
            self._regroup_segment(some, others, f"{name}/{number}", node)

    def _regroup_segment(self, left: list[Axis], right: list[Axis], name: str, node: int) -> None:
        cuts = sorted(set(_strides(left, self.length)) | set(_strides(right, self.length)))
        if any(b % a for a, b in pairwise(cuts)):
            for axis in (*left, *right):
                self.freezes.append(Freeze(axis, "a reshape mixes channels with other axes", node))
            return
        sizes = {a: b // a for a, b in pairwise(cuts)}
        factors: dict[int, Axis] = {}
        for axes in (left, right):
            stride = cuts[-1]
            for axis in axes:
                stride //= self.length(axis)
                inner = [cut for cut in reversed(cuts[:-1]) if stride <= cut < stride * self.length(axis)]
                if len(inner) == 1:
                    self._tie(factors, inner[0], axis)
                else:
                    parts = tuple(factors.setdefault(c, self.invent(f"{name}.{c}", sizes[c])) for c in inner)
                    self.folds.append(Fold(axis, parts))

    def _tie(self, factors: dict[int, Axis], cut: int, axis: Axis) -> None:
        known = factors.setdefault(cut, axis)
        if known != axis:
            self.same.append(Same(known, axis))


def _segments(
    left: Sequence[Axis], right: Sequence[Axis], length: Callable[[Axis], int]
) -> list[tuple[list[Axis], list[Axis]]]:
    """The smallest runs of axes of equal product, axes of length 1 left out."""
    some, others = ([axis for axis in axes if length(axis) != 1] for axes in (left, right))
    found: list[tuple[list[Axis], list[Axis]]] = []
    i = j = 0
    while i < len(some) and j < len(others):
        run, run2 = [some[i]], [others[j]]
        product, product2 = length(some[i]), length(others[j])
        i, j = i + 1, j + 1
        while product != product2:
            if product < product2:
                run.append(some[i])
                product *= length(some[i])
                i += 1
            else:
                run2.append(others[j])
                product2 *= length(others[j])
                j += 1
        found.append((run, run2))
    return found


def _strides(axes: Sequence[Axis], length: Callable[[Axis], int]) -> list[int]:
    """The row-major strides of the axes, and their whole product."""
    strides = [1]
    for axis in reversed(axes):
        strides.append(strides[-1] * length(axis))
    return strides
