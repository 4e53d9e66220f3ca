"""The last choice of widths: the search's winner against whole networks from error curves, each refitted for good.

1. The search scores networks with weights refitted from the original's statistics alone, which takes milliseconds. That
   ranks small steps well, but not networks that are cut in different places: damage early in the network, which the
   refit front to back repairs, counts too much. (ResNet20 at half the MACs: the network that scored worst of 18 in the
   search, -2.0 against -0.65, was the best of them after that refit, -0.20 against -0.25.)
2. So the winner meets some networks of the same cost: a uniform one, and those of the error curves (FAMILIES); where
   branches may go whole, also one that keeps all of them; where the input has sizes, also networks of the winner's
   size. What measures over the budget is trimmed to it first. Each is refitted front to back, its logits are rescaled,
   and it is judged on the selection set, all at the input size that it takes.
3. The best one that is within the budget by a long measurement is taken, and what it leaves of the budget is spent. One
   that is over it then is trimmed once more, and judged again.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice, zip_longest

import numpy as np
import onnx
from onnx_netadapt.evaluate import Evaluator, examples_for, race
from onnx_netadapt.inputs import Indices
from onnx_netadapt.ir.errors import BudgetError
from onnx_netadapt.metrics import is_classifier
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.recover import apply_weights
from onnx_netadapt.passes.rescale import Rescaler
from onnx_netadapt.passes.rows import Batches
from onnx_netadapt.passes.search import Choice, SearchResult, Step
from onnx_netadapt.passes.search.common import Key, Widths, full_widths, in_estimates, key_of, over, without_depth
from onnx_netadapt.passes.search.curves import pool_of
from onnx_netadapt.passes.search.descent import within
from onnx_netadapt.passes.search.multiplier import uniform
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.passes.targets import Targets
from onnx_netadapt.run import Run, first_examples, one_blas_thread
from onnx_netadapt.searching import AIM, SURE, Searcher, lowered
from onnx_netadapt.stages import At, groups_of, resolution_of

FAMILIES = (
    ("amounts", 1.0, True),
    ("shares", 1.0, True),
    ("amounts", 2.0, False),
    ("amounts", 1.0, False),
    ("shares", 2.0, False),
)
"""Error curves, the power that errors are raised to, and whether they count against multiply-accumulates saved instead
of what the budget limits. At half of MobileNetV2's latency networks that were brought to it by measurement diverged by
0.274 and 0.293 when chosen by arithmetic, by 0.298 to 0.493 when by latency: a table's errors look like savings.
At 0.7 and 0.5 of ResNet20's, whose latency has steps, amounts by latency were the best once (0.634) and shares by
arithmetic once (1.185). Square roots were the worst, or nearly, in 9 of 9 runs of earlier measurements.
"""

EXAMPLES, ROWS = 256, 0.5
"""Calibration examples from which finalists are refitted, and the share of their rows; the one that wins is refitted
from more of them (`finish`). Of eight and seven finalists of ResNet20 (two seeds, by divergence) these took the same
ones as 512 examples with all rows did, in half of the time: the best and the second best of a refit from 2,000.
Kendall's tau with that was 0.71 and 0.43; 0.79 and 0.62 with all rows of 512, 0.79 and 0.24 with those of 128.
"""

MOST = 4
"""Finalists beside the winner, the uniform one and those from elsewhere among them; twice as many where the input has
sizes. The fifth was the best in none of twelve runs of ResNet20 (six budgets, two seeds), where the winner was in four,
the uniform one in one and the others in three, two and two.
"""

WHOLE = 1
"""Finalists more, that keep all branches and layers, where these may go: at 0.7, 0.5 and 0.35 of ResNet20's latency
(two seeds) the best of five such networks was never nearly as good as the best of those that lost branches.
"""

DOUBT = 0.1
"""The first uniform network whose estimate is over the budget by no more than this is measured; its own error then
corrects the estimates of those that are narrower.
"""

FEWEST = 3
"""For large networks, and for chamnet, whose models are to take seconds each: ResNet56 at 0.5, 0.45 and 0.4 of its
latency kept 0.830, 0.888 and 0.790 when the predictor's network met the uniform one alone, and 0.880, 0.890 and 0.855
beside those of the curves, of which the second (FAMILIES) won all three times.
"""

ALL_MACS = 5e8
"""Multiply-accumulates of one example over all finalists: of large networks there are fewer, down to FEWEST."""

JUDGED_MACS = 5e10
"""Multiply-accumulates of the original over the selection examples that finalists are judged on: 1,000 of ResNet20. The
search has fewer for each of its many scores (317 there), which are too few to tell these few apart: over nine runs with
66 finalists at 0.35, 0.5 and 0.65 of its multiply-accumulates Kendall's tau with the accuracy after the last refit was
0.68 on 317 and 0.72 on 1,000, and the one taken 1.4 and 0.9 points below the best.
"""


def settle(
    at: At, searcher: Searcher, result: SearchResult, proposed: Sequence[Widths] = ()
) -> tuple[SearchResult, bool]:
    """The search's result, or a better network of the same cost, as a further step of it; and whether it meets every
    budget by a long measurement (it may not with `best_effort`).

    `at` gives the stage that a network is judged in, `proposed` are networks from elsewhere that stand beside the error
    curves'. Raises BudgetError when none meets the budgets.
    """
    run, narrowing = searcher.run, searcher.narrowing
    with (
        run.progress.phase("refitting finalists") as report,
        run.timed("finalists"),
        one_blas_thread(),
        closing(_Judge(at, _judged_on(searcher))) as judge,
    ):
        known = [widths for widths in _distinct([*_uniform(searcher), *proposed]) if widths != result.widths]
        rivals = [*known, *_rivals(narrowing, searcher, result, known)]
        fitted = [found for widths in rivals if (found := searcher.fitted(widths)) is not None]
        networks = _distinct([dict(result.widths), *fitted])
        if len(networks) == 1:
            return searcher.confirm(result, SURE)
        entrants = []
        for widths in networks:
            entrants.append(judge.entrant(widths))
            report(len(entrants), len(networks), "refitted")
        scored = [(own.score, widths) for own, widths in zip(race(entrants), networks, strict=True)]
        best = _best_within(searcher, result, scored, judge)
        return searcher.confirm(result, SURE) if best is None else (searcher.filled(best, SURE), True)


def _judged_on(searcher: Searcher) -> Indices:
    """The selection examples that all finalists are judged on: as many as JUDGED_MACS allow, the search's at least."""
    run, narrowing = searcher.run, searcher.narrowing
    affordable = examples_for(run.graph, narrowing.sizes.macs(narrowing.full), JUDGED_MACS)
    return run.selection[: max(affordable, len(searcher.score.evaluator.indices))]


