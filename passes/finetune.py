"""Fine-tuning in torch: the pruned student learns the original's outputs and feature maps; labels are not needed.

1. What is learnt stands in `finetune_task`, the optimizer and its schedule in `finetune_optimizer`.
2. Every now and then the student is judged by `validate` on examples that played no part in training, after `finish`
   has set right what training leaves to a closed form (the scale of the logits). The best student is returned, and the
   start is one of the candidates: fine-tuning never makes a model worse by that measure.
3. A user's own loop (`Hooks.train`) gets the same parts as ours: a `Training`.
4. The student may have inputs that the teacher has not, drawn anew for each batch: masks (`elastic`).
5. Training ends after more than `patience` checks without a gain (there are not as many by default), and after half as
   many where none was better than the start (by default after a quarter of the steps): a student that is near its
   teacher loses in the first steps what it has not won back at the end (MobileNetV2 on 425 images at a smaller size,
   five runs of five), while students that gained did so at one of the first two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..ir.errors import InputError, NetAdaptError, UnsupportedOp
from ..ir.graph import Graph
from ..ir.load import load
from .finetune_optimizer import RelativeAdam, Schedule
from .finetune_settings import FinetuneSettings, Hooks
from .finetune_task import Feature, Task, loss_of, shares, task_of, with_outputs
from .images import augmented
from .teacher import Array, Batch, Pool, Teacher, pieces, shuffled
from .to_torch import to_torch, unsupported, write_back

__all__ = ["Check", "Example", "Feature", "FinetuneResult", "FinetuneSettings", "Hooks", "Training", "finetune"]

Validate = Callable[[onnx.ModelProto], float]
Finish = Callable[[onnx.ModelProto], onnx.ModelProto]
Progress = Callable[[int, int, str], None]

CHECKS = (1 / 8, 1 / 4, 3 / 4)
"""Shares of the steps after which the student is judged, and at the end, unless the settings say otherwise: the first
two tell whether there is hope (rule 5). Eight checks were a third of the time of training ResNet20 by a hundred steps,
and the best student was one of the last two.
"""

LEAST_BETWEEN = 10
"""Steps between two checks at least: a check costs as much as some steps."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Inputs of the student that are drawn for each batch (rule 4): `of(count)` gives `count` rows of each name."""

    names: frozenset[str]
    of: Callable[[int], Batch]


@dataclass(frozen=True, slots=True)
class Check:
    """The student after some steps: the mean training loss since the last check, and its score (higher is better)."""

    step: int
    loss: float
    score: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The best model and its score; `step` 0 is the start. `reason` says why training ended, or why there was none.

    `images` is the number of examples that training has seen.
    """

    model: onnx.ModelProto
    score: float
    step: int
    history: tuple[Check, ...]
    reason: str
    frozen: Mapping[str, str]
    images: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A batch of examples: the model's inputs by name, the wanted values of what the module returns, and labels."""

    inputs: Mapping[str, Any]
    targets: Sequence[Any]
    labels: Any


