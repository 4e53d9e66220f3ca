"""Reading ONNX files: every way in which a file can be bad becomes one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from .errors import InputError
from .external import Lazy, Weights, all_tensors, data_files, fetch, is_external
from .graph import Constant, Graph, Node, Port, Shape, attributes, domain_of, node_view
from .ops.source import constant_value, filled_tensor
from .shapes import infer
from .text import undecodable

FILL_LIMIT = 2**30
"""Bytes of constants that may be written out where ConstantOfShape makes them: protobuf holds no more than 2 GB."""

Source = str | Path | bytes | onnx.ModelProto


def load(source: Source, *, shapes: Mapping[str, Shape] | None = None, on_disk: bool = False) -> Graph:
    """The Graph of a model given as a path, bytes or a ModelProto.

    `shapes` fixes input shapes (by input name); open dimensions that it leaves out get defaults (batch 1, images 224).
    `on_disk` leaves large external data where it is: `Constant.array` reads it, `Graph.model` has placeholders.
    Raises InputError when the source is missing, is not ONNX, or cannot be understood.
    """
    read, weights = _read(source, keep_apart=on_disk)
    model, notes = _prepare(read)
    file = Path(str(source)) if weights else None
    return _graph(model, weights, file, shapes or {}, notes)


def reload(graph: Graph, shapes: Mapping[str, Shape]) -> Graph:
    """The same model at other input shapes."""
    return _graph(graph.model, graph.weights, graph.file, shapes, [])


def reshaped(graph: Graph, name: str, shape: Shape) -> Graph:
    """The same model with one input of another shape; where the file fixes its dimensions, the new file fixes these.

    Whether the model can run at that shape is for the caller to try.
    """
    model, shapes = graph.model, {port.name: graph.shapes[port.name] for port in graph.inputs} | {name: shape}
    port = next(port for port in graph.inputs if port.name == name)
    if any(fixed not in (None, size) for fixed, size in zip(port.dims, shape, strict=True)):
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        del model.graph.value_info[:]  # shapes at the old size
        (value,) = [value for value in model.graph.input if value.name == name]
        for dim, fixed, size in zip(value.type.tensor_type.shape.dim, port.dims, shape, strict=True):
            if fixed is not None:
                dim.dim_value = size
    return _graph(model, graph.weights, graph.file, shapes, list(graph.notes))


def _graph(
    model: onnx.ModelProto, weights: Weights, file: Path | None, shapes: Mapping[str, Shape], notes: list[str]
) -> Graph:
    graph = model.graph
    nodes, constants = parts(model, weights)
    inputs = tuple(_port(value) for value in graph.input if value.name not in constants)
    _check_shapes_option(inputs, shapes)
    found = infer(model, nodes, constants, inputs, shapes, file)
    return Graph(
        model=model,
        nodes=nodes,
        constants=constants,
        inputs=inputs,
        outputs=tuple(_port(value) for value in graph.output),
        shapes=found.shapes,
        dtypes=found.dtypes,
        known=found.known,
        opsets={"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import},
        notes=(*notes, *found.notes),
        file=file,
    )


def parts(model: onnx.ModelProto, weights: Weights | None = None) -> tuple[tuple[Node, ...], dict[str, Constant]]:
    """The nodes and constants of a model; `weights` are the values of its placeholders."""
    nodes = tuple(node_view(index, proto) for index, proto in enumerate(model.graph.node))
    return nodes, _constants(model.graph, nodes, weights or {})


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as `load` sees it: local functions inlined, sparse and filled tensors written out."""
    return _prepare(model)[0]


def files_of(source: Source) -> tuple[Path, ...]:
    """The files that a source consists of: the model's, then those beside it that hold its weights; none in memory."""
    if isinstance(source, onnx.ModelProto | bytes):
        return ()
    path = Path(source)
    return (path, *data_files(_read_file(path), path))


def read_model(source: Source) -> onnx.ModelProto:
    """The ModelProto of a source, external data included."""
    return _read(source)[0]


def read_apart(source: Source) -> tuple[onnx.ModelProto, Weights]:
    """The ModelProto of a source with placeholders for large external weights, and these (see `external`)."""
    return _read(source, keep_apart=True)


