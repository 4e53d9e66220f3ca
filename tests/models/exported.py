"""Runs of exported models beside their torch originals, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime


def run_ort(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, dict(inputs))]


def worst_error(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference, as a share of the range of the output it is in."""
    shares = []
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        spread = float(np.ptp(e))
        assert spread > 0, "a constant output proves nothing"
        shares.append(float(np.abs(a - e).max()) / spread)
    return max(shares)


def producers(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each operator there are."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def shared_initializers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The operators of the nodes that read an initializer, for every initializer that several nodes read."""
    readers: dict[str, list[str]] = {tensor.name: [] for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in node.input:
            if name in readers:
                readers[name].append(node.op_type)
    return {name: ops for name, ops in readers.items() if len(ops) > 1}
