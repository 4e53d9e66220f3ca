"""NetAdapt (Yang et al., ECCV 2018, Algorithm 1): one group is narrowed at a time until the budget is met.

1. Every iteration must save the step of the reduction schedule: step_i = initial_step * decay^i of the starting cost.
2. Each group makes one proposal: the largest width at which the WHOLE network, the effect on its neighbours included,
   meets the iteration's limit, all other groups unchanged.
3. The proposal of the highest score wins; it is measured, and the measured cost is what the next iteration starts from.
4. The last limit is clamped to the budget. Every accepted network is a usable trade-off and stands in the journal.

DEVIATION: with a `pool` whole networks made from error curves (`curves`) stand beside the single-group proposals,
judged by the same score; `give_back` spends what the last step left of the budget. Both can be switched off.
DEVIATION: recovery in closed form stands in for short-term fine-tuning (the score does it), because it costs a
thousandth of the time. DEVIATION: a schedule whose whole reach falls short of the budget is scaled up before the start
(`reach`); the paper's code runs out of iterations instead (ALGORITHMS A2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.errors import BudgetError
from ...ir.graph import Graph
from .common import (
    Choice,
    Cost,
    Costs,
    Journal,
    Score,
    SearchResult,
    Step,
    Widths,
    full_widths,
    give_back,
    over,
    require_reachable,
)
from .curves import Pool

DECAY = 0.96
EASINGS = 4
"""Times that an iteration's limit is moved half-way back when no single group can meet it."""

TRIES = 3
"""Proposals that are measured before the estimates of an iteration are given up."""

POOL = "error curves"
"""The name under which the journal has proposals from the pool."""

ITERATIONS = 16
"""Iterations that the default schedule is laid out for."""


def search(
    graph: Graph,
    groups: Sequence[Choice],
    cost: Cost,
    score: Score,
    budget: Mapping[str, float],
    *,
    rng: np.random.Generator,
    journal: Journal,
    step: float | None = None,
    decay: float = DECAY,
    widen: bool = True,
    pool: Pool | None = None,
    **options: Any,
) -> SearchResult:
    """The network within the budget that NetAdapt finds.

    `step` is the first reduction as a share of the starting cost (None: laid out for ITERATIONS steps), `decay` its
    factor from one iteration to the next; `widen` gives unused budget back at the end; `pool` adds whole networks to
    each iteration's proposals. With neither it is the published algorithm. Deterministic: `rng` is unused.
    Raises BudgetError when the budget cannot be reached.
    """
    start = cost.measure(full_widths(groups))
    require_reachable(groups, cost, budget)
    first = schedule(start, budget, step, decay)
    widths, measured = full_widths(groups), start
    steps = list(journal.past)
    if steps:
        widths, measured = dict(steps[-1].widths), steps[-1].measured
    while over(measured, budget):
        number = len(steps)
        limits = _limits(start, measured, budget, first * decay**number)
        taken = _iterate(groups, cost, score, widths, measured, limits, number, pool)
        widths, measured = dict(taken.widths), taken.measured
        steps.append(taken)
        journal.add(taken)
    if widen and steps:
        widths, measured, accepted = give_back(groups, cost, score, budget, widths, measured)
        for wider, found in accepted:
            steps.append(Step(len(steps), dict(budget), (), wider, cost(wider), found, score(wider)))
            journal.add(steps[-1])
    return SearchResult(widths, measured, tuple(steps))


def schedule(start: Costs, budget: Mapping[str, float], step: float | None, decay: float) -> float:
    """The first step as a share of the starting cost, large enough that the schedule reaches the budget.

    The whole reach of a schedule is step / (1 - decay) (a geometric series); see ALGORITHMS A2.
    """
    needed = max((1 - limit / start[name] for name, limit in budget.items()), default=0.0)
    layout = reach(1.0, decay, ITERATIONS)
    if step is None:
        return max(needed, 0.0) / layout
    if decay < 1 and reach(step, decay, None) < needed:
        return needed / layout
    return step


def reach(step: float, decay: float, iterations: int | None) -> float:
    """The share of the starting cost that a schedule removes in all, or in a number of iterations."""
    if iterations is None:
        return float("inf") if decay >= 1 else step / (1 - decay)
    return step * sum(decay**i for i in range(iterations))


