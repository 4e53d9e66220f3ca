"""Recovery without gradients: new weights for the consumers of pruned units, by least squares.

For a consumer Y = W x + b of which only the columns S are kept, with G = E[x x'] (the covariance where there is a bias)

    W_S' = W_S + W_R G_RS (G_SS + ridge)^-1,   b' = b + W E[x] - W_S' E[x_S]

is the best that the kept columns can do, drawn to the old weights by the ridge. Everything comes from the original
network's Gram matrices: no example is run. `sequential` refits against the pruned network as it really is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ..ir.errors import PruneError
from ..ir.graph import Shape
from ..ir.ops.maps import Floats
from .branch_moments import Takeover, can_take_over
from .branches import absorbed, touched
from .consumers import Consumer, Mask
from .coupling import Branch, Coupling, Kept
from .gram import Statistics, usable
from .importance import damping, ridge_for
from .moments import Moments

CACHED = 512
Weights = dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Slots:
    """What a consumer keeps: columns (groups, columns), outputs (groups, outputs) and the blocks that remain."""

    columns: Mask
    outputs: Mask
    blocks: Mask


def slots_of(coupling: Coupling, item: Consumer, removed: Mask) -> Slots:
    """What remains of a consumer when the units of a mask are removed."""
    groups = item.window.groups
    channels = coupling.positions((item.data, item.window.axis), removed).reshape(groups, -1)
    outputs = coupling.positions((item.output, item.map.out_axis), removed).reshape(groups, -1)
    blocks: Mask = np.logical_and(channels.any(axis=1), outputs.any(axis=1))
    return Slots(item.kept_columns(channels.reshape(-1)), outputs, blocks)


def refit_symmetric(coupling: Coupling, statistics: Statistics, kept: Kept, *, ridge: float | None = None) -> Weights:
    """New values, by tensor name, of the weights and biases that read a pruned group, as the pruned model shapes them.

    `kept` is what `prune` was given. Where a branch has gone, the layer that writes its shortcut takes over what it can
    (`branch_moments`), if nobody else reads that. Solutions are cached in `statistics`: only consumers that keep other
    columns than in a former call are solved. `apply_weights` writes the result.
    """
    removed, branches = coupling.removed_units(kept), coupling.gone(kept)
    gone, takeovers = touched(branches), _takeovers(coupling, statistics, branches)
    found: Weights = {}
    for item in statistics.consumers.all:
        slots, more = slots_of(coupling, item, removed), takeovers.get(item.node.index)
        narrowed = not slots.columns.all()
        if item.node.index in gone or not (narrowed or more is not None) or (narrowed and not usable(statistics, item)):
            continue
        if narrowed:
            matrix, shift = _solution(coupling, statistics, item, slots, ridge, more)
        else:
            matrix, shift = list(_with(coupling, item, more)), np.zeros(slots.outputs.shape)
        found |= new_weights(coupling, item, slots, matrix, shift if more is None else shift + more.bias)
    return found


def _takeovers(coupling: Coupling, statistics: Statistics, branches: Sequence[Branch]) -> dict[int, Takeover]:
    """By node, what the writers of shortcuts add to their weights and biases for the branches that have gone."""
    items = {item.node.index: item for item in statistics.consumers.all if can_take_over(item)}
    found: dict[int, Takeover] = {}
    for index, what in absorbed(coupling.graph, statistics.consumers.all, branches).items():
        item, known = items.get(index), [(branch, statistics.branches[branch.id]) for branch in what.branches]
        if item is None or any(branch.axis != item.map.out_axis for branch, _ in known):
            continue
        parts = [moments.takeovers.get(index, Takeover(np.zeros(1), moments.mean)) for _, moments in known]
        found[index] = Takeover(sum((part.matrix for part in parts), np.zeros(1)), np.sum([p.bias for p in parts], 0))
    return found


def new_weights(coupling: Coupling, item: Consumer, slots: Slots, matrix: list[Floats], shift: Floats) -> Weights:
    """The pruned weight and bias for the blocks of a matrix (all outputs x kept columns) and a shift of all outputs."""
    constants = coupling.graph.constants
    taps = matrix[0].shape[0] // slots.outputs.shape[1]
    rows = [
        m[np.repeat(keep, taps)] for m, keep, there in zip(matrix, slots.outputs, slots.blocks, strict=True) if there
    ]
    found = {item.weight: item.weight_of(np.stack(rows), pruned_shape(coupling, item, slots))}
    if item.bias.name:
        old = constants[item.bias.name].array()
        new = (old.reshape(-1) + shift.reshape(-1) / item.bias.gain)[slots.outputs.reshape(-1)]
        found[item.bias.name] = new.reshape(tuple(len(new) if size > 1 else 1 for size in old.shape))
    return found


def pruned_shape(coupling: Coupling, item: Consumer, slots: Slots) -> Shape:
    """The shape of a consumer's weight after pruning."""
    old = coupling.graph.constants[item.weight].shape
    groups = int(slots.blocks.sum())
    inputs = int(slots.columns.sum()) // item.taps
    outputs = int(slots.outputs[slots.blocks].sum())
    pair = (inputs, outputs // groups) if item.map.transposed else (outputs, inputs // groups)
    return (*pair, *old[2:])


def _with(coupling: Coupling, item: Consumer, more: Takeover | None) -> Floats:
    """The weight (groups, outputs, columns) with what it takes over."""
    weight = item.matrix(coupling.graph.constants[item.weight].array(), item.window.groups)
    return weight if more is None else weight + more.matrix


def _solution(
    coupling: Coupling,
    statistics: Statistics,
    item: Consumer,
    slots: Slots,
    ridge: float | None,
    more: Takeover | None,
) -> tuple[list[Floats], Floats]:
    """The refit of a weight, with what it takes over; solved once for the same columns."""
    key = (item.node.index, ridge, slots.columns.tobytes(), None if more is None else more.bias.tobytes())
    cache = statistics.cache
    if key not in cache:
        weight = _with(coupling, item, more)
        cache[key] = _refit(weight, statistics.moments[item.key], slots.columns, ridge, item)
        while len(cache) > CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    found: tuple[list[Floats], Floats] = cache[key]
    return found


def _refit(
    weight: Floats, moments: Moments, columns: Mask, ridge: float | None, item: Consumer
) -> tuple[list[Floats], Floats]:
    """Per block the refitted kept columns (outputs, kept), and the shift of the outputs (groups, outputs)."""
    grams, means = moments.second(centred=bool(item.bias.name)), moments.mean()
    damp = ridge_for(moments) if ridge is None else ridge
    solved, shifts = [], []
    for w, gram, mean, keep in zip(weight, grams, means, columns, strict=True):
        inner = gram[np.ix_(keep, keep)]
        new = w[:, keep] + solve(inner, (w[:, ~keep] @ gram[np.ix_(~keep, keep)]), damping(gram, damp))
        solved.append(new)
        shifts.append(w @ mean - new @ mean[keep])
    shift = np.stack(shifts)
    taps = item.map.window.taps if item.by_channel else 1
    return solved, shift.reshape(len(shift), -1, taps).sum(axis=2)


def solve(gram: Floats, right: Floats, damp: float) -> Floats:
    """X with X (G + damp I) = right, for a symmetric G."""
    from scipy.linalg import cho_factor, cho_solve

    if not len(gram) or not right.any():
        return np.zeros_like(right)
    damped = gram + np.eye(len(gram)) * damp
    try:
        return cho_solve(cho_factor(damped, lower=True, check_finite=False), right.T, check_finite=False).T
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(damped, right.T, rcond=None)[0].T


def apply_weights(pruned: onnx.ModelProto, weights: Mapping[str, Floats]) -> onnx.ModelProto:
    """A copy of a model with new values for some constants; each keeps its name, type and shape.

    Raises PruneError when a constant is missing or has another shape.
    """
    model = onnx.ModelProto()
    model.CopyFrom(pruned)
    write_weights(model, weights)
    return model


def write_weights(model: onnx.ModelProto, weights: Mapping[str, Floats]) -> None:
    """What `apply_weights` does, in the model itself."""
    tensors = constants_of(model)
    for name, value in weights.items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.dims) != value.shape:
            there = "is not there" if tensor is None else f"has shape {tuple(tensor.dims)}"
            raise PruneError(
                f"constant '{name}' {there}, the new value has shape {value.shape}; were both pruned alike?"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        limit = np.finfo(dtype).max
        new = numpy_helper.from_array(np.clip(value, -limit, limit).astype(dtype), tensor.name)
        new.doc_string = tensor.doc_string
        tensor.CopyFrom(new)


def constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initializers and the values of Constant nodes, by name."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if not node.input and attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
                tensors[node.output[0]] = attribute.t
    return tensors
