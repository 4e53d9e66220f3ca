"""The last choice of widths: the search's winner against whole networks from error curves, each refitted for good.

1. The search scores networks with weights refitted from the original's statistics alone, which takes milliseconds. That
   ranks small steps well, but not networks that are cut in different places: damage early in the network, which the
   refit front to back repairs, counts too much. (ResNet20 at half the MACs: the network that scored worst of 18 in the
   search, -2.0 against -0.65, was the best of them after that refit, -0.20 against -0.25.)
2. So the winner meets some networks of the same cost from the error curves: errors as shares and as amounts, raised to
   powers, over all groups and over those that one layer alone reads; where branches may go whole, also networks that
   keep all of them; where the input has sizes, also networks of the winner's size. Each is refitted front to back, its
   logits are rescaled, and it is judged on the selection set, all at the input size that it takes.
3. The best one that is within the budget by measurement is taken, and what it leaves of the budget is spent; the winner
   is within it already. One that measures over it is narrowed by the search from there on, and judged again.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import onnx
from onnx_netadapt.inputs import Feeds
from onnx_netadapt.ir.errors import BudgetError
from onnx_netadapt.metrics import is_classifier
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.recover import apply_weights
from onnx_netadapt.passes.rescale import Rescaler
from onnx_netadapt.passes.rows import Batches
from onnx_netadapt.passes.search import Choice, SearchResult, Step
from onnx_netadapt.passes.search.common import Widths, full_widths, key_of, over, without_depth
from onnx_netadapt.passes.search.curves import pool_of
from onnx_netadapt.passes.search.descent import within
from onnx_netadapt.passes.search.multiplier import uniform
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.passes.targets import Targets
from onnx_netadapt.run import Run, one_blas_thread
from onnx_netadapt.searching import AIM, SURE, Searcher, lowered
from onnx_netadapt.stages import At, groups_of, resolution_of

SHARES, AMOUNTS = (1.0, 2.0), (2.0,)
"""Powers of errors as shares and as amounts. The square root of shares gave the worst or the last but one of all
finalists in 9 of 9 runs on ResNet20, ResNet56 and MobileNetV2, that of amounts one of the three worst in 4 of 6 on
ResNet20; amounts as they are were the best in none of the 6, their squares in 2.
"""

EXAMPLES = (256, 512)
"""Calibration examples from which finalists are refitted, at least and at most; the one that wins is refitted from all
of them. Small networks can afford more: 256 images ranked nine of ResNet20 otherwise than 1,000 did (Kendall's tau 0.4,
the best one sixth), 512 nearly the same (0.8, the best one first).
"""

MACS = 5e10
"""Multiply-accumulates of the examples that one finalist may take: a network of 100 million has fewer than the most."""

FARTHEST = 1.08
"""A finalist that measures over the budget by more than this was not what its estimate promised: it is left out."""

MOST = 5
"""Finalists beside the winner; twice as many where branches may go whole, and again where the input has sizes."""

DOUBT = 0.1
"""The first uniform network whose estimate is over the budget by no more than this is measured; its own error then
corrects the estimates of those that are narrower.
"""

FEWEST = 3

ALL_MACS = 5e8
"""Multiply-accumulates of one example over all finalists: of large networks there are fewer, down to FEWEST."""


def settle(
    at: At, statistics: Statistics, searcher: Searcher, result: SearchResult, proposed: Sequence[Widths] = ()
) -> SearchResult:
    """The search's result, or a better network of the same cost, as a further step of it.

    `at` gives the stage that a network is judged in, `statistics` those of the model's own input size, `proposed` are
    networks from elsewhere that stand beside the error curves'.
    """
    run, narrowing = searcher.run, searcher.narrowing
    known = [widths for widths in _distinct([*_uniform(searcher), *proposed]) if widths != result.widths]
    rivals = [*known, *(_rivals(narrowing, statistics, searcher, result, known) if _wants_rivals(run) else ())]
    if not rivals:
        return result
    scored: list[tuple[float, Mapping[str, int]]] = []
    networks = [dict(result.widths), *rivals]
    with (
        run.progress.phase("refitting finalists") as report,
        run.timed("finalists"),
        one_blas_thread(),
        closing(_Judge(at, batches_for(narrowing, next(run.batches())))) as judge,
    ):
        for widths in networks:
            scored.append((judge(widths), widths))
            report(len(scored), len(networks), f"best {max(score for score, _ in scored):.4f}")
        return _best_within(searcher, result, scored, judge)


def _wants_rivals(run: Run) -> bool:
    """Whether the error curves' networks are finalists: those of chamnet were among its samples, and for many budgets
    their refits would take most of its time.
    """
    return run.options.search != "chamnet"


def batches_for(narrowing: Narrowing, first: Feeds) -> int:
    """How many batches, of which `first` is one, a network is refitted from to be judged."""
    size = max((len(value) for value in first.values() if value.ndim), default=1)
    examples = float(np.clip(MACS / max(narrowing.sizes.macs(narrowing.full), 1), *EXAMPLES))
    return max(1, int(examples / size))


class _Judge:
    """The scores of finalists, each refitted from `count` batches at the input size that it takes."""

    def __init__(self, at: At, count: int) -> None:
        self._at, self._count = at, count
        self._made: dict[int | None, tuple[Targets, Rescaler | None]] = {}

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The score on the selection set."""
        stage = self._at(widths)
        assert stage.statistics is not None  # whoever has finalists refits them
        key = resolution_of(stage)
        if key not in self._made:
            rescaled = is_classifier(stage.run.outputs)
            batches, consumers = first_batches(stage.run, self._count), stage.statistics.consumers.all
            self._made[key] = (
                Targets(stage.narrowing.graph, consumers, batches),
                rescaler_of(stage.narrowing, stage.run, self._count) if rescaled else None,
            )
        model = refitted(stage.narrowing, stage.statistics, groups_of(widths), *self._made[key])
        return stage.evaluator.score(model)

    def close(self) -> None:
        """Deletes what is on the disk."""
        for targets, _ in self._made.values():
            targets.close()


