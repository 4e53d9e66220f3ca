"""Reading ONNX files: every way in which a file can be bad becomes one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from .errors import InputError
from .graph import Constant, Graph, Node, Port, Shape, node_view
from .ops.source import constant_value
from .shapes import infer

Source = str | Path | bytes | onnx.ModelProto


def load(source: Source, *, shapes: Mapping[str, Shape] | None = None) -> Graph:
    """The Graph of a model given as a path, bytes or a ModelProto.

    `shapes` fixes input shapes (by input name); open dimensions that it leaves out get defaults (batch 1, images 224).
    Raises InputError when the source is missing, is not ONNX, or cannot be understood.
    """
    model, notes = _prepare(read_model(source))
    graph = model.graph
    nodes, constants = parts(model)
    inputs = tuple(_port(value) for value in graph.input if value.name not in constants)
    _check_shapes_option(inputs, shapes or {})
    found = infer(model, nodes, constants, inputs, shapes or {})
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
    )


def parts(model: onnx.ModelProto) -> tuple[tuple[Node, ...], dict[str, Constant]]:
    """The nodes and constants of a model."""
    nodes = tuple(node_view(index, proto) for index, proto in enumerate(model.graph.node))
    return nodes, _constants(model.graph, nodes)


def has_external_data(path: Path) -> bool:
    """Whether a model file keeps weights in files beside it."""
    model = onnx.load(path, load_external_data=False)
    return any(external_data_helper.uses_external_data(t) for t in external_data_helper._get_all_tensors(model))


def read_model(source: Source) -> onnx.ModelProto:
    """The ModelProto of a source, external data included."""
    if isinstance(source, onnx.ModelProto):
        model = source
    elif isinstance(source, bytes):
        model = _parse(source, "the given bytes")
    else:
        model = _read_file(Path(source))
    if not model.graph.node and not model.graph.initializer:
        raise InputError(f"{_name(source)} is not an ONNX model: it holds no graph; check that this is the right file")
    return model


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the given model"


def _read_file(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise InputError(f"model file {path} does not exist; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"model file {path} cannot be read: {error.strerror or error}") from error
    model = _parse(content, str(path))
    _load_external_data(model, path)
    return model


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise InputError(
            f"{name} is not an ONNX model or is cut off ({len(content):,} bytes could not be parsed); "
            "export or download it again"
        ) from error
    return model


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = external_data_helper.ExternalDataInfo(tensor).location
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise InputError(
                f"tensor '{tensor.name}' of {path} points to external data outside the model's folder ('{location}'); "
                "this is refused: put the data file beside the model"
            )
        if not file.is_file():
            raise InputError(
                f"tensor '{tensor.name}' of {path} keeps its data in '{location}', which is missing; "
                "put that file beside the model"
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise InputError(
                f"external data of tensor '{tensor.name}' in '{location}' cannot be read: {error}"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _prepare(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with local functions inlined and sparse initializers made dense, and what was done."""
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
    return model, notes


def _densify(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(array, sparse.values.name)


def _constants(graph: onnx.GraphProto, nodes: tuple[Node, ...]) -> dict[str, Constant]:
    found = {tensor.name: Constant(tensor.name, tensor, None) for tensor in graph.initializer}
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
