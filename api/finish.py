"""The end of a run: the best weights for the widths that won, and their score on data that chose nothing."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx_netadapt.distill import Distillation, distill, wanted
from onnx_netadapt.evaluate import Evaluator, race
from onnx_netadapt.metrics import is_classifier, metric_of, report_metric
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.branches import joined
from onnx_netadapt.passes.equivalence import check
from onnx_netadapt.passes.finetune_task import features_of
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.rescale import Rescaler
from onnx_netadapt.passes.sequential import examples_needed, refit_sequential
from onnx_netadapt.passes.targets import Targets
from onnx_netadapt.progress import Report
from onnx_netadapt.report import Score
from onnx_netadapt.run import Run, first_examples, one_blas_thread

REFIT_EXAMPLES = 1000
"""Calibration examples of the last refit, and more only where a layer needs them: ResNet20 at half its
multiply-accumulates, refitted from these, diverged by 0.260 on other images, from 2,000 with half as many rows of each
by 0.260, from 500 by 0.283 (means of three seeds). The statistics that it starts from are of all examples.
"""

RESCALE_EXAMPLES = 1000
"""Examples on which the scale of the logits is found, for every student that is judged."""


def finish(
    run: Run, narrowing: Narrowing, statistics: Statistics | None, widths: Mapping[str, int], evaluator: Evaluator
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The best of refitted and fine-tuned weights for the winning widths, judged on the selection set, and facts.

    Without statistics the weights serve every width as they are (`elastic`).
    """
    with run.timed("pruning"):
        pruned = narrowing.pruned(widths)
    equivalence = check(run.graph.model, pruned.model, pruned.plan, [run.feeds])
    equivalence.require()
    indices = run.selection if len(run.selection) else evaluator.indices
    evaluator = evaluator.on(indices)
    with run.progress.phase("refitting weights") as report, run.timed("recovery"), one_blas_thread():
        recovered = _refitted(run, narrowing, statistics, widths, pruned.model, report)
        standings = race([(evaluator, model) for model in recovered.candidates.values()])
    scores = {name: own.score for name, own in zip(recovered.candidates, standings, strict=True)}
    behind = {n: own.examples for n, own in zip(scores, standings, strict=True) if own.examples < len(indices)}
    if behind.pop(recovered.finished, None) is not None:  # trained students are compared with it
        scores[recovered.finished] = evaluator.score(recovered.candidates[recovered.finished])
    judged = {"metric": evaluator.metric.name, "n": len(indices), "behind": behind}
    best = max(scores, key=lambda name: scores[name])
    model = recovered.candidates[best]
    tuned: Mapping[str, Any] = {"said": "none", "reason": "nothing was removed"}
    if statistics is None and not wanted(run.options):
        tuned = {"said": "none", "reason": "the weights were trained to serve every width (train-elastic)"}
    elif pruned.plan["groups"] or "branches" in pruned.plan or run.original is not None:
        with run.progress.phase("fine-tuning") as report, run.timed("finetune"):
            features = features_of(narrowing.coupling, narrowing.kept(widths))
            finished = recovered.candidates[recovered.finished], scores[recovered.finished]
            start = recovered.candidates[recovered.start]
            task = Distillation(start, finished, recovered.finish, features, model, scores[best])
            model, tuned = distill(run, task, evaluator, report)
    gone = narrowing.coupling.gone(narrowing.kept(widths))
    return joined(model, run.graph, gone) if gone else model, {
        "plan": pruned.plan,
        "recovery": {"chosen": best, "scores": scores, **judged},
        "finetune": tuned,
        "equivalence": asdict(equivalence) | {"passed": equivalence.passed},
    }


@dataclass(frozen=True, slots=True)
class _Recovered:
    """Models by how their weights were made; the one that training starts from, and what `finish` makes of it.

    Training starts before the logits are rescaled: squared errors would pull them back, and no trained student would
    look better than the start. `finish` rescales every student that is judged.
    """

    candidates: Mapping[str, onnx.ModelProto]
    start: str
    finished: str
    finish: Callable[[onnx.ModelProto], onnx.ModelProto]


def _refitted(
    run: Run,
    narrowing: Narrowing,
    statistics: Statistics | None,
    widths: Mapping[str, int],
    sliced: onnx.ModelProto,
    report: Report,
) -> _Recovered:
    """The sliced model, and the same with weights refitted in closed form, one way and the other."""
    coupling, kept = narrowing.coupling, narrowing.kept(widths)
    candidates = {"sliced": sliced}
    if statistics is None or not (kept or run.original):
        return _Recovered(candidates, "sliced", "sliced", lambda model: model)
    start = "sliced"
    if kept:
        candidates["closed form"] = apply_weights(sliced, refit_symmetric(coupling, statistics, kept))
        examples = max(REFIT_EXAMPLES, examples_needed(coupling.graph, statistics.consumers.all))
        batches = first_examples(run, examples)
        with closing(Targets(coupling.graph, statistics.consumers.all, batches)) as targets:
            weights = refit_sequential(coupling, kept, sliced, targets, statistics, progress=report)
        start = "closed form, front to back"
        candidates[start] = apply_weights(sliced, weights)
    if not is_classifier(run.outputs):
        return _Recovered(candidates, start, start, lambda model: model)
    rescaler = Rescaler(coupling, run.batches, RESCALE_EXAMPLES, run.goal)
    finished = "front to back, logits rescaled"
    candidates[finished] = rescaler.applied(candidates[start])
    return _Recovered(candidates, start, finished, rescaler.applied)


def report_evaluator(run: Run) -> Evaluator | None:
    """Judges on the report set, which chose nothing; None, and a warning, when there is none."""
    if not len(run.report) or run.report_data.synthetic:
        run.warnings.append("no score is reported: there is no data that played no part in the choice")
        return None
    metric = (
        metric_of(run.options.metric)
        if run.options.metric
        else report_metric(run.outputs, run.report_data.labels is not None)
    )
    return Evaluator(run.graph, run.report_data, run.report, metric)


def report_scores(run: Run, model: onnx.ModelProto) -> tuple[Score | None, Score | None]:
    """The original's and the model's score on the report set, each at its own input size."""
    shared = run.whole.shared
    evaluator = shared.judge = shared.judge or report_evaluator(run.whole)
    if evaluator is None:
        return None, None
    metric, n, labelled = evaluator.metric, len(run.report), evaluator.metric.labelled
    before = evaluator.original_score
    if run.original is not None:
        evaluator = evaluator.seeing(run.report_data)
    return Score(metric.name, before, n, labelled), Score(metric.name, evaluator.score(model), n, labelled)
