"""The main job: a model and a budget in, a model that is measured to meet the budget out.

    load -> couple -> split the data -> order the units -> fill the latency table -> search -> refit -> fine-tune
         -> measure -> score on data that chose nothing -> write

Every arrow is one function below; `_Run` holds what has been worked out so far.
"""

import hashlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.budgets import Budget, parse_budgets, show_amount
from onnx_netadapt.costs import NetworkCost
from onnx_netadapt.data import load_data
from onnx_netadapt.evaluate import Evaluator, Runner, batch_size, fixed_feeds
from onnx_netadapt.inputs import Data, Feeds, Indices
from onnx_netadapt.ir.errors import BudgetError, InputError, NetAdaptError, PruneError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.load import Source, load
from onnx_netadapt.ir.write import save
from onnx_netadapt.journal import FileJournal
from onnx_netadapt.metrics import Metric, metric_of, report_metric, search_metric
from onnx_netadapt.network import Narrowing
from onnx_netadapt.options import Options
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import check
from onnx_netadapt.passes.search import Choice, Step, load_search
from onnx_netadapt.passes.search.common import ListJournal, SearchResult, over
from onnx_netadapt.profiler import Granularity, Latency, Lut, Target, measure, probe
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import AdaptReport, Score, State, write_html, write_json
from onnx_netadapt.splits import MOST_REPORT, split

Array = NDArray[Any]

AIM = 0.985
"""The search aims at this share of a latency budget, so that the noise of the last measurement stays within it."""

SCORING_MACS = 2e12
"""Multiply-accumulates that all scoring of a search may take (some minutes on two cores): sets the images per score."""


@dataclass(slots=True)
class _Run:
    """What a run has worked out so far."""

    options: Options
    progress: Progress
    graph: Graph
    target: Target
    budgets: Mapping[str, Budget]
    feeds: Feeds
    data: Data
    start: Latency
    calibration: Indices
    selection: Indices
    report: Indices
    report_data: Data
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall seconds of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def batches(self) -> Iterator[Feeds]:
        """The calibration inputs, batch by batch."""
        for feeds, _, _ in fixed_feeds(self.data, self.calibration, self.graph):
            yield feeds


@dataclass(frozen=True, slots=True)
class Adapted:
    """The adapted model and the report about it."""

    model: onnx.ModelProto
    report: AdaptReport


def adapt(source: Source, options: Options, *, name: str = "model", progress: Progress | None = None, command: str = "") -> Adapted:
    """The model adapted to the budgets, written to `options.output` when that is given, and the report.

    Raises InputError for what cannot be used, TargetError for a target that cannot run it, BudgetError when the budget
    cannot be reached (with `best_effort` the nearest model is returned instead, its report saying so).
    """
    began = time.perf_counter()
    run = _prepare(source, options, progress or Progress(quiet=True))
    narrowing, statistics = _order(run)
    cost, choices, granularity, lut_facts = _cost(run, narrowing)
    evaluator = _evaluator(run, narrowing, choices, cost)
    journal = _journal(run, source, name)
    try:
        result, met = _search(run, narrowing, statistics, cost, choices, evaluator, journal)
    finally:
        if isinstance(journal, FileJournal) and not journal.past and not options.journal:
            journal.remove()
    model, finish = _finish(run, narrowing, statistics, result, evaluator)
    before, after = cost.final(model)
    with run.timed("report"):
        scores = _scores(run, model)
    run.seconds["total"] = time.perf_counter() - began
    report = AdaptReport(
        tool_version=_version(),
        command=command,
        model=name,
        output=str(options.output) if options.output else "",
        seed=options.seed,
        environment=_environment(run.target),
        target=str(run.target),
        granularity=str(granularity) if granularity else "not probed",
        budgets=_budget_facts(run, cost, result, before, after),
        met=met,
        before=_state(narrowing, narrowing.full, run.graph.model, before, scores[0], cost),
        after=_state(narrowing, dict(result.widths), model, after, scores[1], cost),
        estimate_ms=cost(result.widths).get("latency"),
        lut=lut_facts,
        data=_data_facts(run),
        recovery=finish["recovery"],
        finetune=finish["finetune"],
        equivalence=finish["equivalence"],
        seconds={key: round(value, 2) for key, value in run.seconds.items()},
        widths=dict(result.widths),
        plan=finish["plan"],
        history=tuple(asdict(step) for step in result.steps),
        barriers=tuple(asdict(barrier) for barrier in narrowing.coupling.barriers),
        warnings=tuple(dict.fromkeys([*run.warnings, *_noise(after)])),
    )
    if options.output is not None:
        _write(options.output, model, report)
    if isinstance(journal, FileJournal) and not options.journal:
        journal.remove()
    return Adapted(model, report)


