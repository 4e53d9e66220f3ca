"""Which constants are weights: what a gradient may change, and what stays as it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from ..graph import Constant, Graph, Node
from . import no_macs, rule_for
from .runtime import NARROW_FLOATS, RANGES

_T = onnx.TensorProto

_QUANTIZED_PAIR = (1, 2, 4, 5, 6, 7)
_QUANTIZED_ONE = (1, 2, 3, 4)

_STEERING: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "ConvInteger": (2, 3), "DequantizeLinear": (1, 2), "Dropout": (1,),
    "DynamicQuantizeMatMul": (2, 3), "MatMulInteger": (2, 3), "MatMulIntegerToFloat": (2, 3, 4, 5), "OneHot": (1, 2),
    "Pad": (2,), "QGemm": (1, 2, 4, 5, 7, 8), "QLinearAdd": _QUANTIZED_PAIR, "QLinearConv": _QUANTIZED_PAIR,
    "QLinearAveragePool": _QUANTIZED_ONE, "QLinearGlobalAveragePool": _QUANTIZED_ONE,
    "QLinearLeakyRelu": _QUANTIZED_ONE, "QLinearMatMul": _QUANTIZED_PAIR, "QLinearMul": _QUANTIZED_PAIR,
    "QLinearSigmoid": _QUANTIZED_ONE, "QuantizeLinear": (1, 2), "Resize": (1, 2), "Upsample": (1,), "Where": (0,),
}  # fmt: skip
"""Input slots whose constants are running statistics, bounds, scales and the like."""

_GRID: dict[str, tuple[int, ...]] = {
    "ConvInteger": (1,), "DequantizeLinear": (0,), "DynamicQuantizeMatMul": (1,), "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1), "QGemm": (3, 6), "QLinearAdd": (0, 3), "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3), "QLinearMul": (0, 3),
}  # fmt: skip
"""Input slots whose integers are weights on a grid; they are trained as floats and rounded at each call."""

_LAYOUT = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that only lay their first input out anew: a weight may stand behind them."""

_BYTES = frozenset({_T.INT8, _T.UINT8, _T.INT4, _T.UINT4, 25, 26})
"""Integer types that, cast to a float, are compressed weights; wider ones count and index things."""

_FLOATS = NARROW_FLOATS | {_T.FLOAT, _T.DOUBLE}
MASK = 1e4
"""Constants that reach this magnitude are masks (what is added before a softmax to shut positions out)."""

Use = tuple[Graph, Node, int]


def why_frozen(graph: Graph, name: str) -> str:
    """Why a constant is not trained; empty for a weight.

    A weight is a float tensor of more than one element (or of one, where a layer with multiply-accumulates reads it),
    or integers that a quantized layer, DequantizeLinear or Cast reads, be it through operators that lay them out anew.
    """
    constant, uses = graph.constants[name], list(_uses(graph, name))
    if not uses:
        return "no node reads it"
    if any(node.op_type == "Gradient" for node in graph.nodes):
        return "the model takes derivatives itself, at the weights as they are"
    if any(slot in _STEERING.get(node.op_type, ()) for _, node, slot in uses):
        return "it holds statistics, bounds or scales"
    if constant.proto.data_type not in _FLOATS:
        return "" if constant.size > 1 and _is_grid(constant, uses) else "it is not floating-point"
    if constant.size <= 1 and not any(_is_layer(inner, node) for inner, node, _ in uses):
        return "it is a single number"
    values = constant.array().astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        return "it holds values that are not finite"
    return f"it reaches beyond {MASK:g}, as masks do" if np.abs(values).max(initial=0) >= MASK else ""


def body_reasons(graph: Graph) -> dict[str, str]:
    """Why each weight that stands in a body of If, Loop or Scan is not trained, by path; see `lowering.held`."""
    from ..lowering import body_graph, body_path, weights_of

    found: dict[str, str] = {}
    for node in graph.nodes:
        for name, body in node.attrs.items():
            if isinstance(body, onnx.GraphProto):
                inner, path = body_graph(graph, body), body_path(node.index, name)
                own = {tensor for tensor, _ in weights_of(body)}
                found |= {path + tensor: why_frozen(inner, tensor) for tensor in own}
                found |= {path + further: reason for further, reason in body_reasons(inner).items()}
    return found


def grid_of(constant: Constant) -> tuple[int, int] | None:
    """The least and greatest whole number that a weight of integers may become; None for floats."""
    return None if constant.proto.data_type in _FLOATS else RANGES.get(constant.proto.data_type)


def logits_of(graph: Graph, name: str) -> str:
    """The tensor before a Softmax that makes this one; the tensor itself where none does."""
    node = graph.producer.get(name)
    return node.inputs[0] if node is not None and node.op_type in ("Softmax", "LogSoftmax") else name


def _uses(graph: Graph, name: str) -> Iterator[Use]:
    """The nodes and slots that read a tensor, in bodies of If, Loop and Scan as well."""
    from ..lowering import body_graph

    yield from ((graph, node, slot) for node, slot in graph.users.get(name, ()))
    for node in graph.nodes:
        if name in node.captures:
            for body in node.attrs.values():
                if isinstance(body, onnx.GraphProto):
                    yield from _uses(body_graph(graph, body), name)


def _is_grid(constant: Constant, uses: list[Use]) -> bool:
    return constant.proto.data_type in RANGES and all(_leads_to_grid(constant, *use) for use in uses)


def _leads_to_grid(constant: Constant, graph: Graph, node: Node, slot: int) -> bool:
    if node.op_type in _LAYOUT and slot == 0:
        behind = list(_uses(graph, node.outputs[0]))
        return bool(behind) and all(_leads_to_grid(constant, *use) for use in behind)
    if node.op_type == "Cast":
        return constant.proto.data_type in _BYTES and int(node.attrs["to"]) in _FLOATS
    return slot in _GRID.get(node.op_type, ())


def _is_layer(graph: Graph, node: Node) -> bool:
    rule = rule_for(graph, node)
    return rule is not None and rule.macs is not no_macs
