"""Units measured alone, for targets that give no times per node.

A unit becomes a model of its own: its nodes, what they read as inputs of that model, constants with it. What is
measured contains the cost of a call and of bringing inputs into the layout that the provider likes; `fit.Calibration`
takes both out of the sum over a network (the two-parameter fit a * sum + b: the number of units, and so of calls, is
fixed for one network). Units of equal key are measured once.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from ..ir.errors import TargetError
from .structure import Ran, Shapes, Structure, Unit
from .target import Target
from .timing import Feeds, measure_many
from .trace import node_id, tensors_read

KIND = "isolated"
_MIN_RUNS, _MIN_SECONDS = 10, 0.01


def run_alone(
    target: Target, extractor: "Extractor", structure: Structure, keys: Sequence[str], known: dict[str, float]
) -> Ran:
    """What every unit of a variant takes alone; `known` holds microseconds by key, and takes up what is new.

    A unit that the target cannot run alone counts as nothing: its time is left to the calibration.
    """
    told = []
    for unit, key in zip(structure.units, keys, strict=True):
        if key not in known:
            known[key] = alone_us(target, extractor, unit)
        told.append((KIND, known[key]) if known[key] > 0 else ("", 0.0))
    return Ran(tuple(told), tuple(("", 0.0) for _ in structure.boundaries), 0.0)


def alone_us(target: Target, extractor: "Extractor", unit: Unit) -> float:
    """Microseconds of one run (0.0: it cannot run): the 10th percentile, since what disturbs only makes it longer."""
    try:
        model = extractor.model_of(unit)
        found = measure_many([model], target, [random_feeds(model)], min_runs=_MIN_RUNS, min_seconds=_MIN_SECONDS)
    except TargetError:
        return 0.0
    return found[0].p10_ms * 1e3


def random_feeds(model: onnx.ModelProto) -> Feeds:
    """Normal numbers for float inputs (denormals would be slow), zeros for all others (they may be indices)."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        told = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(told.elem_type))
        shape = tuple(d.dim_value for d in told.shape.dim)
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[value.name] = drawn.astype(dtype)
    return feeds


class Extractor:
    """Cuts units out of one model, whose tensors have these shapes (those in the file may be open)."""

    def __init__(self, model: onnx.ModelProto, shapes: Shapes) -> None:
        self._model, self._shapes = model, shapes
        graph = onnx.shape_inference.infer_shapes(model).graph
        self._types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        self._constants = {t.name: t for t in model.graph.initializer}
        self._producer = {t: node for node in model.graph.node for t in node.output if t}
        self._order = {node_id(node): i for i, node in enumerate(model.graph.node)}

    def model_of(self, unit: Unit) -> onnx.ModelProto:
        """A model of the unit alone; TargetError if a tensor at its border has no known type."""
        nodes, constants = self._inside(unit)
        graph = onnx.helper.make_graph(nodes, "unit", self._border(unit.inputs), self._border(unit.outputs), constants)
        made = onnx.helper.make_model(graph, opset_imports=self._model.opset_import)
        made.ir_version = self._model.ir_version
        made.functions.extend(self._model.functions)
        return made

    def _border(self, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        for name in names:
            if name not in self._shapes or not self._types.get(name):
                raise TargetError(f"tensor '{name}' has no known shape or type: the unit around it cannot run alone")
        return [onnx.helper.make_tensor_value_info(name, self._types[name], self._shapes[name]) for name in names]

    def _inside(self, unit: Unit) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes between the unit's inputs and outputs in order, and the initializers that they read."""
        found: dict[str, onnx.NodeProto] = {}
        constants: dict[str, onnx.TensorProto] = {}
        stack = list(unit.outputs)
        while stack:
            name = stack.pop()
            node = self._producer.get(name)
            if name in unit.inputs:
                continue
            if name in self._constants:
                constants[name] = self._constants[name]
            elif node is not None and node_id(node) not in found:
                found[node_id(node)] = node
                stack += [t for t in tensors_read(node) if t]
        return sorted(found.values(), key=lambda node: self._order[node_id(node)]), list(constants.values())
