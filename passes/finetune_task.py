"""What fine-tuning learns: targets from the original for outputs and feature maps, and the loss between the two.

1. Teacher outputs are computed by ONNX Runtime; where the last operator is a Softmax, on the logits before it.
2. The loss of the outputs is their squared error over their variance, the KL divergence, or the cross-entropy.
3. Feature maps are those that the refit aims at (`fits`): the student keeps some channels of the teacher's tensor of
   the same name. With few images they say more than the logits do. Their loss is the mean of their squared errors,
   each over its variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.errors import InputError, UnsupportedOp
from ..ir.graph import Graph
from ..ir.load import load
from ..ir.ops.training import logits_of
from .consumers import consumers_of
from .coupling import Coupling, Kept
from .finetune_settings import FinetuneSettings, Hooks
from .fits import plan_fits
from .teacher import CACHED_BYTES, Array, Batch, Pool, Targets, Teacher, cached, runner

MOST_FEATURES = 8
FEATURE_NUMBERS = 1_500_000
"""Numbers of one example's feature maps, all together, that are compared at most."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Feature:
    """A tensor that student and teacher both have; the student has the positions `kept` of the teacher's `axis`."""

    name: str
    axis: int
    kept: NDArray[np.bool_]


def features_of(coupling: Coupling, kept: Kept, most: int = MOST_FEATURES) -> tuple[Feature, ...]:
    """Feature maps spread over the depth of the pruned network, those that keep most of their channels (rule 3)."""
    graph, removed = coupling.graph, coupling.removed_units(kept)
    fits, _ = plan_fits(coupling, kept, consumers_of(coupling).all)
    found = {
        fit.target: Feature(fit.target, fit.target_axis, coupling.positions((fit.target, fit.target_axis), removed))
        for fit in fits
        if not (fit.last or fit.item.by_channel or fit.absorbs)
    }
    share = {name: float(feature.kept.mean()) for name, feature in found.items()}
    usual = float(np.median(list(share.values()))) if share else 0.0
    chosen = [feature for name, feature in found.items() if share[name] >= usual]
    places = np.unique(np.linspace(0, len(chosen) - 1, most).round().astype(int)) if len(chosen) > most else None
    chosen = chosen if places is None else [chosen[place] for place in places]
    size = {feature.name: float(np.prod(graph.shapes[feature.name][1:], dtype=np.float64)) for feature in chosen}
    while chosen and sum(size[feature.name] for feature in chosen) > FEATURE_NUMBERS:
        chosen.remove(max(chosen, key=lambda feature: size[feature.name]))
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learnt: `targets(indices, feeds, views)` gives the wanted values of the tensors in `names`.

    The first `outputs` of the names are the model's, the others feature maps; `scales` are their variances. `whole` are
    the examples at the teacher's own input size where that is another, of which `views` are those in question.
    """

    graph: Graph
    names: tuple[str, ...]
    outputs: int
    scales: tuple[float, ...]
    targets: Targets
    labels: Callable[[Array], Array] | None
    fixed_batch: int | None
    whole: Pool | None = None


def task_of(
    graph: Graph,
    teacher: onnx.ModelProto | Sequence[Sequence[Array]],
    pool: Pool,
    settings: FinetuneSettings,
    hooks: Hooks,
    labels: Sequence[Array] | None,
    features: Sequence[Feature],
    outputs: Teacher | None = None,
) -> Task:
    """The task; UnsupportedOp when no output is floating-point.

    `teacher` is the original, or its outputs for each batch in the model's order: then there are no feature maps.
    `outputs` gives the outputs in its stead.
    """
    places = [k for k, port in enumerate(graph.outputs) if graph.dtypes.get(port.name, port.dtype) in _FLOATS]
    if not places:
        raise UnsupportedOp("no output of the model is floating-point, so that there is nothing to train towards")
    fixed = fixed_batch(graph)
    whole: Pool | None = None
    names = [graph.outputs[k].name for k in places]
    if isinstance(teacher, onnx.ModelProto):
        seen = tuple(features) if settings.features > 0 and hooks.loss is None else ()
        compute, names = _from_model(graph, teacher, places, seen, hooks, fixed)
        if outputs is not None:
            whole = Pool(list(outputs.batches()), outputs.graph)
            compute = _from_whole(graph, outputs, whole, compute, places, hooks, fixed)
    else:
        given, seen = teacher, ()
        compute = lambda indices, feeds, views: [pool.rows([b[k] for b in given], indices) for k in places]  # noqa: E731
    size = max(settings.batch, fixed or 1)
    sample = np.arange(min(len(pool), size))
    found = compute(sample, pool.take(sample), None)
    scales = tuple(float(value.astype(np.float64).var()) or 1.0 for value in found)
    cacheable = isinstance(teacher, onnx.ModelProto) and not settings.augment
    if cacheable and sum(value.nbytes for value in found) / len(sample) * len(pool) < CACHED_BYTES:
        compute = cached(compute, pool, size)
    labelled = None if labels is None else (lambda indices: pool.rows(labels, indices))
    return Task(graph, tuple(names), len(places), scales, compute, labelled, fixed, whole)


def _from_model(
    graph: Graph,
    teacher: onnx.ModelProto,
    places: Sequence[int],
    features: Sequence[Feature],
    hooks: Hooks,
    fixed: int | None,
) -> tuple[Targets, list[str]]:
    """The function that gives the targets, and the student's names for them (rules 1 and 3)."""
    original = load(teacher)
    before = (lambda one, name: name) if hooks.loss is not None else logits_of  # a user's loss sees the real outputs
    mine = [before(graph, graph.outputs[k].name) for k in places]
    theirs = [before(original, original.outputs[k].name) for k in places]
    run = runner(teacher, [*theirs, *(feature.name for feature in features)], fixed)

    def compute(indices: Array, feeds: Batch, views: Batch | None) -> list[Array]:
        values = run(feeds)
        maps = zip(features, values[len(places) :], strict=True)
        return [*values[: len(places)], *(np.compress(f.kept, value, axis=f.axis) for f, value in maps)]

    return compute, [*mine, *(feature.name for feature in features)]


