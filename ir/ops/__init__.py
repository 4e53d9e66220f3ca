"""All that is known about operators, one file per family; nothing outside this package asks for an operator's type.

A rule is looked up by domain, operator and the version of the operator's definition that the model's opset selects. An
operator without a rule is a barrier for all that it touches. To add one, write its rule in the file of its family and
add a test record to `tests/ir/records.py`; docs/add-an-operator.md walks through an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph import Graph, Node, Shape
from ..scope import Edit, Scope, View

__all__ = ["Edit", "OpRule", "Scope", "View", "all_rules", "known_nodes", "rule_for", "since_version"]

FAMILIES = (
    "attention", "conv", "elementwise", "layout", "linear", "norm", "opaque", "picks", "pieces", "pool", "quant",
    "reduce", "rnn", "source",
)  # fmt: skip

MICROSOFT = "com.microsoft"


def no_macs(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Zero: the operator only moves data, or its work is not counted as multiply-accumulates."""
    return 0


def no_change(edit: Edit) -> None:
    """For operators that need no new attribute when their tensors shrink."""


Sizes = NDArray[Any]
"""The value of an input that holds sizes: int64 of shape (count,)."""

Zeros = tuple[tuple[int, ...], ...]
"""Alternatives: input slots that, all zero on a channel, make the output zero there; -1 stands for every input."""


def unknown(view: View) -> Zeros:
    """No alternative: nothing is known about where the output is zero."""
    return ()


def first(view: View) -> Zeros:
    """Zero where input 0 is: f(0) = 0."""
    return ((0,),)


def every(view: View) -> Zeros:
    """Zero where all inputs are: sums, and whatever puts its inputs side by side."""
    return ((-1,),)


def either(view: View) -> Zeros:
    """Zero where one of two factors is."""
    return ((0,), (1,))


def weights(view: View) -> Zeros:
    """Zero where weights (input 1) and bias (input 2) are."""
    return ((1, 2),)


@dataclass(frozen=True, slots=True)
class OpRule:
    """What is known about an operator.

    `relate` states which axes hold the same channels; `patch` says how attributes and size inputs follow the kept
    widths; `macs` counts multiply-accumulates from (view, input shapes, output shapes); `lower` gives the torch form:
    a function of torch tensors, built by `lower(view, torch)`; None where it stands in the `LOWER` table of the
    family's `*_torch.py`, as for all of ours.
    `since` lists the definition versions (ONNX's since_version) that the rule was written for.
    `zeros` says which inputs must be zero on a channel for the output to be zero there; `zero_points` gives, for a slot
    with quantized numbers, the slot of the number that stands for zero and the axis along which it is laid.
    `leave_open` writes sizes of which some (a mask) depend on open dimensions, so that the operator takes these from
    its data; None where it has no way to say so.
    """

    relate: Callable[[Scope], None]
    since: tuple[int, ...]
    patch: Callable[[Edit], None] = no_change
    macs: Callable[[View, Sequence[Shape], Sequence[Shape]], int] = no_macs
    lower: Callable[[View, Any], Callable[..., Any]] | None = None
    shared_scale: bool = False
    domain: str = ""
    zeros: Callable[[View], Zeros] = unknown
    zero_points: Callable[[View], Mapping[int, tuple[int, int]]] = lambda view: {}
    leave_open: Callable[[View, Sizes, NDArray[np.bool_]], Sizes | None] = lambda view, sizes, moving: None


Rules = Mapping[tuple[str, str, int], OpRule]


@cache
def all_rules() -> Rules:
    """Every rule by (domain, operator, since_version); registering one twice is an error."""
    table: dict[tuple[str, str, int], OpRule] = {}
    for family in FAMILIES:
        for name, rule in import_module(f".{family}", __package__).RULES.items():
            for one in rule if isinstance(rule, tuple) else (rule,):
                _enter(table, name, one)
    return table


def _enter(table: dict[tuple[str, str, int], OpRule], name: str, rule: OpRule) -> None:
    for since in rule.since:
        if (rule.domain, name, since) in table:
            raise ValueError(f"operator {name} (domain '{rule.domain}', version {since}) has two rules")
        table[rule.domain, name, since] = rule


@cache
def since_version(op_type: str, domain: str, opset: int) -> int:
    """The version of an operator's definition that an opset selects."""
    try:
        return int(onnx.defs.get_schema(op_type, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return 1  # an operator that ONNX does not define (any longer) has one version


def rule_for(graph: Graph, node: Node) -> OpRule | None:
    """The rule of a node, None when there is none for its operator at this opset."""
    since = since_version(node.op_type, node.domain, graph.opsets.get(node.domain, 1))
    return all_rules().get((node.domain, node.op_type, since))


def known_nodes(graph: Graph) -> frozenset[int]:
    """Indices of nodes that only compute values which follow from shapes, and of Constant nodes."""
    constants = {constant.node for constant in graph.constants.values() if constant.node is not None}
    return frozenset(
        node.index
        for node in graph.nodes
        if node.index in constants or (node.outputs and all(n in graph.known for n in node.outputs if n))
    )


def spatial(letter: str, rank: int) -> str:
    """Tokens for the axes behind batch and channels of a tensor of a rank: ' s0 s1' for rank 4 and letter 's'."""
    return "".join(f" {letter}{number}" for number in range(rank - 2))
