"""Fine-tuning in torch: the pruned student learns the original's outputs; labels are not needed.

1. Teacher outputs are computed by ONNX Runtime; where the last operator is a Softmax, on the logits before it.
2. The loss is the squared error of every floating-point output, over that output's variance; or a cross-entropy.
3. Adam with a cosine schedule. Weights on an integer grid get steps in their own units.
4. Every `check_every` steps the student is judged by `validate` on examples that played no part in training; the best
   student is returned, and the start is one of the candidates: fine-tuning never makes a model worse by that measure.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from ..ir.errors import InputError, UnsupportedOp
from ..ir.graph import Graph
from ..ir.load import load
from ..ir.ops.training import logits_of
from .finetune_settings import FinetuneSettings
from .images import augmented
from .teacher import CACHED_BYTES, Array, Batch, Pool, cached, pieces, runner, shuffled
from .to_torch import to_torch, unsupported, write_back

__all__ = ["Check", "FinetuneResult", "FinetuneSettings", "finetune"]

Validate = Callable[[onnx.ModelProto], float]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Check:
    """The student after some steps: the mean training loss since the last check, and its score (higher is better)."""

    step: int
    loss: float
    score: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The best model and its score; `step` 0 is the start. `reason` says why training ended, or why there was none."""

    model: onnx.ModelProto
    score: float
    step: int
    history: tuple[Check, ...]
    reason: str
    frozen: Mapping[str, str]


