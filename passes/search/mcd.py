"""Multi-layer coordinate descent (NetAdaptV2: Yang et al., CVPR 2021): several groups are narrowed at a time.

1. Each of J proposals of an iteration narrows L groups drawn at random, each by a random share of the iteration's
   reduction (Dirichlet, all shares equally likely). Groups are filled one after the other against the cost of the whole
   network as it has become: the largest width at which the shares so far are saved. What a group cannot save is left to
   the next; what they save too much is given back, from the last group to the first.
2. Half of the draw is uniform, half in proportion to what a group's next width saves per error that it adds.
3. The single-group proposals and the networks from the error curves always stand in the pool of proposals.
4. `coarse` scores (fewer examples) thin the pool out before the score that decides: successive halving (`descent`).

With L = 1 a proposal is one of the single-group proposals, so that J = K without a pool is `netadapt`.

DEVIATION: rules 2 and 3; the paper draws groups alone, and its network's weights come from a trained super-network, so
that scoring 100 proposals costs little. Here each is refitted, so that J is 48 and L half of the groups, at most 10.
DEVIATION: the schedule is laid out for 4 iterations (the paper, from memory: 1.5% of the latency, decay 0.98).
DEVIATION: of the channel-level bypass only M = 0, of a residual branch or a plain layer (`Choice`): for 0 < M < T it
needs slices, and costs more than as many filters without them (docs/bypass.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ir.graph import Graph
from .common import Choice, Cost, Journal, Score, SearchResult, Widths
from .curves import Curves, Pool
from .descent import DECAY, Descent, Place, Proposal, Schedule, from_pool, single_groups, within

ITERATIONS = 4
"""Iterations that the default schedule is laid out for."""

PROPOSALS = 48
MOST_GROUPS = 10
RANDOM = "random groups"
"""The name under which the journal has the random proposals."""

Floats = NDArray[np.float64]


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
    iterations: int = ITERATIONS,
    goal: Mapping[str, float] | None = None,
    proposals: int = PROPOSALS,
    layers: int | None = None,
    coarse: Sequence[Score] = (),
    curves: Curves | None = None,
    **options: Any,
) -> SearchResult:
    """The network within the budget that multi-layer coordinate descent finds.

    `proposals` random networks per iteration narrow `layers` groups each (None: half of them, 2 to MOST_GROUPS);
    `curves` are the errors of each group by width (rule 2; None: the draw is uniform); `coarse` are cheap scores, the
    cheapest first; the rest as in `netadapt`. Deterministic for one state of `rng`, which is drawn from anew for each
    iteration, so that a run that goes on from a journal goes the same way.
    Raises BudgetError when the budget cannot be reached.
    """
    count = min(layers or max(2, ceil(len(groups) / 2)), MOST_GROUPS, len(groups))
    seed = int(rng.integers(2**32))

    def propose(place: Place) -> list[Proposal]:
        fixed = single_groups(groups, cost, place) + from_pool(pool, cost, place)
        draws = np.random.default_rng((seed, *(place.widths[group.id] for group in groups)))
        drawn = _Drawer(groups, cost, place, curves, draws).networks(proposals, count)
        known = {tuple(item.widths.items()) for item in fixed}
        return fixed + [Proposal(RANDOM, widths) for widths in drawn if tuple(widths.items()) not in known]

    schedule = Schedule(step, decay, iterations)
    return Descent(groups, cost, (*coarse, score), budget, propose, schedule, goal, curves).run(journal, widen=widen)


class _Drawer:
    """Draws the random proposals of one iteration."""

    def __init__(
        self,
        groups: Sequence[Choice],
        cost: Cost,
        place: Place,
        curves: Curves | None,
        rng: np.random.Generator,
    ) -> None:
        self.cost, self.place, self.rng = cost, place, rng
        self.scale = place.scale(cost)
        self.live = [group for group in groups if group.widths[0] < place.widths[group.id]]
        self.chances = self._chances(curves)

    def networks(self, count: int, layers: int) -> list[Widths]:
        """Distinct networks within the limits, at most `count`."""
        if not self.live:
            return []
        drawn = [self._draw(min(layers, len(self.live))) for _ in range(count)]
        distinct = {tuple(widths.items()): widths for widths in drawn if widths is not None}
        return list(distinct.values())

    def _chances(self, curves: Curves | None) -> Floats:
        """Rule 2."""
        uniform = np.full(len(self.live), 1 / max(len(self.live), 1))
        if curves is None or not self.live:
            return uniform
        gains = np.array([self._gain(group, curves[group.id]) for group in self.live])
        return uniform if not gains.sum() > 0 else 0.5 * uniform + 0.5 * gains / gains.sum()

    def _gain(self, group: Choice, curve: Floats) -> float:
        """What the next width saves, as a share of the present cost, per error that it adds."""
        widths, now = self.place.widths, self.place.widths[group.id]
        down = max(width for width in group.widths if width < now)
        before, after = self.cost(widths), self.cost(widths | {group.id: down})
        saved = float(np.mean([1 - after[name] / before[name] for name in self.place.limits if before[name]]))
        return max(saved, 0.0) / (max(float(curve[down] - curve[now]), 0.0) + 1e-3)

    def _draw(self, layers: int) -> Widths | None:
        """Rule 1; None when the groups cannot save enough together."""
        chosen = [self.live[i] for i in self.rng.choice(len(self.live), layers, replace=False, p=self.chances)]
        shares = np.cumsum(self.rng.dirichlet(np.ones(layers)))
        shares[-1] = 1.0
        widths = dict(self.place.widths)
        for group, share in zip(chosen, shares.tolist(), strict=True):
            self._narrow(widths, group, self._part_way(share))
        if not self._meets(widths, self.place.limits):
            return None
        for group in reversed(chosen):
            self._widen(widths, group)
        return widths

    def _part_way(self, share: float) -> dict[str, float]:
        """The limits when only a share of the reduction is asked for."""
        if share == 1.0:
            return dict(self.place.limits)
        measured = self.place.measured
        over = {name: limit for name, limit in self.place.limits.items() if measured[name] > limit}
        return {name: measured[name] + share * (limit - measured[name]) for name, limit in over.items()}

    def _meets(self, widths: Widths, limits: Mapping[str, float]) -> bool:
        return within(self.cost(widths), self.scale, limits)

    def _narrow(self, widths: Widths, group: Choice, limits: Mapping[str, float]) -> None:
        """The largest width of a group that meets the limits, the smallest when none does."""
        if self._meets(widths, limits):
            return
        for width in sorted((w for w in group.widths if w < widths[group.id]), reverse=True):
            widths[group.id] = width
            if self._meets(widths, limits):
                return

    def _widen(self, widths: Widths, group: Choice) -> None:
        """The largest width of a group at which the network is still within the limits."""
        now = widths[group.id]
        for width in sorted((w for w in group.widths if now < w <= self.place.widths[group.id]), reverse=True):
            if self._meets(widths | {group.id: width}, self.place.limits):
                widths[group.id] = width
                return
