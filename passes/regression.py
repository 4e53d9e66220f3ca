"""Least squares from sums: what a fit needs to know about its rows, however many there were.

For targets t and inputs x, W and b minimise E|t - W x - b|^2 + ridge |W - W0|^2 with W0 where the fit started.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..ir.ops.maps import Floats
from .importance import damping
from .moments import Sums
from .recover import solve


@dataclass(frozen=True, slots=True)
class Model:
    """What is fitted: W starts at `start` (groups, O, K); b is free where `centred`, else it is `fixed` (groups, O)."""

    start: Floats
    fixed: Floats
    centred: bool


def least_squares(sums: Sums, model: Model, ridge: float) -> tuple[Floats, Floats]:
    """W (groups, O, K) and b (groups, O); the ridge is a share of the mean diagonal of E[x x']."""
    return next(with_ridges(sums, model, [ridge]))


def with_ridges(sums: Sums, model: Model, ridges: Iterable[float]) -> Iterator[tuple[Floats, Floats]]:
    """The same for each of several ridges."""
    grams, cross, _ = _moments(sums, model)
    missing = [c - w @ gram for gram, c, w in zip(grams, cross, model.start, strict=True)]
    for ridge in ridges:
        solved = [
            w + solve(gram, m, damping(gram, ridge)) for gram, m, w in zip(grams, missing, model.start, strict=True)
        ]
        matrix = np.stack(solved)
        yield matrix, _bias(sums, model, matrix)


def spread(sums: Sums, model: Model, matrix: Floats, power: float) -> tuple[Floats, Floats]:
    """W and b with the outputs' variance moved by `power` (in the logarithm) from that of W x to that of the targets.

    0 leaves all as it is, 1 makes the variances equal; without a free bias it is their mean squares.
    """
    grams, _, squares = _moments(sums, model)
    wanted = float(squares.sum())
    reached = float(sum(np.vdot(w @ gram, w) for w, gram in zip(matrix, grams, strict=True)))
    if 0 < reached < wanted:
        matrix = matrix * (wanted / reached) ** (power / 2)
    return matrix, _bias(sums, model, matrix)


def _moments(sums: Sums, model: Model) -> tuple[Floats, Floats, Floats]:
    """E[x x'], E[t x'] and E[t^2] of what W alone has to do: about the means, or of x and t less the fixed bias."""
    if model.centred:
        return sums.centred()
    return sums.second(np.zeros_like(sums.inputs.centre), model.fixed)


def _bias(sums: Sums, model: Model, matrix: Floats) -> Floats:
    if not model.centred:
        return model.fixed
    found: Floats = sums.goal() - np.einsum("gok,gk->go", matrix, sums.inputs.mean())
    return found
