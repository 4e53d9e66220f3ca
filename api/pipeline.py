"""The main job: a model and a budget in, a model that is measured to meet the budget out.

    load -> couple -> split the data -> order the units -> fill the latency table -> search -> refit -> fine-tune
         -> measure -> score on data that chose nothing -> write

Every arrow is one function below; `Run` holds what has been worked out so far.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.budgets import show_amount
from onnx_netadapt.costs import NetworkCost
from onnx_netadapt.evaluate import Evaluator, Runner, batch_size
from onnx_netadapt.finish import finish, report_scores
from onnx_netadapt.ir.errors import BudgetError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.load import Source, has_external_data
from onnx_netadapt.journal import FileJournal
from onnx_netadapt.metrics import Metric, metric_of, search_metric
from onnx_netadapt.network import Narrowing
from onnx_netadapt.options import Options
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.search import Choice, Step, load_search
from onnx_netadapt.passes.search.common import Journal, ListJournal, SearchResult, over
from onnx_netadapt.passes.search.curves import pool_of
from onnx_netadapt.profiler import Granularity, Latency, Lut, probe
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import AdaptReport
from onnx_netadapt.run import Run, one_blas_thread, prepare
from onnx_netadapt.summary import (
    budget_facts,
    data_facts,
    environment,
    noise_warnings,
    state_of,
    tool_version,
    write_all,
)

AIM = 0.97
"""The search aims at this share of a latency budget."""

SURE = 0.985
"""A winner must be within this share by a long measurement, so that the last one stays within the budget."""

LOWER = (0.97, 0.95, 0.93)
"""What is asked for when the finished model is over the budget all the same."""

SCORING_MACS = 2.5e12
"""Multiply-accumulates that all scoring of a search may take (some minutes on two cores): sets the images per score."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The adapted model and the report about it."""

    model: onnx.ModelProto
    report: AdaptReport


def adapt(
    source: Source, options: Options, *, name: str = "model", progress: Progress | None = None, command: str = ""
) -> Adapted:
    """The model adapted to the budgets, written to `options.output` when that is given, and the report.

    Raises InputError for what cannot be used, TargetError for a target that cannot run it, BudgetError when the budget
    cannot be reached (with `best_effort` the nearest model is returned instead, its report saying so).
    """
    began = time.perf_counter()
    run = prepare(source, options, progress or Progress(quiet=True))
    narrowing, statistics = _order(run)
    cost, choices, granularity, table = _cost(run, narrowing)
    evaluator = _evaluator(run, narrowing, choices, cost)
    journal = _journal(run, source, name)
    searcher = _searcher(run, narrowing, statistics, cost, choices, evaluator)
    try:
        result, met = searcher.run_to_budget(journal)
    finally:
        if isinstance(journal, FileJournal) and not journal.past and not options.journal:
            journal.remove()
    for ceiling in LOWER:
        model, facts = finish(run, narrowing, statistics, result, evaluator)
        before, after = cost.final(model)
        if not met or _within(run, before, after):
            break
        result, met = searcher.confirm(result, ceiling)
    with run.timed("report"):
        scores = report_scores(run, model)
    run.seconds["total"] = time.perf_counter() - began
    report = AdaptReport(
        tool_version=tool_version(),
        command=command,
        model=name,
        output=str(options.output) if options.output else "",
        seed=options.seed,
        environment=environment(run.target),
        target=str(run.target),
        granularity=str(granularity) if granularity else "not probed",
        budgets=budget_facts(run, cost, result, before, after),
        met=met,
        before=state_of(narrowing, narrowing.full, run.graph.model, before, scores[0], cost),
        after=state_of(narrowing, dict(result.widths), model, after, scores[1], cost),
        estimate_ms=cost(result.widths).get("latency"),
        lut=table,
        data=data_facts(run),
        recovery=facts["recovery"],
        finetune=facts["finetune"],
        equivalence=facts["equivalence"],
        seconds={key: round(value, 2) for key, value in run.seconds.items()},
        widths=dict(result.widths),
        plan=facts["plan"],
        history=tuple(asdict(step) for step in result.steps),
        barriers=tuple(asdict(barrier) for barrier in narrowing.coupling.barriers),
        warnings=tuple(dict.fromkeys([*run.warnings, *noise_warnings(after)])),
    )
    if options.output is not None:
        external = isinstance(source, str | Path) and has_external_data(Path(source))
        write_all(options.output, model, report, external=external)
    if isinstance(journal, FileJournal) and not options.journal:
        journal.remove()
    return Adapted(model, report)


