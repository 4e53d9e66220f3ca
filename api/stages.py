"""The model at every size that its input may take, and costs and scores over all of them.

1. The size is one more width: `RESOLUTION` beside the groups. So searches, journal, predictor and finalists choose it
   with the words that they have (docs/decisions/0018). Without a choice of sizes there is one stage, and no such width.
2. A stage has its own statistics, refits, latency model and examples, but one reference: the original at its own size,
   in scores as in budgets.
3. Outside of a stage widths may name the size; what lies in a stage knows groups alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx_netadapt.costs import NetworkCost
from onnx_netadapt.evaluate import Evaluator
from onnx_netadapt.metrics import metric_of
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.search import Choice
from onnx_netadapt.passes.search.common import Widths, all_of
from onnx_netadapt.resolution import InputSize, Range, data_at, own_size, refused, sizes_below, tried
from onnx_netadapt.run import Run, measuring_feeds
from onnx_netadapt.scoring import AnyScorer

RESOLUTION = "resolution"

Groups = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """The model at one size of its input; `size` is None where there is no choice of sizes.

    A `reference` is not searched: budgets and scores refer to it. `networks` were judged before the search.
    """

    run: Run
    narrowing: Narrowing
    statistics: Statistics | None
    cost: NetworkCost
    scorer: AnyScorer
    size: InputSize | None = None
    networks: Sequence[Widths] = ()
    reference: bool = False

    @property
    def evaluator(self) -> Evaluator:
        """Judges networks of this size on the selection set."""
        return self.scorer.evaluator

    def within(self, run: Run) -> "Stage":
        """The same stage in a run of other budgets, `run` being the one at the model's own size."""
        own = self.run
        if own.original is None:
            return replace(self, run=run)
        at_size = replace(
            run, graph=own.graph, data=own.data, report_data=own.report_data, feeds=own.feeds, original=run
        )
        return replace(self, run=at_size)


def sized_runs(run: Run, wanted: Range) -> list[tuple[InputSize | None, Run]]:
    """The run at the model's own size, and at each smaller size of the range that the model can take, descending.

    InputError where it can take none; what is left out is told as a warning.
    """
    own = own_size(run.graph, wanted)
    found: list[tuple[InputSize | None, Run]] = [(own, run)]
    reasons: dict[InputSize, str] = {}
    for size in reversed(sizes_below(own, wanted)):
        data = data_at(run.data, size)
        graph = tried(run.graph, size, data, run.outputs)
        if isinstance(graph, str):
            reasons[size] = graph
            continue
        report_data = data if run.report_data is run.data else data_at(run.report_data, size)
        feeds = measuring_feeds(graph, data)
        at_size = replace(run, graph=graph, data=data, report_data=report_data, feeds=feeds, original=run)
        found.append((size, at_size))
    if len(found) == 1:
        raise refused(wanted, own, reasons)
    run.warnings += [f"{wanted}: an input of {size} is left out: {reason}" for size, reason in reasons.items()]
    return found


def resolution_facts(stages: Sequence[Stage], chosen: Stage) -> dict[str, Any]:
    """What the report says of the size: the input's name, (height, width) before and after, whether the file fixes it
    and whether it is the model that makes it smaller, the sizes that there were to choose from, and the same in words.
    """
    own, after = stages[0].size, chosen.size
    assert own is not None
    assert after is not None
    (port,) = [port for port in chosen.run.graph.inputs if port.name == own.name]
    fixed = all(port.dims[axis] is not None for axis in own.axes)
    place = "" if fixed else f"; the file leaves it open: feed {after}, the costs and scores are those of that size"
    if after.inside:
        place = f" by the model itself, which is fed {own} as before"
    return {
        "input": own.name,
        "before": list(own.sides),
        "after": list(after.sides),
        "fixed": fixed,
        "inside": after.inside,
        "candidates": [list(stage.size.sides) for stage in stages if stage.size is not None],
        "said": f"'{own.name}' {own} -> {after}{place}",
    }


At = Callable[[Groups], Stage]
"""The stage of a network by its widths."""


def groups_of(widths: Groups) -> Widths:
    """The widths of the groups alone."""
    return {name: width for name, width in widths.items() if name != RESOLUTION}


def resolution_of(stage: Stage) -> int | None:
    """The resolution of a stage; None where there is no choice."""
    return None if stage.size is None else stage.size.resolution


def stage_at(stages: Sequence[Stage], widths: Groups) -> Stage:
    """The stage of a network: the first one, at the model's own size, where the widths name none."""
    wanted = widths.get(RESOLUTION, resolution_of(stages[0]))
    return next(stage for stage in stages if resolution_of(stage) == wanted)


def proposed(stages: Sequence[Stage]) -> list[Widths]:
    """The networks that were judged before the search, as widths over all stages."""
    return [
        widths if stage.size is None else {**widths, RESOLUTION: stage.size.resolution}
        for stage in stages
        for widths in stage.networks
    ]


