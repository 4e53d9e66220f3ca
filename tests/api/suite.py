"""ONNX's own conformance suite on the torch form: what passes, what does not, and why."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import SkipTest

import onnx
from onnx_netadapt.backend import TorchBackend

KINDS = ("NodeModel", "SimpleModel", "PyTorchConvertedModel", "PyTorchOperatorModel")

EXPECTED: dict[str, str] = {
    "files of pictures (JPEG, PNG, …) are decoded before a network, not in it": r"test_image_decoder",
    "ai.onnx.ml: label maps and trees of any kind of branch are not networks": (
        r"test_ai_onnx_ml_(label_encoder|tree_ensemble)"
    ),
    "ai.onnx.preview.training: optimizers are torch's own business": r"test_(adagrad|adam|momentum|nesterov)",
    "the suite's numbers come from numpy's random generator, torch has another": (
        r"test_(bernoulli|training_dropout_(default|mask|cpu))"
    ),
    "float16 is computed in float32: the suite rounds every intermediate result, which moves a last bit": (
        r"test_attention_4d_causal_fp16"
    ),
    "numbers that are 0 come out as 2e-9 or 0 where numpy's inverse transform leaves 2e-7; the bound is 1e-7": (
        r"test_dft_inverse"
    ),
    "the suite's runner fails on any backend: it asks for the length of a tensor without axes": r"test_loop16_seq_none",
    "ONNX Runtime divides by the rounded length, the suite by the exact one; we do as ONNX Runtime": (
        r"test_resize_downsample_scales_(linear|cubic)_align_corners"
    ),
}
"""Names (as regular expressions) of the suite's tests that do not pass, by reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of the suite: why it fails (empty where it passes) and what its model is about."""

    name: str
    failure: str
    domains: frozenset[str]
    makes_text: bool

    @property
    def counts(self) -> bool:
        """Whether all operators are of the default domain and all results numbers or truth values."""
        return self.domains == {""} and not self.makes_text

    @property
    def reason(self) -> str:
        """The reason that the list gives for the test's failure; empty when it names none."""
        return next((reason for reason, pattern in EXPECTED.items() if re.match(pattern, self.name)), "")


@cache
def items() -> dict[str, dict[str, Any]]:
    """The suite's tests on the CPU, by kind and name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # building the suite's data overflows and divides by zero on purpose
        from onnx.backend.test.runner import Runner

        runner = Runner(TorchBackend, __name__)
    return {
        kind: {name: item for name, item in found.items() if name.endswith("_cpu")}
        for kind, found in runner._test_items.items()
    }


@cache
def outcomes(kind: str) -> tuple[Outcome, ...]:
    """What each test of a kind gives."""
    return tuple(_outcome(name, item) for name, item in items()[kind].items())


def _outcome(name: str, item: Any) -> Outcome:
    failure = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            item.func(None)
        except SkipTest as error:
            failure = f"skipped: {error}"
        except Exception as error:  # whatever it is, the test did not pass
            failure = f"{type(error).__name__}: {str(error)[:200]}"
    (model,) = item.proto  # the runner leaves the model there when the test runs
    text = any(_is_text(value.type) for value in model.graph.output)
    return Outcome(name, failure, frozenset(_domains(model.graph)), text)


def _domains(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield "" if node.domain == "ai.onnx" else node.domain
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _domains(body)


def _is_text(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _is_text(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _is_text(kind.optional_type.elem_type)
    return bool(kind.tensor_type.elem_type == onnx.TensorProto.STRING)