def _prepare(source: Source, options: Options, progress: Progress) -> _Run:
    """Everything that can be wrong with the input is found here, before any long work."""
    budgets = parse_budgets(options.budgets)
    target = Target.parse(options.target)
    load_search(options.search)
    metric = metric_of(options.metric) if options.metric else None
    graph = load(source, shapes=options.shapes)
    _check_weights(graph)
    inputs = {port.name: (port.dims, onnx.helper.tensor_dtype_to_np_dtype(port.dtype)) for port in graph.inputs}
    if options.data is None:
        inputs = {name: (graph.shapes[name], dtype) for name, (_, dtype) in inputs.items()}
    target.session(graph.model)
    data = load_data(options.data, inputs, options.preprocess, options.seed)
    graph = _at_data_shape(source, options, graph, data)
    splits = split(data, options.seed)
    report_data, report = data, splits.report
    if options.report_data is not None:
        report_data = load_data(options.report_data, inputs, options.preprocess, options.seed)
        report = np.arange(min(report_data.n, MOST_REPORT))
    if metric and metric.labelled and data.labels is None:
        raise InputError(f"--metric {metric.name} needs labels, and {data.origin} has none")
    feeds = _measuring_feeds(graph, data)
    with progress.phase("measuring the original"):
        start = measure(graph.model, target, feeds, min_seconds=1.0)
    progress.say(f"  {start}")
    warnings = [*graph.notes, *data.warnings, *splits.warnings]
    return _Run(
        options, progress, graph, target, budgets, feeds, data, start,
        splits.calibration, splits.selection, report, report_data, warnings,
    )  # fmt: skip


def _check_weights(graph: Graph) -> None:
    for name, constant in graph.constants.items():
        array = constant.array()
        if array.dtype.kind == "f" and np.isnan(array).any():
            count = int(np.isnan(array).sum())
            raise InputError(
                f"tensor '{name}' of the model holds {count} NaN among its {array.size} values; "
                "such a model cannot be judged: export it again from a sound checkpoint"
            )


def _at_data_shape(source: Source, options: Options, graph: Graph, data: Data) -> Graph:
    """The graph at the data's shapes where the model leaves dimensions open and the user fixed none."""
    sample = data.read(np.zeros(1, dtype=np.int64))
    shapes = dict(options.shapes)
    for port in graph.inputs:
        if port.name in shapes or None not in port.dims[1:]:
            continue
        shapes[port.name] = (graph.shapes[port.name][0], *sample[port.name].shape[1:])
    return graph if shapes == dict(options.shapes) else load(graph.model, shapes=shapes)


def _measuring_feeds(graph: Graph, data: Data) -> Feeds:
    """One batch of real examples at the shapes for measuring."""
    sizes = [graph.shapes[port.name][0] for port in graph.inputs if graph.shapes[port.name]]
    count = sizes[0] if sizes else 1
    feeds = data.read(np.arange(count) % data.n)
    for port in graph.inputs:
        if tuple(feeds[port.name].shape) != graph.shapes[port.name]:
            raise InputError(
                f"the data gives input '{port.name}' as {list(feeds[port.name].shape)}, "
                f"and it is to be measured at {list(graph.shapes[port.name])}; change --shape or --data"
            )
    return feeds


def _order(run: _Run) -> tuple[Narrowing, Any]:
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
    with run.progress.phase("statistics of the original") as report, run.timed("statistics"):
        statistics = collect(coupling, run.batches, progress=report)
        orders = order(coupling, statistics)
    run.warnings += list(getattr(statistics, "notes", ()))
    return Narrowing(coupling, {name: found.order for name, found in orders.items()}), statistics


