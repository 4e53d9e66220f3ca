"""Shapes of all tensors, and values of those that follow from shapes alone.

1. Open input dimensions are fixed, and ONNX's own inference runs on a copy without the large weights.
2. Shape arithmetic (Shape, Gather, Concat, ... of small integers) is evaluated by ONNX Runtime in one go, given back to
   the inference as constants, and both repeat until nothing new is learnt.
3. What is still unknown is learnt by running the model once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from .graph import Constant, Node, Port, Shape, attributes, domain_of
from .ops.source import constant_value, is_random, size_value

LIGHT_ELEMENTS = 1024
"""Constants of more elements are weights: inference needs their shape only."""

ROUNDS = 6
INTEGER_TYPES = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL})
IMAGE_SIZE = 224
SEQUENCE_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Inferred:
    """What inference found: shapes and element types by tensor name, values of shape arithmetic, remarks."""

    shapes: dict[str, Shape]
    dtypes: dict[str, int]
    known: dict[str, np.ndarray[Any, Any]]
    notes: tuple[str, ...]


def infer(
    model: onnx.ModelProto,
    nodes: Sequence[Node],
    constants: Mapping[str, Constant],
    inputs: Sequence[Port],
    fixed: Mapping[str, Shape],
    file: Path | None = None,
) -> Inferred:
    """Concrete shapes at the input shapes `fixed` (defaults for the rest); see the module's rules.

    `file` is the model file beside which the data of the model's placeholders lies.
    """
    entry = {port.name: fixed.get(port.name, default_shape(port)) for port in inputs}
    skeleton = light_model(model, entry)
    known: dict[str, np.ndarray[Any, Any]] = {}
    shapes, dtypes = _onnx_inference(skeleton, known)
    for _ in range(ROUNDS):
        news = evaluate(model, nodes, constants, shapes, dtypes)
        if news.keys() == known.keys():
            break
        known = news
        shapes, dtypes = _onnx_inference(skeleton, known)
    shapes.update({name: constant.shape for name, constant in constants.items()})
    shapes.update(entry)
    notes: tuple[str, ...] = ()
    if any(name not in shapes for node in nodes for name in node.outputs if name):
        notes = _learn_by_running(model, inputs, entry, shapes, dtypes, file)
        known = evaluate(model, nodes, constants, shapes, dtypes)
    return Inferred(shapes, dtypes, known, notes)


def default_shape(port: Port) -> Shape:
    """The shape at which a model with open dimensions is looked at when the user fixed none."""
    spatial = image_axes(port)
    return tuple(
        dim if dim is not None else 1 if axis == 0 else IMAGE_SIZE if axis in spatial else SEQUENCE_LENGTH
        for axis, dim in enumerate(port.dims)
    )


def image_axes(port: Port) -> tuple[int, ...]:
    """The axes of an input's height and width when it can be a batch of images, which has four axes; else none."""
    if len(port.dims) != 4:
        return ()
    channels_last = port.dims[3] in (1, 3, 4) and port.dims[1] not in (1, 3, 4)
    return (1, 2) if channels_last else (2, 3)


