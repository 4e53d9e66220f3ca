"""Whole networks proposed from error curves: all groups narrowed together, each where a millisecond costs least error.

1. The error of a group at a width is the share of its consumers' outputs that the best refit cannot give back
   (`UnitOrder.error`); errors of groups are taken to add up.
2. What a width saves is the cost of the whole network less its cost with that group alone at that width; in the
   resources that are limited, or in any other one (`by`).
3. Greedy on the lower convex hull of each group's (saving, error) points: the step of the least error per saving is
   taken until the whole network's estimate is within the limits (a Lagrangian knapsack).

Costs interact, so that the sum is only a guide: the networks are proposals, judged by the same score as all others.
Source: RECOVERY B and C (measured); the idea of a latency knapsack is HALP's (Shen et al., NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .common import Choice, Cost, Costs, Score, Widths, all_of, full_widths, over

POWERS = (0.5, 1.0, 2.0)
"""Errors are raised to these powers, one proposal for each: how much a large error in one place counts against many."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Curves = Mapping[str, Floats]
"""Errors of every width by group (`UnitOrder.error`)."""

Pool = Callable[[Mapping[str, float]], list[Widths]]


def summed_error(curves: Curves, widths: Mapping[str, int]) -> float:
    """The errors of groups at their widths, added up (rule 1)."""
    return sum(float(curves[name][width]) for name, width in widths.items())


def summed_errors(curves: Curves, widths: Mapping[str, Ints]) -> Floats:
    """The same of several networks (n,), with the widths (n,) of each group."""
    found: Floats = np.sum([curves[name][own] for name, own in widths.items()], axis=0)
    return found


def least_error(curves: Curves) -> Score:
    """A score of widths that runs nothing: the summed error, taken negative."""
    return lambda widths: -summed_error(curves, widths)


def pool_of(
    groups: Sequence[Choice],
    curves: Curves,
    cost: Cost,
    powers: Sequence[float] = POWERS,
    by: Callable[[Mapping[str, int]], Costs] | None = None,
) -> Pool:
    """A function that gives, for limits by resource, the networks that the error curves propose within them.

    Savings are counted in the costs that `by` gives, where it is there, and in the resources of the limits otherwise.
    """
    ladders: dict[tuple[str, ...], list[list[tuple[str, int]]]] = {}

    def propose(limits: Mapping[str, float]) -> list[Widths]:
        names = tuple(sorted(limits))
        if names not in ladders:
            saved = _savings(groups, partial(_limited, cost, names) if by is None else partial(map, by))
            ladders[names] = [_ladder(groups, curves, saved, power) for power in powers]
        found = [_descend(groups, ladder, cost, limits) for ladder in ladders[names]]
        distinct = {tuple(widths.items()): widths for widths in found if widths is not None}
        return list(distinct.values())

    return propose


def _limited(cost: Cost, names: Sequence[str], networks: Sequence[Widths]) -> list[Costs]:
    """The estimated costs that are limited, of several networks."""
    return [{name: found[name] for name in names} for found in all_of(cost, networks)]


def _savings(
    groups: Sequence[Choice], costs: Callable[[list[Widths]], Iterable[Costs]]
) -> dict[str, list[tuple[int, float]]]:
    """For each group its widths, the full one first, with the share of the whole cost that each saves (rule 2)."""
    full = full_widths(groups)
    steps = [(group.id, width) for group in groups for width in sorted(group.widths, reverse=True)]
    start, *rest = costs([full, *(full | {name: width} for name, width in steps)])
    found: dict[str, list[tuple[int, float]]] = {}
    for (name, width), own in zip(steps, rest, strict=True):
        saved = float(np.mean([(start[which] - own[which]) / start[which] for which in start]))
        found.setdefault(name, []).append((width, saved))
    return found


def _ladder(
    groups: Sequence[Choice], curves: Curves, saved: Mapping[str, Sequence[tuple[int, float]]], power: float
) -> list[tuple[str, int]]:
    """All (group, width) steps, those of least error per saving first (rule 3)."""
    steps: list[tuple[float, str, int]] = []
    for group in groups:
        widths, gains = zip(*saved[group.id], strict=True)
        error = [float(curves[group.id][width]) ** power for width in widths]
        steps += [(slope, group.id, widths[place]) for slope, place in _hull(gains, error)]
    return [(name, width) for _, name, width in sorted(steps)]


def _hull(saved: Sequence[float], error: Sequence[float]) -> list[tuple[float, int]]:
    """The places on the lower convex hull of (saving, error), with the slope that leads to each."""
    found: list[tuple[float, int]] = []
    here = 0
    while here < len(saved) - 1:
        slopes = [
            ((error[there] - error[here]) / gain if (gain := saved[there] - saved[here]) > 1e-12 else np.inf, there)
            for there in range(here + 1, len(saved))
        ]
        slope, here = min(slopes, key=lambda item: (item[0], -item[1]))
        if not np.isfinite(slope):
            break
        found.append((max(slope, 0.0), here))
    return found


def _descend(
    groups: Sequence[Choice], ladder: Sequence[tuple[str, int]], cost: Cost, limits: Mapping[str, float]
) -> Widths | None:
    """The first network down the ladder that is within the limits; None when the ladder ends before."""
    low, high = 0, len(ladder)
    if over(cost(_at(groups, ladder, high)), limits):
        return None
    while low < high:
        middle = (low + high) // 2
        if over(cost(_at(groups, ladder, middle)), limits):
            low = middle + 1
        else:
            high = middle
    return _at(groups, ladder, low)


def _at(groups: Sequence[Choice], ladder: Sequence[tuple[str, int]], steps: int) -> Widths:
    widths = full_widths(groups)
    for name, width in ladder[:steps]:
        widths[name] = min(widths[name], width)
    return widths