class _Judge:
    """The scores of finalists on some examples, each refitted from EXAMPLES at the input size that it takes."""

    def __init__(self, at: At, examples: Indices) -> None:
        self._at, self._examples = at, examples
        self._made: dict[int | None, tuple[Targets, Rescaler | None, Evaluator]] = {}

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The score on the selection set."""
        evaluator, model = self.entrant(widths)
        return evaluator.score(model)

    def entrant(self, widths: Mapping[str, int]) -> tuple[Evaluator, onnx.ModelProto]:
        """Who judges a network, and the network refitted."""
        stage = self._at(widths)
        assert stage.statistics is not None  # whoever has finalists refits them
        key = resolution_of(stage)
        if key not in self._made:
            rescaled = is_classifier(stage.run.outputs)
            batches, consumers = first_examples(stage.run, EXAMPLES), stage.statistics.consumers.all
            self._made[key] = (
                Targets(stage.narrowing.graph, consumers, batches, share=ROWS),
                rescaler_of(stage.narrowing, stage.run) if rescaled else None,
                stage.evaluator.on(self._examples) if len(self._examples) else stage.evaluator,
            )
        targets, rescaler, evaluator = self._made[key]
        return evaluator, refitted(stage.narrowing, stage.statistics, groups_of(widths), targets, rescaler)

    def close(self) -> None:
        """Lets go of what was put aside."""
        for targets, *_ in self._made.values():
            targets.close()


def rescaler_of(narrowing: Narrowing, run: Run) -> Rescaler:
    """What makes the logits of a run's finalists as sure of themselves as the original's, by EXAMPLES."""
    return Rescaler(narrowing.coupling, first_examples(run, EXAMPLES), goal=run.goal)


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
    narrowing: Narrowing, searcher: Searcher, result: SearchResult, known: Sequence[Widths]
) -> Iterator[dict[str, int]]:
    """Other networks of the result's cost (rule 2), by estimates corrected at the result."""
    limits = in_estimates(lowered(searcher.limits, AIM), searcher.cost(result.widths), result.measured)
    full, seen = full_widths(searcher.choices), [dict(result.widths), *known]
    kinds = [searcher.choices]
    if any(choice.apart and len(choice.widths) > 1 for choice in searcher.choices):
        kinds.append(_at_size_of(result, searcher.choices))
    hurried = searcher.run.options.search == "chamnet"
    most = int(np.clip(ALL_MACS / max(narrowing.sizes.macs(narrowing.full), 1), FEWEST, FEWEST if hurried else MOST))
    narrow = [] if hurried else [own for kind in kinds if (own := without_depth(kind)) != kind]
    for some, count in ((kinds, max(most * len(kinds) - len(known), 0)), (narrow, WHOLE * len(narrow))):
        turns = zip_longest(*(_proposals(narrowing, searcher, kind, limits) for kind in some))
        fresh = (full | widths for turn in turns for widths in turn if widths is not None)
        for widths in islice((widths for widths in fresh if widths not in seen), count):
            seen.append(widths)
            yield widths


