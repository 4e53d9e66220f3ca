"""Cutting: the part of a model that computes some of its tensors, as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from .graph import captured_names


def cut(model: onnx.ModelProto, outputs: Sequence[str], inputs: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """The model that computes the tensors `outputs`, with nothing in it that they do not need.

    `inputs` names inner tensors that are fed from outside, with their ONNX element types; the model's own inputs
    remain where they are still needed. Shapes are left open. KeyError when there is no tensor of a name.
    """
    graph, fed = model.graph, dict(inputs or {})
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    given = {port.name for port in graph.input} | {tensor.name for tensor in graph.initializer}
    if unknown := [name for name in (*outputs, *fed) if name not in makers and name not in given]:
        raise KeyError(unknown[0])
    nodes, read = _needed(graph, makers, outputs, fed)
    found = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    found.graph.name = graph.name
    found.graph.node.extend(_apart(graph.node[index], fed) for index in nodes)
    found.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    found.graph.input.extend(port for port in graph.input if port.name in read)
    found.graph.input.extend(helper.make_tensor_value_info(name, dtype, None) for name, dtype in fed.items())
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return found


def _needed(
    graph: onnx.GraphProto, makers: Mapping[str, int], outputs: Sequence[str], fed: Mapping[str, int]
) -> tuple[list[int], set[str]]:
    """The nodes that compute the outputs from what is fed, in the graph's order, and all that is read but not fed."""
    nodes: set[int] = set()
    read: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name in fed or name in read:
            continue
        read.add(name)
        index = makers.get(name)
        if index is not None and index not in nodes:
            nodes.add(index)
            waiting += [*graph.node[index].input, *captured_names(graph.node[index])]
    return sorted(nodes), read


def _apart(node: onnx.NodeProto, fed: Mapping[str, int]) -> onnx.NodeProto:
    """The node, which makes what is fed from outside, if it must still be there for another output, by another name."""
    if fed.keys().isdisjoint(node.output):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{name}/cut off" if name in fed else name for name in node.output]
    return copy
