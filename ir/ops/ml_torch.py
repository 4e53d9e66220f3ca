"""The torch forms of linear models, trees and scaling (domain ai.onnx.ml): attributes hold their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import View
from .runtime import Lowered, Lowering, as_tensor, refuse

ML = "ai.onnx.ml"

_COMPARE: Mapping[str, str] = {
    "BRANCH_LEQ": "le", "BRANCH_LT": "lt", "BRANCH_GTE": "ge", "BRANCH_GT": "gt", "BRANCH_EQ": "eq", "BRANCH_NEQ": "ne",
}  # fmt: skip


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _floats(view: View, name: str, torch: Any, shape: tuple[int, ...] = (-1,)) -> Any:
    return as_tensor(np.asarray(view.attr(name, ()), np.float32).reshape(shape), torch)


def _finish(view: View, torch: Any) -> Callable[[Any], Any]:
    """What turns scores (n, classes) into probabilities."""
    name = str(view.attr("post_transform", "NONE"))
    table: dict[str, Callable[[Any], Any]] = {
        "NONE": lambda x: x,
        "SOFTMAX": lambda x: torch.softmax(x, -1),
        "LOGISTIC": torch.sigmoid,
    }
    if name not in table:
        raise refuse(view, f"post_transform {name}")
    return table[name]


def _labels(view: View, torch: Any, texts: str, numbers: str) -> tuple[int, Callable[[Any], Any]]:
    """The number of classes, and the class labels of the highest scores."""
    words = view.attr(texts)
    if words:
        names = np.array([_text(word) for word in words], dtype=object)
        return len(names), lambda scores: names[scores.argmax(-1).cpu().numpy()]
    values = torch.tensor([int(item) for item in view.attr(numbers, ())], dtype=torch.int64)
    return len(values), lambda scores: values.to(scores.device)[scores.argmax(-1)]


def lower_linear_classifier(view: View, torch: Any) -> Lowered:
    """LinearClassifier: label, scores."""
    count, label = _labels(view, torch, "classlabels_strings", "classlabels_ints")
    finish = _finish(view, torch)
    weight = _floats(view, "coefficients", torch, (count, -1))
    bias = _floats(view, "intercepts", torch)
    if len(bias) not in (0, count):
        raise refuse(view, "two classes share one row of coefficients")

    def run(x: Any) -> Any:
        scores = x.to(torch.float32) @ weight.to(x.device).T
        scores = scores + bias.to(x.device) if len(bias) else scores
        return label(scores), finish(scores)

    return run


def lower_linear_regressor(view: View, torch: Any) -> Lowered:
    """LinearRegressor."""
    finish, targets = _finish(view, torch), int(view.attr("targets", 1))
    weight, bias = _floats(view, "coefficients", torch, (targets, -1)), _floats(view, "intercepts", torch)

    def run(x: Any) -> Any:
        y = x.to(torch.float32) @ weight.to(x.device).T
        return finish(y + bias.to(x.device) if len(bias) else y)

    return run


def lower_normalizer(view: View, torch: Any) -> Lowered:
    """Normalizer: each row over its largest value, its sum of magnitudes or its length; rows of zeros stay."""
    name = str(view.attr("norm", "MAX"))
    norms: dict[str, Callable[[Any], Any]] = {
        "MAX": lambda x: x.amax(-1, True),
        "L1": lambda x: x.abs().sum(-1, True),
        "L2": lambda x: x.square().sum(-1, True).sqrt(),
    }

    def run(x: Any) -> Any:
        x = x.to(torch.float32)
        size = norms[name](x)
        return x / torch.where(size == 0, torch.ones_like(size), size)

    return run


def lower_scaler(view: View, torch: Any) -> Lowered:
    """Scaler: (x - offset) * scale."""
    offset, scale = _floats(view, "offset", torch), _floats(view, "scale", torch)
    return lambda x: (x.to(torch.float32) - offset.to(x.device)) * scale.to(x.device)


def lower_binarizer(view: View, torch: Any) -> Lowered:
    """Binarizer: 1 above the threshold, else 0."""
    threshold = float(view.attr("threshold", 0.0))
    return lambda x: (x > threshold).to(x.dtype)


def lower_array_feature_extractor(view: View, torch: Any) -> Lowered:
    """ArrayFeatureExtractor: positions of the last axis."""

    def run(x: Any, index: Any) -> Any:
        rows = x.reshape(1, -1) if x.dim() == 1 else x
        return rows.index_select(-1, index.reshape(-1))

    return run


def _leaves(view: View, torch: Any) -> Callable[[Any], Any]:
    """A function of rows (n, features): the leaf (its place in the node list) that each tree sends each row to."""
    modes = [_text(mode) for mode in view.attr("nodes_modes")]
    if set(modes) - {*_COMPARE, "LEAF"}:
        raise refuse(view, f"branches of the kinds {', '.join(sorted(set(modes)))}")
    trees = [int(item) for item in view.attr("nodes_treeids")]
    ids = [int(item) for item in view.attr("nodes_nodeids")]
    place = {key: at for at, key in enumerate(zip(trees, ids, strict=True))}
    yes, no = (
        torch.tensor([place.get((tree, int(to)), 0) for tree, to in zip(trees, view.attr(name), strict=True)])
        for name in ("nodes_truenodeids", "nodes_falsenodeids")
    )
    reached = {int(to) for to in yes[[m != "LEAF" for m in modes]]} | {
        int(to) for to in no[[m != "LEAF" for m in modes]]
    }
    roots = torch.tensor([at for at in range(len(ids)) if at not in reached])
    feature = torch.tensor([int(item) for item in view.attr("nodes_featureids")])
    value, leaf = _floats(view, "nodes_values", torch), torch.tensor([mode == "LEAF" for mode in modes])
    missing = torch.tensor([bool(item) for item in view.attr("nodes_missing_value_tracks_true", [0] * len(ids))])
    kinds = {mode: torch.tensor([other == mode for other in modes]) for mode in set(modes) - {"LEAF"}}

    def run(x: Any) -> Any:
        at = roots.expand(len(x), -1)  # (n, trees)
        while not bool(leaf[at].all()):
            given = x.gather(1, feature[at])
            holds = torch.zeros_like(at, dtype=torch.bool)
            for mode, mask in kinds.items():
                holds = torch.where(mask[at], getattr(torch, _COMPARE[mode])(given, value[at]), holds)
            holds = holds | (given.isnan() & missing[at])
            at = torch.where(leaf[at], at, torch.where(holds, yes[at], no[at]))
        return at

    return run


def _tree_sums(view: View, torch: Any, kind: str, count: int) -> Callable[[Any], Any]:
    """A function of rows: the sum of the weights of their leaves (n, count), and the base values."""
    leaves = _leaves(view, torch)
    trees, ids = view.attr("nodes_treeids"), view.attr("nodes_nodeids")
    place = {(int(tree), int(node)): at for at, (tree, node) in enumerate(zip(trees, ids, strict=True))}
    table = np.zeros((len(ids), count))
    columns = zip(*(view.attr(f"{kind}_{name}") for name in ("treeids", "nodeids", "ids", "weights")), strict=True)
    for tree, node, target, weight in columns:
        table[place[int(tree), int(node)], int(target)] += weight
    weights = torch.from_numpy(table)
    base = np.asarray(view.attr("base_values", [0.0] * count), np.float64)
    share = 1 / len(set(map(int, trees))) if view.attr("aggregate_function", "SUM") == "AVERAGE" else 1.0
    if view.attr("aggregate_function", "SUM") not in ("SUM", "AVERAGE") or len(base) != count:
        raise refuse(view, "it takes extremes over trees, or has one base value for several classes")
    return lambda x: (weights[leaves(x)].sum(1) * share + torch.from_numpy(base)).to(torch.float32)


def lower_tree_classifier(view: View, torch: Any) -> Lowered:
    """TreeEnsembleClassifier: label, scores. The trees stay on the CPU."""
    count, label = _labels(view, torch, "classlabels_strings", "classlabels_int64s")
    if len(set(view.attr("class_ids"))) < 2:
        raise refuse(view, "two classes share one score")
    sums, finish = _tree_sums(view, torch, "class", count), _finish(view, torch)

    def run(x: Any) -> Any:
        scores = sums(x.cpu().to(torch.float32))
        return label(scores), finish(scores)

    return run


def lower_tree_regressor(view: View, torch: Any) -> Lowered:
    """TreeEnsembleRegressor. The trees stay on the CPU."""
    sums, finish = _tree_sums(view, torch, "target", int(view.attr("n_targets", 1))), _finish(view, torch)
    return lambda x: finish(sums(x.cpu().to(torch.float32)))


ML_LOWER: dict[str, Lowering] = {
    "ArrayFeatureExtractor": lower_array_feature_extractor,
    "Binarizer": lower_binarizer,
    "LinearClassifier": lower_linear_classifier,
    "LinearRegressor": lower_linear_regressor,
    "Normalizer": lower_normalizer,
    "Scaler": lower_scaler,
    "TreeEnsembleClassifier": lower_tree_classifier,
    "TreeEnsembleRegressor": lower_tree_regressor,
}
