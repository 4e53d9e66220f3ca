"""ChamNet (Dai et al., CVPR 2019): pay once for a predictor of the score, then adapt to any budget in seconds.

1. Genes (`genes`): the share of its width that each group keeps, a bit for each branch that may go whole, and the size
   of the input where it may change.
2. Samples (the paper's Algorithm 1): from a pool of scrambled Sobol points START are scored, then in each round the
   EXPLORE of highest predicted deviation and the EXPLOIT of highest predicted score over cost, until the left-out error
   of the Gaussian process (`surrogate`) is small enough, or there are `samples`.
3. An adaptive genetic algorithm (Srinivas and Patnaik, 1994; population 96, 12 parents, 100 generations) looks for the
   network of highest predicted score less a penalty for what it is over its limits: the hinge form
   (ALPHA max(0, cost / limit - 1))^2 of the paper's equation 3.
4. The best ten are scored for real and fed back to the predictor, and rule 3 is repeated until that finds nothing
   better; the best that meets the budget by measurement is the answer. The predictor is kept in `samples_kept`: the
   next budget, or the next target, needs rules 3 and 4 alone.

DEVIATION: shrinking only, weights inherited and refitted: the score after closed-form recovery stands in for training.
DEVIATION: pool points are drawn towards a common level of widths and of depth (`genes`, rule 4); and networks from the
error curves (`curves`), at limits all the way down to the goal, are among the first samples and the first population.
The logarithm of the summed errors is one more input of the predictor: random points alone told ResNet20's levels apart
(Kendall's tau 0.89) and yet not the good networks of one level.
DEVIATION: the hinge is relative and scores are on the predictor's scale; the paper's 10 per ms goes with percent.
DEVIATION: a prediction counts less CAUTION deviations: the genetic algorithm finds where the predictor errs upwards.
DEVIATION: where the predictor is poor (Kendall's tau of left-out samples below RELIABLE), or none of its networks meets
the budget, `mcd` goes on from there; the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...ir.graph import Graph
from . import mcd
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
    key_of,
    over,
    require_reachable,
)
from .curves import Curves, Pool, summed_errors
from .genes import Genes
from .genetic import evolve
from .polish import polish
from .surrogate import Floats, Surrogate, fit, refit

POOL, START, EXPLORE, EXPLOIT = 2048, 40, 10, 10
SAMPLES = 240
POPULATION, FOUNDERS = 96, 12
GOOD_ERROR = 0.1
"""The left-out error, as a share of the samples' deviation, at which sampling ends."""

RELIABLE = 0.7
CAUTION = 1.0
ALPHA = 100.0
BEST = 10
ROUNDS, PATIENCE = 4, 1
"""Times that the genetic algorithm is run, its limits corrected by what was measured, and rounds in vain to end it."""

LEVELS = 6
"""Limits between the full cost and the goal at which the error curves propose networks to sample."""

LEAST_ERROR = 1e-4
"""Added to the summed errors before their logarithm is taken."""


class SampleStore(Protocol):
    """Where samples are kept, and the predictor that was made of them last."""

    widths: list[Widths]
    scores: list[float]
    surrogate: Surrogate | None

    def add(self, networks: Sequence[Widths], scores: Sequence[float], /) -> None:
        """Keeps samples."""


@dataclass(slots=True)
class Samples:
    """Samples in memory."""

    widths: list[Widths] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    surrogate: Surrogate | None = None

    def add(self, networks: Sequence[Widths], scores: Sequence[float], /) -> None:
        """Keeps samples."""
        self.widths += [dict(widths) for widths in networks]
        self.scores += list(scores)


