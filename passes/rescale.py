"""Logits made as sure of themselves as the original's: one scale and one mean per class, folded into the last layer.

Least squares with imperfect inputs shrinks what it predicts, layer by layer, so that a refitted classifier ranks the
classes well but gives flat shares (RECOVERY.md, F). With P the pruned logits and L the original's, the scale a is the
one with the least mean KL(softmax L || softmax(a P + m)), m = E[L] - a E[P].
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ..ir.graph import Graph
from ..ir.ops.maps import Floats, channels_first, is_softmax
from .consumers import Consumer, consumers_of
from .coupling import Coupling
from .recover import Weights, apply_weights, constants_of
from .rows import Batches, Feeds, Runner, in_lanes, pieces
from .teacher import Teacher

MAX_EXAMPLES = 4000
HELD_OUT = 3  # every third example
SCALES = (0.5, 4.0)


def rescale_logits(coupling: Coupling, pruned: onnx.ModelProto, batches: Batches) -> Weights:
    """New values, by tensor name, for the last layer of a pruned classifier; none when they would not help.

    They help when they lower the KL divergence on examples held out of the fit. For models with one output that is, or
    is the softmax of, one row of a product for each example; whether it holds logits is for the caller to know. At most
    MAX_EXAMPLES examples are read.
    """
    return Rescaler(coupling, batches)(pruned)


@dataclass(slots=True)
class Goal:
    """The original's logits on the first examples, at its own input size: run once for all that aim at them."""

    teacher: Teacher
    _known: Floats | None = None

    def __call__(self, last: Consumer, examples: int) -> Floats:
        """The logits (examples, classes) that the layer `last` gives, of so many examples or more."""
        if self._known is None or len(self._known) < examples:
            graph, batches = self.teacher.graph, self.teacher.batches
            self._known = _logits(graph, batches, graph.model, last, examples)
        return self._known


@dataclass(slots=True)
class Rescaler:
    """`rescale_logits` for several pruned forms of one model.

    `goal` has the original's logits where the coupled graph is not the original at its own input size, or where
    others use them too.
    """

    coupling: Coupling
    batches: Batches
    examples: int = MAX_EXAMPLES
    goal: Goal | None = None

    def __call__(self, pruned: onnx.ModelProto) -> Weights:
        """The new values for a pruned model."""
        last = last_layer(self.coupling)
        if last is None:
            return {}
        graph = self.coupling.graph
        have = _logits(graph, self.batches, pruned, last, self.examples)
        self.goal = self.goal or Goal(Teacher(graph, self.batches))
        want = self.goal(last, len(have))
        count = min(len(want), len(have))  # a teacher's examples may come in other pieces
        want, have = want[:count], have[:count]
        if want.shape[1] < 2 or len(want) < HELD_OUT or not np.isfinite(want.sum() + have.sum()):
            return {}
        held = np.arange(len(want)) % HELD_OUT == HELD_OUT - 1
        with_mean = bool(last.bias.name)
        scale, mean = _fit(want[~held], have[~held], with_mean=with_mean)
        if not _divergence(want[held], scale * have[held] + mean) < _divergence(want[held], have[held]):
            return {}
        scale, mean = _fit(want, have, with_mean=with_mean)
        tensors = constants_of(pruned)
        found = {last.weight: scale * numpy_helper.to_array(tensors[last.weight]).astype(np.float64)}
        if with_mean:
            old = numpy_helper.to_array(tensors[last.bias.name]).astype(np.float64)
            found[last.bias.name] = scale * old + (mean / last.bias.gain).reshape(old.shape)
        return found

    def applied(self, pruned: onnx.ModelProto) -> onnx.ModelProto:
        """The pruned model with its new values; itself where there are none."""
        last = self(pruned)
        return apply_weights(pruned, last) if last else pruned


def _logits(graph: Graph, batches: Batches, model: onnx.ModelProto, last: Consumer, examples: int) -> Floats:
    """The logits (examples, classes) that a layer of a model gives, of so many examples or some more."""
    name = last.output
    runner = Runner(model, (name,))

    def read(_: int, feeds: Feeds) -> Floats:
        return channels_first(runner(feeds)[name], last.map.out_axis)[:, :, 0].astype(np.float64)

    rows: list[Floats] = []
    with closing(in_lanes(pieces(graph, batches, (name,)), read)) as done:
        for piece in done:
            rows.append(piece)
            if sum(map(len, rows)) >= examples:
                break
    return np.concatenate(rows)


def last_layer(coupling: Coupling) -> Consumer | None:
    """The product from which the model's one output comes straight, or through a softmax; None when there is none."""
    graph = coupling.graph
    if len(graph.outputs) != 1:
        return None
    name = graph.outputs[0].name
    node = graph.producer.get(name)
    if node is not None and is_softmax(node):
        name = node.inputs[0]
    for item in consumers_of(coupling).all:
        shape, axis = graph.shapes[item.output], item.map.out_axis
        whole = bool(item.bias.name) or item.map.bias < 0  # no bias that could not be scaled as well
        if item.output == name and whole and axis > 0 and int(np.prod(shape)) == shape[0] * shape[axis]:
            return item
    return None


def _fit(want: Floats, have: Floats, *, with_mean: bool) -> tuple[float, Floats]:
    """The scale and the means."""
    from scipy.optimize import minimize_scalar

    def mean(scale: float) -> Floats:
        found: Floats = want.mean(axis=0) - scale * have.mean(axis=0)
        return found if with_mean else np.zeros_like(found)

    def loss(scale: float) -> float:
        return _divergence(want, scale * have + mean(scale))

    scale = float(minimize_scalar(loss, bounds=SCALES, method="bounded", options={"xatol": 1e-3}).x)
    return scale, mean(scale)


def _divergence(want: Floats, have: Floats) -> float:
    """The mean KL(softmax want || softmax have)."""
    p, q = _log_shares(want), _log_shares(have)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_shares(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
