"""A model whose image input is made smaller by the model itself: what it takes stays as it was, its maps shrink.

1. Bilinear, with the centres of pixels as image libraries have them, not antialiased: that took twice the time (0.27
   against 0.11 ms from 224 to 160 pixels), and top-1 of MobileNetV2 at 176 pixels was 0.700 with it and 0.715 without.
2. A Resize, where the opset has one that counts so and the image is of 32-bit floats; else two products with constant
   matrices, one for each axis (0.51 ms for the same), which every opset has for every kind of float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .errors import InputError
from .graph import Constant, Graph
from .load import reload

RESIZE, WITHOUT_ROI = 11, 13
"""The opsets from which Resize counts from centre to centre, and from which its second input may be left out."""

Array = NDArray[Any]
Part = tuple[list[onnx.NodeProto], dict[str, Array]]
"""Nodes and their constants."""


def downsampled(graph: Graph, name: str, axes: tuple[int, int], sides: tuple[int, int]) -> Graph:
    """The graph with a bilinear reduction behind an image input, whose readers get `sides` (height, width) at `axes`.

    Raises InputError for an image of integers; whether the model can run then is for the caller to try.
    """
    (port,) = [port for port in graph.inputs if port.name == name]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(port.dtype))
    if dtype.kind != "f":
        raise InputError(f"input '{name}' holds {dtype}, and only floats are interpolated")
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.value_info[:]  # shapes at the old size
    taken = {value for node in model.graph.node for value in (*node.input, *node.output)} | set(graph.constants)
    small = _free(f"{name}_downsampled", taken)
    for node in model.graph.node:
        for slot, value in enumerate(node.input):
            if value == name:
                node.input[slot] = small
    version, shape = graph.opsets.get("", 0), graph.shapes[name]
    if version >= RESIZE and dtype == np.float32:
        nodes, constants = _resize(name, small, shape, dict(zip(axes, sides, strict=True)), version)
    else:
        nodes, constants = _products(name, small, shape, axes, sides, dtype)
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    for place, made in enumerate(nodes):
        model.graph.node.insert(place, made)
    return reload(replace(graph, model=model), {port.name: graph.shapes[port.name] for port in graph.inputs})


def _resize(name: str, small: str, shape: tuple[int, ...], sides: Mapping[int, int], version: int) -> Part:
    """One Resize."""
    factors = np.ones(len(shape), np.float32)
    for axis, side in sides.items():
        factors[axis] = _factor(shape[axis], side)
    constants: dict[str, Array] = {f"{small}_factors": factors}
    roi = "" if version >= WITHOUT_ROI else f"{small}_roi"
    if roi:
        constants[roi] = np.zeros(0, np.float32)
    way = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return [helper.make_node("Resize", [name, roi, f"{small}_factors"], [small], name=small, **way)], constants


def _products(
    name: str, small: str, shape: tuple[int, ...], axes: tuple[int, int], sides: tuple[int, int], dtype: np.dtype[Any]
) -> Part:
    """Y = A X B for images with height and width last; with channels last they are moved there and back."""
    (height, width), last = axes, len(shape) - 1
    a, b = f"{small}_rows", f"{small}_columns"
    constants = {a: _linear(shape[height], sides[0]).astype(dtype), b: _linear(shape[width], sides[1]).T.astype(dtype)}
    there = [axis for axis in range(len(shape)) if axis not in axes] + [height, width]
    image, made = (name, small) if width == last else (f"{small}_image", f"{small}_made")
    nodes = [
        helper.make_node("MatMul", [a, image], [f"{small}_half"], name=f"{small}_half"),
        helper.make_node("MatMul", [f"{small}_half", b], [made], name=made),
    ]
    if width != last:
        back = [int(place) for place in np.argsort(there)]
        nodes.insert(0, helper.make_node("Transpose", [name], [image], name=image, perm=there))
        nodes.append(helper.make_node("Transpose", [made], [small], name=small, perm=back))
    return nodes, constants


def _linear(length: int, side: int) -> Array:
    """The matrix (side, length) that interpolates `side` positions from `length`."""
    at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.floor(at).astype(np.int64)
    share = at - low
    found = np.zeros((side, length))
    np.add.at(found, (np.arange(side), low), 1 - share)
    np.add.at(found, (np.arange(side), np.minimum(low + 1, length - 1)), share)
    return found


def same_size(graph: Graph, constants: Mapping[str, Constant]) -> bool:
    """Whether the constants of a model made from a downsampled graph make the image as small as this graph does.

    Other values of a matrix may have been learnt; other factors, or another shape of a matrix, are another size.
    """
    name = graph.nodes[0].outputs[0].removesuffix("_half").removesuffix("_image")
    for key in (f"{name}_factors", f"{name}_rows", f"{name}_columns"):
        own, other = graph.constants.get(key), constants.get(key)
        if own is None and other is None:
            continue
        if own is None or other is None or own.shape != other.shape:
            return False
        if len(own.shape) == 1 and not np.array_equal(own.array(), other.array()):
            return False
    return True


def _factor(length: int, side: int) -> np.float32:
    """The scale that gives `side` positions: runtimes round length times scale down, in single precision."""
    factor = np.float32(side / length)
    while int(np.float32(length) * factor) < side:
        factor = np.nextafter(factor, np.float32(2))
    return factor


def _free(name: str, taken: set[str]) -> str:
    """A name that no tensor of the model begins with."""
    while any(value.startswith(name) for value in taken):
        name += "_"
    return name