def finetune(
    student: Graph | onnx.ModelProto,
    teacher: onnx.ModelProto | Sequence[Sequence[Array]],
    batches: Sequence[Batch],
    settings: FinetuneSettings,
    validate: Validate,
    progress: Progress | None = None,
    *,
    labels: Sequence[Array] | None = None,
    features: Sequence[Feature] = (),
    finish: Finish | None = None,
    hooks: Hooks | None = None,
    draw: Draw | None = None,
    outputs: Teacher | None = None,
    judged: tuple[onnx.ModelProto, float] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FinetuneResult:
    """The student with the weights that `validate` likes best, trained to give the teacher's outputs on the batches.

    `teacher` is the original model, or its outputs for each batch in the model's order. `labels` (class numbers for
    each batch) are needed for loss "ce" only. `outputs` gives the wanted outputs in the teacher's stead: the original
    at its own input size, where teacher and student are at another. `judged` is the finished start with its score,
    where they are known. A student that torch cannot run is returned as it is, with the reason.
    Raises InputError when a user's own loss or loop fails.
    """
    graph = student if isinstance(student, Graph) else load(student)
    finish, hooks = finish or _as_it_is, hooks or Hooks()
    first = judged[0] if judged else finish(graph.model)
    start = Check(0, math.nan, judged[1] if judged else validate(first), 0.0)
    why_not = _why_not(graph, settings, hooks, labels)
    if why_not:
        return FinetuneResult(first, start.score, 0, (start,), why_not, {})
    pool = Pool(batches, graph, draw.names if draw else ())
    try:
        task = task_of(graph, teacher, pool, settings, hooks, labels, features, outputs)
    except UnsupportedOp as error:
        return FinetuneResult(first, start.score, 0, (start,), str(error), {})
    with _Threads(settings.threads):
        judge = _Judge(graph, finish, validate, hooks, start, first)
        training = Training(task, pool, settings, hooks, judge, draw, clock)
        reason = _own(training, hooks) if hooks.train is not None else _train(training, progress or _silent)
    return FinetuneResult(
        judge.best, judge.best_check.score, judge.best_check.step, tuple(judge.history), reason,
        training.module.frozen, training.images,
    )  # fmt: skip


def _augmented(pool: Pool, indices: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Random views of the examples with these numbers."""
    return {n: augmented(v, rng) if n in pool.names else v for n, v in pool.take(indices).items()}


def _silent(done: int, total: int, note: str) -> None:
    """Says nothing."""


def _as_it_is(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def _why_not(graph: Graph, settings: FinetuneSettings, hooks: Hooks, labels: Sequence[Array] | None) -> str:
    """Why there is nothing to do, before any work; empty when there is something."""
    if settings.steps == 0:
        return "fine-tuning is switched off"
    if settings.loss == "ce" and labels is None and hooks.loss is None:
        raise InputError("--finetune: loss=ce needs labels; give data with labels, or use loss=mse")
    problems = unsupported(graph)
    return f"torch cannot run the model: {problems[0]}" if problems else ""


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


class _Judge:
    """Keeps the best student and the history (rule 2)."""

    def __init__(
        self, graph: Graph, finish: Finish, validate: Validate, hooks: Hooks, start: Check, first: onnx.ModelProto
    ) -> None:
        self.graph, self.finish, self.validate, self.hooks = graph, finish, validate, hooks
        self.best, self.best_check, self.history = first, start, [start]

    def look(self, module: Any, step: int, loss: float, seconds: float) -> bool:
        """Judges the module as it is; True when the user's callback wants to stop."""
        model = None if math.isnan(loss) or math.isinf(loss) else self.finish(write_back(module, self.graph.model))
        check = Check(step, loss, -math.inf if model is None else self.validate(model), seconds)
        self.history.append(check)
        if model is not None and check.score > self.best_check.score:
            self.best, self.best_check = model, check
        return self.hooks.callback is not None and bool(self.hooks.callback(check))

    def hopeless(self, patience: int) -> str:
        """Why training had better end; empty while it had not (rule 5)."""
        step, since = self.history[-1].step, sum(check.step > self.best_check.step for check in self.history)
        if self.best_check.step:
            return f"no gain in {since} checks up to step {step}" if since > patience else ""
        return f"no gain over the start up to step {step}" if since >= max(1, patience // 2) else ""


class Training:
    """The parts of a training loop: the student as `module`, endless `batches`, the `loss`, and `check`.

    The module takes a dict of inputs and gives the tensors that `Example.targets` wants: the model's outputs in order
    (the logits of a Softmax, unless there is a loss of the user's own), then feature maps. `ended` says why to stop.
    """

    def __init__(
        self,
        task: Task,
        pool: Pool,
        settings: FinetuneSettings,
        hooks: Hooks,
        judge: _Judge,
        draw: Draw | None,
        clock: Callable[[], float],
    ) -> None:
        import torch

        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.module = _placed(to_torch(with_outputs(task.graph, task.names)), self.device)
        self.images = 0
        self._task, self._pool, self._hooks, self._judge, self._draw = task, pool, hooks, judge, draw
        self._clock, self._began = clock, clock()
        self._rng = np.random.default_rng(settings.seed)
        self.ended = ""
        self._steps = 0
        self._losses: list[float] = []
        self._piece = _needed_batch(self.module, task, self.device)
        self._autocast = torch.autocast(
            self.device, dtype=torch.bfloat16, enabled=_in_bfloat16(settings.precision, self.device)
        )

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def batch(self) -> int:
        """Examples to a step: a multiple of the model's fixed batch size."""
        size = min(self.settings.batch, len(self._pool))
        fixed = self._task.fixed_batch or 1
        return max(fixed, size // fixed * fixed)

    def batches(self) -> Iterator[Example]:
        """Endless batches, in a new order for each pass, augmented where the settings say so."""
        for indices in shuffled(len(self._pool), self.batch, self._rng):
            feeds, views = self._views(indices)
            targets = [self._tensor(value) for value in self._task.targets(indices, feeds, views)]
            labels = None if self._task.labels is None else self._tensor(self._task.labels(indices).astype(np.int64))
            self.images += len(indices)
            feeds |= self._draw.of(len(indices)) if self._draw else {}
            yield Example({name: self._tensor(value) for name, value in feeds.items()}, targets, labels)

    def _views(self, indices: Array) -> tuple[dict[str, Array], dict[str, Array] | None]:
        """Examples, augmented where the settings say so; and the same views at the teacher's own size, if any."""
        pool, whole = self._pool, self._task.whole
        if not self.settings.augment:
            return pool.take(indices), None
        again = deepcopy(self._rng)  # the same draws: a view is a share of an image of any size
        feeds = _augmented(pool, indices, self._rng)
        return feeds, None if whole is None else _augmented(whole, indices, again)

    def loss(self, example: Example) -> Any:
        """The loss of a batch as a torch scalar."""
        with self._autocast:
            outputs = self.module(dict(example.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return loss_of(self._task, self.settings, self._hooks, outputs, example.targets, example.labels)

    def backward(self, example: Example) -> float:
        """Adds the gradients of a batch and gives its loss; piece by piece where the module's batch size is fixed."""
        parts = list(pieces(example.inputs, self._piece))
        targets = zip(*(shares(value, len(parts)) for value in example.targets), strict=True)
        labels = [None] * len(parts) if example.labels is None else shares(example.labels, len(parts))
        total = 0.0
        for inputs, wanted, classes in zip(parts, targets, labels, strict=True):
            loss = self.loss(Example(inputs, wanted, classes)) / len(parts)
            loss.backward()
            total += float(loss.detach())
        self._steps += 1
        self._losses.append(total)
        return total

    def check(self, step: int | None = None) -> bool:
        """Judges the student as it is now, keeps it if it is the best so far, and says whether to go on."""
        step = self._steps if step is None else step
        loss = float(np.mean(self._losses)) if self._losses else 0.0
        self._losses.clear()
        if self._judge.look(self.module, step, loss, self.elapsed):
            self.ended = f"the callback ended it at step {step}"
        else:
            self.ended = self._judge.hopeless(self.settings.patience)
        return not self.ended

    @property
    def note(self) -> str:
        """The best so far, for people."""
        best = self._judge.best_check
        return f"best so far {best.score:.4g} (step {best.step})"

    def _tensor(self, value: Any) -> Any:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(self.device)
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _placed(module: Any, device: str) -> Any:
    """The module on a device, in the layout in which convolutions are faster there; the values stay."""
    import torch

    return module.to(device, memory_format=torch.channels_last)


def _train(training: Training, progress: Progress) -> str:
    """Our loop; why it ended."""
    settings = training.settings
    optimizer = RelativeAdam([parameter for _, parameter in training.module.weights()])
    schedule = Schedule(settings.steps, settings.seconds)
    batches = training.batches()
    looked, step = 0, 0
    while step < schedule.steps:
        step += 1
        optimizer.zero_grad()
        loss = training.backward(next(batches))
        if not math.isfinite(loss):
            training.check(step)
            return f"the loss was not finite at step {step}; a smaller lr than {settings.lr:g} may help"
        optimizer.step(settings.lr * schedule.rate(step))
        schedule.made(step, training.elapsed)
        if step >= schedule.steps or step - looked >= (settings.check_every or _between(looked, schedule.steps)):
            looked = step
            if not training.check(step):
                return training.ended
        progress(step, schedule.steps, training.note)
    if step < settings.steps:
        return f"{step} of {settings.steps} steps fitted into {settings.seconds:g} s"
    return f"all {settings.steps} steps were made"


def _between(looked: int, steps: int) -> int:
    """Steps after which the student is judged again, where it was judged after `looked` of them (CHECKS)."""
    following = min((share for share in CHECKS if share * steps > looked), default=1.0) * steps
    return max(LEAST_BETWEEN, math.ceil(following) - looked)


def _own(training: Training, hooks: Hooks) -> str:
    """The user's loop; what it leaves behind is judged as well."""
    assert hooks.train is not None
    try:
        hooks.train(training)
    except NetAdaptError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise InputError(f"--train: the loop failed ({type(error).__name__}: {error})") from error
    training.check()
    return "the loop given with --train ended"


def _in_bfloat16(precision: str, device: str) -> bool:
    import torch

    if device == "cuda":
        return precision == "bfloat16" or (precision == "auto" and torch.cuda.is_bf16_supported())
    native: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return precision == "bfloat16" or (precision == "auto" and native())


def _needed_batch(module: Any, task: Task, device: str) -> int | None:
    """The batch size at which the torch form must run; None when two copies of an example give its outputs twice."""
    import torch

    if task.fixed_batch is None:
        return None
    rng = np.random.default_rng(0)
    once = {
        port.name: torch.from_numpy(rng.standard_normal(task.graph.shapes[port.name]).astype(np.float32)).to(device)
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
