"""The main job: a model and a budget in, a model that is measured to meet the budget out.

    load -> couple -> split the data -> order the units -> fill the latency table -> search -> refit -> fine-tune
         -> measure -> score on data that chose nothing -> write

Every arrow is one function below; `Run` holds what has been worked out so far, `Bench` what does not depend on the
budget: `sweep` takes many budgets over one bench.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.budgets import Budget
from onnx_netadapt.costs import AGAIN, MEASURED, NetworkCost
from onnx_netadapt.downsampling import Sized, downsampled
from onnx_netadapt.elastic_record import Record, narrowing_of, wanted_record, without_record
from onnx_netadapt.energy import EnergyModel
from onnx_netadapt.evaluate import Evaluator, examples_for
from onnx_netadapt.finalists import settle
from onnx_netadapt.finish import finish, report_scores
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.load import Source, files_of
from onnx_netadapt.journal import FileJournal, last_widths
from onnx_netadapt.metrics import Metric, metric_of, search_metric
from onnx_netadapt.network import Narrowing, means_note
from onnx_netadapt.options import Options
from onnx_netadapt.ordering import ordered
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.search import Choice, SearchResult, frontier
from onnx_netadapt.passes.search.chamnet import Samples, SampleStore
from onnx_netadapt.passes.search.common import ListJournal, full_widths
from onnx_netadapt.paths import check_output
from onnx_netadapt.predictor import PredictorFile
from onnx_netadapt.profiler import Comparison, Granularity, LatencyModel, Lut, probe
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import AdaptReport
from onnx_netadapt.resolution import AUTO, NEVER, InputSize, parse_downsample, parse_resolution, planned
from onnx_netadapt.run import Run, prepare
from onnx_netadapt.scoring import AnyScorer, Candidates, MaskedScorer, Scorer
from onnx_netadapt.searching import AnyJournal, Searcher, searcher_of, stays_above
from onnx_netadapt.stages import (
    RESOLUTION,
    At,
    SizedCost,
    SizedScorer,
    Stage,
    groups_of,
    joined,
    proposed,
    resolution_facts,
    sized_runs,
    stage_at,
)
from onnx_netadapt.summary import (
    budget_facts,
    data_facts,
    environment,
    noise_warnings,
    slower_warnings,
    state_of,
    tool_version,
    write_all,
)

LOWER = (0.97, 0.95, 0.93)
"""What is asked for when the finished model is over the budget all the same."""

OFF_EDGES = 2
"""Variants off the target's step that are profiled: the search proposes none, but barriers may force some channels."""

SCORING_MACS = 2.5e12
"""Multiply-accumulates that all scoring of a search may take (some minutes on two cores): sets the images per score."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The adapted model and the report about it."""

    model: onnx.ModelProto
    report: AdaptReport


@dataclass(frozen=True, slots=True)
class Bench:
    """All of a run that does not depend on the budget: the coupled model, its costs by widths and its scores.

    There are no `statistics` for a model of train-elastic: its weights serve every width as they are. `stages` are the
    sizes that the input may take, the model's own first; `cost` and `scorer` are over all of them.
    """

    run: Run
    source: Source
    name: str
    command: str
    narrowing: Narrowing
    statistics: Statistics | None
    cost: NetworkCost | SizedCost
    choices: list[Choice]
    granularity: Granularity | None
    table: Mapping[str, Any] | None
    scorer: AnyScorer | SizedScorer
    samples: SampleStore
    stages: tuple[Stage, ...]

    def limits(self, budgets: Mapping[str, Budget]) -> dict[str, float]:
        """Budgets in their own units."""
        start = self.cost.measure(self.narrowing.full)
        return {name: budget.limit(start[name]) for name, budget in budgets.items()}

    def at(self, run: Run) -> At:
        """The stages within the run for one of several budgets."""
        stages = [stage.within(run) for stage in self.stages]
        return lambda widths: stage_at(stages, widths)


