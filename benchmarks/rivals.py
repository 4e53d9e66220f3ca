"""Other ways to a smaller network, each brought to the same latency; see `tradeoff.py`.

1. onnxsim (`apply_structured_pruning`): its sparsity is bisected until the measured latency is within the limit; its
   own closed-form recovery (`apply_pruning_finetune`, products only) afterwards where asked for.
2. Torch-Pruning on the torch form of the network: L2 norms over groups, its recommended default, `round_to` as given;
   its ratio is bisected too. Where it cannot handle the shortcuts of a network (its pruned network does not run), only
   layers inside the blocks are pruned.
3. The recipe of the NetAdapt paper: filters by L2 norm, one group narrowed at a time, every proposal trained for a few
   steps before it is judged, the winner's weights carried on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.ir.errors import NetAdaptError
from onnx_netadapt.ir.load import load
from onnx_netadapt.network import by_weight
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.search import Step
from onnx_netadapt.pipeline import Bench
from onnx_netadapt.searching import searcher_of

BISECTIONS = 7


@dataclass(frozen=True)
class Absent(Exception):
    """A rival that is not installed, or that cannot take this network, and why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


Latency = Callable[[onnx.ModelProto], float]
"""The measured latency of a model as a share of the original's."""


def bisected(
    prune: Callable[[float], onnx.ModelProto], latency: Latency, limit: float
) -> tuple[onnx.ModelProto, float]:
    """The least pruned model found within the limit, and its ratio; the most pruned one when none is within it.

    Latency does not fall steadily with the ratio (widths that are no multiples of four are slow), so that a grid is
    tried first, from the least pruning on, and then the gap before its first hit.
    """
    low, high, best = 0.0, 0.95, None
    for ratio in np.linspace(0.1, 0.9, 9):
        model = prune(float(ratio))
        if latency(model) <= limit:
            high, best = float(ratio), model
            break
        low = float(ratio)
    if best is None:
        raise Absent(f"no ratio up to 0.9 is within {limit:.3f}x of the original's cost")
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        model = prune(ratio)
        if latency(model) <= limit:
            high, best = ratio, model
        else:
            low = ratio
    return best, high


def onnxsim_pruned(model: onnx.ModelProto, latency: Latency, limit: float) -> tuple[onnx.ModelProto, float]:
    """Rule 1, without recovery."""
    try:
        from onnxsim import apply_structured_pruning
    except ImportError as error:
        raise Absent("onnxsim is not installed") from error

    def prune(ratio: float) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        found: onnx.ModelProto = apply_structured_pruning(copy, sparsity=ratio)
        return found

    return bisected(prune, latency, limit)


def onnxsim_recovered(
    original: onnx.ModelProto, pruned: onnx.ModelProto, batches: list[Mapping[str, Any]]
) -> onnx.ModelProto:
    """Rule 1's recovery."""
    from onnxsim import apply_pruning_finetune

    found: onnx.ModelProto = apply_pruning_finetune(original, pruned, calibration_data=[dict(b) for b in batches])
    return found


def torch_pruned(
    model: onnx.ModelProto, round_to: int | None, latency: Latency, limit: float
) -> tuple[onnx.ModelProto, float]:
    """Rule 2."""
    try:
        import torch_pruning
    except ImportError as error:
        raise Absent("torch-pruning is not installed") from error
    everything = [False, True]
    for inner in everything:
        try:
            return bisected(lambda ratio: _torch_pruned(torch_pruning, model, ratio, round_to, inner), latency, limit)  # noqa: B023
        except (RuntimeError, ValueError, IndexError, KeyError, NetAdaptError) as error:
            problem = f"Torch-Pruning cannot prune it: {type(error).__name__}: {error}"
    raise Absent(problem)


