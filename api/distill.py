"""Fine-tuning within the main job: which examples, how long, and at which learning rates."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx
from onnx_netadapt.evaluate import Evaluator, fixed_feeds
from onnx_netadapt.inputs import Array, Feeds
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.passes.finetune import FinetuneResult, FinetuneSettings, finetune
from onnx_netadapt.progress import Report
from onnx_netadapt.run import Run

DEFAULT = "steps=120,seconds=50"

POOL_BYTES = 600_000_000
"""Examples kept in memory for training."""

LARGE_EXAMPLE = 200_000
"""Numbers in one example from which on batches are smaller, so that training fits into some gigabytes."""


def settings_of(text: str | None) -> FinetuneSettings:
    """The settings that `--finetune` asks for."""
    return FinetuneSettings.parse(text or DEFAULT)


def distill(
    run: Run, model: onnx.ModelProto, evaluator: Evaluator, report: Report
) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    """The best model on the selection set, the given one included, and what was done."""
    settings = settings_of(run.options.finetune)
    if settings.steps == 0:
        return model, {"said": "none", "reason": "fine-tuning is switched off"}
    if run.data.synthetic and run.options.finetune is None:
        return model, {"said": "none", "reason": "made-up inputs teach a network little; give --data"}
    batches, labels = _pool(run)
    settings = _fitted(settings, run, batches)
    stages = [settings] if run.options.finetune is not None else [_probe(settings), settings]
    results: list[FinetuneResult] = []
    for stage in stages:
        if results and results[-1].step:
            stage = replace(stage, lr=stages[0].lr)
        found = finetune(model, run.graph.model, batches, stage, evaluator.score, report, labels=labels)
        results.append(found)
        model = found.model
        if not any(check.step for check in found.history):
            break
    return model, _facts(results, evaluator)


def _probe(settings: FinetuneSettings) -> FinetuneSettings:
    """A few steps at a high learning rate: where they help, as on plain networks, the rest is trained at it too."""
    return replace(settings, lr=1e-3, steps=20, check_every=20, seconds=20.0)


def _pool(run: Run) -> tuple[list[Feeds], list[Array] | None]:
    """Calibration examples that fit into memory, without those that only fill up a batch."""
    batches: list[Feeds] = []
    labels: list[Array] = []
    held = 0
    for feeds, truth, count in fixed_feeds(run.data, run.calibration, run.graph):
        batches.append({name: array[:count] if array.ndim else array for name, array in feeds.items()})
        if truth is not None:
            labels.append(truth)
        held += sum(array.nbytes for array in batches[-1].values())
        if held > POOL_BYTES:
            break
    if not batches:
        raise InputError("there are no calibration examples to fine-tune with; give more --data")
    return batches, labels if len(labels) == len(batches) else None


def _fitted(settings: FinetuneSettings, run: Run, batches: list[Feeds]) -> FinetuneSettings:
    """The settings with batches that fit into memory, and augmentation where the inputs are images of a recipe."""
    numbers = sum(array.size // max(len(array), 1) for array in batches[0].values() if array.ndim)
    asked = run.options.finetune or ""
    if "batch=" not in asked and numbers > LARGE_EXAMPLE:
        settings = replace(settings, batch=max(4, int(settings.batch * LARGE_EXAMPLE / numbers)))
    if "augment=" not in asked and run.options.preprocess is not None and numbers >= 3 * 64 * 64:
        settings = replace(settings, augment=True)
    return replace(settings, seed=run.options.seed)


def _facts(results: list[FinetuneResult], evaluator: Evaluator) -> dict[str, Any]:
    start, best = results[0].history[0].score, results[-1].score
    steps = sum(result.history[-1].step for result in results)
    improved = best > start
    said = f"{steps} steps, {evaluator.metric.name} {start:.4f} -> {best:.4f}" if steps else "none"
    return {
        "said": said,
        "reason": "; ".join(result.reason for result in results),
        "improved": improved,
        "history": [
            {"step": check.step, "loss": check.loss, "score": check.score, "seconds": check.seconds}
            for result in results
            for check in result.history
        ],
        "frozen": {name: why for result in results for name, why in result.frozen.items()},
    }