def adapt(
    source: Source, options: Options, *, name: str = "model", progress: Progress | None = None, command: str = ""
) -> Adapted:
    """The model adapted to the budgets, written to `options.output` when that is given, and the report.

    Raises InputError for what cannot be used, TargetError for a target that cannot run it, BudgetError when the budget
    cannot be reached (with `best_effort` the nearest model is returned instead, its report saying so).
    """
    began = time.perf_counter()
    if options.output is not None:
        check_output(options.output, inputs=files_of(source))
    bench = set_up(source, options, name, progress or Progress(quiet=True), command)
    journal = open_journal(bench, options)
    try:
        found = to_budget(bench, bench.run, journal, bench.limits(bench.run.budgets), began)
    except BaseException:
        close_journal(journal, options, done=False)
        raise
    close_journal(journal, options, done=True)
    return found


def set_up(source: Source, options: Options, name: str, progress: Progress, command: str) -> Bench:
    """Everything up to the search."""
    if options.predictor is not None:
        check_output(Path(options.predictor), "--predictor")
    run = prepare(source, options if options.resolution else _as_begun(options), progress)
    record = _record(run)
    run.depth = takes_depth(run, record)
    lut = Lut.open(options.lut or ":memory:", run.target.fingerprint()) if "latency" in run.budgets else None
    stages, choices, granularity = _stages(run, record, lut)
    whole = joined(stages, choices)
    lead = whole.lead
    samples = _samples(run, full_widths(whole.choices) | lead.narrowing.full, lead.evaluator)
    table = None if lut is None else _table_facts(options, lut, lead.cost.latency)
    return Bench(
        run, source, name, command, whole.narrowing, lead.statistics, whole.cost, whole.choices, granularity, table,
        whole.scorer, samples, stages,
    )  # fmt: skip


def to_budget(bench: Bench, run: Run, journal: AnyJournal, goal: Mapping[str, float], began: float) -> Adapted:
    """The model adapted to the budgets of `run`, and its files.

    `goal` are the limits of the least of several budgets, `began` is when the work for this one did (perf_counter).
    """
    known = proposed(bench.stages)
    searcher = searcher_of(run, bench.narrowing, bench.cost, bench.choices, bench.scorer, goal, bench.samples)
    result, met = searcher.run_to_budget(journal, confirmed=not searcher.settles)
    if note := result.facts.get("predictor", {}).get("fell_back"):
        run.warnings.append(note)
    at = bench.at(run)
    if met and searcher.settles:
        result, met = settle(at, searcher, result, known)
    done = _finished(run, searcher, at, result, met)
    stage, model = done.stage, without_record(done.model)
    with run.timed("report"):
        scores = report_scores(stage.run, model)
    run.seconds["total"] = time.perf_counter() - began
    report = _report(bench, run, done, model, scores)
    output = run.options.output
    if output is not None:
        write_all(output, model, report, external=len(files_of(bench.source)) > 1)
    return Adapted(model, report)


@dataclass(frozen=True, slots=True)
class _Finished:
    """A finished model: the search's result that it has the widths of, its stage, its last measurement beside the
    original's, and whether every budget is met.
    """

    result: SearchResult
    stage: Stage
    model: onnx.ModelProto
    facts: dict[str, Any]
    told: Comparison
    met: bool


def _finished(run: Run, searcher: Searcher, at: At, result: SearchResult, met: bool) -> _Finished:
    """The result with its best weights; narrower ones while the last measurement is over the budget.

    Raises BudgetError when the last of them is, too, unless the best effort will do.
    """
    for ceiling in (*LOWER, None):
        stage = at(result.widths)
        model, facts = finish(stage.run, stage.narrowing, stage.statistics, groups_of(result.widths), stage.evaluator)
        if stage.run.original is not None and stage.size is not None:
            facts["plan"] |= {"input": planned(stage.size)}
        with run.timed("measuring"):
            told = _measured(run, stage.cost, model)
        if not met or _within(run, told) or ceiling is None:
            break
        result, met = searcher.confirm(result, ceiling)
    if met and not _within(run, told) and not run.options.best_effort:
        limit = run.budgets["latency"].limit(told.reference.median_ms)
        raise stays_above({"latency": (told.latency.median_ms, limit)})
    return _Finished(result, stage, model, facts, told, met and _within(run, told))


