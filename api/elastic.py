"""`train-elastic`: one set of weights that serves every width, from which any later budget is cut without training.

    load -> couple -> split the data -> order the units -> a ladder of networks -> ordered dropout -> write

The result is the model as it was, with other weights and the order of its units in its metadata (`elastic_record`). The
main job finds the order there, and cuts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.costs import NetworkCost
from onnx_netadapt.distill import training_of
from onnx_netadapt.elastic_record import Record, digest, with_record
from onnx_netadapt.evaluate import Evaluator
from onnx_netadapt.finish import report_evaluator
from onnx_netadapt.hooks import hooks_of
from onnx_netadapt.inputs import Indices
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.load import Source, files_of, load
from onnx_netadapt.ir.write import save
from onnx_netadapt.metrics import metric_of, search_metric
from onnx_netadapt.network import Narrowing
from onnx_netadapt.options import Options
from onnx_netadapt.ordering import ordered
from onnx_netadapt.passes.elastic import Widths, train, unmasked
from onnx_netadapt.passes.finetune import FinetuneResult, FinetuneSettings
from onnx_netadapt.passes.masks import MaskedModel, Prefixes
from onnx_netadapt.passes.search import Choice
from onnx_netadapt.passes.search.curves import pool_of
from onnx_netadapt.passes.to_torch import unsupported
from onnx_netadapt.paths import check_output
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import write_json
from onnx_netadapt.run import Run, prepare
from onnx_netadapt.scoring import MaskedScorer
from onnx_netadapt.summary import data_facts, tool_version

SCHEMA_VERSION = 1

STEPS, SECONDS = 2_000, 300.0
"""Training unless the user says otherwise: as many steps as fit into the seconds."""

PATIENCE = 6
"""Half as many checks without a gain over the start end training, after half of its steps (rule 5 of `finetune`)."""

RUNGS = 0.05
"""The networks of the ladder are so far apart, as a share of the original's multiply-accumulates."""

JUDGED = (1.0, 0.75, 0.5)
"""Shares of the multiply-accumulates at which checkpoints are judged."""

CHECK_MACS = 4e11
"""Multiply-accumulates that judging a checkpoint may take at one width."""

LEAST_JUDGED = 64


@dataclass(frozen=True, slots=True)
class Point:
    """A network cut from the original and from the elastic model: its share of the multiply-accumulates, its widths,
    and the scores of both on the report set (None without one).
    """

    macs: float
    widths: Mapping[str, int]
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class ElasticReport:
    """What `train-elastic` did; `OUT.elastic.json` is this with the record of the model beside it."""

    tool_version: str
    command: str
    model: str
    output: str
    seed: int
    data: Mapping[str, Any]
    metric: str
    points: tuple[Point, ...]
    training: Mapping[str, Any]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    record: Mapping[str, Any]
    schema_version: int = field(default=SCHEMA_VERSION)

    def __str__(self) -> str:
        lines = [f"{self.output}: {self.training['said']}; {self.metric} of what is cut from it, without training:"]
        for point in self.points:
            before, after = ("-" if value is None else f"{value:.4f}" for value in (point.before, point.after))
            lines.append(f"  macs={point.macs:.2f}x  {after} (cut from the original: {before})")
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


@dataclass(frozen=True, slots=True)
class Elastic:
    """The elastic model and the report about it."""

    model: onnx.ModelProto
    report: ElasticReport