def _from_whole(
    graph: Graph,
    outputs: Teacher,
    whole: Pool,
    others: Targets,
    places: Sequence[int],
    hooks: Hooks,
    fixed: int | None,
) -> Targets:
    """The same function with the outputs of the original at its own input size, from the examples of `whole`."""
    before = (lambda one, name: name) if hooks.loss is not None else logits_of
    names = [before(outputs.graph, outputs.graph.outputs[k].name) for k in places]
    run = runner(outputs.graph.model, names, fixed)

    def compute(indices: Array, feeds: Batch, views: Batch | None) -> list[Array]:
        own = run(whole.take(indices) if views is None else views)
        return [*own, *others(indices, feeds, views)[len(places) :]]

    return compute


def fixed_batch(graph: Graph) -> int | None:
    """The batch size that the model's declared inputs fix; None when it is open."""
    sizes = [port.dims[0] for port in graph.inputs if port.dims]
    return None if not sizes or None in sizes else sizes[0]


def with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph with other outputs: those that the loss looks at."""
    ports = {port.name: port for port in graph.outputs}
    return replace(
        graph, outputs=tuple(ports.get(n, replace(graph.outputs[0], name=n, dims=(), dtype=0)) for n in names)
    )


def loss_of(
    task: Task, settings: FinetuneSettings, hooks: Hooks, outputs: Sequence[Any], targets: Sequence[Any], labels: Any
) -> Any:
    """The loss of a batch as a torch scalar: rules 2 and 3, or the user's own."""
    import torch

    outputs = [value.float() if value.is_floating_point() else value for value in outputs]
    targets = [value.float() for value in targets]
    if hooks.loss is not None:
        found = hooks.loss(tuple(outputs), tuple(targets), labels)
        if not isinstance(found, torch.Tensor) or found.dim() or not found.requires_grad:
            raise InputError(
                f"--loss: the function gave {_told(found)}; it must give one number as a torch tensor that was "
                "computed from the model's outputs"
            )
        return found
    parts = [
        _output_loss(have, want, scale, settings.loss, labels)
        for have, want, scale in zip(outputs, targets, task.scales[: task.outputs], strict=False)
    ]
    total = sum(parts) / len(parts)
    rest = list(zip(outputs, targets, task.scales, strict=True))[task.outputs :]
    if rest:
        squares = [_squares(have, want) / scale for have, want, scale in rest]
        total = total + settings.features * sum(squares) / len(squares)
    return total


def _told(found: Any) -> str:
    shape = getattr(found, "shape", None)
    if shape is None:
        return type(found).__name__
    return f"a tensor of shape {tuple(shape)} {'with' if found.requires_grad else 'without'} a gradient"


def _output_loss(have: Any, want: Any, scale: float, kind: str, labels: Any) -> Any:
    import torch

    functional = torch.nn.functional
    if kind == "ce":
        return functional.cross_entropy(have, labels)
    if kind == "kl":
        mine, theirs = torch.log_softmax(have, -1), torch.log_softmax(want, -1)
        return functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1).mean()
    return _squares(have, want) / scale


def _squares(have: Any, want: Any) -> Any:
    """The mean squared difference; maps are compared with their channels last, as training has them in memory.

    torch gives the gradient of this loss with the channels first whatever it is given, and adding gradients of two
    layouts takes a third of a step (ResNet20 at 0.6x, eight maps: 217 ms, 150 with one layout).
    """
    import torch

    maps = have.dim() == 4
    return torch.nn.functional.mse_loss(*(x.permute(0, 2, 3, 1) if maps else x for x in (have, want)))


def shares(value: Any, count: int) -> Iterator[Any]:
    """A batch in `count` equal pieces along its first axis."""
    size = len(value) // count
    for number in range(count):
        yield value[number * size : (number + 1) * size] if count > 1 else value
