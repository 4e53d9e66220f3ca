"""A torch form of an ONNX model made of torch's own layers, which pruning libraries for torch need, and the way back.

Convolutions, fully connected layers and batch normalizations become nn.Conv2d, nn.Linear and nn.BatchNorm2d with the
model's weights; everything between them runs as `na.to_torch` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from onnx_netadapt.ir.graph import Graph, Node
from onnx_netadapt.ir.load import load
from onnx_netadapt.ir.lowering import build
from onnx_netadapt.ir.ops.runtime import as_tensor
from onnx_netadapt.passes.recover import constants_of
from torch import nn


class Layers(nn.Module):
    """A graph with one float output as torch layers; takes the graph's inputs in order."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._program = build(graph, torch)
        self.layers = nn.ModuleDict()
        self._layer_of: dict[int, str] = {}
        for number, step in enumerate(self._program.steps):
            make = MAKERS.get(step.node.op_type)
            layer = None if make is None else make(graph, step.node)
            if layer is not None:
                self._layer_of[number] = f"layer{number}"
                self.layers[f"layer{number}"] = layer
        layered = {name for number in self._layer_of for name in self._program.steps[number].node.inputs[1:] if name}
        self._flattens = {
            number for number, step in enumerate(self._program.steps) if _flattens(graph, step.reads, step.makes)
        }
        self._fixed = {
            name: as_tensor(graph.constants[name].array(), torch)
            for name in self._program.constants
            if name not in layered
        }

    def forward(self, *inputs: Any) -> Any:
        """The outputs, the tensor itself when there is one."""
        values = {**self._program.literals, **self._fixed, **dict(zip(self._program.inputs, inputs, strict=True))}
        for number, step in enumerate(self._program.steps):
            made: Any
            if number in self._flattens:
                made = torch.flatten(values[step.reads[0]], 1)
            elif number in self._layer_of:
                made = self.layers[self._layer_of[number]](values[step.reads[0]])
            else:
                made = step.function(*[values[name] if name else None for name in step.reads])
            made = made if isinstance(made, tuple) else (made,)
            values.update(zip(step.makes, made, strict=False))
        found = [values[name] for name in self._program.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    def to_onnx(self) -> onnx.ModelProto:
        """The graph's own model with the layers' present weights: all methods are compared on the same form of graph.

        What torch's exporter writes is another form, in which old shapes may stand as constants.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        del model.graph.value_info[:]
        tensors = constants_of(model)
        for number in self._flattens:
            node = self._program.steps[number].node
            made = onnx.helper.make_node("Flatten", node.inputs[:1], node.outputs, name=node.name, axis=1)
            model.graph.node[node.index].CopyFrom(made)
        for number, name in self._layer_of.items():
            node, layer = self._program.steps[number].node, self.layers[name]
            for target, value in zip((n for n in node.inputs[1:] if n), tensors_of(layer, node), strict=True):
                array = value.detach().numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(tensors[target].data_type))
                tensors[target].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), target))
            if isinstance(layer, nn.Conv2d):
                for attribute in model.graph.node[node.index].attribute:
                    if attribute.name == "group":
                        attribute.i = layer.groups
        return model


def _flattens(graph: Graph, reads: tuple[str, ...], makes: tuple[str, ...]) -> bool:
    """Whether a step makes one row of numbers of each pooled example, whose length may stand in a constant."""
    if len(makes) != 1 or not reads or reads[0] not in graph.shapes or makes[0] not in graph.shapes:
        return False
    old, new = graph.shapes[reads[0]], graph.shapes[makes[0]]
    return len(old) == 4 and old[2:] == (1, 1) and new == old[:2]


def tensors_of(layer: Any, node: Node) -> list[Any]:
    """A layer's weights as its node has them."""
    if isinstance(layer, nn.BatchNorm2d):
        return [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    weight = layer.weight
    if isinstance(layer, nn.Linear) and not node.attrs.get("transB", 0):
        weight = weight.T
    return [weight] if layer.bias is None else [weight, layer.bias]


def layers_of(model: onnx.ModelProto) -> Layers:
    """The torch form of a model, in evaluation mode."""
    return Layers(load(model)).eval()


def _weights(graph: Graph, node: Node) -> list[Any] | None:
    names = [name for name in node.inputs[1:] if name]
    if not all(name in graph.constants for name in names):
        return None
    return [torch.from_numpy(graph.constants[name].array().copy()).float() for name in names]


def _conv(graph: Graph, node: Node) -> nn.Module | None:
    found = _weights(graph, node)
    if found is None or found[0].dim() != 4:
        return None
    weight, attrs = found[0], node.attrs
    pads = list(attrs.get("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:] or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    group = int(attrs.get("group", 1))
    layer = nn.Conv2d(
        weight.shape[1] * group, weight.shape[0], tuple(weight.shape[2:]), tuple(attrs.get("strides", (1, 1))),
        tuple(pads[:2]), tuple(attrs.get("dilations", (1, 1))), group, bias=len(found) > 1,
    )  # fmt: skip
    return _filled(layer, found)


def _linear(graph: Graph, node: Node) -> nn.Module | None:
    found, attrs = _weights(graph, node), node.attrs
    plain = attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA", 0)
    if found is None or not plain:
        return None
    weight = found[0] if attrs.get("transB", 0) else found[0].T.contiguous()
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=len(found) > 1), [weight, *found[1:]])


def _norm(graph: Graph, node: Node) -> nn.Module | None:
    found = _weights(graph, node)
    if found is None or len(found) != 4 or len(node.outputs) != 1:
        return None
    layer = nn.BatchNorm2d(len(found[0]), eps=node.attrs.get("epsilon", 1e-5))
    layer.running_mean, layer.running_var = found[2], found[3]
    return _filled(layer, found[:2])


def _filled(layer: Any, tensors: list[Any]) -> nn.Module:
    layer.weight.data = tensors[0]
    if len(tensors) > 1:
        layer.bias.data = tensors[1]
    filled: nn.Module = layer
    return filled


MAKERS: dict[str, Callable[[Graph, Node], nn.Module | None]] = {
    "Conv": _conv, "Gemm": _linear, "BatchNormalization": _norm
}  # fmt: skip
