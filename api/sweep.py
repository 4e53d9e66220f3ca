"""Many budgets in one run: `--budget 0.8x,0.6x,0.4x` gives one model each, and a table of what each costs and keeps.

1. One pass of the search goes from the loosest budget to the tightest: each starts where the search for the one before
   ended, from the same latency table and the same scores, so that no network is measured or scored twice.
2. Each budget's model is finished, measured and written before the search goes on; a run that is resumed leaves those
   that are written as they are.
3. The tightest budget must be in reach before anything starts.
4. Latencies of the table are at one pace, the median of what the original took beside each model, unless the budget is
   in milliseconds.
5. One pass goes through one size of the input: a size of the model's own making serves one budget (`downsampling`), so
   that none is looked for here.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from onnx_netadapt.budgets import Budget, at_speed, each_budget, parse_budgets, show_amount
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.load import Source, files_of
from onnx_netadapt.journal import FileJournal
from onnx_netadapt.options import Options
from onnx_netadapt.passes.search.common import over, require_reachable
from onnx_netadapt.paths import check_output
from onnx_netadapt.pipeline import Bench, close_journal, open_journal, set_up, to_budget
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import read_report, trade_off, write_json, write_page
from onnx_netadapt.resolution import AUTO, NEVER

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One model: its budgets as they were written, its file, what it costs, its score on the report set.

    `measured` has the budgeted resources in their own units; `dominated` tells that another row costs no more and
    scores no less, and one of both better.
    """

    budgets: tuple[str, ...]
    output: str
    met: bool
    measured: Mapping[str, float]
    latency_ms: float
    macs: int
    params: int
    size_bytes: int
    score: Mapping[str, Any] | None
    dominated: bool = False


