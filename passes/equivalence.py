"""The oracle: zeroing equals removing.

The original model, with the consumer slices of a plan set to zero, must give the same outputs as the pruned model. This
file works from the plan alone (CONTRACTS section 2): it shares no code with coupling or pruning, so that a mistake
there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..ir.errors import InputError, TargetError
from ..ir.graph import Graph

Array = NDArray[Any]
Feeds = Mapping[str, Array]

TOLERANCE = {onnx.TensorProto.FLOAT16: 2e-2, onnx.TensorProto.BFLOAT16: 2e-1}
DEFAULT_TOLERANCE = 1e-4

ROUNDING = 1e-6
"""An absolute difference that is not counted: sigmoids and softmaxes near 0 have it from rounding at 1."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The outcome of a check: the worst difference as a share of the output's range, output by output."""

    worst: float
    tolerance: float
    by_output: Mapping[str, float]
    samples: int

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return self.worst <= self.tolerance


def zeroed(original: onnx.ModelProto, plan: Mapping[str, Any]) -> onnx.ModelProto:
    """The original model with every consumer slice of the plan set to zero."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    tensors = _tensors(model)
    for group in plan["groups"]:
        for member in group["members"]:
            if member["role"] != "consumer":
                continue
            tensor = tensors.get(member["tensor"])
            if tensor is None:
                raise InputError(f"the plan names tensor '{member['tensor']}', which the original does not have")
            if "node" in member:
                tensor = _own_copy(model, tensors, member)
            array = numpy_helper.to_array(tensor).copy()
            places = (slice(None),) * member["axis"] + (np.asarray(member["removed"], dtype=np.int64),)
            array[places] = _zero(tensors, member, array)[places]
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model


def _zero(tensors: Mapping[str, onnx.TensorProto], member: Mapping[str, Any], array: Array) -> Array:
    """What stands for zero at each place: 0, or the zero point that the member's `zero` names, laid along its axis."""
    if "zero" not in member:
        return np.zeros_like(array)
    point = numpy_helper.to_array(tensors[member["zero"]["tensor"]])
    if point.ndim == 1 and point.size > 1:
        shape = [1] * array.ndim
        shape[member["zero"]["axis"]] = point.size
        point = point.reshape(shape)
    return np.broadcast_to(point.reshape(()) if point.size == 1 else point, array.shape).astype(array.dtype)


def _tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if not node.input and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _own_copy(
    model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto], member: Mapping[str, Any]
) -> onnx.TensorProto:
    """A copy of a shared tensor for the one node that the member names (made once)."""
    name = f"{member['tensor']}@{member['node']}"
    if name not in tensors:
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensors[member["tensor"]])
        copy.name = name
        tensors[name] = copy
        for node in model.graph.node:
            if (node.name or (node.output[0] if node.output else "")) == member["node"]:
                node.input[:] = [name if read == member["tensor"] else read for read in node.input]
    return tensors[name]


def run_plain(model: onnx.ModelProto, feeds: Sequence[Feeds], *, optimize: bool) -> list[list[Array]]:
    """The outputs of a model on each of the feeds; TargetError when ONNX Runtime cannot run it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [session.run(None, dict(feed)) for feed in feeds]
    except Exception as error:
        raise TargetError(f"ONNX Runtime cannot run the model: {str(error).strip()[:300]}") from error


def check(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    plan: Mapping[str, Any],
    feeds: Sequence[Feeds],
    *,
    optimize: bool = False,
) -> Equivalence:
    """Compares the zeroed original with the pruned model on the feeds.

    The tolerance is 1e-4 of the output's range (its largest magnitude in the zeroed original), more for 16-bit floats.
    """
    expected = run_plain(zeroed(original, plan), feeds, optimize=optimize)
    found = run_plain(pruned, feeds, optimize=optimize)
    names = [value.name for value in original.graph.output]
    by_output = {
        name: max(_difference(want[place], have[place]) for want, have in zip(expected, found, strict=True))
        for place, name in enumerate(names)
    }
    return Equivalence(max(by_output.values(), default=0.0), tolerance_of(original), by_output, len(feeds))


def tolerance_of(model: onnx.ModelProto) -> float:
    """1e-4, or what the coarsest float type of the model's weights allows."""
    types = {tensor.data_type for tensor in _tensors(model).values()}
    return max([DEFAULT_TOLERANCE, *(value for dtype, value in TOLERANCE.items() if dtype in types)])


def _difference(want: Any, have: Any) -> float:
    if not isinstance(want, np.ndarray):
        return 0.0 if want == have else float("inf")
    if want.shape != have.shape:
        return float("inf")
    if want.size == 0:
        return 0.0
    if not np.issubdtype(want.dtype, np.floating):
        return 0.0 if np.array_equal(want, have) else float("inf")
    a, b = want.astype(np.float64), have.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    span = float(np.abs(a[finite]).max(initial=0.0))
    apart = max(float(np.abs(a[finite] - b[finite]).max(initial=0.0)) - ROUNDING, 0.0)
    return apart / (span or 1.0)


def random_feeds(graph: Graph, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """Seeded random inputs of the graph's shapes and types."""
    from ..ir.shapes import random_input

    rng = np.random.default_rng(seed)
    return [
        {
            port.name: random_input(rng, graph.shapes[port.name], helper.tensor_dtype_to_np_dtype(port.dtype))
            for port in graph.inputs
        }
        for _ in range(count)
    ]