def train_elastic(
    source: Source, options: Options, *, name: str = "model", progress: Progress | None = None, command: str = ""
) -> Elastic:
    """The model with weights that serve every width, written to `options.output` when that is given.

    Raises InputError for what cannot be used: no data, a model that torch cannot run or that masks do not fit, training
    that found nothing better than the weights there were.
    """
    began = time.perf_counter()
    if options.output is not None:
        check_output(options.output, inputs=files_of(source))
    if options.data is None:
        raise InputError("train-elastic learns from examples, and none are given: give --data")
    run = prepare(source, options, progress or Progress(quiet=True), budgets={})
    _require_torch(run.graph)
    narrowing = ordered(run)[0]
    choices = narrowing.choices(None, options.min_keep, options.exclude, options.only)
    ladder = _ladder(run, narrowing, choices)
    evaluator = Evaluator(run.graph, run.data, _judging(run, narrowing), _metric(run))
    scorer = MaskedScorer(narrowing, evaluator, "train-elastic", "it cannot be trained so")
    found, settings = _trained(run, narrowing, scorer.masked, choices, ladder, evaluator)
    if found.step == 0:
        raise InputError(
            f"training found no weights that serve narrow networks better than the model's own ({found.reason}); "
            "nothing was written: give more --data, or more steps or another lr with --finetune"
        )
    bare = unmasked(found.model, run.graph)
    record = _record(run, narrowing, choices, bare)
    model = with_record(bare, record)
    judge = report_evaluator(run)
    run.seconds["total"] = time.perf_counter() - began
    report = ElasticReport(
        tool_version=tool_version(),
        command=command,
        model=name,
        output=str(options.output or ""),
        seed=options.seed,
        data=data_facts(run),
        metric="none" if judge is None else judge.metric.name,
        points=tuple(_points(narrowing, scorer.masked, found.model, ladder, judge)),
        training=_facts(found, settings, evaluator),
        seconds={key: round(value, 2) for key, value in run.seconds.items()},
        warnings=tuple(dict.fromkeys(run.warnings)),
        record=record.as_json(),
    )
    if options.output is not None:
        write_json(elastic_path(options.output), report)
        save(model, options.output, external=len(files_of(source)) > 1)
    return Elastic(model, report)


def elastic_path(model: Path) -> Path:
    """Where the report about an elastic model lies: `X.elastic.json` beside `X.onnx` and beside `X.elastic.onnx`."""
    return model.with_name(model.name.removesuffix(".onnx").removesuffix(".elastic") + ".elastic.json")


def default_output(model: Path) -> Path:
    """`MODEL.elastic.onnx` beside the input."""
    return model.with_name(f"{model.stem}.elastic.onnx")


def _require_torch(graph: Graph) -> None:
    problems = unsupported(graph)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"train-elastic: torch cannot run the model: {problems[0]}{more}; adapt it without training")


def _ladder(run: Run, narrowing: Narrowing, choices: Sequence[Choice]) -> list[dict[str, int]]:
    """Networks from the original down to the least widths, the largest first: those that the error curves propose."""
    cost = NetworkCost(narrowing, run.target, run.feeds, ["macs"], run.reference, run.start)
    whole = cost(narrowing.full)["macs"]
    least = narrowing.full | {choice.id: choice.widths[0] for choice in choices}
    assert narrowing.curves is not None
    propose = pool_of(choices, narrowing.curves, cost)
    found = [narrowing.full, least]
    for share in np.arange(1 - RUNGS, cost(least)["macs"] / whole, -RUNGS):
        found += [narrowing.full | widths for widths in propose({"macs": share * whole})]
    distinct = {tuple(widths.values()): widths for widths in found}
    return sorted(distinct.values(), key=lambda widths: -narrowing.sizes.macs(widths))


def _metric(run: Run) -> Any:
    return metric_of(run.options.metric) if run.options.metric else search_metric(run.outputs)


def _judging(run: Run, narrowing: Narrowing) -> Indices:
    """The examples that judge checkpoints: of the selection set as many as are affordable."""
    indices = run.selection if len(run.selection) else run.calibration
    macs = max(narrowing.sizes.macs(narrowing.full), 1)
    return indices[: max(LEAST_JUDGED, int(CHECK_MACS / macs))]