@dataclass(frozen=True, slots=True)
class Pareto:
    """The models of a sweep from the loosest budget to the tightest, the original, and the search's whole frontier."""

    model: str
    target: str
    command: str
    search: str
    resource: str
    original: Row
    rows: tuple[Row, ...]
    frontier: tuple[Mapping[str, Any], ...]
    seconds: float
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def met(self) -> bool:
        """Whether every budget is met."""
        return all(row.met for row in self.rows)

    def __str__(self) -> str:
        score = next((row.score["name"] for row in self.rows if row.score), "score")
        lines = [f"{'budget':>16} {'measured':>12} {'latency':>10} {'MACs':>10} {'params':>9} {score:>9}"]
        for row in (self.original, *self.rows):
            name = " ".join(row.budgets) or "original"
            cost = show_amount(self.resource, row.measured[self.resource])
            value = f"{row.score['value']:.4f}" if row.score else "-"
            notes = ("" if row.met else "  NOT MET") + ("  dominated" if row.dominated else "")
            lines.append(
                f"{name:>16} {cost:>12} {row.latency_ms:>7.3f} ms {row.macs / 1e6:>8.1f} M "
                f"{row.params / 1e6:>7.3f} M {value:>9}{notes}  {row.output}"
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The models of many budgets, in the order of the rows of `pareto`."""

    models: tuple[onnx.ModelProto, ...]
    pareto: Pareto


def sweep(
    source: Source, options: Options, *, name: str = "model", progress: Progress | None = None, command: str = ""
) -> Sweep:
    """One model for each budget of the list in `options.budgets`, written beside each other when there is an output.

    Raises what `adapt` raises; models of looser budgets are written by then.
    """
    began = time.perf_counter()
    sets = each_budget(options.budgets)
    parse_all = [parse_budgets(texts) for texts in sets]
    if options.output is not None:
        files = files_of(source)
        for texts in sets:
            check_output(output_of(options.output, texts, sets), inputs=files)
    if options.downsample == AUTO:
        options = replace(options, downsample=NEVER)
    bench = set_up(source, replace(options, budgets=sets[0]), name, progress or Progress(quiet=True), command)
    order = _loosest_first(bench, parse_all)
    journal = open_journal(bench, options)
    goal = bench.limits(parse_all[order[-1]])
    if over(bench.cost.measure(bench.narrowing.full), goal) and not options.best_effort:
        require_reachable(bench.choices, bench.cost, goal)
    models, reports = [], []
    try:
        for number, place in enumerate(order):
            if isinstance(journal, FileJournal):
                journal.goal = number
            model, report = _one(bench, journal, sets[place], sets, goal, began if number == 0 else time.perf_counter())
            models.append(model)
            reports.append(report)
    except BaseException:
        close_journal(journal, options, done=False)
        raise
    pareto = _pareto(bench, [sets[place] for place in order], reports, time.perf_counter() - began)
    if options.output is not None:
        _write(options.output, pareto)
    close_journal(journal, options, done=True)
    return Sweep(tuple(models), pareto)


def output_of(output: Path, texts: Sequence[str], sets: Sequence[Sequence[str]]) -> Path:
    """Where the model of a set of budgets is written: `small.0.6x.onnx` for `-o small.onnx --budget 0.8x,0.6x`."""
    others = set(sets[0]).intersection(*map(set, sets[1:])) if len(sets) > 1 else set()
    own = "-".join(text for text in texts if text not in others)
    slug = re.sub(r"[^\w.]+", "-", own)
    suffix = output.suffix or ".onnx"
    return output.with_name(f"{output.name.removesuffix(suffix)}.{slug}{suffix}")


def _one(
    bench: Bench,
    journal: Any,
    texts: tuple[str, ...],
    sets: Sequence[tuple[str, ...]],
    goal: Mapping[str, float],
    began: float,
) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    """The model of one set of budgets, and its report as JSON data; what an interrupted run wrote is read again."""
    run = bench.run
    output = None if run.options.output is None else output_of(run.options.output, texts, sets)
    if output is not None and isinstance(journal, FileJournal) and journal.goal in journal.finished and output.exists():
        return onnx.load(output), read_report(output)
    run.progress.say(f"budget {' '.join(texts)}")
    own = replace(
        run,
        options=replace(run.options, budgets=texts, output=output),
        budgets=parse_budgets(texts),
        warnings=list(run.warnings),
        seconds=dict(run.seconds) if isinstance(journal, FileJournal) and journal.goal == 0 else {},
    )
    found = to_budget(bench, own, journal, goal, began)
    if isinstance(journal, FileJournal):
        journal.finish()
    return found.model, found.report.as_json()


def _loosest_first(bench: Bench, sets: Sequence[Mapping[str, Budget]]) -> list[int]:
    """The places of the sets in the order in which one pass reaches them; InputError when a list changes nothing."""
    limits = [bench.limits(budgets) for budgets in sets]
    keys = [tuple(found[name] for name in sorted(found)) for found in limits]
    if len(set(keys)) < len(keys):
        raise InputError("two budgets of the list are the same limit; leave one of them out")
    return sorted(range(len(sets)), key=lambda place: keys[place], reverse=True)


def _pareto(
    bench: Bench, sets: Sequence[tuple[str, ...]], reports: Sequence[Mapping[str, Any]], seconds: float
) -> Pareto:
    resource = next(iter(bench.run.budgets))
    full = dict(bench.cost.measure(bench.narrowing.full))
    pace = median(_original_ms(report) for report in reports)
    rows = [row_of(texts, report, report["after"], pace) for texts, report in zip(sets, reports, strict=True)]
    first, last = reports[0], reports[-1]
    measured = full | ({"latency": pace} if "latency" in full else {})
    original = replace(row_of((), first, first["before"], pace), output=bench.name, met=True, measured=measured)
    return Pareto(
        model=bench.name,
        target=str(bench.run.target),
        command=bench.command,
        search=bench.run.options.search,
        resource=resource,
        original=original,
        rows=tuple(replace(row, dominated=_dominated(row, rows, resource)) for row in rows),
        frontier=tuple(
            {**step, "measured": at_speed(step["measured"], pace / last["search"].get("start_ms", pace))}
            for step in last["search"]["frontier"]
        ),
        seconds=round(seconds, 2),
    )


def _original_ms(report: Mapping[str, Any]) -> float:
    """The latency of the original, measured beside the finished model."""
    return float(report["before"]["latency_ms"]["median"])


def row_of(texts: tuple[str, ...], report: Mapping[str, Any], state: Mapping[str, Any], pace: float) -> Row:
    """A row with its latency as the original at `pace` has it, whose own differs from report to report.

    A budget in milliseconds is held to the clock: its row says what was measured then.
    """
    measured = {budget["resource"]: budget["measured"] for budget in report["budgets"]}
    latency = parse_budgets(texts).get("latency") if texts else None
    scale = 1.0 if latency is not None and not latency.relative else pace / _original_ms(report)
    return Row(
        budgets=texts,
        output=report["output"],
        met=report["met"],
        measured=at_speed(measured, scale),
        latency_ms=state["latency_ms"]["median"] * scale,
        macs=state["macs"],
        params=state["params"],
        size_bytes=state["size_bytes"],
        score=state["score"],
    )


def _dominated(row: Row, rows: Sequence[Row], resource: str) -> bool:
    if row.score is None:
        return False
    own = row.measured[resource], -row.score["value"]
    others = [(other.measured[resource], -other.score["value"]) for other in rows if other.score is not None]
    return any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in others)


def _write(output: Path, pareto: Pareto) -> None:
    """`OUT.pareto.json` and `OUT.pareto.html`."""
    base = output.name.removesuffix(".onnx")
    write_json(output.with_name(f"{base}.pareto.json"), pareto)
    scored = [row for row in (pareto.original, *pareto.rows) if row.score is not None]
    finished = [(row.measured[pareto.resource], row.score["value"]) for row in scored if row.score is not None]
    searched = [(step["measured"][pareto.resource], step["score"]) for step in pareto.frontier]
    charts = [
        ("The finished models", trade_off(pareto.resource, finished)),
        ("The search", trade_off(pareto.resource, searched)),
    ]
    write_page(output.with_name(f"{base}.pareto.html"), "pareto.html.j2", pareto=pareto, charts=charts)
