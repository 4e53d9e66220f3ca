"""The search within the main job: what it is given, and the confirmation of its results by longer measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx_netadapt.budgets import show_amount
from onnx_netadapt.costs import MEASURED, NetworkCost
from onnx_netadapt.free import widen_free
from onnx_netadapt.ir.errors import BudgetError
from onnx_netadapt.journal import FileJournal
from onnx_netadapt.network import Narrowing
from onnx_netadapt.options import Options
from onnx_netadapt.passes.search import Choice, Step, load_search
from onnx_netadapt.passes.search.chamnet import SampleStore
from onnx_netadapt.passes.search.common import (
    Journal,
    ListJournal,
    Score,
    SearchResult,
    Widths,
    in_estimates,
    least_widths,
    over,
)
from onnx_netadapt.passes.search.curves import least_error, pool_of
from onnx_netadapt.passes.search.polish import polish
from onnx_netadapt.passes.search.trim import trim
from onnx_netadapt.run import Run, one_blas_thread
from onnx_netadapt.scoring import AnyScorer
from onnx_netadapt.stages import SizedCost, SizedScorer

AIM = 0.97
"""The search aims at this share of a latency budget."""

SURE = 0.985
"""A winner must be within this share by a long measurement, so that the last one stays within the budget."""

LONG_STEP = 0.2
"""The first step, as a share of the start, where finalists follow: they are proposed at the budget's cost, and a search
in small steps ended in networks that were left for them (ResNet20, ResNet56, MobileNetV2), after minutes. Steps of 0.1
led three runs on ResNet20 to the same networks as these in twice the time.
"""

CONFIRMATIONS = 5

TRIMS = 3
"""Times that a network which is to be compared may be measured until it is within the budget."""

TRIM_TO = 0.995
"""What measured over its limit is trimmed to this share of it."""

AnyJournal = FileJournal | ListJournal


@dataclass(frozen=True, slots=True)
class Searcher:
    """A search with all that it needs."""

    run: Run
    narrowing: Narrowing
    cost: NetworkCost | SizedCost
    choices: list[Choice]
    score: AnyScorer | SizedScorer
    start: Mapping[str, float]
    keywords: Mapping[str, Any]

    @property
    def refines(self) -> bool:
        """Whether networks that the search did not propose may stand in for its result: not for what is published, nor
        for a width multiplier.
        """
        return _refines(self.run.options)

    @property
    def settles(self) -> bool:
        """Whether whole networks, refitted for good, stand beside the result (`finalists`).

        Not where weights serve every width as they are, which leaves no amounts.
        """
        return _settles(self.run.options, self.narrowing)

    @property
    def limits(self) -> dict[str, float]:
        """The budgets in their own units."""
        return {name: budget.limit(self.start[name]) for name, budget in self.run.budgets.items()}

    def run_to_budget(self, journal: AnyJournal, *, confirmed: bool = True) -> tuple[SearchResult, bool]:
        """The widths that meet every budget by measurement, and whether they do (they may not with `best_effort`).

        By a short one where it need not be `confirmed`.
        """
        told = _Told(journal, self.run, next(iter(self.limits)), self.start)
        with self.run.progress.phase("searching") as report, self.run.timed("search"), one_blas_thread():
            told.report = report
            try:
                result = self._search(lowered(self.limits, AIM), told, self.keywords, self.run.options.search)
            except BudgetError:
                limits = lowered(self.limits, SURE)
                result = self._smallest(told.past, limits)
                if over(result.measured, limits):
                    if not self.run.options.best_effort:
                        raise
                    return result, False
            result = self._with_free_channels(result)
            return self.confirm(result, SURE) if confirmed else (result, True)

    def _smallest(self, past: Sequence[Step], limits: Mapping[str, float]) -> SearchResult:
        """The smallest network, measured at length: one short measurement in a noisy moment must not end a run."""
        widths = least_widths(self.choices)
        result = SearchResult(widths, self.cost.measure(widths), tuple(past))
        return replace(result, measured=self.at_length(result, limits))

    def _with_free_channels(self, result: SearchResult) -> SearchResult:
        """The result with what its target gives for nothing, if a measurement agrees that it costs nothing."""
        if self.run.options.published or "latency" not in self.limits:
            return result
        limits, before = lowered(self.limits, AIM), self.narrowing.full | dict(result.widths)
        widths = widen_free(self.choices, self.cost, before, limits)
        if widths == before:
            return result
        measured = self.cost.measure(widths)
        return result if over(measured, limits) else replace(result, widths=widths, measured=measured)

    def _search(
        self, aims: Mapping[str, float], journal: Journal, keywords: Mapping[str, Any], name: str
    ) -> SearchResult:
        search = load_search(name)
        rng = np.random.default_rng(self.run.options.seed)
        return search(self.run.graph, self.choices, self.cost, self.score, aims, rng=rng, journal=journal, **keywords)

    def confirm(self, result: SearchResult, ceiling: float, *, fill: bool = True) -> tuple[SearchResult, bool]:
        """Measures the winner at length: while it is above the ceiling (a share of the budget) it is made narrower, and
        what it leaves of the budget is spent as at a search's end, unless `fill` is off.
        """
        limits = lowered(self.limits, ceiling)
        for _ in range(CONFIRMATIONS):
            measured = self.at_length(result, limits)
            excess = over(measured, limits)
            if not excess:
                within = replace(result, measured=measured)
                return (self.filled(within, ceiling) if fill else within), True
            result = self._narrower(result, measured, limits)
        if self.run.options.best_effort:
            return result, False
        raise stays_above({name: (measured[name], self.limits[name]) for name in excess})

    def filled(self, within: SearchResult, ceiling: float) -> SearchResult:
        """A result within the ceiling with what it leaves of the budget spent, as far as a long measurement agrees."""
        limits = lowered(self.limits, ceiling)
        for _ in range(CONFIRMATIONS):
            wider = self._wider(within, lowered(limits, AIM / SURE))
            if wider is within or over(measured := self.at_length(wider, limits), limits):
                return within
            within = replace(wider, measured=measured)
        return within

    def fitted(self, widths: Widths) -> Widths | None:
        """A network from elsewhere, trimmed as short measurements ask for; None when it stays over the budget."""
        return self._fitted(widths, lowered(self.limits, AIM), lowered(self.limits, SURE))

    def _fitted(self, widths: Widths, aims: Mapping[str, float], limits: Mapping[str, float]) -> Widths | None:
        """A network trimmed to the aims while it measures over them; what is within the limits at last will do."""
        for _ in range(TRIMS - 1):
            measured = self.cost.measure(widths)
            if not over(measured, aims):
                return widths
            trimmed = self._trimmed(widths, measured, aims)
            if trimmed is None:
                break
            widths = trimmed
        return None if over(self.cost.measure(widths), limits) else widths

    def _trimmed(
        self, widths: Mapping[str, int], measured: Mapping[str, float], limits: Mapping[str, float]
    ) -> Widths | None:
        """A network that measured over the limits trimmed to them, by estimates corrected at it.

        None where widths lead nowhere, where there are no error curves, and for what is published (`refines`).
        """
        curves = self.keywords["curves"]
        if curves is None or not self.refines:
            return None
        limits = in_estimates(limits, self.cost(widths), measured)
        return trim(self.choices, curves, self.cost, dict(widths), limits)

    def _narrower(
        self, result: SearchResult, measured: Mapping[str, float], limits: Mapping[str, float]
    ) -> SearchResult:
        """A result that measured over the limits trimmed, or what the search finds from it where that does not help."""
        trimmed = self._trimmed(result.widths, measured, lowered(limits, TRIM_TO))
        found = None if trimmed is None else self._fitted(trimmed, limits, limits)
        if found is None:
            return self._searched_on(result, measured, limits)
        costs, number = self.cost.measure(found), result.steps[-1].number + 1 if result.steps else 0
        step = Step(number, dict(limits), (), found, dict(self.cost(found)), costs, self.score(found))
        return replace(result, widths=found, measured=costs, steps=(*result.steps, step))

    def _searched_on(
        self, result: SearchResult, measured: Mapping[str, float], limits: Mapping[str, float]
    ) -> SearchResult:
        """What the search finds from a result that measured over the limits."""
        overshoot = max((measured[name] / limit for name, limit in limits.items() if name in MEASURED), default=1.0)
        past = [] if not result.steps else [*result.steps[:-1], replace(result.steps[-1], measured=measured)]
        aims = lowered(limits, min(1.0, 1 / overshoot) * (AIM / SURE))
        # chamnet does not go on from a network: what is over by a hair is narrowed, and not looked for all over again
        search = "netadapt" if self.run.options.search == "chamnet" else self.run.options.search
        found = self._search(aims, ListJournal(past), {**self.keywords, "widen": False}, search)
        return replace(found, facts={**result.facts, **found.facts})

    def _wider(self, result: SearchResult, aims: Mapping[str, float]) -> SearchResult:
        """A result with what it leaves of the budget spent; the same one when nothing more fits."""
        if not self.refines or not result.steps:
            return result
        present = self.score(result.widths)
        last = replace(result.steps[-1], widths=result.widths, measured=result.measured, score=present)
        more = polish(self.choices, self.cost, self.score, aims, last, self.keywords["curves"])
        if not more:
            return result
        return replace(result, widths=more[-1].widths, measured=more[-1].measured, steps=(*result.steps, *more))

    def at_length(self, result: SearchResult, limits: Mapping[str, float]) -> dict[str, float]:
        """The costs of a result, its energy and latency measured once more: for longer, or until clear of its limit."""
        relative = "latency" in self.run.budgets and self.run.budgets["latency"].relative
        return {**result.measured, **self.cost.at_length(result.widths, limits, relative=relative)}


def stays_above(missed: Mapping[str, tuple[float, float]]) -> BudgetError:
    """The error that measurements stay above the budget, with what was measured and the limit of each resource."""
    told = ", ".join(
        f"{show_amount(name, measured)} of {show_amount(name, limit)}" for name, (measured, limit) in missed.items()
    )
    return BudgetError(
        f"the measurements stay above the budget by a hair ({told}); the machine may be too noisy: "
        "try again when it is quiet, or give a little more budget"
    )


def searcher_of(
    run: Run,
    narrowing: Narrowing,
    cost: NetworkCost | SizedCost,
    choices: list[Choice],
    score: AnyScorer | SizedScorer,
    goal: Mapping[str, float],
    samples: SampleStore,
) -> Searcher:
    """The chosen search with its options.

    `goal` are the limits of the least of several budgets.
    """
    options, curves = run.options, narrowing.curves
    pool = pool_of(choices, curves, cost) if curves is not None and not options.published else None
    settles = _settles(options, narrowing)
    keywords = {
        "step": options.step or (LONG_STEP if settles and options.search == "netadapt" else None),
        "decay": options.decay,
        "widen": not (options.published or settles),  # what wins among the finalists is widened
        "pool": pool,
        "curves": curves,
        "coarse": _coarse(run, narrowing, score),
        "goal": lowered(goal, AIM),
        "samples_kept": samples,
    }
    return Searcher(run, narrowing, cost, choices, score, cost.measure(narrowing.full), keywords)


def _refines(options: Options) -> bool:
    return not options.published and options.search != "multiplier"


def _settles(options: Options, narrowing: Narrowing) -> bool:
    return _refines(options) and narrowing.amounts is not None


def _coarse(run: Run, narrowing: Narrowing, score: AnyScorer | SizedScorer) -> Sequence[Score]:
    """The cheap scores that thin out proposals before the one that decides: none for what is published.

    For `netadapt` the error curves, where refitted networks are scored (curves without amounts come with elastic
    weights, which nothing refits); for `mcd` and `chamnet`, which draw at random, scores on few examples.
    """
    options = run.options
    if options.search in ("mcd", "chamnet"):
        return score.coarse()
    refitted = narrowing.amounts is not None and options.scoring == "refit"
    if narrowing.curves is None or not refitted or options.published or options.search != "netadapt":
        return []
    return [least_error(narrowing.curves)]


def lowered(limits: Mapping[str, float], share: float) -> dict[str, float]:
    """The limits with those of what is measured, and so is noisy, lowered to a share."""
    return {name: limit * (share if name in MEASURED else 1.0) for name, limit in limits.items()}


class _Told:
    """A journal that also tells the progress line."""

    def __init__(self, journal: AnyJournal, run: Run, resource: str, start: Mapping[str, float]) -> None:
        self._journal, self._run, self._resource, self._start = journal, run, resource, start
        self.past = list(journal.past)
        self.report: Any = None

    def add(self, step: Step, /) -> None:
        """Keeps a step and says how far the search is."""
        self._journal.add(step)
        self.past.append(step)
        name = self._resource
        budget = self._run.budgets[name].limit(self._start[name])
        whole = max(self._start[name] - budget, 1e-9)
        done = min(self._start[name] - step.measured[name], whole)
        note = f"{show_amount(name, step.measured[name])} of {show_amount(name, budget)}, score {step.score:.4f}"
        self.report(int(100 * done / whole), 100, note)