def _limits(start: Costs, measured: Costs, budget: Mapping[str, float], share: float) -> dict[str, float]:
    """This iteration's limit for every resource: a step down where it is over the budget, never below the budget."""
    return {
        name: max(limit, measured[name] - share * start[name]) if measured[name] > limit else limit
        for name, limit in budget.items()
    }


def _iterate(
    groups: Sequence[Choice],
    cost: Cost,
    score: Score,
    widths: Widths,
    measured: Costs,
    limits: Mapping[str, float],
    number: int,
    pool: Pool | None,
) -> Step:
    """One iteration; the limits are relaxed towards the present cost when no single group can meet them."""
    eased = dict(limits)
    for _ in range(EASINGS):
        found = _proposals(groups, cost, widths, measured, eased)
        if pool is not None:
            found += _from_pool(pool, cost, widths, measured, eased)
        if found:
            break
        eased = {name: (limit + max(limit, measured[name])) / 2 for name, limit in eased.items()}
    else:
        found = _smallest(groups, cost, widths)
    scored = [(score(candidate), name, candidate) for name, candidate in found]
    ranked = sorted(scored, key=lambda item: -item[0])
    winner = _first_that_saves(cost, [item[2] for item in ranked], widths, measured, eased, groups)
    best = next((value for value, _, candidate in scored if candidate == winner), None)
    best = score(winner) if best is None else best
    proposals = tuple(
        {"group": name, "width": candidate.get(name), "estimate": dict(cost(candidate)), "score": value}
        for value, name, candidate in scored
    )
    estimate = dict(cost(winner))
    return Step(number, eased, proposals, winner, estimate, dict(cost.measure(winner)), best)


def _first_that_saves(
    cost: Cost,
    ranked: Sequence[Widths],
    widths: Widths,
    measured: Costs,
    limits: Mapping[str, float],
    groups: Sequence[Choice],
) -> Widths:
    """The best proposal that, measured, saves at least half of what the iteration asks for.

    Estimates may be wrong, and a step that saves nothing would be repeated for ever. When the best few save too little,
    every group is narrowed by one width.
    """
    for candidate in ranked[:TRIES]:
        found = cost.measure(candidate)
        wanted = {name: (measured[name] + limit) / 2 for name, limit in limits.items() if measured[name] > limit}
        if not over(found, wanted):
            return candidate
    notches = {
        group.id: max((w for w in group.widths if w < widths[group.id]), default=group.widths[0]) for group in groups
    }
    return widths | notches


def _from_pool(
    pool: Pool, cost: Cost, widths: Widths, measured: Costs, limits: Mapping[str, float]
) -> list[tuple[str, Widths]]:
    """Networks from the pool whose estimate, corrected by that of the present network, is within the limits."""
    present = cost(widths)
    scaled = {name: limit * present[name] / measured[name] for name, limit in limits.items()}
    return [(POOL, candidate) for candidate in pool(scaled) if candidate != widths]


def _proposals(
    groups: Sequence[Choice], cost: Cost, widths: Widths, measured: Costs, limits: Mapping[str, float]
) -> list[tuple[str, Widths]]:
    """Rule 2: for each group that can, the largest width that meets the limits (cost has steps: no bisection)."""
    # estimates are compared with the estimate of the present network, so that its error cancels
    scale = {name: measured[name] / present for name, present in cost(widths).items() if present and name in limits}
    found = []
    for group in groups:
        for width in sorted((w for w in group.widths if w < widths[group.id]), reverse=True):
            candidate = widths | {group.id: width}
            estimate = cost(candidate)
            if all(estimate[name] * scale.get(name, 1.0) <= limit for name, limit in limits.items()):
                found.append((group.id, candidate))
                break
    return found


def _smallest(groups: Sequence[Choice], cost: Cost, widths: Widths) -> list[tuple[str, Widths]]:
    """The next narrower width of every group: the way on when estimates promise nothing."""
    found = [
        (group.id, widths | {group.id: max(w for w in group.widths if w < widths[group.id])})
        for group in groups
        if any(w < widths[group.id] for w in group.widths)
    ]
    if not found:
        raise BudgetError("every group is at its smallest width and the measured cost is still over the budget")
    return found
