"""Writing: a changed model is the original ModelProto with the changed parts replaced, and nothing else touched."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .errors import InputError
from .external import Lazy, Weights, byte_size, copy_fields, placeholder, split, write_data
from .graph import Constant, Graph, Shape

Array = NDArray[Any]

PROTOBUF_LIMIT = 2**31 - 2**20

EXTERNAL_BYTES = 1024
"""Tensors of at least this size go to the data file of a model with external data (as `onnx.save` has it)."""


@dataclass(slots=True)
class Changes:
    """What to replace: `tensors` new values of constants by name, `inputs` new constants for single (node, slot) uses,
    `attrs` new attributes by node index (None deletes one), `shapes` all shapes after the change by tensor name.
    """

    tensors: dict[str, Array | Lazy] = field(default_factory=dict)
    inputs: dict[tuple[int, int], Array] = field(default_factory=dict)
    attrs: dict[int, dict[str, Any]] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)


def apply(graph: Graph, changes: Changes) -> onnx.ModelProto:
    """A copy of the graph's model with the changes made; lazy ones leave placeholders (see `weights_after`)."""
    model = onnx.ModelProto()
    copy_fields(graph.model, model, but="graph")
    copy_fields(graph.model.graph, model.graph, but="initializer")
    for tensor in graph.model.graph.initializer:
        new = changes.tensors.get(tensor.name)
        model.graph.initializer.append(tensor if new is None else _tensor(new, tensor))
    _set_constant_nodes(graph, model, changes)
    _set_attributes(model, changes)
    _set_inputs(model, changes)
    _refresh_shapes(graph, model, changes)
    return model


def weights_after(graph: Graph, changes: Changes) -> dict[str, Lazy]:
    """The weights that the placeholders of the changed model stand for."""
    found = {}
    for name, constant in graph.constants.items():
        new = changes.tensors.get(name, constant.lazy)
        if isinstance(new, Lazy):
            found[name] = new
    return found


def _tensor(value: Array | Lazy, like: onnx.TensorProto) -> onnx.TensorProto:
    """The value as a TensorProto with the name, type and doc string of the one it replaces."""
    if isinstance(value, Lazy):
        return placeholder(like, value.shape)
    new = numpy_helper.from_array(np.asarray(value, order="C"), like.name)
    if new.data_type != like.data_type:
        # low-bit types unpack to wider numpy types
        new = helper.make_tensor(like.name, like.data_type, value.shape, value.reshape(-1))
    new.doc_string = like.doc_string
    return new


def _set_constant_nodes(graph: Graph, model: onnx.ModelProto, changes: Changes) -> None:
    for name, value in changes.tensors.items():
        constant: Constant = graph.constants[name]
        if constant.node is None:
            continue
        node = model.graph.node[constant.node]
        tensor = _tensor(value, constant.proto)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", tensor))


def _set_attributes(model: onnx.ModelProto, changes: Changes) -> None:
    for index, attrs in changes.attrs.items():
        node = model.graph.node[index]
        for name, value in attrs.items():
            kept = [attribute for attribute in node.attribute if attribute.name != name]
            if value is not None:
                kept.append(helper.make_attribute(name, value))
            del node.attribute[:]
            node.attribute.extend(kept)


def _set_inputs(model: onnx.ModelProto, changes: Changes) -> None:
    if not changes.inputs:
        return
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in model.graph.initializer}
    for (index, slot), value in sorted(changes.inputs.items()):
        node = model.graph.node[index]
        base = node.input[slot] if slot < len(node.input) and node.input[slot] else f"{node.output[0]}_input{slot}"
        name = _fresh(f"{base}_pruned", taken)
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = name
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))


def _fresh(base: str, taken: set[str]) -> str:
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}{number}"
    taken.add(name)
    return name


def _refresh_shapes(graph: Graph, model: onnx.ModelProto, changes: Changes) -> None:
    """Dimensions that changed are set anew in the declared shapes; open ones stay open."""
    for value in (*model.graph.value_info, *model.graph.input):
        old, new = graph.shapes.get(value.name), changes.shapes.get(value.name)
        if value.name in changes.tensors:
            new = changes.tensors[value.name].shape
        if old is None or new is None or old == new or not value.type.HasField("tensor_type"):
            continue
        dims = value.type.tensor_type.shape.dim
        for dim, before, after in zip(dims, old, new, strict=False):
            if before != after and dim.HasField("dim_value"):
                dim.dim_value = after


def save(model: onnx.ModelProto, path: Path, *, external: bool = False, weights: Weights | None = None) -> None:
    """Writes a model file in one step: a temporary file in the same folder, then a rename.

    `external` keeps the weights in `<name>.data` beside it, as does a model beyond protobuf's 2 GB, and a skeleton with
    the `weights` of its placeholders. They are written one after the other: the model is not held a second time.
    """
    if not (external or weights) and byte_size(model) < PROTOBUF_LIMIT:
        write_atomically(path, model.SerializeToString(deterministic=True))
        return
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            write_files(model, Path(folder) / path.name, weights or {})
            move_files(Path(folder) / path.name, path)
    except OSError as error:
        raise InputError(f"cannot write to folder {path.parent}: {error.strerror}; choose another --output") from error


def write_files(model: onnx.ModelProto, path: Path, weights: Weights) -> None:
    """Writes a model with its weights in `<name>.data` beside it; of no use to others before both are there."""
    skeleton, held = split(model, EXTERNAL_BYTES)
    with data_file(path).open("wb") as stream:
        write_data(skeleton, {**held, **weights}, stream, data_file(path).name)
    with path.open("wb") as stream:
        stream.write(skeleton.SerializeToString(deterministic=True))


def move_files(source: Path, target: Path) -> None:
    """Renames a model file that was written whole, its data first: whoever finds the model finds its data."""
    data_file(source).replace(data_file(target))
    source.replace(target)


def data_file(path: Path) -> Path:
    """Where `save` keeps the weights of a model that are not in the model file."""
    return path.with_name(f"{path.name}.data")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write to folder {path.parent}: {error.strerror}; choose another --output") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
