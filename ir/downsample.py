"""A model whose image input is made smaller by the model itself: what it takes stays as it was, its maps shrink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .errors import InputError
from .graph import Constant, Graph
from .load import reload

OPSET = 11
"""The first opset whose Resize interpolates between the centres of pixels, as image libraries do."""


def downsampled(graph: Graph, name: str, axes: tuple[int, int], sides: tuple[int, int]) -> Graph:
    """The graph with a bilinear Resize behind an image input, whose readers get `sides` (height, width) at `axes`.

    Not antialiased: that took twice the time (0.27 against 0.11 ms from 224 to 160 pixels) and told classes no better.
    Raises InputError where the opset has no such Resize; whether the model can run then is for the caller to try.
    """
    version = graph.opsets.get("", 0)
    if version < OPSET:
        raise InputError(f"opset {version} has no bilinear Resize as images are resized (from {OPSET} on)")
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.value_info[:]  # shapes at the old size
    taken = {value for node in model.graph.node for value in (*node.input, *node.output)} | set(graph.constants)
    small, scales = _free(f"{name}_downsampled", taken), _free(f"{name}_scales", taken)
    for node in model.graph.node:
        for slot, value in enumerate(node.input):
            if value == name:
                node.input[slot] = small
    factors = np.ones(len(graph.shapes[name]), np.float32)
    for axis, side in zip(axes, sides, strict=True):
        factors[axis] = _factor(graph.shapes[name][axis], side)
    model.graph.initializer.append(numpy_helper.from_array(factors, scales))
    way = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    resize = helper.make_node("Resize", [name, "", scales], [small], name=small, **way)
    model.graph.node.insert(0, resize)
    shapes = {port.name: graph.shapes[port.name] for port in graph.inputs}
    return reload(replace(graph, model=model), shapes)


def same_factors(graph: Graph, constants: Mapping[str, Constant]) -> bool:
    """Whether the constants of a model made from a downsampled graph resize the image as this graph does.

    The factors are no weights, which may differ: another size is another model.
    """
    name = graph.nodes[0].inputs[2]
    found = constants.get(name)
    return found is not None and np.array_equal(found.array(), graph.constants[name].array())


def _factor(length: int, side: int) -> np.float32:
    """The scale that gives `side` positions: runtimes round length times scale down, in single precision."""
    factor = np.float32(side / length)
    while int(np.float32(length) * factor) < side:
        factor = np.nextafter(factor, np.float32(2))
    return factor


def _free(name: str, taken: set[str]) -> str:
    """A name that no tensor of the model has."""
    while name in taken:
        name += "_"
    return name
