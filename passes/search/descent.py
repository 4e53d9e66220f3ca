"""Descent to a budget step by step: what `netadapt` and `mcd` share. They differ in the proposals alone.

1. Every iteration must save the step of the reduction schedule: step_i = initial_step * decay^i of the starting cost,
   of every resource that is over its budget; the others must stay within theirs.
2. The proposal of the highest score wins; it is measured, and the measured cost is what the next iteration starts from.
3. The last limit is clamped to the budget. Every accepted network is a usable trade-off and stands in the journal.
4. With several rungs (scores from the coarsest to the finest) only the best third goes on from one to the next:
   successive halving (Jamieson and Talwalkar, 2016).

DEVIATION: `polish` spends what the last step left of the budget. It can be switched off.
DEVIATION: recovery in closed form stands in for short-term fine-tuning (the score does it), because it costs a
thousandth of the time. DEVIATION: a schedule whose whole reach falls short of the budget is scaled up before the start
(`reach`); the paper's code runs out of iterations instead (ALGORITHMS A2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from ...ir.errors import BudgetError
from .common import (
    Choice,
    Cost,
    Costs,
    Journal,
    Score,
    SearchResult,
    Step,
    Widths,
    all_of,
    full_widths,
    over,
    require_reachable,
)
from .curves import Curves, Pool
from .polish import polish

DECAY = 0.96
LEAST_STEP = 0.015
"""A first step that is laid out for the budget takes at least this share of the start: smaller ones are lost in the
noise of measuring, and steps of 2% were as good as any in RECOVERY C.
"""

EASINGS = 4
"""Times that an iteration's limit is moved half-way back when no proposal can meet it."""

TRIES = 3
"""Proposals that are measured before the estimates of an iteration are given up."""

HALVING = 3
"""One of so many proposals goes on to the next rung."""

AT_ONCE = 8
"""Widths of each group that are estimated together; most of a step's proposals are among the first of them."""

POOL = "error curves"
"""The name under which the journal has proposals from the pool."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an iteration stands: the present network, its measured costs, and the limits to be met."""

    widths: Widths
    measured: Costs
    limits: Mapping[str, float]

    def scale(self, cost: Cost) -> dict[str, float]:
        """Measured by estimated cost of the present network: estimates count relative to it, so that errors cancel."""
        present = cost(self.widths)
        return {name: self.measured[name] / present[name] for name in self.limits if present[name]}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A network to be judged; `name` is the group that was narrowed, or says how it was made."""

    name: str
    widths: Widths


Propose = Callable[[Place], list[Proposal]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The first step as a share of the starting cost (None: laid out for `iterations`), and its factor per step."""

    step: float | None
    decay: float
    iterations: int

    def first(self, start: Costs, budget: Mapping[str, float]) -> float:
        """The first step, large enough that the whole schedule reaches the budget."""
        needed = max((1 - limit / start[name] for name, limit in budget.items()), default=0.0)
        if self.step is None:
            return max(needed / reach(1.0, self.decay, self.iterations), LEAST_STEP) if needed > 0 else 0.0
        if self.decay < 1 and reach(self.step, self.decay, None) < needed:
            return needed / reach(1.0, self.decay, self.iterations)
        return self.step


def reach(step: float, decay: float, iterations: int | None) -> float:
    """The share of the starting cost that a schedule removes in all, or in a number of iterations.

    The whole reach is step / (1 - decay) (a geometric series); see ALGORITHMS A2.
    """
    if iterations is None:
        return float("inf") if decay >= 1 else step / (1 - decay)
    return step * sum(decay**i for i in range(iterations))


