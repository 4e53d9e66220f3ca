"""ONNX's own conformance suite on the torch form; what does not pass stands here, with the reason."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import onnx
import pytest
from onnx import helper

torch = pytest.importorskip("torch")
backend = pytest.importorskip("onnx_netadapt.backend")

EXPECTED: dict[str, str] = {
    "text and files are no matter for torch": (
        r"test_(string_|strnorm|regex_full_match|tfidf|image_decoder|equal_string|ai_onnx_ml_label_encoder_string)"
    ),
    "trees, label maps and the like of ai.onnx.ml are not networks": r"test_ai_onnx_ml_",
    "optimizers and gradients are torch's own business, not operators of a network": (
        r"test_(adagrad|adam|momentum|nesterov|gradient_of)"
    ),
    "the numbers come from numpy's random generator": r"test_(bernoulli|training_dropout_(default|mask|cpu))",
    "float16 is computed in float32: a last bit differs by more than the runner's tolerance": (
        r"test_attention_4d_causal_fp16"
    ),
    "the inverse transform rounds zeros to 2e-9 where the suite has 2e-7": r"test_dft_inverse",
    "exponents are rounded by torch's rule, not by round_mode": r"test_cast_e8m0_FLOAT(16)?_to_FLOAT8E8M0",
    "the runner asks for the length of a tensor without axes": r"test_loop16_seq_none",
    "ONNX Runtime divides by the rounded length, the suite by the exact one": (
        r"test_resize_downsample_scales_(linear|cubic)_align_corners"
    ),
}
"""Names (as regular expressions) of the suite's tests that do not pass, by reason."""


@cache
def _cases() -> dict[str, dict[str, Callable[..., None]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # building the suite's data overflows and divides by zero on purpose
        from onnx.backend.test.runner import Runner

        runner = Runner(backend.TorchBackend, __name__)
    return {
        category: {name: item.func for name, item in items.items() if name.endswith("_cpu")}
        for category, items in runner._test_items.items()
    }


def _outcomes(category: str) -> Iterator[tuple[str, str]]:
    """The name of each test and why it fails, empty where it passes."""
    for name, function in _cases()[category].items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(None)
            except SkipTest as error:
                yield name, f"skipped: {error}"
            except Exception as error:  # whatever it is, the test did not pass
                yield name, f"{type(error).__name__}: {str(error)[:200]}"
            else:
                yield name, ""


def _is_expected(name: str) -> bool:
    return any(re.match(pattern, name) for pattern in EXPECTED.values())


@pytest.mark.parametrize("category", ["NodeModel", "SimpleModel", "PyTorchConvertedModel", "PyTorchOperatorModel"])
def test_the_suite_passes_but_for_the_list(category: str) -> None:
    outcomes = dict(_outcomes(category))
    failed = {name: why for name, why in outcomes.items() if why}
    assert {name: why for name, why in failed.items() if not _is_expected(name)} == {}
    assert len(failed) <= 0.05 * len(outcomes) or category == "SimpleModel"


def test_the_list_names_nothing_that_passes() -> None:
    names = {name for tests in _cases().values() for name in tests}
    assert [pattern for pattern in EXPECTED.values() if not any(re.match(pattern, name) for name in names)] == []
    failing = [name for category in ("NodeModel", "SimpleModel") for name, why in _outcomes(category) if why]
    for pattern in EXPECTED.values():
        assert any(re.match(pattern, name) for name in failing), pattern


@pytest.mark.slow
def test_the_light_models_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_MODELS", str(tmp_path))
    tests = _cases()["RealModel"]
    assert len(tests) == 9  # all come with ONNX, in its folder "light"; nothing is fetched
    for function in tests.values():
        function(None)


def test_a_node_runs_alone() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    (found,) = backend.run_node(node, [np.array([1.0, 2.0], np.float32), np.array([5.0], np.float32)])
    assert found.tolist() == [6.0, 7.0]


def test_outputs_have_the_models_types_and_names() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float16[2, 3] x) => (float16[2, 3] y, int64[1] where) { y = Relu(x)
            count = Size(x)
            axis = Constant<value: tensor = int64[1] {0}>()
            where = Unsqueeze(count, axis) }""")
    found = backend.prepare(model).run([np.full((2, 3), -1, np.float16)])
    assert (found.y.dtype, found.where.dtype, found.where.tolist()) == (np.float16, np.int64, [6])


def test_devices() -> None:
    assert backend.supports_device("CPU")
    assert backend.supports_device("CUDA") == torch.cuda.is_available()


def test_an_incompatible_model_is_known() -> None:
    value: Any = helper.make_tensor_value_info("x", 1, [2])
    other = helper.make_tensor_value_info("y", 1, [2])
    graph = helper.make_graph([helper.make_node("Odd", ["x"], ["y"], domain="my.own")], "g", [value], [other])
    assert not backend.is_compatible(helper.make_model(graph, opset_imports=[helper.make_opsetid("my.own", 1)]))
