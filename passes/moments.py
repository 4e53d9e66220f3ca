"""Moments: sums over rows that are all a least-squares fit needs to know, however many rows there were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.ops.maps import Floats


@dataclass(slots=True)
class Moments:
    """Sums over rows about a `centre` (groups, K): `count` rows, `total` (groups, K) of x - centre, `gram` of products.

    The centre is the mean of the first rows. Products are taken in the rows' own type, float32 as a rule, which is
    twice as fast as float64; about the centre nothing cancels that would need more. The sums are float64.
    """

    count: int
    centre: Floats
    total: Floats
    gram: Floats

    @classmethod
    def empty(cls, groups: int, columns: int) -> Moments:
        """Sums over no rows."""
        rows = (groups, columns)
        return cls(0, np.zeros(rows), np.zeros(rows), np.zeros((*rows, columns)))

    @np.errstate(invalid="ignore")  # the totals tell what is not finite
    def add(self, rows: Floats) -> Floats:
        """Adds rows (groups, rows, K), and gives them about the centre."""
        if not self.count and rows.shape[1]:
            self.centre = rows.mean(axis=1, dtype=np.float64)
        self.count += rows.shape[1]
        rows = rows - self.centre[:, None].astype(rows.dtype)
        self.total += rows.sum(axis=1)
        for block, own in zip(self.gram, rows, strict=True):
            block += own.T @ own
        return rows

    @np.errstate(invalid="ignore")
    def about(self, centre: Floats) -> Moments:
        """The same sums about another centre."""
        shift = self.centre - centre
        total = self.total + self.count * shift
        cross = self.total[:, :, None] * shift[:, None, :]
        gram = self.gram + cross + cross.transpose(0, 2, 1) + self.count * shift[:, :, None] * shift[:, None, :]
        return Moments(self.count, centre, total, gram)

    def plus(self, other: Moments) -> Moments:
        """The sums over the rows of both."""
        if not (self.count and other.count):
            return self if self.count else other
        return self.joined(other.about(self.centre))

    def joined(self, other: Moments) -> Moments:
        """The sums over the rows of both, which are about the same centre."""
        return Moments(self.count + other.count, self.centre, self.total + other.total, self.gram + other.gram)

    def mean(self) -> Floats:
        """E[x], (groups, K)."""
        return self.centre + self.total / max(self.count, 1)

    def second(self, *, centred: bool) -> Floats:
        """E[x x'], or the covariance; (groups, K, K)."""
        found = self.about(self.mean() if centred else np.zeros_like(self.centre)).gram
        found /= max(self.count, 1)
        return found


@dataclass(slots=True)
class Sums:
    """Moments of the inputs x, and of the targets t with them.

    Both are about centres: `centre` (groups, O) is that of the targets; cross (groups, O, K), total and squares
    (groups, O) are sums over t - centre.
    """

    inputs: Moments
    centre: Floats
    cross: Floats
    total: Floats
    squares: Floats

    @classmethod
    def empty(cls, groups: int, outputs: int, columns: int) -> Sums:
        """Sums over no rows."""
        rows = (groups, outputs)
        return cls(
            Moments.empty(groups, columns), np.zeros(rows), np.zeros((*rows, columns)), np.zeros(rows), np.zeros(rows)
        )

    @np.errstate(invalid="ignore")
    def add(self, x: Floats, t: Floats) -> None:
        """Adds rows x (groups, rows, K) and t (groups, rows, O)."""
        if not self.inputs.count and t.shape[1]:
            self.centre = t.mean(axis=1, dtype=np.float64)
        x = self.inputs.add(x)
        t = t - self.centre[:, None].astype(t.dtype)
        self.cross += np.matmul(t.transpose(0, 2, 1), x)
        self.total += t.sum(axis=1)
        self.squares += np.einsum("gro,gro->go", t, t)

    @np.errstate(invalid="ignore")
    def about(self, inputs: Floats, targets: Floats) -> Sums:
        """The same sums about other centres."""
        n, shift = self.inputs.count, self.centre - targets
        moved = self.inputs.about(inputs)
        cross = self.cross + self.total[:, :, None] * (self.inputs.centre - inputs)[:, None, :]
        cross += shift[:, :, None] * moved.total[:, None, :]
        squares = self.squares + 2 * shift * self.total + n * shift**2
        return Sums(moved, targets, cross, self.total + n * shift, squares)

    def plus(self, other: Sums) -> Sums:
        """The sums over the rows of both."""
        if not (self.inputs.count and other.inputs.count):
            return self if self.inputs.count else other
        other = other.about(self.inputs.centre, self.centre)
        both = self.inputs.joined(other.inputs)
        return Sums(both, self.centre, self.cross + other.cross, self.total + other.total, self.squares + other.squares)

    def goal(self) -> Floats:
        """E[t], (groups, O)."""
        return self.centre + self.total / max(self.inputs.count, 1)

    def loss(self, matrix: Floats, bias: Floats) -> float:
        """The mean square of t - W x - b."""
        n = max(self.inputs.count, 1)
        bias = bias - self.centre + np.einsum("gok,gk->go", matrix, self.inputs.centre)
        quadratic = np.vdot(matrix @ self.inputs.gram, matrix) - 2 * np.vdot(matrix, self.cross)
        mean = np.matmul(matrix, self.inputs.total[:, :, None])[:, :, 0] - self.total
        return float((quadratic + self.squares.sum() + 2 * np.vdot(bias, mean) + n * np.vdot(bias, bias)) / n)

    def second(self, inputs: Floats, targets: Floats) -> tuple[Floats, Floats, Floats]:
        """E[x x'] (groups, K, K), E[t x'] (groups, O, K) and E[t^2] (groups, O) about these points."""
        found, n = self.about(inputs, targets), max(self.inputs.count, 1)
        return found.inputs.gram / n, found.cross / n, found.squares / n

    def centred(self) -> tuple[Floats, Floats, Floats]:
        """The same about the means: covariances and variances."""
        return self.second(self.inputs.mean(), self.goal())