def _order(run: Run) -> tuple[Narrowing, Any]:
    """The coupled graph with the nested order of its units, and the statistics that it was worked out from."""
    from onnx_netadapt.passes.gram import collect
    from onnx_netadapt.passes.importance import order

    with run.timed("analysis"):
        coupling = couple(run.graph)
    if not coupling.groups:
        reasons = sorted({f"{b.reason} ({b.op_type or 'model'})" for b in coupling.barriers})[:3]
        why = f": {'; '.join(reasons)}" if reasons else ""
        raise BudgetError(
            f"there is nothing to prune in this model{why}; it costs {run.start.median_ms:.3f} ms as it is, "
            "and `inspect` shows every barrier"
        )
    # BLAS threads and ONNX Runtime's would spin beside each other
    with run.progress.phase("statistics of the original") as report, run.timed("statistics"), one_blas_thread():
        statistics = collect(coupling, run.batches, progress=report)
        orders = order(coupling, statistics)
    run.warnings += list(getattr(statistics, "notes", ()))
    order_of = {name: found.order for name, found in orders.items()}
    curves = {name: found.error for name, found in orders.items()}
    return Narrowing(coupling, order_of, curves), statistics


def _cost(
    run: Run, narrowing: Narrowing
) -> tuple[NetworkCost, list[Choice], Granularity | None, Mapping[str, Any] | None]:
    """The cost of any widths, the widths worth proposing, the target's granularity, and facts about the table."""
    options = run.options
    resources = list(run.budgets)
    cost = NetworkCost(narrowing, run.target, run.feeds, resources, run.start)
    if "latency" not in resources:
        return cost, narrowing.choices(None, options.min_keep, options.exclude, options.only), None, None
    from onnx_netadapt.profiler import fill

    lut = Lut.open(options.lut or ":memory:", run.target.fingerprint())
    with run.progress.phase("filling the latency table") as report, run.timed("table"):
        granularity = probe(run.target, lut)
        choices = narrowing.choices(granularity, options.min_keep, options.exclude, options.only)
        network = narrowing.measurable(choices, run.feeds)
        cost.latency = fill(lut, run.target, network, np.random.default_rng(options.seed), progress=report)
    facts = {"file": str(options.lut) if options.lut else None, "entries": sum(1 for _ in lut.entries())}
    run.progress.say(f"  the target's granularity: {granularity}")
    return cost, choices, granularity, facts


def _evaluator(run: Run, narrowing: Narrowing, choices: list[Choice], cost: NetworkCost) -> Evaluator:
    """Scores proposals on as many selection examples as the scoring of a whole search can pay for."""
    from onnx_netadapt.passes.search.netadapt import ITERATIONS

    macs = max(narrowing.sizes.macs(narrowing.full) / max(batch_size(run.graph) if _fixed(run.graph) else 1, 1), 1.0)
    affordable = int(SCORING_MACS / (macs * max(len(choices), 1) * ITERATIONS))
    count = min(len(run.selection), max(affordable, 16))
    indices = run.selection[:count] if count else run.calibration[:16]
    return Evaluator(run.graph, run.data, indices, _search_metric(run))


def _fixed(graph: Graph) -> bool:
    return any(port.dims and port.dims[0] is not None for port in graph.inputs)


def _search_metric(run: Run) -> Metric:
    if run.options.metric:
        return metric_of(run.options.metric)
    return search_metric(Runner(run.graph.model)(run.feeds))


def _journal(run: Run, source: Source, name: str) -> FileJournal | ListJournal:
    options = run.options
    path = options.journal
    if path is None and options.output is not None:
        path = options.output.with_name(f"{options.output.name}.journal.jsonl")
    if path is None:
        return ListJournal()
    header = {
        "model": name,
        "model_sha256": hashlib.sha256(run.graph.model.SerializeToString(deterministic=True)).hexdigest(),
        "budgets": list(options.budgets),
        "target": str(run.target),
        "search": options.search,
        "seed": options.seed,
        "min_keep": options.min_keep,
        "data": options.data,
        "exclude": list(options.exclude),
        "only": list(options.only),
    }
    return FileJournal(path, header, resume=options.resume)


