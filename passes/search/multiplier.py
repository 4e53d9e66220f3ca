"""The uniform baseline: all groups at one share of their width, the largest share that is within the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.graph import Graph
from .common import (
    Choice,
    Cost,
    Journal,
    Key,
    Score,
    SearchResult,
    Step,
    Widths,
    full_widths,
    over,
    require_reachable,
    without_depth,
)

SHARES = 101


def search(
    graph: Graph,
    groups: Sequence[Choice],
    cost: Cost,
    score: Score,
    budget: Mapping[str, float],
    *,
    rng: np.random.Generator,
    journal: Journal,
    **options: Any,
) -> SearchResult:
    """The widest uniform network whose measured cost is within the budget; BudgetError when there is none.

    It narrows only: no branch goes whole.
    """
    groups = without_depth(groups)
    measured = cost.measure(full_widths(groups))
    if not over(measured, budget):
        return SearchResult(full_widths(groups), measured, tuple(journal.past))
    require_reachable(groups, cost, budget)
    steps = list(journal.past)
    if steps and not over(steps[-1].measured, budget):
        return SearchResult(steps[-1].widths, steps[-1].measured, tuple(steps))
    tried = {tuple(step.widths.items()) for step in steps}
    for candidate in uniform(groups):
        if tuple(candidate.items()) in tried or over(cost(candidate), budget):
            continue
        found = dict(cost.measure(candidate))
        steps.append(Step(len(steps), dict(budget), (), candidate, dict(cost(candidate)), found, score(candidate)))
        journal.add(steps[-1])
        if not over(found, budget):
            return SearchResult(candidate, found, tuple(steps))
    last = steps[-1]
    return SearchResult(last.widths, last.measured, tuple(steps))


def uniform(groups: Sequence[Choice]) -> list[Widths]:
    """Uniform networks from the widest to the narrowest, each group at the nearest of its widths."""
    ladder: dict[Key, Widths] = {}
    for share in np.linspace(1.0, 0.0, SHARES):
        widths = {group.id: min(group.widths, key=lambda w: abs(w - share * group.widths[-1])) for group in groups}
        ladder[tuple(widths.items())] = widths
    return list(ladder.values())
