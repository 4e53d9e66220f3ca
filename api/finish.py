"""The end of a run: the best weights for the widths that won, and their score on data that chose nothing."""

from dataclasses import asdict
from typing import Any

import onnx
from onnx_netadapt.evaluate import Evaluator, Runner
from onnx_netadapt.ir.errors import PruneError
from onnx_netadapt.metrics import metric_of, report_metric
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.equivalence import check
from onnx_netadapt.passes.search import SearchResult
from onnx_netadapt.report import Score
from onnx_netadapt.run import Run


def finish(
    run: Run, narrowing: Narrowing, statistics: Any, result: SearchResult, evaluator: Evaluator
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
    evaluator = Evaluator(
        run.graph, run.data, run.selection if len(run.selection) else evaluator.indices, evaluator.metric
    )
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
    run: Run, model: onnx.ModelProto, evaluator: Evaluator, score: float
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model after distillation where that is possible and better, and what was done."""
    from onnx_netadapt.distill import distill

    with run.progress.phase("fine-tuning") as report, run.timed("finetune"):
        tuned, facts = distill(run, model, evaluator, score, report)
    return tuned, facts


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