def _proposals(
    narrowing: Narrowing, searcher: Searcher, choices: list[Choice], limits: Mapping[str, float]
) -> Iterator[Widths]:
    """The networks of FAMILIES."""
    curves = {"shares": narrowing.curves, "amounts": narrowing.amounts}
    for name, power, arithmetic in FAMILIES:
        if (curve := curves[name]) is not None:
            by = searcher.cost.arithmetic if arithmetic else None
            yield from pool_of(choices, curve, searcher.cost, (power,), by)(limits)


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
            return [full_widths(searcher.choices) | widths]
        scale = {name: measured[name] / estimate[name] for name in aims if estimate[name]}
    return []


def _at_size_of(result: SearchResult, choices: list[Choice]) -> list[Choice]:
    """The choices with the size of the input left as the result has it."""
    return [replace(choice, widths=(result.widths[choice.id],)) if choice.apart else choice for choice in choices]


def _best_within(
    searcher: Searcher,
    result: SearchResult,
    scored: Sequence[tuple[float, Mapping[str, int]]],
    judge: Callable[[Mapping[str, int]], float],
) -> SearchResult | None:
    """Rule 3; None where none of them stays within the budget."""
    waiting = sorted(scored, key=lambda item: item[0])
    within: dict[Key, SearchResult] = {}
    while waiting:
        score, widths = waiting.pop()
        if key_of(widths) in within:
            return within[key_of(widths)]
        own = widths == result.widths
        narrower = _narrowed(searcher, result if own else _as_step(searcher, result, scored, score, widths))
        if narrower is None or key_of(narrower.widths) in within:
            continue
        within[key_of(narrower.widths)] = narrower
        same = narrower.widths == widths
        insort(waiting, (score if same else judge(narrower.widths), narrower.widths), key=lambda item: item[0])
    return None


def _as_step(
    searcher: Searcher,
    result: SearchResult,
    scored: Sequence[tuple[float, Mapping[str, int]]],
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
    """The finalist, or what is left of it where it is over the budget; None when it stays over it."""
    try:
        found, met = searcher.confirm(finalist, SURE, fill=False)  # spending what is left takes long: the best one's
    except BudgetError:
        return None
    return found if met else None