def _report(bench: Bench, run: Run, done: _Finished, model: onnx.ModelProto, scores: Any) -> AdaptReport:
    options, own, stage, result, facts = run.options, bench.stages[0], done.stage, done.result, done.facts
    widths, before, after = groups_of(result.widths), done.told.reference, done.told.latency
    return AdaptReport(
        tool_version=tool_version(),
        command=bench.command,
        model=bench.name,
        output=str(options.output) if options.output else "",
        seed=options.seed,
        environment=environment(run.target),
        target=str(run.target),
        granularity=str(bench.granularity) if bench.granularity else "not probed",
        budgets=budget_facts(run, own.cost, result, before, after),
        met=done.met,
        before=state_of(own.cost, own.narrowing.full, run.graph.model, before, scores[0]),
        after=state_of(stage.cost, widths, model, after, scores[1]),
        resolution=None if len(bench.stages) == 1 else resolution_facts(bench.stages, stage),
        estimate_ms=stage.cost(widths).get("latency"),
        lut=bench.table,
        data=data_facts(run),
        search=_search_facts(bench, run, result),
        recovery=facts["recovery"],
        finetune=facts["finetune"],
        equivalence=facts["equivalence"],
        seconds={key: round(value, 2) for key, value in run.seconds.items()},
        widths=stage.narrowing.settled(widths),
        plan=facts["plan"],
        history=tuple(asdict(step) for step in result.steps),
        barriers=tuple(asdict(barrier) for barrier in own.narrowing.coupling.barriers),
        warnings=tuple(dict.fromkeys([*run.warnings, *means_note(facts["plan"]), *_measured_warnings(run, done.told)])),
    )


def _measured_warnings(run: Run, told: Comparison) -> list[str]:
    """What the last measurement says beside the budget."""
    return [*slower_warnings(told, "latency" in run.budgets), *noise_warnings(told)]


def _search_facts(bench: Bench, run: Run, result: SearchResult) -> dict[str, Any]:
    """The search's name, how many networks it judged, what it says about itself, and its frontier."""
    best = frontier(result.steps, list(run.budgets))
    return {
        "name": run.options.search,
        "scoring": run.options.scoring,
        "scored": bench.scorer.judged,
        "elastic": bench.statistics is None,
        "metric": bench.scorer.evaluator.metric.name,
        **result.facts,
        **({"start_ms": run.start.median_ms} if "latency" in run.budgets else {}),
        "frontier": [{"step": s.number, "measured": dict(s.measured), "score": s.score} for s in best],
    }


def _record(run: Run) -> Record | None:
    """The record of a model of train-elastic, where it is to be used."""
    record = wanted_record(run.graph, run.options.elastic)
    if record is not None and run.options.allow_depth:
        raise InputError("--allow-depth: the model was trained for every width with all its branches; add --no-elastic")
    if record is not None and parse_downsample(run.options.downsample) is not None:
        raise InputError("--downsample: the model was trained for every width at its own size; add --no-elastic")
    return record


def takes_depth(run: Run, record: Record | None) -> bool:
    """Whether branches and layers may go whole: as the user says, else where what is measured is budgeted, for there a
    narrow branch costs more than its share (decision 0031); not for what is published or uniform.
    """
    options = run.options
    if options.allow_depth is not None:
        return options.allow_depth
    free = record is None and options.scoring == "refit" and not options.published and options.search != "multiplier"
    return free and any(name in MEASURED for name in run.budgets)


def _cut_from(run: Run, record: Record) -> Narrowing:
    """The coupled graph of a model of train-elastic."""
    with run.timed("analysis"):
        coupling = couple(run.graph, renormalize=record.renormalize)
    run.progress.say("  the model is elastic: networks are cut from its weights as they are")
    return narrowing_of(record, coupling)


def _in_order(run: Run, record: Record | None) -> tuple[Narrowing, Statistics | None]:
    """The coupled graph in nested order, and statistics where its weights are to be refitted."""
    return ordered(run) if record is None else (_cut_from(run, record), None)


def _stages(
    run: Run, record: Record | None, lut: Lut | None
) -> tuple[tuple[Stage, ...], list[Choice], Granularity | None]:
    """The sizes that the input may take, the model's own first, the widths worth proposing and the granularity."""
    if run.options.resolution:
        runs = sized_runs(run, parse_resolution(run.options.resolution))
        own, choices, granularity = _stage(*runs[0], record, lut)
        return (own, *(_stage(*at_size, record, lut, own)[0] for at_size in runs[1:])), choices, granularity
    found = None if record is not None else downsampled(run, _search_metric(run), lut)
    if found is None or found.chosen.run is run:
        only, choices, granularity = _stage(None, run, record, lut, known=None if found is None else found.chosen)
        return (only,), choices, granularity
    run.look_at_start_again()
    own = _reference(run, found.own)
    small, choices, granularity = _stage(found.chosen.size, found.chosen.run, None, lut, own, found.chosen)
    return (own, small), choices, granularity


