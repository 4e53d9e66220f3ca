"""ONNX's standard face of a backend, on top of the torch form: what torch trains can be judged by ONNX's own runner.

import onnx_netadapt.backend as backend
outputs = backend.run_model(model, inputs)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict
from onnx_netadapt.ir.errors import InputError, NetAdaptError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.load import load
from onnx_netadapt.ir.lowering import bare_graph
from onnx_netadapt.ir.ops.runtime import as_tensor
from onnx_netadapt.passes.to_torch import to_torch


class TorchRep(BackendRep):
    """A prepared model: `run` takes the inputs in order (or by name) and gives the outputs in order."""

    def __init__(self, graph: Graph, device: str) -> None:
        self.graph = graph
        self.device = device
        self.module = to_torch(graph, trainable=lambda name: False).to(device)

    def run(self, inputs: Any, **kwargs: Any) -> Any:
        """The outputs as numpy arrays (lists of arrays for sequences), as a named tuple."""
        import torch

        given = [inputs[port.name] for port in self.graph.inputs] if isinstance(inputs, Mapping) else list(inputs)
        if len(given) != len(self.graph.inputs):
            names = ", ".join(port.name for port in self.graph.inputs)
            raise InputError(f"the model has {len(self.graph.inputs)} inputs ({names}), it was given {len(given)}")
        with torch.no_grad():
            found = self.module(*(_to_torch(value, self.device) for value in given))
        found = found if isinstance(found, tuple) else (found,)
        kinds = [_element_type(value) for value in self.graph.model.graph.output]
        values = [_to_numpy(value, kind) for value, kind in zip(found, kinds, strict=True)]
        return namedtupledict("Outputs", [port.name for port in self.graph.outputs])(*values)


class TorchBackend(Backend):
    """ONNX's interface: prepare, run_model, run_node, supports_device, is_compatible."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether torch has a form for every node of the model."""
        try:
            cls.prepare(model, device, **kwargs)
        except NetAdaptError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> TorchRep:
        """The model, ready to run; UnsupportedOp names the nodes that torch has no form for."""
        return TorchRep(_graph(model), _torch_device(device))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> Any:
        """The outputs of a model."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The outputs of a single node for its inputs in order; `opset_version` says which definition holds."""
        names = [name for name in node.input if name]
        arrays = [np.asarray(value) for value in (inputs.values() if isinstance(inputs, Mapping) else inputs)]
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opset = onnx.helper.make_opsetid(node.domain, kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "node", values, outputs), opset_imports=[opset])
        return cls.run_model(onnx.shape_inference.infer_shapes(model), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether torch has this device here."""
        import torch

        kind = Device(device).type
        return bool(kind == DeviceType.CPU or (kind == DeviceType.CUDA and torch.cuda.is_available()))


def _torch_device(device: str) -> str:
    found = Device(device)
    return "cpu" if found.type == DeviceType.CPU else f"cuda:{found.device_id}"


def _graph(model: onnx.ModelProto) -> Graph:
    """The graph with all that can be inferred; where an input holds sizes or is no tensor, with nothing inferred.

    Inference looks at a model with made-up input values, which must not decide how it is run.
    """
    if model.functions or model.graph.sparse_initializer:
        return load(model)
    typed = _typed(model)
    values = (*typed.graph.input, *typed.graph.value_info)
    shapes = {value.name: _sizes(value) for value in values if _is_closed(value)}
    return replace(bare_graph(typed), shapes=shapes)


def _is_closed(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return bool(tensor.HasField("shape")) and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with element types of inner tensors where ONNX can tell them."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a model that inference does not understand runs without what it would have told
        return model


def _element_type(value: onnx.ValueInfoProto) -> int:
    """The element type of a tensor, a sequence of tensors, or an optional of either; 0 when it is not said."""
    kind = value.type
    while not kind.HasField("tensor_type"):
        if kind.HasField("sequence_type"):
            kind = kind.sequence_type.elem_type
        elif kind.HasField("optional_type"):
            kind = kind.optional_type.elem_type
        else:
            return 0
    return int(kind.tensor_type.elem_type)


def _to_torch(value: Any, device: str) -> Any:
    import torch

    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_to_torch(item, device) for item in value]
    if isinstance(value, torch.Tensor):
        return value.to(device)
    tensor = as_tensor(np.asarray(value), torch)
    return tensor.to(device) if isinstance(tensor, torch.Tensor) else tensor


def _to_numpy(value: Any, kind: int) -> Any:
    """An array of the model's own element type."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_to_numpy(item, kind) for item in value]
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
    if not kind or array.dtype == object:
        return array
    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind), copy=False)


is_compatible = TorchBackend.is_compatible
prepare = TorchBackend.prepare
run_model = TorchBackend.run_model
run_node = TorchBackend.run_node
supports_device = TorchBackend.supports_device