def _cost(
    run: _Run, narrowing: Narrowing
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


def _evaluator(run: _Run, narrowing: Narrowing, choices: list[Choice], cost: NetworkCost) -> Evaluator:
    """Scores proposals on as many selection examples as the scoring of a whole search can pay for."""
    from onnx_netadapt.passes.search.netadapt import ITERATIONS

    macs = max(narrowing.sizes.macs(narrowing.full) / max(batch_size(run.graph) if _fixed(run.graph) else 1, 1), 1.0)
    affordable = int(SCORING_MACS / (macs * max(len(choices), 1) * ITERATIONS))
    count = min(len(run.selection), max(affordable, 16))
    indices = run.selection[:count] if count else run.calibration[:16]
    return Evaluator(run.graph, run.data, indices, _search_metric(run))


def _fixed(graph: Graph) -> bool:
    return any(port.dims and port.dims[0] is not None for port in graph.inputs)


def _search_metric(run: _Run) -> Metric:
    if run.options.metric:
        return metric_of(run.options.metric)
    return search_metric(Runner(run.graph.model)(run.feeds))


def _journal(run: _Run, source: Source, name: str) -> FileJournal | ListJournal:
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


def _search(
    run: _Run,
    narrowing: Narrowing,
    statistics: Any,
    cost: NetworkCost,
    choices: list[Choice],
    evaluator: Evaluator,
    journal: FileJournal | ListJournal,
) -> tuple[SearchResult, bool]:
    """The widths that meet every budget by measurement, and whether they do (they may not with `best_effort`)."""
    from onnx_netadapt.passes.recover import apply_weights, refit_symmetric

    options = run.options
    start = cost.measure({choice.id: choice.widths[-1] for choice in choices})
    limits = {name: budget.limit(start[name]) for name, budget in run.budgets.items()}
    aims = {name: limit * (AIM if name == "latency" else 1.0) for name, limit in limits.items()}

    def score(widths: Mapping[str, int]) -> float:
        pruned = narrowing.pruned(widths).model
        weights = refit_symmetric(narrowing.coupling, statistics, narrowing.kept(widths))
        return evaluator.score(apply_weights(pruned, weights))

    search = load_search(options.search)
    told = _Told(journal, run, next(iter(limits)), start)
    keywords = {"step": options.step, "decay": options.decay}
    with run.progress.phase("searching") as report, run.timed("search"):
        told.report = report
        rng = np.random.default_rng(options.seed)
        try:
            result = search(run.graph, choices, cost, _cached(score), aims, rng=rng, journal=told, **keywords)
            return _confirm(run, narrowing, cost, choices, score, result, limits, search, keywords)
        except BudgetError:
            if not options.best_effort:
                raise
            widths = {choice.id: choice.widths[0] for choice in choices}
            return SearchResult(widths, cost.measure(widths), tuple(told.past)), False


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

    def __init__(self, journal: FileJournal | ListJournal, run: _Run, resource: str, start: Mapping[str, float]) -> None:
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


def _confirm(
    run: _Run,
    narrowing: Narrowing,
    cost: NetworkCost,
    choices: list[Choice],
    score: Any,
    result: SearchResult,
    limits: Mapping[str, float],
    search: Any,
    keywords: Mapping[str, Any],
) -> tuple[SearchResult, bool]:
    """Measures the winner at length; if it is over a budget after all, the search goes on a little below it."""
    aims = dict(limits)
    for _ in range(5):
        before, after = cost.final(narrowing.build(result.widths))
        measured = dict(result.measured)
        if "latency" in limits:
            relative = run.budgets["latency"].relative
            measured["latency"] = after.median_ms * (run.start.median_ms / before.median_ms if relative else 1.0)
        if not over(measured, limits):
            return SearchResult(result.widths, measured, result.steps), True
        aims = {
            name: limit * min(AIM, AIM * limit / measured[name]) if name == "latency" else limit
            for name, limit in limits.items()
        }
        last = result.steps[-1] if result.steps else None
        past = [] if last is None else [*result.steps[:-1], _with_measured(last, measured)]
        rng = np.random.default_rng(run.options.seed)
        result = search(
            run.graph, choices, cost, _cached(score), aims, rng=rng, journal=ListJournal(past), widen=False, **keywords
        )
    if run.options.best_effort:
        return result, False
    raise BudgetError(
        f"the measurements stay above the budget by a hair ({measured['latency']:.3f} ms of {limits['latency']:.3f}); "
        "the machine may be too noisy: try again when it is quiet, or give a little more budget"
    )


def _with_measured(step: Step, measured: Mapping[str, float]) -> Step:
    return Step(step.number, step.limits, step.proposals, step.widths, step.estimate, measured, step.score)


def _finish(
    run: _Run, narrowing: Narrowing, statistics: Any, result: SearchResult, evaluator: Evaluator
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The best of refitted and fine-tuned weights for the winning widths, judged on the selection set."""
    from onnx_netadapt.passes.recover import apply_weights, refit_sequential, refit_symmetric

    coupling, kept = narrowing.coupling, narrowing.kept(result.widths)
    with run.timed("pruning"):
        pruned = narrowing.pruned(result.widths)
    equivalence = check(run.graph.model, pruned.model, pruned.plan, [run.feeds])
    if not equivalence.passed:
        raise PruneError(
            f"the pruned model differs from the zeroed original by {equivalence.worst:.2g} of the output's range "
            f"(allowed {equivalence.tolerance:.2g}); nothing was written: this is a defect, please report the model"
        )
    evaluator = Evaluator(run.graph, run.data, run.selection if len(run.selection) else evaluator.indices, evaluator.metric)
    candidates: dict[str, onnx.ModelProto] = {"sliced": pruned.model}
    with run.progress.phase("refitting weights") as report, run.timed("recovery"):
        if kept:
            symmetric = refit_symmetric(coupling, statistics, kept)
            candidates["closed form"] = apply_weights(pruned.model, symmetric)
            sequential = refit_sequential(
                coupling, kept, pruned.model, run.batches, statistics=statistics, progress=report
            )
            candidates["closed form, front to back"] = apply_weights(pruned.model, sequential)
        scores = {name: evaluator.score(model) for name, model in candidates.items()}
    best = max(scores, key=lambda name: scores[name])
    model, tuned = _finetune(run, candidates[best], evaluator, scores[best])
    return model, {
        "plan": pruned.plan,
        "recovery": {"chosen": best, "scores": scores, "metric": evaluator.metric.name, "n": len(evaluator.indices)},
        "finetune": tuned,
        "equivalence": asdict(equivalence) | {"passed": equivalence.passed},
    }


def _finetune(
    run: _Run, model: onnx.ModelProto, evaluator: Evaluator, score: float
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model after distillation where that is possible and better, and what was done."""
    from onnx_netadapt.distill import distill

    with run.progress.phase("fine-tuning") as report, run.timed("finetune"):
        tuned, facts = distill(run, model, evaluator, score, report)
    return tuned, facts


def _scores(run: _Run, model: onnx.ModelProto) -> tuple[Score | None, Score | None]:
    """The original's and the model's score on the report set, which chose nothing."""
    if not len(run.report) or run.report_data.synthetic:
        run.warnings.append("no score is reported: there is no data that played no part in the choice")
        return None, None
    metric = (
        metric_of(run.options.metric)
        if run.options.metric
        else report_metric(Runner(run.graph.model)(run.feeds), run.report_data.labels is not None)
    )
    evaluator = Evaluator(run.graph, run.report_data, run.report, metric)
    n, labelled = len(run.report), metric.labelled
    return (
        Score(metric.name, evaluator.score(run.graph.model), n, labelled),
        Score(metric.name, evaluator.score(model), n, labelled),
    )


def _state(
    narrowing: Narrowing,
    widths: Mapping[str, int],
    model: onnx.ModelProto,
    latency: Latency,
    score: Score | None,
    cost: NetworkCost,
) -> State:
    try:
        memory_bytes: int | None = cost.memory_of(widths).total_bytes
    except NetAdaptError:
        memory_bytes = None
    return State(
        latency_ms=latency_facts(latency),
        macs=narrowing.sizes.macs(widths),
        params=narrowing.sizes.params(widths),
        size_bytes=model.ByteSize(),
        memory_bytes=memory_bytes,
        score=score,
    )


def latency_facts(latency: Latency) -> dict[str, Any]:
    """A latency as the report has it."""
    return {
        "median": latency.median_ms,
        "p10": latency.p10_ms,
        "p90": latency.p90_ms,
        "runs": latency.runs,
        "clock": latency.clock,
        "wall_median": latency.wall_median_ms,
    }


def _budget_facts(
    run: _Run, cost: NetworkCost, result: SearchResult, before: Latency, after: Latency
) -> tuple[dict[str, Any], ...]:
    found = []
    full = cost.measure({name: width for name, width in cost.narrowing.full.items()})
    for name, budget in run.budgets.items():
        reached = after.median_ms if name == "latency" else result.measured[name]
        limit = budget.limit(before.median_ms if name == "latency" else full[name])
        found.append({"resource": name, "text": budget.text, "limit": limit, "measured": reached, "share": reached / limit})
    return tuple(found)


def _data_facts(run: _Run) -> dict[str, Any]:
    return {
        "origin": run.data.origin,
        "synthetic": run.data.synthetic,
        "calibration": len(run.calibration),
        "selection": len(run.selection),
        "report": len(run.report),
        "report_origin": run.report_data.origin,
    }


def _noise(latency: Latency) -> list[str]:
    if not latency.busy:
        return []
    return [
        f"the machine was busy while the result was measured (wall {latency.wall_median_ms:.3f} ms, "
        f"CPU {latency.median_ms:.3f} ms): measure it again with `onnx-netadapt measure` when it is quiet"
    ]


def _environment(target: Target) -> dict[str, Any]:
    return {**target.fingerprint(), "python": platform.python_version(), "cores": os.cpu_count()}


def _version() -> str:
    from importlib.metadata import version

    return version("onnx-netadapt")


def _write(path: Path, model: onnx.ModelProto, report: AdaptReport) -> None:
    """The model last: whoever finds it finds its report and plan beside it."""
    base = path.with_suffix("") if path.suffix == ".onnx" else path
    write_json(base.with_name(base.name + ".plan.json"), report.plan)
    write_json(base.with_name(base.name + ".report.json"), report)
    write_html(base.with_name(base.name + ".report.html"), report)
    save(model, path)