@dataclass(frozen=True, slots=True)
class _Searcher:
    """A search with all that it needs, and the confirmation of its results by longer measurements."""

    run: Run
    narrowing: Narrowing
    cost: NetworkCost
    choices: list[Choice]
    score: Callable[[Mapping[str, int]], float]
    start: Mapping[str, float]
    keywords: Mapping[str, Any]

    @property
    def limits(self) -> dict[str, float]:
        """The budgets in their own units."""
        return {name: budget.limit(self.start[name]) for name, budget in self.run.budgets.items()}

    def run_to_budget(self, journal: FileJournal | ListJournal) -> tuple[SearchResult, bool]:
        """The widths that meet every budget by measurement, and whether they do (they may not with `best_effort`)."""
        told = _Told(journal, self.run, next(iter(self.limits)), self.start)
        with self.run.progress.phase("searching") as report, self.run.timed("search"), one_blas_thread():
            told.report = report
            try:
                result = self._search(_lowered(self.limits, AIM), told, self.keywords)
            except BudgetError:
                if not self.run.options.best_effort:
                    raise
                widths = {choice.id: choice.widths[0] for choice in self.choices}
                return SearchResult(widths, self.cost.measure(widths), tuple(told.past)), False
            return self.confirm(result, SURE)

    def _search(self, aims: Mapping[str, float], journal: Journal, keywords: Mapping[str, Any]) -> SearchResult:
        search = load_search(self.run.options.search)
        rng = np.random.default_rng(self.run.options.seed)
        return search(self.run.graph, self.choices, self.cost, self.score, aims, rng=rng, journal=journal, **keywords)

    def confirm(self, result: SearchResult, ceiling: float) -> tuple[SearchResult, bool]:
        """Measures the winner at length; while it is above the ceiling (a share of the budget) the search goes on."""
        limits = _lowered(self.limits, ceiling)
        for _ in range(5):
            measured = self._at_length(result)
            if not over(measured, limits):
                return SearchResult(result.widths, measured, result.steps), True
            overshoot = measured.get("latency", 1.0) / limits.get("latency", 1.0)
            last = result.steps[-1] if result.steps else None
            past = [] if last is None else [*result.steps[:-1], _with_measured(last, measured)]
            aims = _lowered(limits, min(1.0, 1 / overshoot) * (AIM / SURE))
            result = self._search(aims, ListJournal(past), {**self.keywords, "widen": False})
        if self.run.options.best_effort:
            return result, False
        raise BudgetError(
            f"the measurements stay above the budget by a hair ({measured['latency']:.3f} ms of "
            f"{self.limits['latency']:.3f}); the machine may be too noisy: try again when it is quiet, "
            "or give a little more budget"
        )

    def _at_length(self, result: SearchResult) -> dict[str, float]:
        measured = dict(result.measured)
        if "latency" in measured:
            before, after = self.cost.final(self.narrowing.build(result.widths))
            relative = self.run.budgets["latency"].relative
            measured["latency"] = after.median_ms * (self.run.start.median_ms / before.median_ms if relative else 1.0)
        return measured


def _searcher(
    run: Run,
    narrowing: Narrowing,
    statistics: Statistics,
    cost: NetworkCost,
    choices: list[Choice],
    evaluator: Evaluator,
) -> _Searcher:
    """The chosen search, its score, and its options."""

    def score(widths: Mapping[str, int]) -> float:
        pruned = narrowing.pruned(widths).model
        weights = refit_symmetric(narrowing.coupling, statistics, narrowing.kept(widths))
        return evaluator.score(apply_weights(pruned, weights))

    options, curves = run.options, narrowing.curves
    pool = pool_of(choices, curves, cost) if curves is not None and not options.published else None
    keywords = {"step": options.step, "decay": options.decay, "widen": not options.published, "pool": pool}
    start = cost.measure({choice.id: choice.widths[-1] for choice in choices})
    return _Searcher(run, narrowing, cost, choices, _cached(score), start, keywords)


def _lowered(limits: Mapping[str, float], share: float) -> dict[str, float]:
    """The limits with that of the latency, which alone is noisy, lowered to a share."""
    return {name: limit * (share if name == "latency" else 1.0) for name, limit in limits.items()}


def _within(run: Run, before: Latency, after: Latency) -> bool:
    """Whether the last measurement of the finished model is within the latency budget."""
    budget = run.budgets.get("latency")
    return budget is None or after.median_ms <= budget.limit(before.median_ms)


def _cached(score: Any) -> Any:
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def lookup(widths: Mapping[str, int]) -> float:
        key = tuple(sorted(widths.items()))
        if key not in known:
            known[key] = score(widths)
        return known[key]

    return lookup


class _Told:
    """A journal that also tells the progress line."""

    def __init__(self, journal: FileJournal | ListJournal, run: Run, resource: str, start: Mapping[str, float]) -> None:
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


def _with_measured(step: Step, measured: Mapping[str, float]) -> Step:
    return Step(step.number, step.limits, step.proposals, step.widths, step.estimate, measured, step.score)