def _torch_pruned(tp: Any, model: onnx.ModelProto, ratio: float, round_to: int | None, inner: bool) -> onnx.ModelProto:
    import torch
    from layers import layers_of

    module = layers_of(model)
    examples = tuple(torch.randn(1, *module.graph.shapes[port.name][1:]) for port in module.graph.inputs)
    ignored = _ends(module) + (_onto_streams(module) if inner else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            module, examples[0] if len(examples) == 1 else examples,
            importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio, round_to=round_to,
            ignored_layers=ignored,
        )  # fmt: skip
        pruner.step()
        with torch.no_grad():
            module(*examples)
        return module.to_onnx()


def _ends(module: Any) -> list[Any]:
    """The layers that make the outputs: their channels are the user's."""
    import torch

    found: list[Any] = []
    for number, step in reversed(list(enumerate(module._program.steps))):
        if number in module._layer_of:
            layer = module.layers[module._layer_of[number]]
            reached = set(module._program.outputs) & _reach(module, step.makes)
            if reached and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                found.append(layer)
    return found


def _reach(module: Any, start: tuple[str, ...]) -> set[str]:
    """Tensors that follow from some without another layer between."""
    known = set(start)
    for number, step in enumerate(module._program.steps):
        if number not in module._layer_of and known & set(step.reads):
            known |= set(step.makes)
    return known


def _onto_streams(module: Any) -> list[Any]:
    """Layers whose output is added to something, straight away or behind an activation."""
    graph = module.graph
    found = []
    for number in module._layer_of:
        step = module._program.steps[number]
        reached = _reach(module, step.makes)
        sums = [
            node for node in graph.nodes
            if len(node.inputs) == 2 and set(node.inputs) & reached and not set(node.inputs) & set(graph.constants)
        ]  # fmt: skip
        if sums:
            found.append(module.layers[module._layer_of[number]])
    return found


def recipe(
    bench: Bench, tuned: Callable[[onnx.ModelProto], onnx.ModelProto], judge: Callable[[onnx.ModelProto], float]
) -> tuple[onnx.ModelProto, int]:
    """Rule 3: the model and the number of networks that were trained; `tuned` trains one for a few steps."""
    plain = replace(bench, narrowing=by_weight(bench.narrowing.coupling))
    state = _Recipe(bench.run.graph.model, dict(plain.narrowing.full), tuned, judge)
    run = replace(bench.run, options=replace(bench.run.options, published=True, search="netadapt"))
    searcher = searcher_of(
        run, plain.narrowing, bench.cost, bench.choices, bench.scorer, bench.limits(run.budgets), bench.samples
    )
    searcher = replace(searcher, score=state, keywords={**searcher.keywords, "pool": None, "widen": False})
    result, met = searcher.run_to_budget(state)
    if not met:
        raise Absent("the recipe does not reach the budget")
    return state.at(result.widths), state.trained


class _Recipe:
    """The score of a proposal (after training), and the journal that carries the winner's weights on."""

    def __init__(
        self,
        model: onnx.ModelProto,
        widths: dict[str, int],
        tuned: Callable[[onnx.ModelProto], onnx.ModelProto],
        judge: Callable[[onnx.ModelProto], float],
    ) -> None:
        self.model, self.widths, self.tuned, self.judge = model, widths, tuned, judge
        self.past: list[Step] = []
        self.trained = 0
        self._made: dict[tuple[tuple[str, int], ...], onnx.ModelProto] = {}

    def __call__(self, widths: Mapping[str, int]) -> float:
        return self.judge(self.at(widths))

    def at(self, widths: Mapping[str, int]) -> onnx.ModelProto:
        """The present model narrowed to these widths by L2 norms, and trained for a few steps."""
        if dict(widths) == self.widths:
            return self.model
        key = tuple(sorted(widths.items()))
        if key not in self._made:
            narrowing = by_weight(couple(load(self.model)))
            self._made[key] = self.tuned(narrowing.pruned(dict(widths)).model)
            self.trained += 1
        return self._made[key]

    def add(self, step: Step, /) -> None:
        """The winner becomes the present model."""
        self.model, self.widths = self.at(step.widths), dict(step.widths)
        self._made.clear()
        self.past.append(step)