def rescaler_of(narrowing: Narrowing, run: Run, count: int) -> Rescaler:
    """What makes the logits of a run's networks as sure of themselves as the original's, by the first batches."""
    return Rescaler(narrowing.coupling, first_batches(run, count), goal=run.goal)


def first_batches(run: Run, count: int) -> Batches:
    """The first so many batches of a run's calibration inputs."""
    return lambda: islice(run.batches(), count)


def refitted(
    narrowing: Narrowing,
    statistics: Statistics,
    widths: Mapping[str, int],
    batches: Batches | Targets,
    rescaler: Rescaler | None,
) -> onnx.ModelProto:
    """The network at these widths refitted front to back, with its logits rescaled where there is a rescaler."""
    coupling, kept = narrowing.coupling, narrowing.kept(widths)
    sliced = narrowing.build(widths)
    model = apply_weights(sliced, refit_sequential(coupling, kept, sliced, batches, statistics))
    return model if rescaler is None else rescaler.applied(model)


def _rivals(
    narrowing: Narrowing, statistics: Statistics, searcher: Searcher, result: SearchResult, known: Sequence[Widths]
) -> Iterator[dict[str, int]]:
    """Other networks of the result's cost (rule 2), by estimates corrected at the result."""
    present, narrow = searcher.cost(result.widths), without_depth(searcher.choices)
    aims = lowered(searcher.limits, AIM)
    limits = {name: limit * present[name] / result.measured[name] for name, limit in aims.items()}
    full, seen = full_widths(searcher.choices), [dict(result.widths), *known]
    kinds = [searcher.choices]
    if narrow != searcher.choices:
        kinds.append(narrow)
    if any(choice.apart and len(choice.widths) > 1 for choice in searcher.choices):
        kinds += [_at_size_of(result, kind) for kind in kinds]
    most = int(np.clip(ALL_MACS / max(narrowing.sizes.macs(narrowing.full), 1), FEWEST, MOST)) * len(kinds)
    for choices in (scope for kind in kinds for scope in _scopes(kind, statistics)):
        for curves, powers in ((narrowing.curves, SHARES), (narrowing.amounts, AMOUNTS)):
            for found in pool_of(choices, curves, searcher.cost, powers)(limits) if curves is not None else ():
                widths = full | found
                if widths not in seen and len(seen) <= most:
                    seen.append(widths)
                    yield widths