def search(
    graph: Graph,
    groups: Sequence[Choice],
    cost: Cost,
    score: Score,
    budget: Mapping[str, float],
    *,
    rng: np.random.Generator,
    journal: Journal,
    samples_kept: SampleStore | None = None,
    samples: int = SAMPLES,
    good_error: float = GOOD_ERROR,
    goal: Mapping[str, float] | None = None,
    pool: Pool | None = None,
    curves: Curves | None = None,
    widen: bool = True,
    **options: Any,
) -> SearchResult:
    """The best network within the budget among those that the predictor proposes.

    `samples_kept` are samples of earlier budgets or targets, and take the new ones; `samples` is the most that are
    scored before the search for a budget; `goal` is the least of several budgets: samples reach down to it; `pool` and
    `curves` are those of `mcd`, to which the `options` go as well when it goes on; `widen` gives unused budget back.
    Raises BudgetError when the budget cannot be reached.
    """
    start = cost.measure(full_widths(groups))
    past = list(journal.past)
    if not over(start, budget):
        return SearchResult(full_widths(groups), start, tuple(past))
    if past and not over(past[-1].measured, budget):
        return SearchResult(past[-1].widths, past[-1].measured, tuple(past))
    require_reachable(groups, cost, budget)
    kept = Samples() if samples_kept is None else samples_kept
    hunt = _Hunt(groups, cost, score, kept, rng, pool, curves)
    surrogate = hunt.learn(start, goal or budget, samples, good_error)
    facts: dict[str, Any] = {
        "samples": len(hunt.kept.scores),
        "left_out_error": round(surrogate.error, 4),
        "kendall": round(surrogate.kendall, 4),
    }
    found = hunt.best_within(budget, surrogate, len(past)) if surrogate.kendall >= RELIABLE else None
    if found is not None:
        journal.add(found)
        steps = [*past, found]
        for wider in polish(groups, cost, score, budget, found, curves) if widen else ():
            steps.append(wider)
            journal.add(wider)
        return SearchResult(steps[-1].widths, steps[-1].measured, tuple(steps), {"predictor": facts})
    why = (
        "no network of its best met the budget" if surrogate.kendall >= RELIABLE else "it orders left-out samples badly"
    )
    options |= {"goal": goal, "pool": pool, "curves": curves, "widen": widen}
    rest = mcd.search(graph, groups, cost, score, budget, rng=rng, journal=journal, **options)
    facts["fell_back"] = f"the predictor was not relied on ({why}); mcd went on"
    return SearchResult(rest.widths, rest.measured, rest.steps, {"predictor": facts})


