"""Fine-tuning within the main job: which examples, how long, and with which of the user's own parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import onnx
from onnx_netadapt.evaluate import Evaluator, fixed_feeds
from onnx_netadapt.hooks import hooks_of
from onnx_netadapt.inputs import Array, Feeds
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.options import Options
from onnx_netadapt.passes.consumers import has_depthwise
from onnx_netadapt.passes.finetune import Feature, FinetuneResult, FinetuneSettings, finetune
from onnx_netadapt.passes.rows import available_cores
from onnx_netadapt.passes.teacher import Teacher
from onnx_netadapt.progress import Report
from onnx_netadapt.run import Run

SECONDS = 80.0
"""Wall seconds of the default fine-tuning: with search and refit the main job stays within minutes."""

SMALL_EXAMPLE = 3 * 64 * 64
"""Numbers in one example up to which batches are larger: such networks are small as well."""

SMALL_BATCH = 128

PLAIN_RATE = 5e-3
"""The learning rate for networks without depthwise convolutions, which bear larger steps: on ResNet20 at half the MACs
100 steps at 5e-3 gave a divergence of 0.238 on test images, at 1.5e-3 0.263. On MobileNetV2 5e-3 was worse than 1.5e-3
(0.591 against 0.516, RECOVERY C).
"""

POOL_BYTES = 600_000_000
"""Examples kept in memory for training."""

LARGE_EXAMPLE = 200_000
"""Numbers in one example from which on batches are smaller, so that training fits into some gigabytes."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """What to train: the student at its `start`, what `finish` sets right after training, what that makes of the start
    with its score, the feature maps to learn, and the best model so far with its score, which training has to beat.
    """

    start: onnx.ModelProto
    finished: tuple[onnx.ModelProto, float]
    finish: Callable[[onnx.ModelProto], onnx.ModelProto]
    features: Sequence[Feature]
    best: onnx.ModelProto
    score: float


def settings_of(text: str | None) -> FinetuneSettings:
    """The settings that `--finetune` asks for."""
    return FinetuneSettings(seconds=SECONDS) if text is None else FinetuneSettings.parse(text)


def wanted(options: Options) -> bool:
    """Whether the user says how to train: then it is done even where it would be left alone."""
    return options.finetune is not None or options.loss is not None or options.train is not None


def distill(run: Run, task: Distillation, evaluator: Evaluator, report: Report) -> tuple[onnx.ModelProto, Any]:
    """The best model on the selection set, the best so far included, and what was done."""
    settings, hooks = settings_of(run.options.finetune), hooks_of(run.options)
    if settings.steps == 0:
        return task.best, {"said": "none", "reason": "fine-tuning is switched off"}
    if run.data.synthetic and not wanted(run.options):
        return task.best, {"said": "none", "reason": "made-up inputs teach a network little; give --data"}
    batches, labels, settings = training_of(run)
    whole = run.original
    outputs = None if whole is None else Teacher(whole.graph, partial(_first, whole, len(batches)))
    found = finetune(
        task.start,
        run.graph.model,
        batches,
        settings,
        evaluator.score,
        report,
        labels=labels,
        features=task.features,
        finish=task.finish,
        hooks=hooks,
        outputs=outputs,
        judged=task.finished,
    )
    model = found.model if found.score > task.score else task.best
    return model, _facts(found, settings, task.score, evaluator)


def training_of(run: Run) -> tuple[list[Feeds], list[Array] | None, FinetuneSettings]:
    """The examples that a run trains on, their labels where all have one, and the settings fitted to them."""
    batches, labels = _pool(run)
    return batches, labels, _fitted(settings_of(run.options.finetune), run, batches)


def _pool(run: Run) -> tuple[list[Feeds], list[Array] | None]:
    """Calibration examples that fit into memory, beside the same at the original's own size where that is another."""
    batches: list[Feeds] = []
    labels: list[Array] = []
    held = 0.0
    beside = 0.0 if run.original is None else _bytes(run.original.feeds) / _bytes(run.feeds)
    for examples, truth in _real_examples(run):
        batches.append(examples)
        if truth is not None:
            labels.append(truth)
        held += _bytes(examples) * (1 + beside)
        if held > POOL_BYTES:
            break
    if not batches:
        raise InputError("there are no calibration examples to fine-tune with; give more --data")
    return batches, labels if len(labels) == len(batches) else None


def _real_examples(run: Run) -> Iterator[tuple[Feeds, Array | None]]:
    """Calibration examples and their labels batch by batch, without those that only fill up a batch."""
    for feeds, truth, count in fixed_feeds(run.data, run.calibration, run.graph):
        yield {name: array[:count] if array.ndim else array for name, array in feeds.items()}, truth


def _first(run: Run, count: int) -> Iterator[Feeds]:
    """The first batches of a run's calibration examples."""
    return (examples for examples, _ in islice(_real_examples(run), count))


def _bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


def _fitted(settings: FinetuneSettings, run: Run, batches: list[Feeds]) -> FinetuneSettings:
    """The settings with batches that fit the size of an example, and augmentation where images have a recipe.

    What the user asked for stays as it is.
    """
    numbers = sum(array.size // max(len(array), 1) for array in batches[0].values() if array.ndim)
    asked = run.options.finetune or ""
    if "batch=" not in asked and numbers > LARGE_EXAMPLE:
        settings = replace(settings, batch=max(4, int(settings.batch * LARGE_EXAMPLE / numbers)))
    elif "batch=" not in asked and numbers <= SMALL_EXAMPLE:
        settings = replace(settings, batch=SMALL_BATCH)
    if "lr=" not in asked and not has_depthwise(run.graph):
        settings = replace(settings, lr=PLAIN_RATE)
    if "augment=" not in asked and run.options.preprocess is not None:
        settings = replace(settings, augment=True)
    if "threads=" not in asked:
        settings = replace(settings, threads=available_cores())
    return replace(settings, seed=run.options.seed)


def _facts(found: FinetuneResult, settings: FinetuneSettings, before: float, evaluator: Evaluator) -> dict[str, Any]:
    """For the report: `said` in words, the settings, images and seconds, and every check."""
    best, last = max(found.score, before), found.history[-1]
    said = f"{last.step} steps, {evaluator.metric.name} {before:.4f} -> {best:.4f}" if last.step else "none"
    told: Mapping[str, Any] = {"lr": settings.lr, "loss": settings.loss, "batch": settings.batch}
    return {
        "said": said,
        "reason": found.reason,
        "improved": best > before,
        "settings": {**told, "features": settings.features, "augment": settings.augment},
        "images": found.images,
        "seconds": last.seconds,
        "history": [
            {"step": check.step, "loss": check.loss, "score": check.score, "seconds": check.seconds}
            for check in found.history
        ],
        "frozen": dict(found.frozen),
    }
