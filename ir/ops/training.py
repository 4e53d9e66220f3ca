"""Which constants are weights: what a gradient may change, and what stays as it is."""

from __future__ import annotations

import numpy as np
import onnx

from ..graph import Graph, Node
from . import no_macs, rule_for
from .runtime import NARROW_FLOATS, RANGES

_STEERING: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "ConvInteger": (2, 3), "DequantizeLinear": (1, 2), "Dropout": (1,),
    "MatMulInteger": (2, 3), "OneHot": (1, 2), "Pad": (2,), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QuantizeLinear": (1, 2), "Resize": (1, 2), "Upsample": (1,), "Where": (0,),
}  # fmt: skip
"""Input slots whose constants are running statistics, bounds, scales and the like."""

_GRID = {"DequantizeLinear": (0,)}
"""Input slots whose integers are weights on a grid; they are trained as floats and rounded."""

_FLOATS = NARROW_FLOATS | {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
MASK = 1e4
"""Constants that reach this magnitude are masks (what is added before a softmax to shut positions out)."""


def why_frozen(graph: Graph, name: str) -> str:
    """Why a constant is not trained; empty for a weight.

    A weight is a float tensor of more than one element (or of one, where a layer with multiply-accumulates reads it),
    or integers that are dequantized.
    """
    constant = graph.constants[name]
    users = graph.users.get(name, ())
    if name in graph.captured():
        return "the body of a control-flow node reads it"
    if not users:
        return "no node reads it"
    if any(slot in _STEERING.get(node.op_type, ()) for node, slot in users):
        return "it holds statistics, bounds or scales"
    if constant.proto.data_type not in _FLOATS:
        grid = constant.proto.data_type in RANGES and constant.size > 1
        on_grid = grid and all(slot in _GRID.get(node.op_type, ()) for node, slot in users)
        return "" if on_grid else "it is not floating-point"
    if constant.size <= 1 and not any(_is_layer(graph, node) for node, _ in users):
        return "it is a single number"
    values = constant.array().astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        return "it holds values that are not finite"
    return f"it reaches beyond {MASK:g}, as masks do" if np.abs(values).max(initial=0) >= MASK else ""


def logits_of(graph: Graph, name: str) -> str:
    """The tensor before a Softmax that makes this one; the tensor itself where none does."""
    node = graph.producer.get(name)
    return node.inputs[0] if node is not None and node.op_type in ("Softmax", "LogSoftmax") else name


def _is_layer(graph: Graph, node: Node) -> bool:
    rule = rule_for(graph, node)
    return rule is not None and rule.macs is not no_macs