def light_model(model: onnx.ModelProto, entry: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy whose inputs have fixed shapes and whose large weights are inputs without a value."""
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = model.graph.name or "graph"
    for node in model.graph.node:
        tensor = constant_value(node.op_type, domain_of(node), attributes(node)) if not node.input else None
        if tensor is not None and np.prod(tensor.dims, dtype=np.int64) > LIGHT_ELEMENTS:
            graph.input.append(_value_info(node.output[0], tensor))
        else:
            graph.node.append(node)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in tensors:
            _fix_input(graph.input.add(), value, entry[value.name])
    for tensor in tensors.values():
        if np.prod(tensor.dims, dtype=np.int64) > LIGHT_ELEMENTS:
            graph.input.append(_value_info(tensor.name, tensor))
        else:
            graph.initializer.append(tensor)
    graph.output.extend(helper.make_empty_tensor_value_info(value.name) for value in model.graph.output)
    return light


def _value_info(name: str, tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))


def _fix_input(target: onnx.ValueInfoProto, value: onnx.ValueInfoProto, shape: Shape) -> None:
    target.CopyFrom(value)
    if not value.type.HasField("tensor_type"):
        return
    for dim, size in zip(target.type.tensor_type.shape.dim, shape, strict=False):
        dim.dim_value = size


def _onnx_inference(
    skeleton: onnx.ModelProto, known: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, Shape], dict[str, int]]:
    model = skeleton
    if known:
        model = onnx.ModelProto()
        model.CopyFrom(skeleton)
        kept = [node for node in model.graph.node if not all(name in known for name in node.output)]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in known.items())
    try:
        model = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # inference of a foreign or broken graph may fail in any way; running once is the fallback
        return {}, {}
    shapes: dict[str, Shape] = {name: value.shape for name, value in known.items()}
    dtypes: dict[str, int] = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in known.items()}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            continue
        dtypes[value.name] = tensor.elem_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    for tensor in model.graph.initializer:
        dtypes[tensor.name] = tensor.data_type
    return shapes, dtypes


def evaluate(
    model: onnx.ModelProto,
    nodes: Sequence[Node],
    constants: Mapping[str, Constant],
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, int],
) -> dict[str, np.ndarray[Any, Any]]:
    """Values of the tensors that follow from `shapes` and small constants, by name; constants themselves not included.

    Only chains that begin at a Shape or Size node, or are integers throughout, are evaluated: weights are left alone.
    """
    ready = {name for name, constant in constants.items() if _is_small(constant)}
    sources: dict[str, np.ndarray[Any, Any]] = {}
    chosen: list[Node] = []
    for node in nodes:
        value = size_value(node, shapes[node.inputs[0]]) if node.inputs and node.inputs[0] in shapes else None
        if value is not None:
            sources[node.outputs[0]] = value
            ready.add(node.outputs[0])
        elif _is_arithmetic(node, ready, shapes, dtypes) and not node.domain:
            chosen.append(node)
            ready.update(name for name in node.outputs if name)
    # integer weights behind no Shape node (token tables, say) are data unless they end in arithmetic of shapes
    if not chosen:
        return sources
    return sources | _run_arithmetic(model, chosen, constants, sources)


def _is_small(constant: Constant) -> bool:
    return constant.size <= (LIGHT_ELEMENTS if constant.proto.data_type in INTEGER_TYPES else 1)


def _is_arithmetic(node: Node, ready: set[str], shapes: Mapping[str, Shape], dtypes: Mapping[str, int]) -> bool:
    if node.captures or not node.inputs or not all(name in ready for name in node.inputs if name):
        return False
    if is_random(node) or any(hasattr(value, "node") for value in node.attrs.values()):
        return False
    if any(np.prod(shapes.get(name, ()), dtype=np.int64) > LIGHT_ELEMENTS for name in node.outputs):
        return False
    small = all(np.prod(shapes.get(name, ()), dtype=np.int64) <= 1 for name in node.outputs)
    return small or all(dtypes.get(name) in INTEGER_TYPES for name in node.outputs if name in dtypes)


def _run_arithmetic(
    model: onnx.ModelProto,
    chosen: Iterable[Node],
    constants: Mapping[str, Constant],
    sources: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, np.ndarray[Any, Any]]:
    protos = [model.graph.node[node.index] for node in chosen]
    outputs = [name for proto in protos for name in proto.output if name]
    used = {name for proto in protos for name in proto.input if name}
    tensors = [numpy_helper.from_array(value, name) for name, value in sources.items() if name in used]
    for name in sorted(used & constants.keys()):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(constants[name].proto)
        tensor.name = name
        tensors.append(tensor)
    made = helper.make_model(
        helper.make_graph(protos, "arithmetic", [], [helper.make_empty_tensor_value_info(n) for n in outputs], tensors),
        opset_imports=model.opset_import,
        ir_version=max(model.ir_version, 4),
    )
    try:
        values = _session(made).run(None, {})
    except Exception:  # an operator that ONNX Runtime lacks: nothing is known then, which is safe
        return {}
    return {name: np.asarray(value) for name, value in zip(outputs, values, strict=True)}


def _session(model: onnx.ModelProto, file: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if file is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        options.add_session_config_entry("session.disable_prepacking", "1")  # which copies every matrix
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _learn_by_running(
    model: onnx.ModelProto,
    inputs: Sequence[Port],
    entry: Mapping[str, Shape],
    shapes: dict[str, Shape],
    dtypes: dict[str, int],
    file: Path | None,
) -> tuple[str, ...]:
    """Adds the shapes and element types seen in one run with random inputs; the remark when the model cannot run."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [name for node in probe.graph.node for name in node.output if name and name not in shapes]
    present = {value.name for value in probe.graph.output}
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    rng = np.random.default_rng(0)
    try:
        session = _session(probe, file)
        feeds = {
            port.name: random_input(rng, entry[port.name], helper.tensor_dtype_to_np_dtype(port.dtype))
            for port in inputs
        }
        values = session.run(names, feeds)
    except Exception as error:  # whatever stops ONNX Runtime leaves these tensors without shapes: barriers, not a crash
        return (f"shapes of {len(names)} tensors are unknown, and a trial run failed: {_first_line(error)}",)
    for name, value in zip(names, values, strict=True):
        if isinstance(value, np.ndarray):
            shapes[name] = value.shape
            dtypes.setdefault(name, helper.np_dtype_to_tensor_dtype(value.dtype))
    return ()


def random_input(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Seeded inputs of a type: standard normal floats, zeros and ones otherwise (safe as indices, masks and flags)."""
    if np.issubdtype(dtype, np.floating) or dtype.name in ("bfloat16",):
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "OUS":
        return np.full(shape, "", dtype=object)
    return rng.integers(0, 2, shape).astype(dtype)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