def _trained(
    run: Run,
    narrowing: Narrowing,
    model: MaskedModel,
    choices: Sequence[Choice],
    ladder: Sequence[Mapping[str, int]],
    evaluator: Evaluator,
) -> tuple[FinetuneResult, FinetuneSettings]:
    """The best masked model on the selection set (the original is one of them)."""
    batches, labels, settings = training_of(_with_all_examples(run))
    settings = _lengthened(settings, run.options.finetune or "")
    prefixes = Prefixes(model, narrowing.order)
    masks = prefixes.feeds(_rows(narrowing, _judged(narrowing, ladder)))
    least = narrowing.full | {choice.id: choice.widths[0] for choice in choices}
    full_row, least_row = _rows(narrowing, [narrowing.full, least])
    widths = Widths(_rows(narrowing, ladder), least_row, full_row, np.random.default_rng(run.options.seed))
    with run.progress.phase("training for every width") as report, run.timed("training"):
        found = train(
            model,
            narrowing.order,
            widths,
            batches,
            settings,
            lambda student: float(np.mean(evaluator.score_rows(evaluator.runner(student), masks))),
            report,
            labels=labels,
            hooks=hooks_of(run.options),
        )
    return found, settings


def _lengthened(settings: FinetuneSettings, asked: str) -> FinetuneSettings:
    """The settings with the length that training for every width takes, where the user did not say it."""
    usual: dict[str, Any] = {"steps": STEPS, "seconds": SECONDS, "patience": PATIENCE}
    if settings.steps == 0:
        raise InputError("--finetune none: train-elastic does nothing but train; nothing was written")
    return replace(settings, **{name: value for name, value in usual.items() if f"{name}=" not in asked})


def _with_all_examples(run: Run) -> Run:
    """The run with all examples for training that neither select nor report."""
    kept = [run.selection] + ([run.report] if run.report_data is run.data else [])
    rest = np.setdiff1d(np.arange(run.data.n), np.concatenate(kept))
    return replace(run, calibration=np.random.default_rng(run.options.seed).permutation(rest))


def _rows(narrowing: Narrowing, networks: Sequence[Mapping[str, int]]) -> Any:
    return np.array([[widths[name] for name in narrowing.full] for widths in networks], dtype=np.int64)


def _judged(narrowing: Narrowing, ladder: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    """The networks of the ladder that are the nearest to the sizes at which checkpoints are judged."""
    macs = [narrowing.sizes.macs(widths) for widths in ladder]
    places = [int(np.argmin([abs(one - share * macs[0]) for one in macs])) for share in JUDGED]
    return [ladder[place] for place in dict.fromkeys(places)]


def _record(run: Run, narrowing: Narrowing, choices: Sequence[Choice], model: onnx.ModelProto) -> Record:
    graph = load(model, shapes=run.options.shapes)
    least = narrowing.full | {choice.id: choice.widths[0] for choice in choices}
    assert narrowing.curves is not None
    return Record(narrowing.order, least, narrowing.curves, run.options.renormalize, digest(graph))


def _points(
    narrowing: Narrowing,
    masked: MaskedModel,
    trained: onnx.ModelProto,
    ladder: Sequence[Mapping[str, int]],
    evaluator: Evaluator | None,
) -> list[Point]:
    """What is cut from the original and from the elastic model, judged on the report set."""
    networks = _judged(narrowing, ladder)
    whole = narrowing.sizes.macs(narrowing.full)
    scores: list[Sequence[float | None]] = [[None] * len(networks)] * 2
    if evaluator is not None:
        masks = Prefixes(masked, narrowing.order).feeds(_rows(narrowing, networks))
        scores = [evaluator.score_rows(evaluator.runner(model), masks) for model in (masked.model, trained)]
    return [
        Point(narrowing.sizes.macs(widths) / whole, dict(widths), before, after)
        for widths, before, after in zip(networks, *scores, strict=True)
    ]


def _facts(found: FinetuneResult, settings: FinetuneSettings, evaluator: Evaluator) -> dict[str, Any]:
    start, last = found.history[0], found.history[-1]
    return {
        "said": f"{last.step} steps, {evaluator.metric.name} {start.score:.4f} -> {found.score:.4f} (mean of widths)",
        "reason": found.reason,
        "best_step": found.step,
        "settings": {"lr": settings.lr, "loss": settings.loss, "batch": settings.batch, "augment": settings.augment},
        "images": found.images,
        "seconds": last.seconds,
        "history": [{"step": c.step, "loss": c.loss, "score": c.score, "seconds": c.seconds} for c in found.history],
        "frozen": dict(found.frozen),
    }