def _read(source: Source, *, keep_apart: bool = False) -> tuple[onnx.ModelProto, dict[str, Lazy]]:
    weights: dict[str, Lazy] = {}
    if isinstance(source, onnx.ModelProto | bytes):
        model = source if isinstance(source, onnx.ModelProto) else _parse(source, "the given bytes")
        _refuse_external(model)
    else:
        model = _read_file(Path(source))
        weights = fetch(model, Path(source), keep_apart=keep_apart)
    if not model.graph.node and not model.graph.initializer:
        raise InputError(f"{_name(source)} is not an ONNX model: it holds no graph; check that this is the right file")
    return model, weights


def _refuse_external(model: onnx.ModelProto) -> None:
    missing = next((tensor.name for tensor in all_tensors(model) if is_external(tensor)), None)
    if missing is not None:
        raise InputError(
            f"tensor '{missing}' of the given model keeps its data in a file, and nothing says in which folder; "
            "give the model's path instead"
        )


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the given model"


def _read_file(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise InputError(f"model file {path} does not exist; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"model file {path} cannot be read: {error.strerror or error}") from error
    return _parse(content, str(path))


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InputError(
            f"{name} is not an ONNX model or is cut off ({len(content):,} bytes could not be parsed); "
            "export or download it again"
        ) from error
    field = undecodable(model)
    if field is not None:
        raise InputError(f"{name} is not valid ONNX: its {field} is not UTF-8 text; export or download it again")
    return model


def _prepare(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with local functions inlined, sparse initializers and filled weights made dense, and what was done."""
    notes: list[str] = []
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
        notes.append("the model's local functions were inlined")
    if model.graph.sparse_initializer:
        dense = onnx.ModelProto()
        dense.CopyFrom(model)
        for sparse in model.graph.sparse_initializer:
            dense.graph.initializer.append(_densify(sparse))
        del dense.graph.sparse_initializer[:]
        model = dense
        notes.append("sparse initializers were made dense")
    filled = _filled(model)
    if filled:
        dense = onnx.ModelProto()
        dense.CopyFrom(model)
        kept = [node for node in model.graph.node if not filled.keys() & set(node.output)]
        del dense.graph.node[:]
        dense.graph.node.extend(kept)
        dense.graph.initializer.extend(filled.values())
        model = dense
        notes.append(f"{len(filled)} constants that ConstantOfShape makes were written out")
    return model, notes


def _filled(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """What ConstantOfShape nodes make of constant shapes, by name: some exporters keep weights so."""
    lengths = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 1}
    for node in model.graph.node:
        value = constant_value(node.op_type, domain_of(node), attributes(node)) if not node.input else None
        if value is not None and len(value.dims) == 1:
            lengths[node.output[0]] = value
    outputs = {value.name for value in model.graph.output}
    found: dict[str, onnx.TensorProto] = {}
    room = FILL_LIMIT
    for node in model.graph.node:
        tensor = filled_tensor(node, lengths, room) if node.input and not outputs & set(node.output) else None
        if tensor is not None:
            found[tensor.name] = tensor
            room -= len(tensor.raw_data)
    return found


def _densify(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(array, sparse.values.name)


def _constants(graph: onnx.GraphProto, nodes: tuple[Node, ...], weights: Weights) -> dict[str, Constant]:
    found = {tensor.name: Constant(tensor.name, tensor, None, weights.get(tensor.name)) for tensor in graph.initializer}
    for node in nodes:
        tensor = constant_value(node.op_type, node.domain, node.attrs)
        if tensor is not None:
            found[node.outputs[0]] = Constant(node.outputs[0], tensor, node.index)
    return found


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    dims = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
    )
    return Port(value.name, dims, tensor.elem_type)


def _check_shapes_option(inputs: tuple[Port, ...], shapes: Mapping[str, Shape]) -> None:
    ports = {port.name: port for port in inputs}
    for name, shape in shapes.items():
        if name not in ports:
            raise InputError(f"the model has no input '{name}'; its inputs are {', '.join(ports) or 'none'}")
        dims = ports[name].dims
        if dims and (
            len(dims) != len(shape) or any(d is not None and d != s for d, s in zip(dims, shape, strict=True))
        ):
            raise InputError(f"input '{name}' has shape {_text(dims)}, which {list(shape)} does not fit")


def _text(dims: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
