"""ONNX's own conformance suite on the torch form; what does not pass stands in `suite.EXPECTED`, with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

torch = pytest.importorskip("torch")
backend = pytest.importorskip("onnx_netadapt.backend")
suite = pytest.importorskip("suite")

LEAST = 0.97
"""The share of the node tests with operators of the default domain and numbers as results that must pass."""


@pytest.mark.parametrize("kind", suite.KINDS)
def test_the_suite_passes_but_for_the_list(kind: str) -> None:
    assert {one.name: one.failure for one in suite.outcomes(kind) if one.failure and not one.reason} == {}


@pytest.mark.parametrize("kind", suite.KINDS[1:])
def test_all_whole_models_pass(kind: str) -> None:
    found = suite.outcomes(kind)
    assert len(found) > 20
    assert [one.name for one in found if one.failure] == []


def test_the_default_domains_node_tests_pass() -> None:
    counted = [one for one in suite.outcomes("NodeModel") if one.counts]
    assert len(counted) > 1500
    assert sum(not one.failure for one in counted) >= LEAST * len(counted)


def test_the_list_names_nothing_that_passes() -> None:
    failing = [one.name for kind in suite.KINDS for one in suite.outcomes(kind) if one.failure]
    idle = [pattern for pattern in suite.EXPECTED.values() if not any(re.match(pattern, name) for name in failing)]
    assert idle == []
    passing = {one.name for one in suite.outcomes("NodeModel") if one.reason and not one.failure}
    assert passing == set()


@pytest.mark.slow
def test_the_light_models_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_MODELS", str(tmp_path))
    tests = suite.items()["RealModel"]
    assert len(tests) == 9  # all come with ONNX, in its folder "light"; nothing is fetched
    for item in tests.values():
        item.func(None)


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
