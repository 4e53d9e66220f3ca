"""Text and derivatives: the torch forms of operators that handle no weights, against ONNX Runtime or by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import UnsupportedOp
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.to_torch import to_torch

torch = pytest.importorskip("torch")


def _texts(*items: Any) -> np.ndarray:
    return np.array(items, dtype=object)


def _both(op: str, inputs: list[np.ndarray], opset: int, outputs: int = 1, **attrs: Any) -> Any:
    """The outputs of ONNX Runtime and of the torch form, as lists."""
    names, made = [f"x{k}" for k in range(len(inputs))], [f"y{k}" for k in range(outputs)]
    kinds = [8 if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype) for array in inputs]
    values = [helper.make_tensor_value_info(n, kind, a.shape) for n, kind, a in zip(names, kinds, inputs, strict=True)]
    node, results = helper.make_node(op, names, made, **attrs), map(helper.make_empty_tensor_value_info, made)
    graph = helper.make_graph([node], "g", values, list(results))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    wanted = run_plain(model, [dict(zip(names, inputs, strict=True))], optimize=False)[0]
    found = to_torch(load(model))(*(a if a.dtype == object else torch.from_numpy(a) for a in inputs))
    found = found if isinstance(found, tuple) else (found,)
    return [y.tolist() for y in wanted], [y.tolist() for y in found]


@pytest.mark.parametrize("change", ["NONE", "LOWER", "UPPER"])
@pytest.mark.parametrize("exact", [0, 1])
@pytest.mark.parametrize("words", [("Monday", "tuesday", "MONDAY", "sunday"), ("monday", "Monday"), ("a",)])
@pytest.mark.parametrize("rank", [1, 2])
def test_string_normalizer(change: str, exact: int, words: tuple[str, ...], rank: int) -> None:
    x = _texts(*words).reshape((1, -1) if rank == 2 else (-1,))
    attrs = {"case_change_action": change, "is_case_sensitive": exact, "stopwords": ["monday", "Sunday"], "locale": "C"}
    wanted, found = _both("StringNormalizer", [x], 10, **attrs)
    assert wanted == found


def test_texts_are_joined_split_and_compared() -> None:
    a, b = _texts(["a b", "c"], ["d  e f", ""]), _texts("x", "y")
    for wanted, found in (
        _both("StringConcat", [a, b], 20),
        _both("StringSplit", [a], 20, outputs=2),
        _both("StringSplit", [a[:, :1]], 20, outputs=2, delimiter=" ", maxsplit=1),
        _both("RegexFullMatch", [a], 20, pattern="[a-c](.b)?"),
        _both("Equal", [a, _texts("c", "c")], 19),
    ):
        assert wanted == found


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("weights", [None, (0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5)])
def test_counts_of_sequences(mode: str, weights: Any) -> None:
    attrs = {
        "mode": mode, "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 1, "ngram_counts": [0, 4],
        "ngram_indexes": [3, 0, 6, 1, 2, 5, 4], "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
        **({} if weights is None else {"weights": weights}),
    }  # fmt: skip
    wanted, found = _both("TfIdfVectorizer", [np.array([[5, 6, 3, 3, 7, 8], [8, 6, 7, 5, 6, 7]])], 9, **attrs)
    assert wanted == found
    words = [str(item) for item in attrs.pop("pool_int64s")]
    wanted, found = _both("TfIdfVectorizer", [_texts("5", "6", "3", "3", "7")], 9, pool_strings=words, **attrs)
    assert wanted == found


PREVIEW = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.preview.training": 1]>'


def test_derivatives_at_other_values_than_those_of_the_graph() -> None:
    """x^2 b at the given place p, whatever x is: 2 p b; and x and b both named."""
    model = onnx.parser.parse_model(f"""{PREVIEW}
        agraph (float[3] x, float[3] b, float[3] p) => (float[3] y, float[3] g, float[3] h) {{
            s = Mul(x, x)
            y = Mul(s, b)
            g, h = ai.onnx.preview.training.Gradient<xs = ["x", "b"], y = "y">(p, b) }}""")
    x, b, p = torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 7, 11]), torch.tensor([-1.0, 0, 4])
    with torch.no_grad():
        y, g, h = to_torch(load(model))(x, b, p)
    assert torch.equal(y, x * x * b)
    assert torch.equal(g, 2 * p * b)
    assert torch.equal(h, p * p)


def test_derivatives_can_be_derived() -> None:
    model = onnx.parser.parse_model(f"""{PREVIEW}
        agraph (float[3] x) => (float[3] g) {{
            s = Mul(x, x)
            y = Mul(s, x)
            g = ai.onnx.preview.training.Gradient<xs = ["x"], y = "y">(x) }}""")
    x = torch.tensor([1.0, 2, 3], requires_grad=True)
    g = to_torch(load(model))(x)
    assert torch.equal(g, 3 * x * x)
    g.sum().backward()
    assert torch.equal(x.grad, 6 * x)


def test_a_derivative_that_misses_an_input_is_refused() -> None:
    model = onnx.parser.parse_model(f"""{PREVIEW}
        agraph (float[3] x, float[3] b) => (float[3] g) {{
            y = Mul(x, b)
            g = ai.onnx.preview.training.Gradient<xs = ["x"], y = "y">(x) }}""")
    with pytest.raises(UnsupportedOp, match="neither in xs nor in zs"):
        to_torch(load(model))


def test_weights_that_the_model_derives_by_stay_as_they_are() -> None:
    model = onnx.parser.parse_model(f"""{PREVIEW}
        agraph (float[3] x) => (float[3] g) <float[3] w = {{2, 3, 4}}> {{
            s = Mul(x, w)
            y = Mul(s, x)
            g = ai.onnx.preview.training.Gradient<xs = ["x"], y = "y">(x) }}""")
    module = to_torch(load(model))
    assert "derivatives" in module.frozen["w"]
    assert module(torch.tensor([1.0, 1, 1])).tolist() == [4, 6, 8]


@pytest.mark.parametrize("kind", ["LEQ", "LT", "GT"])
def test_trees(kind: str) -> None:
    """Two trees: x0 against 0.5, then x1 against -0.25; and one leaf for all."""
    attrs = {
        "nodes_treeids": [0, 0, 0, 0, 0, 1], "nodes_nodeids": [0, 1, 2, 3, 4, 0],
        "nodes_featureids": [0, 1, 0, 0, 0, 0], "nodes_values": [0.5, -0.25, 0, 0, 0, 0],
        "nodes_modes": [f"BRANCH_{kind}"] * 2 + ["LEAF"] * 4, "nodes_truenodeids": [1, 2, 0, 0, 0, 0],
        "nodes_falsenodeids": [4, 3, 0, 0, 0, 0],
    }  # fmt: skip
    x = np.array([[0.5, -0.25], [0.4, -1], [0.4, 1], [2, 0]], np.float32)
    targets = {
        "target_treeids": [0, 0, 0, 1, 1], "target_nodeids": [2, 3, 4, 0, 0], "target_ids": [0, 1, 0, 1, 0],
        "target_weights": [1.0, 2, 3, 10, 20], "n_targets": 2, "base_values": [100.0, 200],
    }  # fmt: skip
    classes = {
        "class_treeids": [0, 0, 0, 1], "class_nodeids": [2, 3, 4, 0], "class_ids": [0, 1, 2, 1],
        "class_weights": [1.0, 2, 3, 0.5], "classlabels_int64s": [7, 8, 9], "post_transform": "SOFTMAX",
    }  # fmt: skip
    for op, more in (("TreeEnsembleRegressor", targets), ("TreeEnsembleClassifier", classes)):
        made = ["y"] if op.endswith("Regressor") else ["label", "y"]
        node = helper.make_node(op, ["x"], made, domain="ai.onnx.ml", **attrs, **more)
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", 1, x.shape)],
            [helper.make_empty_tensor_value_info(name) for name in made],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=8))
        wanted = run_plain(model, [{"x": x}], optimize=False)[0]
        found = to_torch(load(model))(torch.from_numpy(x))
        for want, have in zip(wanted, found if isinstance(found, tuple) else (found,), strict=True):
            assert np.allclose(want, have.numpy(), rtol=1e-5)