def _distinct(networks: Sequence[Widths]) -> list[Widths]:
    """Each network once."""
    return list({key_of(widths): widths for widths in networks}.values())


def _uniform(searcher: Searcher) -> list[Widths]:
    """The widest network within the budget whose groups all keep one share; none where there is no such network.

    What a width multiplier gives is the least that a search must beat. On networks of small maps it may have more
    arithmetic at the same latency than any network of the curves: ResNet20 at half its latency kept 0.25 of its
    multiply-accumulates so, and 0.13 in the search.
    """
    aims = lowered(searcher.limits, AIM)
    scale = dict.fromkeys(aims, 1 / (1 + DOUBT))  # measured by estimated cost, as it may be and then as it was
    for widths in uniform(without_depth(searcher.choices)):
        estimate = searcher.cost(widths)
        if not within(estimate, scale, aims):
            continue
        measured = searcher.cost.measure(widths)
        if not over(measured, aims):
            return [widths]
        scale = {name: measured[name] / estimate[name] for name in aims if estimate[name]}
    return []


def _at_size_of(result: SearchResult, choices: list[Choice]) -> list[Choice]:
    """The choices with the size of the input left as the result has it."""
    return [replace(choice, widths=(result.widths[choice.id],)) if choice.apart else choice for choice in choices]


def _scopes(choices: list[Choice], statistics: Statistics) -> list[list[Choice]]:
    """The groups that one layer alone reads, and all groups."""
    readers = statistics.consumers.by_group
    inner = [choice for choice in choices if choice.apart or len(readers.get(choice.id, ())) == 1]
    return [inner, choices] if 0 < len(inner) < len(choices) else [choices]


def _best_within(
    searcher: Searcher,
    result: SearchResult,
    scored: list[tuple[float, Mapping[str, int]]],
    judge: Callable[[Mapping[str, int]], float],
) -> SearchResult:
    """Rule 3."""
    waiting = sorted(scored, key=lambda item: item[0])
    within = {key_of(result.widths): result}
    while True:
        score, widths = waiting.pop()  # the winner is among them, so that this ends
        if key_of(widths) in within:
            found = within[key_of(widths)]
            return found if found is result else searcher.filled(found, SURE)
        narrower = _narrowed(searcher, _as_step(searcher, result, scored, score, widths))
        if narrower is None or key_of(narrower.widths) in within:
            continue
        within[key_of(narrower.widths)] = narrower
        same = narrower.widths == widths
        insort(waiting, (score if same else judge(narrower.widths), narrower.widths), key=lambda item: item[0])


def _as_step(
    searcher: Searcher,
    result: SearchResult,
    scored: list[tuple[float, Mapping[str, int]]],
    score: float,
    widths: Mapping[str, int],
) -> SearchResult:
    """The search's result with a finalist as its last step."""
    own = tuple({"group": "finalist", "width": None, "estimate": dict(searcher.cost(w)), "score": s} for s, w in scored)
    number = result.steps[-1].number + 1 if result.steps else 0
    limits, measured = lowered(searcher.limits, SURE), searcher.cost.measure(widths)
    step = Step(number, limits, own, dict(widths), dict(searcher.cost(widths)), measured, score)
    return replace(result, widths=widths, measured=measured, steps=(*result.steps, step))


def _narrowed(searcher: Searcher, finalist: SearchResult) -> SearchResult | None:
    """The finalist, or what the search makes of it when it is over the budget; None when it is too far over."""
    if over(finalist.measured, lowered(searcher.limits, SURE * FARTHEST)):
        return None
    try:
        found, met = searcher.confirm(finalist, SURE, fill=False)  # spending what is left takes long: the best one's
    except BudgetError:
        return None
    return found if met else None
