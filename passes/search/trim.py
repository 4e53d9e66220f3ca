"""A network that measures over its budget made narrower where that costs least error, and otherwise left as it is.

A search that goes on from such a network narrows one group by all that is missing, or takes another network altogether:
MobileNetV2's best finalist, 3% over its budget, came back 8% under it and with twice the divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .common import Choice, Cost, Costs, Widths, all_of, over
from .curves import Curves

REACH = 8
"""Widths that a group gives at most in a step; more of them in several."""


def trim(
    groups: Sequence[Choice], curves: Curves, cost: Cost, widths: Widths, limits: Mapping[str, float]
) -> Widths | None:
    """The network narrowed until its estimate is within the limits; None where no narrower widths lead there.

    Each step narrows one group, that of the least error for what it saves of what is still missing. What is no group of
    channels stays as it is.
    """
    narrowed = dict(widths)
    while missing := _missing(cost(narrowed), limits):
        steps, narrower = [], list(_narrower(groups, narrowed))
        estimates = all_of(cost, [narrowed | {name: width} for name, width in narrower])
        for (name, width), estimate in zip(narrower, estimates, strict=True):
            saved = _saved(missing, estimate, limits)
            if saved > 0:
                added = max(float(curves[name][width] - curves[name][narrowed[name]]), 0.0)
                steps.append((added / saved, name, -width))
        if not steps:
            return None
        _, name, below = min(steps)
        narrowed[name] = -below
    return narrowed


def _narrower(groups: Sequence[Choice], widths: Widths) -> Iterator[tuple[str, int]]:
    """The groups with the widths that each may be narrowed to next."""
    for group in groups:
        if not group.apart:
            below = [width for width in group.widths if width < widths[group.id]]
            yield from ((group.id, width) for width in below[-REACH:])


def _missing(estimate: Costs, limits: Mapping[str, float]) -> dict[str, float]:
    """By how much each resource is over its limit, where it is."""
    return {name: estimate[name] - limit for name, limit in over(estimate, limits).items()}


def _saved(missing: Mapping[str, float], estimate: Costs, limits: Mapping[str, float]) -> float:
    """The share of what is missing that a network of this estimate saves, over all resources; more counts as all."""
    left = {name: max(estimate[name] - limits[name], 0.0) for name in missing}
    return sum(1 - left[name] / size for name, size in missing.items()) / len(missing)