def _reference(run: Run, own: Sized) -> Stage:
    """The stage of a model as it is, which another one stands in for: budgets and scores refer to it."""
    narrowing, options = own.whole, run.options
    evaluator = _evaluator(run, narrowing, narrowing.choices(None, options.min_keep, options.exclude, options.only))
    cost = NetworkCost(narrowing, run.target, run.feeds, list(run.budgets), run.reference, run.start)
    return Stage(run, narrowing, None, cost, Scorer(Candidates(narrowing, None), evaluator), own.size, reference=True)


def _stage(
    size: InputSize | None,
    run: Run,
    record: Record | None,
    lut: Lut | None,
    own: Stage | None = None,
    known: Sized | None = None,
) -> tuple[Stage, list[Choice], Granularity | None]:
    """The model at one size of its input, the widths worth proposing and the target's granularity.

    `own` is the stage of the model's own size; None: this is it. `known` has what was worked out to choose the size.
    """
    if size is not None:
        run.progress.say(f"input of {size}")
    narrowing, statistics = (known and known.ready) or (
        ordered(run) if record is None else (_cut_from(run, record), None)
    )
    if own is not None and narrowing.full != own.narrowing.full:
        raise InputError(
            f"--resolution {run.options.resolution}: with an input of {size} other channels of the model belong "
            f"together than with {own.size}; begin the range above {size}"
        )
    cost, choices, granularity = _cost(run, narrowing, lut)
    evaluator = _evaluator(run, narrowing, choices) if own is None else own.evaluator.seeing(run.data)
    scorer: AnyScorer = Scorer(Candidates(narrowing, statistics), evaluator)
    if run.options.scoring == "masked":
        scorer = MaskedScorer(narrowing, evaluator)
    networks = () if known is None else known.networks
    return Stage(run, narrowing, statistics, cost, scorer, size, networks), choices, granularity


def _cost(run: Run, narrowing: Narrowing, lut: Lut | None) -> tuple[NetworkCost, list[Choice], Granularity | None]:
    """The cost of any widths, the widths worth proposing, and the target's granularity."""
    options, own_size = run.options, run.original is None
    latency, granularity = (None, None) if lut is None else _filled(run, narrowing, lut)
    if latency is not None and own_size:
        run.look_at_start_again(latency.base_ms)
    cost = NetworkCost(
        narrowing, run.target, run.feeds, list(run.budgets), run.reference, run.whole.start, own_size=own_size
    )
    cost.latency = latency
    choices = narrowing.choices(granularity, options.min_keep, options.exclude, options.only)
    if run.meter is not None:
        cost.energy = EnergyModel(narrowing, run.target, run.feeds, run.meter)
        with run.progress.phase("exploring energy") as report, run.timed("energy"):
            cost.energy.explore(choices, np.random.default_rng(options.seed), report)
    return cost, choices, granularity


def _filled(run: Run, narrowing: Narrowing, lut: Lut) -> tuple[LatencyModel, Granularity]:
    """Estimates from the latency table once it is filled, and the target's granularity."""
    from onnx_netadapt.profiler import fill

    options = run.options
    with run.progress.phase("filling the latency table") as report, run.timed("table"):
        granularity = probe(run.target, lut)
        choices = narrowing.choices(granularity, options.min_keep, options.exclude, options.only)
        network = narrowing.measurable(choices, run.feeds)
        rng = np.random.default_rng(options.seed)
        base = run.reference if run.original is None else None  # at another size the base is another network
        latency = fill(lut, run.target, network, rng, off_edges=OFF_EDGES, reference=base, progress=report)
        run.warnings += latency.notes
    run.progress.say(f"  the target's granularity: {granularity}")
    return latency, granularity


def _table_facts(options: Options, lut: Lut, model: LatencyModel | None) -> dict[str, Any]:
    """What the report says about the latency table."""
    return {
        "file": str(options.lut) if options.lut else None,
        "entries": len(lut),
        "capability": None if model is None else str(model.plan.capability),
    }


