"""A graph without the numbers of its weights, for a module that holds these itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.errors import NetAdaptError
from ..ir.external import Lazy, copy_fields, placeholder
from ..ir.graph import Constant, Graph, node_view
from ..ir.shapes import LIGHT_ELEMENTS


def lean(graph: Graph, names: Collection[str]) -> Graph:
    """The graph with placeholders for the large floating-point constants among `names`.

    Nobody may ask for their values. It serves for inference at other shapes, which needs but the sizes of large ones.
    """
    gone = {
        name: constant
        for name, constant in graph.constants.items()
        if name in names and constant.size > LIGHT_ELEMENTS and constant.array().dtype.kind not in "iubOUS"
    }
    model = onnx.ModelProto()
    copy_fields(graph.model, model, but="graph")
    copy_fields(graph.model.graph, model.graph, but="initializer")
    for tensor in graph.model.graph.initializer:
        model.graph.initializer.append(placeholder(tensor) if tensor.name in gone else tensor)
    for constant in gone.values():
        if constant.node is not None:
            _empty_node(model.graph.node[constant.node], constant)
    constants = {name: _emptied(one) if name in gone else one for name, one in graph.constants.items()}
    touched = {constant.node for constant in gone.values()}
    nodes = tuple(
        node_view(node.index, model.graph.node[node.index]) if node.index in touched else node for node in graph.nodes
    )
    return replace(graph, model=model, nodes=nodes, constants=constants, file=None)


def _empty_node(node: onnx.NodeProto, constant: Constant) -> None:
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", placeholder(constant.proto)))


def _emptied(constant: Constant) -> Constant:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(constant.proto.data_type))
    return Constant(constant.name, placeholder(constant.proto), constant.node, Lazy(constant.shape, dtype, _gone))


def _gone() -> NDArray[Any]:
    raise NetAdaptError("a weight's number was asked for, but the torch module holds the weights itself")
