"""A short way to write test networks: named tensors, seeded weights, one line per node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt.passes.equivalence import run_plain

MICROSOFT = "com.microsoft"


class Net:
    """A model under construction; every method that adds a node gives the name of its (first) output."""

    def __init__(self, opset: int = 17, *, seed: int = 0, open_batch: bool = True) -> None:
        self.opset = opset
        self.open_batch = open_batch
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.domains: set[str] = set()

    def input(self, *dims: int, dtype: int = TensorProto.FLOAT, closed: bool = False) -> str:
        """An input; its first axis is left open unless `closed`, and is looked at with the given length."""
        name = f"x{len(self.inputs)}"
        shown: list[int | str] = list(dims)
        if self.open_batch and not closed and dims:
            shown[0] = "batch"
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shown))
        self.shapes[name] = dims
        return name

    def const(self, value: Any, dtype: Any = None, name: str = "") -> str:
        """A constant with the given value."""
        name = name or f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of integers."""
        return self.const(values, np.int64)

    def weight(self, *shape: int, name: str = "") -> str:
        """Seeded normal weights, of variance 1 / (all axes but the first)."""
        scale = np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.const(self.rng.standard_normal(shape) / scale, np.float32, name)

    def positive(self, *shape: int) -> str:
        """Seeded numbers between 0.5 and 1.5."""
        return self.const(self.rng.uniform(0.5, 1.5, shape), np.float32)

    def op(self, op_type: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        """A node with one output."""
        return self.ops(op_type, *inputs, count=1, domain=domain, **attrs)[0]

    def ops(self, op_type: str, *inputs: str, count: int, domain: str = "", **attrs: Any) -> list[str]:
        """A node with `count` outputs."""
        names = [f"t{len(self.nodes)}_{number}" if number else f"t{len(self.nodes)}" for number in range(count)]
        if domain:
            self.domains.add(domain)
        self.nodes.append(
            helper.make_node(op_type, list(inputs), names, name=f"{op_type}{len(self.nodes)}", domain=domain, **attrs)
        )
        return names

    def conv(
        self, x: str, inputs: int, outputs: int, *, kernel: Sequence[int] = (1, 1), group: int = 1, **attrs: Any
    ) -> str:
        """A convolution with bias."""
        w, b = self.weight(outputs, inputs // group, *kernel), self.weight(outputs)
        return self.op("Conv", x, w, b, kernel_shape=list(kernel), group=group, **attrs)

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """A product with a constant matrix on the right."""
        return self.op(
            "MatMul", x, self.const(self.rng.standard_normal((inputs, outputs)) / np.sqrt(inputs), np.float32)
        )

    def cast(self, x: str, dtype: int) -> str:
        """A Cast, in the spelling of the opset."""
        names = {TensorProto.FLOAT: "FLOAT", TensorProto.BOOL: "BOOL", TensorProto.INT32: "INT32"}
        return self.op("Cast", x, to=names.get(dtype, "INT64") if self.opset < 6 else dtype)

    def clip(self, x: str, low: float, high: float) -> str:
        """A Clip, in the spelling of the opset."""
        if self.opset < 11:
            return self.op("Clip", x, min=low, max=high)
        return self.op("Clip", x, self.const(low, np.float32), self.const(high, np.float32))

    def output(self, *names: str, dtype: int = TensorProto.FLOAT) -> Net:
        """Declares outputs, of unknown shape."""
        for name in names:
            value = onnx.ValueInfoProto(name=name)
            value.type.tensor_type.elem_type = dtype
            self.outputs.append(value)
        return self

    def model(self) -> onnx.ModelProto:
        """The finished model; shapes are inferred for outputs, as exporters do."""
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.tensors)
        imports = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(name, 1) for name in sorted(self.domains)),
        ]
        try:
            ir_version = max(4, helper.find_min_ir_version_for(imports, ignore_unknown=True))
        except ValueError:
            ir_version = 8
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
        for value in model.graph.output:
            if inferred[value.name].type.tensor_type.HasField("shape"):
                value.CopyFrom(inferred[value.name])
            elif self.opset >= 7:  # ONNX Runtime runs nothing older
                self._learn_shape(model, value)
        return model

    def _learn_shape(self, model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
        """Declares the shape that an output is seen to have (behind operators that ONNX does not know)."""
        feeds = [{name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}]
        found = run_plain(model, feeds, optimize=False)[0][[v.name for v in model.graph.output].index(value.name)]
        dims = ["batch" if axis == 0 and self.open_batch else size for axis, size in enumerate(found.shape)]
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims))
