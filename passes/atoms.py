"""The solver of coupling: every position of every axis is an *atom*; which atoms are one channel, and which are frozen.

1. Atoms that `Same` and `Take` tie together are one channel (connected components, scipy).
2. Freezing spreads through components, and through folds: a frozen product position freezes its coordinates, and a
   product of frozen coordinates is frozen. A channel that is all of some axis (a Split into parts of one) is frozen.
3. A fold with one part left that is not frozen ties each product position to its coordinate on that part.
4. A fold with several live parts (heads x width, shuffle groups x channels) makes a product position *composite*: it
   goes when any of its coordinates goes. Two folds that disagree about the same channels lose their shortest part to
   freezing, which is always safe, and everything is solved again.

All of it works on arrays: there is no loop over channels but for composite ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..ir.relations import Axis, Fold, Relations

Ids = NDArray[np.int64]
Bound = dict[int, tuple[int, ...]]


class Atoms:
    """The numbered positions of all axes, and the solution of their relations."""

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.offset: dict[Axis, int] = {}
        self.total = 0
        for axis in _mentioned_axes(relations):
            length = relations.length(axis)
            if axis not in self.offset and length > 1:
                self.offset[axis] = self.total
                self.total += length
        self.dead: set[Axis] = set()
        self.edges: list[tuple[Ids, Ids]] = []
        for same in relations.same:
            if same.a != same.b and same.a in self.offset and same.b in self.offset:
                self.edges.append((self.of(same.a), self.of(same.b)))
        self.alone: list[Ids] = []
        for take in relations.takes:
            there = take.index >= 0
            if take.whole in self.offset and take.part in self.offset:
                self.edges.append((self.of(take.whole)[take.index[there]], self.of(take.part)[there]))
            elif take.whole in self.offset:
                self.alone.append(self.of(take.whole)[take.index[there]])
            elif take.part in self.offset:
                self.alone.append(self.of(take.part)[there])
        self.folds = [fold for fold in relations.folds if fold.whole in self.offset]
        self.loose = list(self.folds)

    def of(self, axis: Axis) -> Ids:
        """The atom numbers of an axis."""
        start = self.offset[axis]
        return np.arange(start, start + self.relations.length(axis))

    def solve(self) -> tuple[Ids, NDArray[np.bool_], Bound]:
        """For every atom its channel; which channels are frozen; the coordinates of composite channels."""
        while True:
            roots = self._components()
            frozen = self._frozen(roots)
            if self._tie_single_parts(roots, frozen):
                continue
            bound = self._bind(roots, frozen)
            if bound is not None:
                return roots, frozen, bound

    def _components(self) -> Ids:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self.edges:
            return np.arange(self.total)
        a = np.concatenate([edge[0] for edge in self.edges])
        b = np.concatenate([edge[1] for edge in self.edges])
        matrix = coo_array((np.ones(len(a), dtype=np.bool_), (a, b)), shape=(self.total, self.total))
        labels = connected_components(matrix, directed=False)[1]
        first = np.full(labels.max() + 1, self.total, dtype=np.int64)
        np.minimum.at(first, labels, np.arange(self.total))
        roots: Ids = first[labels]
        return roots

    def _frozen(self, roots: Ids) -> NDArray[np.bool_]:
        frozen = np.zeros(self.total, dtype=np.bool_)
        for axis in [freeze.axis for freeze in self.relations.freezes] + list(self.dead):
            if axis in self.offset:
                frozen[roots[self.of(axis)]] = True
        for atoms in self.alone:
            frozen[roots[atoms]] = True
        while True:
            before = int(frozen.sum())
            for fold in self.folds:
                whole, parts = roots[self.of(fold.whole)], self._coordinates(fold, roots)
                frozen[parts[:, frozen[whole]].reshape(-1)] = True
                frozen[whole[frozen[parts].all(axis=0)]] = True
            if int(frozen.sum()) == before:
                return frozen

    def _coordinates(self, fold: Fold, roots: Ids) -> Ids:
        """The channels of each part at each position of the product: (parts, positions)."""
        grids = np.meshgrid(*(roots[self.of(part)] for part in fold.parts), indexing="ij")
        return np.stack([grid.reshape(-1) for grid in grids])

    def _live(self, fold: Fold, roots: Ids, frozen: NDArray[np.bool_]) -> list[Axis]:
        return [part for part in fold.parts if not frozen[roots[self.of(part)]].all()]

    def _tie_single_parts(self, roots: Ids, frozen: NDArray[np.bool_]) -> bool:
        """Rule 3; whether there was anything to tie."""
        singles = [fold for fold in self.loose if len(self._live(fold, roots, frozen)) == 1]
        for fold in singles:
            live = next(row for row in self._coordinates(fold, roots) if not frozen[row].all())
            self.edges.append((self.of(fold.whole), live))
            self.loose.remove(fold)
        return bool(singles)

    def _bind(self, roots: Ids, frozen: NDArray[np.bool_]) -> Bound | None:
        """Rule 4: the coordinates of each composite channel; None when folds disagreed and all must be solved again."""
        bound: Bound = {}
        owner: dict[int, Fold] = {}
        for fold in self.loose:
            if not self._live(fold, roots, frozen):
                continue
            columns = self._coordinates(fold, roots).T.tolist()
            for root, column in zip(roots[self.of(fold.whole)].tolist(), columns, strict=True):
                value = tuple(sorted(part for part in column if not frozen[part]))
                if frozen[root] or bound.setdefault(root, value) == value:
                    owner.setdefault(root, fold)
                    continue
                self._settle(fold, owner[root], roots, frozen)
                return None
        for root in bound:
            if _cyclic(root, bound):
                self._settle(owner[root], owner[root], roots, frozen)
                return None
        return bound

    def _settle(self, fold: Fold, other: Fold, roots: Ids, frozen: NDArray[np.bool_]) -> None:
        """Ties the parts of two folds of the very same channels to each other, or freezes the shortest live parts."""
        lengths = [[self.relations.length(part) for part in item.parts] for item in (fold, other)]
        twins = np.array_equal(roots[self.of(fold.whole)], roots[self.of(other.whole)])
        ties = [(self.of(a), self.of(b)) for a, b in zip(fold.parts, other.parts, strict=False)]
        if twins and lengths[0] == lengths[1] and any(not np.array_equal(roots[a], roots[b]) for a, b in ties):
            self.edges += ties
            return
        for item in (fold, other):
            self.dead.add(min(self._live(item, roots, frozen), key=self.relations.length))


def _cyclic(root: int, bound: Bound) -> bool:
    """Whether a composite channel is made of itself."""
    seen: set[int] = set()
    todo = list(bound[root])
    while todo:
        part = todo.pop()
        if part == root:
            return True
        if part not in seen:
            seen.add(part)
            todo += bound.get(part, ())
    return False


def expand(atoms: Ids, roots: Ids, frozen: NDArray[np.bool_], bound: Bound) -> Ids | None:
    """The channels that each position of an axis consists of: (layers, positions), -1 for none; None: all frozen."""
    columns = [_leaves(root, bound) for root in np.where(frozen[roots[atoms]], -1, roots[atoms]).tolist()]
    depth = max(map(len, columns))
    rows = np.array([[*column, *[-1] * (depth - len(column))] for column in columns], dtype=np.int64).T
    return rows if (rows >= 0).any() else None


def _leaves(root: int, bound: Bound) -> list[int]:
    if root not in bound:
        return [root]
    return [leaf for part in bound[root] for leaf in _leaves(part, bound)]


def _mentioned_axes(relations: Relations) -> Iterable[Axis]:
    """All axes in the order in which nodes mention them."""
    for same in relations.same:
        yield same.a
        yield same.b
    for take in relations.takes:
        yield take.whole
        yield take.part
    for fold in relations.folds:
        yield fold.whole
        yield from fold.parts
    for freeze in relations.freezes:
        yield freeze.axis