def _evaluator(run: Run, narrowing: Narrowing, choices: list[Choice]) -> Evaluator:
    """Scores proposals on as many selection examples as the scoring of a whole search can pay for."""
    from onnx_netadapt.passes.search.netadapt import ITERATIONS

    scores = max(len(choices), 1) * ITERATIONS
    affordable = examples_for(run.graph, narrowing.sizes.macs(narrowing.full), SCORING_MACS / scores)
    count = min(len(run.selection), max(affordable, 16))
    indices = run.selection[:count] if count else run.calibration[:16]
    return Evaluator(run.graph, run.data, indices, _search_metric(run))


def _samples(run: Run, full: Mapping[str, int], evaluator: Evaluator) -> SampleStore:
    """Where the samples of a score predictor are kept; `full` are the original's widths."""
    options = run.options
    if options.predictor is None:
        return Samples()
    header = {
        "model_sha256": _digest(run.graph),
        "metric": evaluator.metric.name,
        "scoring": options.scoring,
        "examples": len(evaluator.indices),
        "data": options.data,
        "seed": options.seed,
        **({"allow_depth": True} if run.depth else {}),
    }
    return PredictorFile(Path(options.predictor), header, full)


def _digest(graph: Graph) -> str:
    return hashlib.sha256(graph.model.SerializeToString(deterministic=True)).hexdigest()


def _search_metric(run: Run) -> Metric:
    if run.options.metric:
        return metric_of(run.options.metric)
    return search_metric(run.outputs)


def open_journal(bench: Bench, options: Options) -> AnyJournal:
    """The journal of a run: where `options` says, else beside the output; without an output in memory."""
    path = _journal_path(options)
    if path is None:
        return ListJournal()
    header = {
        "model": bench.name,
        "model_sha256": _digest(bench.run.graph),
        "budgets": list(options.budgets),
        "target": str(bench.run.target),
        "search": options.search,
        "scoring": options.scoring,
        "seed": options.seed,
        "min_keep": options.min_keep,
        "data": options.data,
        "exclude": list(options.exclude),
        "only": list(options.only),
        **({"renormalize": True} if options.renormalize else {}),
        **({"allow_depth": True} if bench.run.depth else {}),
        **({"resolution": options.resolution} if options.resolution else {}),
        **({} if options.downsample == AUTO else {"downsample": options.downsample}),
        **({} if options.elastic is None else {"elastic": options.elastic}),
    }
    start_ms = bench.run.start.median_ms if "latency" in bench.run.budgets else None
    return FileJournal(path, header, resume=options.resume, start_ms=start_ms)


def _journal_path(options: Options) -> Path | None:
    """Where the options say, else beside the output."""
    if options.journal is not None or options.output is None:
        return options.journal
    return options.output.with_name(f"{options.output.name}.journal.jsonl")


def _as_begun(options: Options) -> Options:
    """The options with the size that an interrupted run had chosen for its image, as its steps have it."""
    path = _journal_path(options)
    if not options.resume or path is None or options.downsample != AUTO or (past := last_widths(path)) is None:
        return options
    return replace(options, downsample=str(past[RESOLUTION]) if RESOLUTION in past else NEVER)


def close_journal(journal: AnyJournal, options: Options, *, done: bool) -> None:
    """Deletes the journal when it is of no more use; one that the user named stays."""
    if isinstance(journal, FileJournal) and not options.journal and (done or not journal.past):
        journal.remove()


def _measured(run: Run, cost: NetworkCost, model: onnx.ModelProto) -> Comparison:
    """The last measurement of the finished model, whose structure was within the budget before.

    When it says otherwise, or is not sure, who is right is asked once more and for longer; one that was disturbed is
    never sure, and a longer one would hardly find a better moment.
    """
    told = cost.final(model)
    return told if _within(run, told, sure=not told.disturbed) else cost.final(model, AGAIN)


def _within(run: Run, told: Comparison, *, sure: bool = False) -> bool:
    """Whether the median latency of the finished model is within the latency budget; `sure`: by more than its error."""
    budget = run.budgets.get("latency")
    share = 1 - told.error if sure else 1.0
    return budget is None or told.latency.median_ms <= share * budget.limit(told.reference.median_ms)
