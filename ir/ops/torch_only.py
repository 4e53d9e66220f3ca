"""Which torch form a node has: the tables of all families by domain and operator.

A form holds for the definitions (since_version) that the operator's rule was written for. Operators that are no matter
of coupling have no rule; for them `SINCE` says it. A form of one domain never stands in for an operator of another
domain that happens to have the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from ..graph import Graph, Node
from . import MICROSOFT, View, rule_for, since_version
from .ml_torch import ML
from .training_torch import TRAINING

__all__ = ["forms", "lowering_of"]

Lowering = Callable[[View, Any], Callable[..., Any]]

FAMILIES = (
    "control", "conv", "elementwise", "layout", "linear", "norm", "picks", "pieces", "pool", "quant", "reduce", "rnn",
    "signal", "source", "text",
)  # fmt: skip

SINCE: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Constant"): (1, 9, 11, 12, 13, 19, 21, 23, 24, 25),
    ("", "Crop"): (0,),
    ("", "ImageScaler"): (0,),
    (TRAINING, "Gradient"): (1,),
    **{(ML, name): (1,) for name in ("ArrayFeatureExtractor", "Binarizer", "LinearClassifier", "LinearRegressor")},
    **{(ML, name): (1,) for name in ("Normalizer", "Scaler")},
    **{(ML, name): (1, 3) for name in ("TreeEnsembleClassifier", "TreeEnsembleRegressor")},
}
"""Operators that torch runs but that are no matter of coupling, with the definitions that were looked at."""


@cache
def forms() -> Mapping[tuple[str, str], Lowering]:
    """The torch forms by (domain, operator); giving one twice is an error."""
    from .microsoft_torch import MICROSOFT_LOWER
    from .ml_torch import ML_LOWER
    from .training_torch import TRAINING_LOWER

    tables = [("", import_module(f".{family}_torch", __package__).LOWER) for family in FAMILIES]
    tables += [(MICROSOFT, MICROSOFT_LOWER), (TRAINING, TRAINING_LOWER), (ML, ML_LOWER)]
    found: dict[tuple[str, str], Lowering] = {}
    for domain, table in tables:
        for name, lower in table.items():
            if (domain, name) in found:
                raise ValueError(f"operator {name} (domain '{domain}') has two torch forms")
            found[domain, name] = lower
    return found


def lowering_of(graph: Graph, node: Node) -> Lowering | None:
    """The torch form of a node's operator at this opset: a function (view, torch) -> function of tensors."""
    rule, key = rule_for(graph, node), (node.domain, node.op_type)
    if rule is not None:
        return rule.lower or forms().get(key)
    since = since_version(node.op_type, node.domain, graph.opsets.get(node.domain, 1))
    return forms().get(key) if since in SINCE.get(key, ()) else None