@dataclass(frozen=True, slots=True)
class Descent:
    """Everything an iteration needs: `rungs` are scores from the coarsest to the one that decides.

    `goal` is the least of several budgets that one pass goes through: the schedule is laid out for it. `curves` are the
    groups' errors by width, for the exchanges at the end.
    """

    groups: Sequence[Choice]
    cost: Cost
    rungs: Sequence[Score]
    budget: Mapping[str, float]
    propose: Propose
    schedule: Schedule
    goal: Mapping[str, float] | None = None
    curves: Curves | None = None

    @property
    def score(self) -> Score:
        """The score that decides."""
        return self.rungs[-1]

    def run(self, journal: Journal, *, widen: bool) -> SearchResult:
        """The network within the budget, every step in the journal; BudgetError when there is none.

        Steps that the journal has already are gone on from. `widen` gives unused budget back at the end.
        """
        start = self.cost.measure(full_widths(self.groups))
        require_reachable(self.groups, self.cost, self.budget)
        first = self.schedule.first(start, self.goal or self.budget)
        widths, measured = full_widths(self.groups), start
        steps = list(journal.past)
        if steps:
            widths, measured = dict(steps[-1].widths), steps[-1].measured
        while over(measured, self.budget):
            number = len(steps)
            limits = _limits(start, measured, self.budget, first * self.schedule.decay**number)
            taken = self._iterate(Place(widths, measured, limits), number)
            widths, measured = dict(taken.widths), taken.measured
            steps.append(taken)
            journal.add(taken)
        if widen and steps:
            for wider in polish(self.groups, self.cost, self.score, self.budget, steps[-1], self.curves):
                widths, measured = dict(wider.widths), wider.measured
                steps.append(wider)
                journal.add(wider)
        return SearchResult(widths, measured, tuple(steps))

    def _iterate(self, place: Place, number: int) -> Step:
        """One iteration; the limits are relaxed towards the present cost when no proposal can meet them."""
        found: list[Proposal] = []
        for _ in range(EASINGS):
            found = self.propose(place)
            if found:
                break
            limits = {name: (limit + max(limit, place.measured[name])) / 2 for name, limit in place.limits.items()}
            place = replace(place, limits=limits)
        else:
            found = _smallest(self.groups, place.widths)
        judged, finalists = _judge(found, self.rungs)
        winner = self._first_that_saves(finalists, place)
        known = {tuple(item.widths.items()): value for value, item in finalists}
        best = known.get(tuple(winner.items()))
        estimates = all_of(self.cost, [item.widths for item in found])
        told = zip(found, estimates, judged, strict=True)
        return Step(
            number,
            dict(place.limits),
            tuple(self._told(item, estimate, *verdict, place) for item, estimate, verdict in told),
            winner,
            dict(self.cost(winner)),
            dict(self.cost.measure(winner)),
            self.score(winner) if best is None else best,
        )

    def _told(self, item: Proposal, estimate: Costs, value: float, rung: int, place: Place) -> dict[str, Any]:
        """A proposal as the journal has it; `rung` is there when its score is not the one that decides."""
        told = {"group": item.name, "width": item.widths.get(item.name), "estimate": dict(estimate)}
        if told["width"] is None:
            told["changes"] = {name: w for name, w in item.widths.items() if w != place.widths[name]}
        return told | {"score": value} | ({"rung": rung} if rung < len(self.rungs) - 1 else {})

    def _first_that_saves(self, finalists: Sequence[tuple[float, Proposal]], place: Place) -> Widths:
        """The best proposal that, measured, saves at least half of what the iteration asks for.

        Estimates may be wrong, and a step that saves nothing would be repeated for ever. When the best few save too
        little, every group is narrowed by one width; BudgetError when none can be.
        """
        measured = place.measured
        wanted = {n: (measured[n] + limit) / 2 for n, limit in place.limits.items() if measured[n] > limit}
        for _, item in finalists[:TRIES]:
            if not over(self.cost.measure(item.widths), wanted):
                return item.widths
        return _narrower_by_one(self.groups, place.widths)


def single_groups(groups: Sequence[Choice], cost: Cost, place: Place) -> list[Proposal]:
    """For each group that can, the largest width that meets the limits (cost has steps: no bisection)."""
    scale, found = place.scale(cost), dict[str, Widths]()
    below = {g.id: sorted((w for w in g.widths if w < place.widths[g.id]), reverse=True) for g in groups}
    while waiting := {name: widths[:AT_ONCE] for name, widths in below.items() if widths}:
        tried = [(name, place.widths | {name: width}) for name, widths in waiting.items() for width in widths]
        for (name, candidate), estimate in zip(tried, all_of(cost, [widths for _, widths in tried]), strict=True):
            if name not in found and within(estimate, scale, place.limits):
                found[name] = candidate
        below = {name: widths[AT_ONCE:] for name, widths in below.items() if name not in found}
    return [Proposal(group.id, found[group.id]) for group in groups if group.id in found]


def from_pool(pool: Pool | None, cost: Cost, place: Place) -> list[Proposal]:
    """Networks from the pool whose estimate, corrected by that of the present network, is within the limits."""
    if pool is None:
        return []
    scale = place.scale(cost)
    scaled = {name: limit / scale.get(name, 1.0) for name, limit in place.limits.items()}
    return [Proposal(POOL, candidate) for candidate in pool(scaled) if candidate != place.widths]


def within(estimate: Costs, scale: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether a scaled estimate meets the limits."""
    return all(estimate[name] * scale.get(name, 1.0) <= limit for name, limit in limits.items())


def _judge(
    proposals: Sequence[Proposal], rungs: Sequence[Score]
) -> tuple[list[tuple[float, int]], list[tuple[float, Proposal]]]:
    """For every proposal its score and the rung that gave it (rule 4), and those of the last rung, best first."""
    judged: list[tuple[float, int]] = [(float("-inf"), 0)] * len(proposals)
    alive = list(range(len(proposals)))
    for number, rung in enumerate(rungs):
        scores = all_of(rung, [proposals[place].widths for place in alive])
        for place, value in zip(alive, scores, strict=True):
            judged[place] = (value, number)
        alive.sort(key=lambda place: -judged[place][0])
        if number < len(rungs) - 1:
            alive = sorted(alive[: max(TRIES, ceil(len(alive) / HALVING))])
    return judged, [(judged[place][0], proposals[place]) for place in alive]


def _limits(start: Costs, measured: Costs, budget: Mapping[str, float], share: float) -> dict[str, float]:
    """This iteration's limit for every resource: a step down where it is over the budget, never below the budget."""
    return {
        name: max(limit, measured[name] - share * start[name]) if measured[name] > limit else limit
        for name, limit in budget.items()
    }


def _smallest(groups: Sequence[Choice], widths: Widths) -> list[Proposal]:
    """The next narrower width of every group: the way on when estimates promise nothing."""
    narrower = _narrower_by_one(groups, widths)
    changed = [group.id for group in groups if narrower[group.id] != widths[group.id]]
    return [Proposal(name, widths | {name: narrower[name]}) for name in changed]


def _narrower_by_one(groups: Sequence[Choice], widths: Widths) -> Widths:
    """Every group at its next narrower width; BudgetError when all are at their smallest."""
    narrower = {
        group.id: max((w for w in group.widths if w < widths[group.id]), default=widths[group.id]) for group in groups
    }
    if all(widths[name] == width for name, width in narrower.items()):
        raise BudgetError("every group is at its smallest width and the measured cost is still over the budget")
    return widths | narrower
