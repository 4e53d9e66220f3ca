"""Least squares from sums: what a fit needs to know about its rows, however many there were.

For targets t and inputs x, W and b minimise E|t - W x - b|^2 + ridge |W - W0|^2 with W0 where the fit started.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.ops.maps import Floats
from .gram import Moments
from .importance import damping
from .recover import solve


@dataclass(slots=True)
class Sums:
    """Moments of the inputs x, and of the targets t with them: cross (groups, O, K), total and squares (groups, O)."""

    inputs: Moments
    cross: Floats
    total: Floats
    squares: Floats

    @classmethod
    def empty(cls, groups: int, outputs: int, columns: int) -> Sums:
        """Sums over no rows."""
        rows = (groups, outputs)
        return cls(Moments.empty(groups, columns), np.zeros((*rows, columns)), np.zeros(rows), np.zeros(rows))

    def add(self, x: Floats, t: Floats) -> None:
        """Adds rows x (groups, rows, K) and t (groups, rows, O)."""
        self.inputs.add(x)
        self.cross += np.matmul(t.transpose(0, 2, 1), x)
        self.total += t.sum(axis=1)
        self.squares += np.einsum("gro,gro->go", t, t)

    def plus(self, other: Sums) -> Sums:
        """The sums over the rows of both."""
        a, b = self.inputs, other.inputs
        both = Moments(a.count + b.count, a.total + b.total, a.gram + b.gram)
        return Sums(both, self.cross + other.cross, self.total + other.total, self.squares + other.squares)

    def loss(self, matrix: Floats, bias: Floats) -> float:
        """The mean square of t - W x - b."""
        n = max(self.inputs.count, 1)
        quadratic = np.vdot(matrix @ self.inputs.gram, matrix) - 2 * np.vdot(matrix, self.cross)
        mean = np.matmul(matrix, self.inputs.total[:, :, None])[:, :, 0] - self.total
        return float((quadratic + self.squares.sum() + 2 * np.vdot(bias, mean) + n * np.vdot(bias, bias)) / n)


@dataclass(frozen=True, slots=True)
class Model:
    """What is fitted: W starts at `start` (groups, O, K); b is free where `centred`, else it is `fixed` (groups, O)."""

    start: Floats
    fixed: Floats
    centred: bool


def least_squares(sums: Sums, model: Model, ridge: float) -> tuple[Floats, Floats]:
    """W (groups, O, K) and b (groups, O); the ridge is a share of the mean diagonal of E[x x']."""
    n = max(sums.inputs.count, 1)
    grams, means, goals = sums.inputs.second(centred=model.centred), sums.inputs.mean(), sums.total / n
    aim = goals if model.centred else model.fixed
    solved = []
    for number, (gram, mean, w) in enumerate(zip(grams, means, model.start, strict=True)):
        cross = sums.cross[number] / n - np.outer(aim[number], mean)
        solved.append(w + solve(gram, cross - w @ gram, damping(gram, ridge)))
    matrix = np.stack(solved)
    return matrix, _bias(sums, model, matrix)


def spread(sums: Sums, model: Model, matrix: Floats, power: float) -> tuple[Floats, Floats]:
    """W and b with the outputs' variance moved by `power` (in the logarithm) from that of W x to that of the targets.

    0 leaves all as it is, 1 makes the variances equal; without a free bias it is their mean squares.
    """
    n = max(sums.inputs.count, 1)
    goals, grams = sums.total / n, sums.inputs.second(centred=model.centred)
    centre = goals**2 if model.centred else 2 * goals * model.fixed - model.fixed**2
    wanted = float((sums.squares / n - centre).sum())
    reached = float(sum(np.vdot(w @ gram, w) for w, gram in zip(matrix, grams, strict=True)))
    if 0 < reached < wanted:
        matrix = matrix * (wanted / reached) ** (power / 2)
    return matrix, _bias(sums, model, matrix)


def _bias(sums: Sums, model: Model, matrix: Floats) -> Floats:
    if not model.centred:
        return model.fixed
    found: Floats = sums.total / max(sums.inputs.count, 1) - np.einsum("gok,gk->go", matrix, sums.inputs.mean())
    return found