@dataclass(frozen=True, slots=True)
class SizedCost:
    """`NetworkCost` over all stages."""

    stages: Sequence[Stage]

    def __call__(self, widths: Groups, /) -> Mapping[str, float]:
        """Estimated costs."""
        return stage_at(self.stages, widths).cost(groups_of(widths))

    def many(self, networks: Sequence[Groups]) -> list[Mapping[str, float]]:
        """Estimated costs of several networks, those of one size together."""
        found: dict[int, Mapping[str, float]] = {}
        for stage in self.stages:
            places = [k for k, widths in enumerate(networks) if stage_at(self.stages, widths) is stage]
            found |= zip(places, stage.cost.many([groups_of(networks[place]) for place in places]), strict=True)
        return [found[place] for place in range(len(networks))]

    def arithmetic(self, widths: Groups) -> Mapping[str, float]:
        """The multiply-accumulates, whatever the resources are."""
        return stage_at(self.stages, widths).cost.arithmetic(groups_of(widths))

    def measure(self, widths: Groups, /) -> Mapping[str, float]:
        """Measured costs."""
        return stage_at(self.stages, widths).cost.measure(groups_of(widths))

    def at_length(self, widths: Groups, limits: Mapping[str, float], *, relative: bool) -> dict[str, float]:
        """What is noisy, measured for longer."""
        return stage_at(self.stages, widths).cost.at_length(groups_of(widths), limits, relative=relative)


@dataclass(frozen=True, slots=True)
class SizedScorer:
    """`Scorer` or `MaskedScorer` over all stages; `scorers` are by resolution, the model's own first."""

    scorers: Mapping[int, AnyScorer]

    @property
    def evaluator(self) -> Evaluator:
        """The one at the model's own size."""
        return next(iter(self.scorers.values())).evaluator

    def __call__(self, widths: Groups) -> float:
        """The score: higher is better."""
        return self._at(widths)(groups_of(widths))

    def many(self, networks: Sequence[Groups]) -> list[float]:
        """The scores of several networks, those of one size together."""
        found: dict[int, float] = {}
        for scorer in self.scorers.values():
            places = [place for place, widths in enumerate(networks) if self._at(widths) is scorer]
            scores = all_of(scorer, [groups_of(networks[place]) for place in places])
            found.update(zip(places, scores, strict=True))
        return [found[place] for place in range(len(networks))]

    def _at(self, widths: Groups) -> AnyScorer:
        return self.scorers[widths.get(RESOLUTION, next(iter(self.scorers)))]

    @property
    def judged(self) -> int:
        """How many networks were judged."""
        return sum(scorer.judged for scorer in self.scorers.values())

    def coarse(self) -> list["SizedScorer"]:
        """Scores on parts of the examples, the cheapest first."""
        rungs = zip(*(scorer.coarse() for scorer in self.scorers.values()), strict=True)
        return [SizedScorer(dict(zip(self.scorers, rung, strict=True))) for rung in rungs]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a search over all stages is given; `lead` is the first one that is searched."""

    cost: SizedCost | NetworkCost
    scorer: SizedScorer | AnyScorer
    choices: list[Choice]
    narrowing: Narrowing
    lead: Stage


def joined(stages: Sequence[Stage], choices: Sequence[Choice]) -> Joined:
    """Costs, scores, choices and error curves over all stages; those of the only one where there is one."""
    lead = next(stage for stage in stages if not stage.reference)
    if len(stages) == 1:
        return Joined(lead.cost, lead.scorer, list(choices), lead.narrowing, lead)
    by_resolution = {stage.size.resolution: stage for stage in stages if stage.size is not None}
    searched = sorted(resolution for resolution, stage in by_resolution.items() if not stage.reference)
    size = Choice(RESOLUTION, tuple(searched), apart=True)
    scorer = SizedScorer({resolution: stage.scorer for resolution, stage in by_resolution.items()})
    narrowing = _with_size(lead.narrowing, by_resolution)
    return Joined(SizedCost(stages), scorer, [*choices, size], narrowing, lead)


def _with_size(narrowing: Narrowing, stages: Mapping[int, Stage]) -> Narrowing:
    """The narrowing with error curves for the size: what the whole original gets wrong at each, in its outputs."""
    if narrowing.curves is None:
        return narrowing
    lost = {resolution: _lost(stage) for resolution, stage in stages.items()}
    sizes = sorted(lost)
    share = np.interp(np.arange(sizes[-1] + 1), sizes, [lost[size] for size in sizes])
    outputs = [value for value in stages[sizes[-1]].run.outputs if np.issubdtype(value.dtype, np.floating)]
    whole = float(np.mean([np.var(value, dtype=np.float64) for value in outputs])) if outputs else 1.0
    curves, amounts = dict(narrowing.curves) | {RESOLUTION: share}, narrowing.amounts
    return replace(
        narrowing, curves=curves, amounts=None if amounts is None else dict(amounts) | {RESOLUTION: whole * share}
    )


def _lost(stage: Stage) -> float:
    """The share of the outputs that the original loses at a size; 0 at its own."""
    if stage.run.original is None:
        return 0.0
    fidelity = stage.evaluator.on(metric=metric_of("fidelity")).score(stage.run.graph.model)
    return float(np.clip(1 - fidelity, 0.0, 1.0))
