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
from ..ir.lowering import bare_graph, reasons
from ..ir.ops.runtime import RANGES, as_tensor
from ..ir.ops.training import why_frozen
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

    frozen = {name: why_frozen(graph, name) for name in graph.constants}
    if trainable is not None:
        frozen |= {name: "not chosen" for name, reason in frozen.items() if not reason and not trainable(name)}
    chosen = [name for name, reason in frozen.items() if not reason]
    module: LoweredModule = module_class()(graph, chosen, {name: reason for name, reason in frozen.items() if reason})
    return module


def unsupported(graph: Graph) -> list[str]:
    """Why a graph cannot be run in torch, one sentence for each node; empty when it can."""
    import torch

    return reasons(graph, torch)


def write_back(module: LoweredModule, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the module's weights, by name; those that did not change stay bit for bit."""
    graph = bare_graph(model)
    changed: dict[str, NDArray[Any]] = {}
    for name, tensor in module.state_dict().items():
        constant = graph.constants.get(name)
        value = None if constant is None else _changed(constant, tensor)
        if value is not None:
            changed[name] = value
    return apply(graph, Changes(tensors=changed))


def _changed(constant: Constant, tensor: Any) -> NDArray[Any] | None:
    """The new value of a constant in its own element type; None when it is the old one."""
    import torch

    old = constant.array()
    new = tensor.detach().cpu().contiguous()
    if torch.equal(as_tensor(old, torch).to(new.dtype).nan_to_num(), new.nan_to_num()):
        return None
    array: NDArray[Any] = new.numpy()
    limits = RANGES.get(constant.proto.data_type)
    return (array if limits is None else np.clip(np.rint(array), *limits)).astype(old.dtype)
