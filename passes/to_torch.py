"""The round trip through torch: a graph as an nn.Module, and trained weights back into the model.

1. Every weight keeps its ONNX name and layout; what a layer needs transposed it transposes when it is called.
2. 16-bit models are computed and trained in float32, and cast back when they are written; integers behind
   DequantizeLinear are trained as float32 in their own units, and rounded to their grid at each call and when written.
3. A weight that training did not change is written back bit for bit; shared weights stay shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.graph import Constant, Graph
from ..ir.load import prepared
from ..ir.lowering import bare_graph, body_weights, held, reasons
from ..ir.ops.runtime import as_tensor
from ..ir.ops.training import body_reasons, grid_of, why_frozen
from ..ir.write import Changes, apply

if TYPE_CHECKING:
    from .torch_module import LoweredModule


def to_torch(graph: Graph, *, trainable: Callable[[str], bool] | None = None) -> LoweredModule:
    """The graph as an nn.Module that takes the model's inputs in order (or one dict) and returns its outputs in order.

    Weights are parameters, other constants buffers; `state_dict` names them as the model does. `trainable` narrows the
    choice by name; `module.frozen` says why each other constant is not trained. Any batch size runs where the model's
    own arithmetic allows it. Raises UnsupportedOp, with the nodes, where torch has no form for one; see `unsupported`.
    """
    from .torch_module import module_class

    frozen = frozen_reasons(graph)
    if trainable is not None:
        frozen |= {name: "not chosen" for name, reason in frozen.items() if not reason and not trainable(name)}
    chosen = [name for name, reason in frozen.items() if not reason]
    module: LoweredModule = module_class()(graph, chosen, {name: reason for name, reason in frozen.items() if reason})
    return module


def frozen_reasons(graph: Graph) -> dict[str, str]:
    """Why each constant is not trained, by the name that `state_dict` gives it; empty for weights."""
    from .torch_module import display_names

    names = display_names(graph)
    found = {names[name]: why_frozen(graph, name) for name in graph.constants}
    return found | {names[path]: why for path, why in body_reasons(graph).items()}


def unsupported(graph: Graph) -> list[str]:
    """Why a graph cannot be run in torch, one sentence for each node; empty when it can."""
    import torch

    return reasons(graph, torch)


def write_back(module: LoweredModule, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the module's weights, by name; those that did not change stay bit for bit.

    Where a changed weight stands in a local function of the model, or is sparse there, the copy has it written out.
    """
    graph = bare_graph(model)
    changed, elsewhere = _changes(module, graph)
    if elsewhere:
        full = bare_graph(prepared(model))
        more, _ = _changes(module, full)
        if len(more) > len(changed):
            graph, changed = full, more
    tensors = {path: value for path, value in changed.items() if path in graph.constants}
    written = apply(graph, Changes(tensors={**tensors}))
    for path, _, tensor in body_weights(written.graph.node) if len(tensors) < len(changed) else ():
        if path in changed:
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed[path], tensor.name))
    return written


def _changes(module: LoweredModule, graph: Graph) -> tuple[dict[str, NDArray[Any]], bool]:
    """New values of the graph's constants by path, and whether the module has tensors that the graph has not."""
    from .torch_module import display_names

    places, constants = {name: path for path, name in display_names(graph).items()}, held(graph)
    state = module.state_dict()
    found = {}
    for name, tensor in state.items():
        value = _changed(constants[places[name]], tensor) if name in places else None
        if value is not None:
            found[places[name]] = value
    return found, any(name not in places for name in state)


def _changed(constant: Constant, tensor: Any) -> NDArray[Any] | None:
    """The new value of a constant in its own element type; None when it is the old one."""
    import torch

    old = constant.array()
    new = tensor.detach().cpu().contiguous()
    before = as_tensor(old, torch).to(new.dtype)
    same = (before == new) | (before.isnan() & new.isnan())
    if bool(same.all()):
        return None
    array: NDArray[Any] = new.numpy()
    limits = grid_of(constant)
    array = (array if limits is None else np.clip(np.rint(array), *limits)).astype(old.dtype)
    # a master has fewer digits than a 32-bit integer: what was not touched is not taken from it
    return np.where(same.numpy(), old, array)