class _Hunt:
    """Genes, samples and the best of them, for one model."""

    def __init__(
        self,
        groups: Sequence[Choice],
        cost: Cost,
        score: Score,
        kept: SampleStore,
        rng: np.random.Generator,
        propose: Pool | None,
        curves: Curves | None,
    ) -> None:
        self.groups, self.cost, self.score, self.kept, self.rng = groups, cost, score, kept, rng
        self.propose, self.curves = propose, curves
        self.genes = Genes(groups)
        self._costs: dict[tuple[int, ...], Costs] = {}

    def encode(self, networks: Sequence[Mapping[str, int]]) -> Floats:
        """What the predictor sees of networks: their genes' features, and the logarithm of the summed errors."""
        full = full_widths(self.groups)
        widths = {name: np.array([own.get(name, width) for own in networks]) for name, width in full.items()}
        shares = self.genes.features(widths)
        if self.curves is None:
            return shares
        return np.column_stack([shares, np.log10(LEAST_ERROR + summed_errors(self.curves, widths)) / 4])

    def estimate(self, widths: Widths) -> Costs:
        """The estimated costs, remembered within one budget."""
        return self.estimates([widths])[0]

    def estimates(self, networks: Sequence[Widths]) -> list[Costs]:
        """The same of several networks."""
        keys = [tuple(widths.values()) for widths in networks]
        fresh = {key: widths for key, widths in zip(keys, networks, strict=True) if key not in self._costs}
        self._costs.update(zip(fresh, all_of(self.cost, list(fresh.values())), strict=True))
        return [self._costs[key] for key in keys]

    def learn(self, start: Costs, goal: Mapping[str, float], most: int, good_error: float) -> Surrogate:
        """Rule 2."""
        pool = self._new(self._pool(start, goal)) if len(self.kept.scores) < most else []
        first = max(min(START, most) - len(self.kept.scores), 0)
        pool = self._take(pool, list(range(min(first, len(pool)))))
        before = self.kept.surrogate if len(self.kept.scores) >= most else None  # the last budget's, if there was one
        surrogate = self.fitted(before)
        if before is not None and surrogate.kendall < RELIABLE:
            surrogate = self.fitted()
        while len(self.kept.scores) < most and pool and surrogate.error > good_error:
            room = most - len(self.kept.scores)
            pool = self._take(pool, self._worth_scoring(pool, surrogate)[:room])
            surrogate = self.fitted()
        return surrogate

    def fitted(self, before: Surrogate | None = None) -> Surrogate:
        """The predictor from all samples, with the constants of another one where that is given."""
        x, scores = self.encode(self.kept.widths), np.array(self.kept.scores)
        self.kept.surrogate = fit(x, scores) if before is None else refit(before, x, scores)
        return self.kept.surrogate

    def _pool(self, start: Costs, goal: Mapping[str, float]) -> list[Widths]:
        """Distinct networks between the least goal and the full cost, the original first."""
        from scipy.stats import qmc

        points = self.genes.spread(qmc.Sobol(self.genes.draws, rng=self.rng).random(POOL))
        drawn = self.genes.decode_all(points)
        drawn = [*self._from_curves(start, goal), *drawn]
        distinct = {tuple(widths.values()): widths for widths in [full_widths(self.groups), *drawn]}
        least = {name: 0.9 * limit for name, limit in goal.items() if limit < start[name]}
        networks = list(distinct.values())
        costs = zip(networks, self.estimates(networks), strict=True)
        inside = [widths for widths, own in costs if all(own[name] >= low for name, low in least.items())]
        return inside or networks

    def _from_curves(self, start: Costs, goal: Mapping[str, float]) -> list[Widths]:
        """Networks that the error curves propose between the full cost and the goal."""
        if self.propose is None:
            return []
        found = []
        for share in np.linspace(1, 0, LEVELS, endpoint=False).tolist():
            limits = {name: start[name] + share * min(limit - start[name], 0.0) for name, limit in goal.items()}
            found += self.propose(limits)
        return found

    def _worth_scoring(self, pool: list[Widths], surrogate: Surrogate) -> list[int]:
        """Places in the pool of what to explore and to exploit, in turns."""
        mean, deviation = surrogate(self.encode(pool))
        price = np.array([float(np.mean(list(self._relative(widths)))) for widths in pool])
        explore = np.argsort(-deviation, kind="stable")[:EXPLORE]
        exploit = np.argsort(-(mean - mean.min()) / price, kind="stable")[:EXPLOIT]
        turns = [int(place) for pair in zip(explore, exploit, strict=True) for place in pair]
        return list(dict.fromkeys(turns))

    def _relative(self, widths: Widths) -> list[float]:
        full = self.estimate(full_widths(self.groups))
        return [value / full[name] for name, value in self.estimate(widths).items() if full[name]]

    def _take(self, pool: list[Widths], places: list[int]) -> list[Widths]:
        """Scores some of the pool; what is left of it."""
        chosen = [pool[place] for place in places]
        if chosen:
            self.kept.add(chosen, all_of(self.score, chosen))
        taken = set(places)
        return [widths for place, widths in enumerate(pool) if place not in taken]

    def best_within(self, budget: Mapping[str, float], surrogate: Surrogate, number: int) -> Step | None:
        """Rules 3 and 4; None when nothing that was proposed meets the budget by measurement."""
        limits, rows = dict(budget), []
        best: tuple[float, Widths, Costs] | None = None
        vain = 0
        for _ in range(ROUNDS):
            self._costs.clear()
            evolved = self._new(self._evolved(limits, surrogate))
            scores = all_of(self.score, evolved)
            self.kept.add(evolved, scores)
            rows += [self._told(widths, value) for widths, value in zip(evolved, scores, strict=True)]
            surrogate = self.fitted(surrogate)
            found, worst = self._first_within(budget, limits, best)
            vain = vain + 1 if found is best and best is not None else 0
            if vain == PATIENCE:
                break
            best = found
            if best is None:
                limits = {name: min(0.99 * limits[name], limit / worst[name]) for name, limit in budget.items()}
        if best is None:
            return None
        value, widths, measured = best
        return Step(number, dict(budget), tuple(rows), widths, dict(self.cost(widths)), dict(measured), value)

    def _first_within(
        self,
        budget: Mapping[str, float],
        limits: Mapping[str, float],
        best: tuple[float, Widths, Costs] | None,
    ) -> tuple[tuple[float, Widths, Costs] | None, dict[str, float]]:
        """The best so far that meets the budget by measurement, and how far measurements were above estimates.

        At most BEST are measured; each may correct the estimates of those that follow, which must be within the limits.
        """
        worst, tries = dict.fromkeys(budget, 1.0), 0
        for value, widths in self._known_within(limits):
            if tries == BEST or (best is not None and value <= best[0]):
                break
            if over(self.cost(widths), limits):
                continue
            measured, tries = self.cost.measure(widths), tries + 1
            if not over(measured, budget):
                return (value, widths, measured), worst
            estimate = self.cost(widths)  # corrected by now: what is left is what corrections elsewhere do not reach
            worst = {name: max(ratio, measured[name] / estimate[name]) for name, ratio in worst.items()}
        return best, worst

    def _told(self, widths: Widths, value: float) -> dict[str, Any]:
        return {
            "group": "predictor",
            "width": None,
            "changes": dict(widths),
            "estimate": dict(self.cost(widths)),
            "score": value,
        }

    def _new(self, networks: list[Widths]) -> list[Widths]:
        """The networks that are no samples yet."""
        known = {key_of(widths) for widths in self.kept.widths}
        return [widths for widths in networks if key_of(widths) not in known]

    def _evolved(self, limits: Mapping[str, float], surrogate: Surrogate) -> list[Widths]:
        """The BEST distinct networks that the genetic algorithm met, those within the limits first."""
        met: dict[tuple[int, ...], tuple[float, Widths]] = {}

        def fitness(points: Floats) -> Floats:
            networks = self.genes.decode_all(points)
            mean, deviation = surrogate(self.encode(networks))
            excess = [
                sum(max(0.0, own[name] / limit - 1) for name, limit in limits.items())
                for own in self.estimates(networks)
            ]
            found: Floats = mean - CAUTION * deviation - (ALPHA * np.array(excess)) ** 2
            for widths, value in zip(networks, found.tolist(), strict=True):
                met[tuple(widths.values())] = (value, widths)
            return found

        evolve(fitness, self._founders(limits), self.rng)
        ranked = sorted(met.values(), key=lambda item: (bool(over(self.estimate(item[1]), limits)), -item[0]))
        return [widths for _, widths in ranked[:BEST]]

    def _known_within(self, limits: Mapping[str, float]) -> list[tuple[float, Widths]]:
        """Scores and widths of the samples within the limits, the best first."""
        known = [
            (value, {group.id: widths[group.id] for group in self.groups})
            for value, widths in zip(self.kept.scores, self.kept.widths, strict=True)
            if self._is_own(widths)
        ]
        costs = self.estimates([widths for _, widths in known])
        inside = [item for item, own in zip(known, costs, strict=True) if not over(own, limits)]
        return sorted(inside, key=lambda item: -item[0])

    def _founders(self, limits: Mapping[str, float]) -> Floats:
        """The first population: the best samples within the limits, the error curves', and points of all levels."""
        proposed = [] if self.propose is None else self.propose(limits)
        known = [*(widths for _, widths in self._known_within(limits)[:FOUNDERS]), *proposed]
        drawn = self.rng.random((POPULATION - len(known), self.genes.draws))
        return np.array([*map(self.genes.point, known), *self.genes.spread(drawn)])

    def _is_own(self, widths: Widths) -> bool:
        """Whether a sample's widths are among those that are worth proposing here."""
        return all(widths.get(group.id) in group.widths for group in self.groups)
