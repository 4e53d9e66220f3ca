"""Small networks around every kind of matrix product, with unequal prime sizes, and an independent least squares."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt.ir import Graph, load
from onnx_netadapt.passes.coupling import Coupling, couple

Array = NDArray[Any]


@dataclass
class Net:
    """Builds a model node by node; weights are seeded normals."""

    input_shape: Sequence[int]
    seed: int = 0
    dtype: type = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        """A seeded initializer."""
        return self.constant(name, scale * self.rng.standard_normal(shape) / np.sqrt(max(1, shape[-1])))

    def constant(self, name: str, value: Array) -> str:
        """An initializer."""
        self.tensors.append(numpy_helper.from_array(np.asarray(value).astype(self.dtype), name))
        return name

    def add(self, op: str, *inputs: str, out: str, **attrs: Any) -> str:
        """A node named after its output."""
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{out}_node", **attrs))
        return out

    @staticmethod
    def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of a model by name."""
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return dict(zip([port.name for port in session.get_outputs()], session.run(None, dict(feeds)), strict=True))

    def model(self, output: str, rank: int) -> onnx.ModelProto:
        """The model with input `x` (open batch) and one output."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        batch = ["n", *self.input_shape]
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", kind, batch)],
            [helper.make_tensor_value_info(output, kind, [None] * rank)],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def examples(shape: Sequence[int], count: int, seed: int = 1) -> Array:
    """Seeded normal inputs."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def batches_of(x: Array, size: int = 13) -> Callable[[], Iterator[Mapping[str, Array]]]:
    """The examples in batches, as often as wanted."""
    return lambda: ({"x": x[start : start + size]} for start in range(0, len(x), size))


def coupled(model: onnx.ModelProto) -> Coupling:
    """The coupling of a model."""
    return couple(load(model))


def tensors_of(model: onnx.ModelProto, names: Sequence[str], x: Array) -> list[Array]:
    """Inner tensors, by running the model with them as outputs and without any optimisation."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"x": x} if session.get_inputs() else {}))


def values_of(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def group_read_by(coupling: Coupling, tensor: str, axis: int = 1) -> str:
    """The id of the group that runs through an axis of a tensor."""
    return next(group.id for group in coupling.groups if (tensor, axis) in group.axes)


def least_squares(x: Array, y: Array, *, bias: bool) -> float:
    """The smallest mean square of y - W x - b, by numpy's own solver; x (rows, K), y (rows, O)."""
    x = x.reshape(len(x), -1).astype(np.float64)
    y = y.astype(np.float64)
    if bias:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    found = np.linalg.lstsq(x, y, rcond=None)[0]
    return float(((y - x @ found) ** 2).sum() / len(x))


def graph_of(model: onnx.ModelProto) -> Graph:
    """The IR of a model."""
    return load(model)


__all__ = ["Array", "Net", "TensorProto", "batches_of", "coupled", "examples", "graph_of", "group_read_by"]