def finetune(
    student: Graph | onnx.ModelProto,
    teacher: onnx.ModelProto | Sequence[Sequence[Array]],
    batches: Sequence[Batch],
    settings: FinetuneSettings,
    validate: Validate,
    progress: Progress | None = None,
    *,
    labels: Sequence[Array] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FinetuneResult:
    """The student with the weights that `validate` likes best, trained to give the teacher's outputs on the batches.

    `teacher` is the original model, or its outputs for each batch in the model's order. `labels` (class numbers for
    each batch) are needed for loss "ce" only. A student that torch cannot run is returned as it is, with the reason.
    """
    graph = student if isinstance(student, Graph) else load(student)
    start = validate(graph.model)
    why_not = _why_not(graph, settings, labels)
    if why_not:
        return FinetuneResult(graph.model, start, 0, (Check(0, math.nan, start, 0.0),), why_not, {})
    pool = Pool(batches, graph)
    try:
        task = _task(graph, teacher, pool, settings, labels)
    except UnsupportedOp as error:
        return FinetuneResult(graph.model, start, 0, (Check(0, math.nan, start, 0.0),), str(error), {})
    with _Threads(settings.threads):
        return _train(graph, task, pool, settings, validate, start, progress or _silent, clock)


def _silent(done: int, total: int, note: str) -> None:
    """Says nothing."""


def _why_not(graph: Graph, settings: FinetuneSettings, labels: Sequence[Array] | None) -> str:
    """Why there is nothing to do, before any work; empty when there is something."""
    if settings.steps == 0:
        return "fine-tuning is switched off"
    if settings.loss == "ce" and labels is None:
        raise InputError("--finetune: loss=ce needs labels; give data with labels, or use loss=mse")
    problems = unsupported(graph)
    return f"torch cannot run the model: {problems[0]}" if problems else ""


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be learnt: `targets(indices, feeds)` gives the wanted values of the tensors in `names`."""

    graph: Graph
    names: tuple[str, ...]
    scales: tuple[float, ...]
    targets: Callable[[Array, Batch], list[Array]]
    fixed_batch: int | None
    labelled: Callable[[Array], Array] | None


def _task(
    graph: Graph,
    teacher: onnx.ModelProto | Sequence[Sequence[Array]],
    pool: Pool,
    settings: FinetuneSettings,
    labels: Sequence[Array] | None,
) -> _Task:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    places = [k for k, port in enumerate(graph.outputs) if graph.dtypes.get(port.name, port.dtype) in floats]
    if not places:
        raise UnsupportedOp("no output of the model is floating-point, so that there is nothing to train towards")
    fixed = _fixed_batch(graph)
    names = [graph.outputs[k].name for k in places]
    if isinstance(teacher, onnx.ModelProto):
        names = [logits_of(graph, name) for name in names]
        original = load(teacher)
        run = runner(teacher, [logits_of(original, original.outputs[k].name) for k in places], fixed)
        compute: Callable[[Array, Batch], list[Array]] = lambda indices, feeds: run(feeds)  # noqa: E731
    else:
        given = teacher
        compute = lambda indices, feeds: [pool.rows([b[k] for b in given], indices) for k in places]  # noqa: E731
    sample = np.arange(min(len(pool), max(settings.batch, fixed or 1)))
    found = compute(sample, pool.take(sample))
    scales = tuple(float(value.astype(np.float64).var()) or 1.0 for value in found)
    cacheable = isinstance(teacher, onnx.ModelProto) and not settings.augment
    if cacheable and sum(value.nbytes for value in found) / len(sample) * len(pool) < CACHED_BYTES:
        compute = cached(compute, pool, max(settings.batch, fixed or 1))
    labelled = None if labels is None else (lambda indices: pool.rows(labels, indices))
    return _Task(graph, tuple(names), scales, compute, fixed, labelled if settings.loss == "ce" else None)


def _fixed_batch(graph: Graph) -> int | None:
    """The batch size that the model's declared inputs fix; None when it is open."""
    sizes = [port.dims[0] for port in graph.inputs if port.dims]
    return None if not sizes or None in sizes else sizes[0]


class _Threads:
    """Sets torch's number of threads for a while; 0 leaves it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        if self.count:
            torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)


def _train(
    graph: Graph,
    task: _Task,
    pool: Pool,
    settings: FinetuneSettings,
    validate: Validate,
    start: float,
    progress: Progress,
    clock: Callable[[], float],
) -> FinetuneResult:
    import torch

    began = clock()
    rng = np.random.default_rng(settings.seed)
    module = to_torch(_with_outputs(graph, task.names))
    _prefer_channels_last(module)
    step_of = _stepper(module, task, settings)
    optimizer = _optimizer(module, graph, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1)))
    )
    best, history = (start, 0, graph.model), [Check(0, math.nan, start, 0.0)]
    losses: list[float] = []
    reason = f"all {settings.steps} steps were made"
    order = shuffled(len(pool), _batch_size(settings, task, pool), rng)
    for step in range(1, settings.steps + 1):
        indices = next(order)
        feeds = pool.take(indices)
        if settings.augment:
            feeds = {name: augmented(value, rng) if name in pool.names else value for name, value in feeds.items()}
        losses.append(step_of(indices, feeds, optimizer))
        schedule.step()
        late = clock() - began > settings.seconds
        broken = not math.isfinite(losses[-1])
        if step % settings.check_every == 0 or step == settings.steps or late or broken:
            model = graph.model if broken else write_back(module, graph.model)
            score = -math.inf if broken else validate(model)
            history.append(Check(step, float(np.mean(losses)), score, clock() - began))
            losses.clear()
            if score > best[0]:
                best = (score, step, model)
            progress(step, settings.steps, f"best so far {best[0]:.4g} (step {best[1]})")
        if broken:
            reason = f"the loss was not finite at step {step}; a smaller lr than {settings.lr:g} may help"
            break
        if late:
            reason = f"the time limit of {settings.seconds:g} s was reached at step {step}"
            break
        if len([check for check in history if check.step > best[1]]) > settings.patience:
            reason = f"no gain in {settings.patience} checks up to step {step}"
            break
    return FinetuneResult(best[2], best[0], best[1], tuple(history), reason, module.frozen)


def _batch_size(settings: FinetuneSettings, task: _Task, pool: Pool) -> int:
    """Examples to a step: a multiple of the model's fixed batch size."""
    size = min(settings.batch, len(pool))
    fixed = task.fixed_batch or 1
    return max(fixed, size // fixed * fixed)


def _with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph with other outputs: those that the loss looks at."""
    ports = {port.name: port for port in graph.outputs}
    return replace(
        graph, outputs=tuple(ports.get(n, replace(graph.outputs[0], name=n, dims=(), dtype=0)) for n in names)
    )


def _prefer_channels_last(module: Any) -> None:
    """Lays four-dimensional weights out channels last, which torch's CPU kernels prefer; their values stay."""
    import torch

    module.to(memory_format=torch.channels_last)


def _optimizer(module: Any, graph: Graph, settings: FinetuneSettings) -> Any:
    """Adam; a weight in units of an integer grid gets steps as large as if its greatest magnitude were 1."""
    import torch

    plain, groups = [], []
    for name, parameter in module.weights():
        if graph.constants[name].array().dtype.kind in "iu":
            scale = float(parameter.detach().abs().max()) or 1.0
            groups.append({"params": [parameter], "lr": settings.lr * scale})
        else:
            plain.append(parameter)
    return torch.optim.Adam([{"params": plain, "lr": settings.lr}, *groups])


def _stepper(module: Any, task: _Task, settings: FinetuneSettings) -> Callable[[Array, Batch, Any], float]:
    """A function (indices, feeds, optimizer) that makes one step and gives the loss."""
    import torch

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=_in_bfloat16(settings.precision))
    piece = _needed_batch(module, task)

    def run(indices: Array, feeds: Batch, optimizer: Any) -> float:
        targets = [torch.from_numpy(np.ascontiguousarray(value)) for value in task.targets(indices, feeds)]
        labels = None if task.labelled is None else torch.from_numpy(task.labelled(indices).astype(np.int64))
        parts = list(pieces(feeds, piece))
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, part in enumerate(parts):
            with autocast:
                outputs = module({name: _tensor(value) for name, value in part.items()})
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            wanted = [_share(value, number, len(parts)) for value in targets]
            classes = None if labels is None else _share(labels, number, len(parts))
            loss = _loss(outputs, wanted, classes, task.scales, settings.loss) / len(parts)
            loss.backward()
            total += float(loss.detach())
        if math.isfinite(total):
            optimizer.step()
        return total

    return run


def _in_bfloat16(precision: str) -> bool:
    import torch

    native: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return precision == "bfloat16" or (precision == "auto" and native())


def _tensor(value: Array) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _share(value: Any, number: int, count: int) -> Any:
    size = len(value) // count
    return value[number * size : (number + 1) * size] if count > 1 else value


def _needed_batch(module: Any, task: _Task) -> int | None:
    """The batch size at which the torch form must run; None when two copies of an example give its outputs twice."""
    import torch

    if task.fixed_batch is None:
        return None
    rng = np.random.default_rng(0)
    once = {
        port.name: _tensor(rng.standard_normal(task.graph.shapes[port.name]).astype(np.float32))
        for port in task.graph.inputs
        if port.dtype == onnx.TensorProto.FLOAT
    }
    if len(once) < len(task.graph.inputs):
        return task.fixed_batch
    twice = {name: torch.cat([value, value]) for name, value in once.items()}
    try:
        with torch.no_grad():
            single, double = module(once), module(twice)
    except (RuntimeError, UnsupportedOp, ValueError):
        return task.fixed_batch
    pairs = [(single, double)] if not isinstance(single, tuple) else list(zip(single, double, strict=True))
    same = all(d.shape[1:] == s.shape[1:] and _close(d, torch.cat([s, s])) for s, d in pairs)
    return None if same else task.fixed_batch


def _close(a: Any, b: Any) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-3 * (float(b.abs().max()) or 1.0)


def _loss(outputs: Sequence[Any], wanted: Sequence[Any], classes: Any, scales: Sequence[float], kind: str) -> Any:
    """The loss of a batch: rule 2."""
    import torch

    functional = torch.nn.functional
    if kind == "ce":
        return functional.cross_entropy(outputs[0].float(), classes)
    total: Any = 0.0
    for have, want, scale in zip(outputs, wanted, scales, strict=True):
        have, want = have.float(), want.float()
        if kind == "kl":
            mine, theirs = torch.log_softmax(have, -1), torch.log_softmax(want, -1)
            total = total + functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1).mean()
        else:
            total = total + functional.mse_loss(have, want) / scale
    return total / len(outputs)
