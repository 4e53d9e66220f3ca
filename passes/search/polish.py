"""The end of a search: what is left of the budget is spent, for steps overshoot and unused budget is accuracy.

1. A group is widened, as far as the budget lets it go: of all groups that can, the one of the best score. Where there
   are error curves, only those that lower the summed error most are scored.
2. When no group can be widened alone, widths are exchanged: one group gives a few widths so that another can take some.
   The exchanges that fill the budget and lower the summed error of the curves most are scored; the best one is taken if
   its score is no lower than before.
3. Every network taken is measured. One that measures over the budget is barred, and another one tried. One that was
   taken before is not taken again: with two resources, exchanges of equal score would lead round in circles for ever.

Estimates count relative to the present network's, so that their common error cancels.
DEVIATION: the paper stops at the first network within the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .common import Choice, Cost, Costs, Key, Score, Step, Widths, all_of, in_estimates, key_of, over
from .curves import Curves, summed_error

SPENT = 0.99
"""A network of this share of any budget has spent it."""

REACH = 3
"""Widths that a group gives or takes at most in an exchange."""

EXCHANGES = 30_000
"""Exchanges that are looked at; with more groups each of them reaches less far."""

AT_ONCE = 512
"""Changes that are estimated together."""

SCORED = 12
"""Exchanges, and groups to be widened where there are curves, that are scored: in networks of fifty groups each of them
was, at every step.
"""

TRIES = 2
"""Networks that may measure over the budget before the rest of it is left."""


def polish(
    groups: Sequence[Choice],
    cost: Cost,
    score: Score,
    budget: Mapping[str, float],
    taken: Step,
    curves: Curves | None = None,
) -> list[Step]:
    """The steps after `taken` that spend what it leaves of the budget; none when it has spent it.

    `curves` give for each group its error by width (`UnitOrder.error`); without them exchanges are chosen by cost.
    """
    place = _Place(groups, cost, score, budget, curves, dict(taken.widths), taken.measured, taken.score)
    place.tried.add(key_of(taken.widths))
    steps: list[Step] = []
    over_budget = 0
    while not place.spent() and over_budget < TRIES:
        best = place.best(place.wider()) or place.best(place.exchanged(), place.value)
        if best is None:
            break
        value, widths = best
        measured = cost.measure(widths)
        place.tried.add(key_of(widths))
        if over(measured, budget):
            over_budget += 1
            continue
        place.widths, place.measured, place.value = widths, measured, value
        steps.append(Step(taken.number + 1 + len(steps), dict(budget), (), widths, dict(cost(widths)), measured, value))
    return steps


@dataclass(slots=True)
class _Place:
    """The present network, its measured costs and its score."""

    groups: Sequence[Choice]
    cost: Cost
    score: Score
    budget: Mapping[str, float]
    curves: Curves | None
    widths: Widths
    measured: Costs
    value: float
    tried: set[Key] = field(default_factory=set)

    def spent(self) -> bool:
        """Whether any budget is used up."""
        return any(self.measured[name] >= SPENT * limit for name, limit in self.budget.items())

    def best(self, networks: Sequence[Widths], least: float = float("-inf")) -> tuple[float, Widths] | None:
        """The network of the best score, and that score; None when there is none of at least `least`."""
        scored = zip(all_of(self.score, networks), networks, strict=True)
        found = max(scored, key=lambda item: item[0], default=None)
        return found if found is not None and found[0] >= least else None

    def limits(self) -> dict[str, float]:
        """The budget in terms of estimates."""
        return in_estimates(self.budget, self.cost(self.widths), self.measured)

    def wider(self) -> list[Widths]:
        """For each group the network with it as wide as the budget lets it be (rule 1)."""
        limits = self.limits()
        rising = [{g.id: width} for g in self.groups for width in g.widths if width > self.widths[g.id]]
        widest = {next(iter(change)): (change, widths) for change, widths, _ in self._allowed(rising, limits)}
        found = sorted(widest.values(), key=lambda item: self._added(item[0]))
        return [widths for _, widths in found[: SCORED if self.curves is not None else None]]

    def exchanged(self) -> list[Widths]:
        """The exchanges worth scoring (rule 2); with curves they come by their error, and few have to be estimated."""
        limits, present = self.limits(), self.cost(self.widths)
        half = {name: (present[name] + limit) / 2 for name, limit in limits.items()}
        found: list[tuple[float, float, Widths]] = []
        for change, widths, estimate in self._allowed(sorted(self._exchanges(), key=self._added), limits):
            added = self._added(change)
            if len(found) >= SCORED and added > found[-1][0]:
                break
            if over(estimate, half):
                fill = max(estimate[name] / limit for name, limit in limits.items())
                found.append((added, -fill, widths))
        found.sort(key=lambda item: item[:2])
        return [widths for _, _, widths in found[:SCORED]]

    def _allowed(
        self, changes: Sequence[Widths], limits: Mapping[str, float]
    ) -> Iterator[tuple[Widths, Widths, Costs]]:
        """Of these changes those that may be tried, with the widths that they lead to and their estimate."""
        for start in range(0, len(changes), AT_ONCE):
            some = changes[start : start + AT_ONCE]
            networks = [self.widths | change for change in some]
            for change, widths, estimate in zip(some, networks, all_of(self.cost, networks), strict=True):
                if not over(estimate, limits) and key_of(widths) not in self.tried:
                    yield change, widths, estimate

    def _exchanges(self) -> Iterator[Widths]:
        """Changes that make one group wider and another one narrower."""
        reach = int(np.clip(np.sqrt(EXCHANGES) / max(len(self.groups), 1), 1, REACH))
        for riser in self.groups:
            for high in [w for w in riser.widths if w > self.widths[riser.id]][:reach]:
                for giver in self.groups:
                    if giver.id != riser.id:
                        for low in [w for w in giver.widths if w < self.widths[giver.id]][-reach:]:
                            yield {riser.id: high, giver.id: low}

    def _added(self, change: Widths) -> float:
        """What a change adds to the summed error."""
        if self.curves is None:
            return 0.0
        return summed_error(self.curves, change) - summed_error(self.curves, {g: self.widths[g] for g in change})
