"""NetAdapt (Yang et al., ECCV 2018, Algorithm 1): one group is narrowed at a time until the budget is met.

Each group makes one proposal per iteration: the largest width at which the WHOLE network, the effect on its neighbours
included, meets the iteration's limit, all other groups unchanged. The rest is in `descent`.

DEVIATION: with a `pool` whole networks made from error curves (`curves`) stand beside the single-group proposals,
judged by the same score. DEVIATION: with `coarse` scores only the best third of the proposals goes on from one to the
next (`descent`, rule 4). Both can be switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir.graph import Graph
from .common import Choice, Cost, Journal, Score, SearchResult
from .curves import Curves, Pool
from .descent import DECAY, Descent, Place, Proposal, Schedule, from_pool, single_groups

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
    coarse: Sequence[Score] = (),
    iterations: int = ITERATIONS,
    goal: Mapping[str, float] | None = None,
    curves: Curves | None = None,
    **options: Any,
) -> SearchResult:
    """The network within the budget that NetAdapt finds.

    `step` is the first reduction as a share of the starting cost (None: laid out for `iterations` steps), `decay` its
    factor from one iteration to the next; `widen` gives unused budget back at the end; `pool` adds whole networks to
    each iteration's proposals; `coarse` are cheap scores, the cheapest first; `goal` is the least budget of a pass
    through several; `curves` are errors by width, for the exchanges at the end. With `widen` off, no pool and no coarse
    scores it is the published algorithm.
    Deterministic: `rng` is unused.
    Raises BudgetError when the budget cannot be reached.
    """

    def propose(place: Place) -> list[Proposal]:
        return single_groups(groups, cost, place) + from_pool(pool, cost, place)

    schedule = Schedule(step, decay, iterations)
    return Descent(groups, cost, (*coarse, score), budget, propose, schedule, goal, curves).run(journal, widen=widen)
