"""The end of a run: the best weights for the widths that won, and their score on data that chose nothing."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import onnx
from onnx_netadapt.distill import distill
from onnx_netadapt.evaluate import Evaluator, Runner
from onnx_netadapt.ir.errors import PruneError
from onnx_netadapt.metrics import is_classifier, metric_of, report_metric
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.equivalence import check
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.rescale import rescale_logits
from onnx_netadapt.passes.search import SearchResult
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.progress import Report
from onnx_netadapt.report import Score
from onnx_netadapt.run import Run, one_blas_thread


def finish(
    run: Run, narrowing: Narrowing, statistics: Statistics, result: SearchResult, evaluator: Evaluator
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The best of refitted and fine-tuned weights for the winning widths, judged on the selection set, and facts."""
    with run.timed("pruning"):
        pruned = narrowing.pruned(result.widths)
    equivalence = check(run.graph.model, pruned.model, pruned.plan, [run.feeds])
    if not equivalence.passed:
        raise PruneError(
            f"the pruned model differs from the zeroed original by {equivalence.worst:.2g} of the output's range "
            f"(allowed {equivalence.tolerance:.2g}); nothing was written: this is a defect, please report the model"
        )
    indices = run.selection if len(run.selection) else evaluator.indices
    evaluator = Evaluator(run.graph, run.data, indices, evaluator.metric)
    with run.progress.phase("refitting weights") as report, run.timed("recovery"), one_blas_thread():
        candidates = _refitted(run, narrowing, statistics, result, pruned.model, report)
        scores = {name: evaluator.score(model) for name, model in candidates.items()}
    best = max(scores, key=lambda name: scores[name])
    model = pruned.model
    tuned: Mapping[str, Any] = {"said": "none", "reason": "nothing was removed"}
    if pruned.plan["groups"]:
        with run.progress.phase("fine-tuning") as report, run.timed("finetune"):
            model, tuned = distill(run, candidates[best], evaluator, report)
    return model, {
        "plan": pruned.plan,
        "recovery": {"chosen": best, "scores": scores, "metric": evaluator.metric.name, "n": len(indices)},
        "finetune": tuned,
        "equivalence": asdict(equivalence) | {"passed": equivalence.passed},
    }


def _refitted(
    run: Run,
    narrowing: Narrowing,
    statistics: Statistics,
    result: SearchResult,
    sliced: onnx.ModelProto,
    report: Report,
) -> dict[str, onnx.ModelProto]:
    """The sliced model, and the same with weights refitted in closed form, one way and the other."""
    coupling, kept = narrowing.coupling, narrowing.kept(result.widths)
    candidates = {"sliced": sliced}
    if not kept:
        return candidates
    candidates["closed form"] = apply_weights(sliced, refit_symmetric(coupling, statistics, kept))
    weights = refit_sequential(coupling, kept, sliced, run.batches, statistics, progress=report)
    candidates["closed form, front to back"] = apply_weights(sliced, weights)
    if _classifies(run):
        last = rescale_logits(coupling, candidates["closed form, front to back"], run.batches)
        if last:
            candidates["front to back, logits rescaled"] = apply_weights(sliced, weights | last)
    return candidates


def _classifies(run: Run) -> bool:
    """Whether the model's output is one row of class scores, so that its scale can be set right."""
    return is_classifier(Runner(run.graph.model)(run.feeds))


def report_scores(run: Run, model: onnx.ModelProto) -> tuple[Score | None, Score | None]:
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
