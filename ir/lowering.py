"""A graph as a program of torch functions.

1. What follows from sizes alone was computed when the graph was loaded (`Graph.known`); the program holds those values.
2. Sizes that depend on values (how many elements are not zero, a shape that is an input) are left to the run.
3. A tensor is dropped after its last reader, so that memory is what a hand-written module would need.
4. An operator without a lowering of its own that ONNX defines as a function of others runs as that function.
torch is passed in: importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from .errors import NetAdaptError, ShapeError, UnsupportedOp
from .graph import Graph, Node, Port, node_view


@dataclass(frozen=True, slots=True)
class Step:
    """One call: the node, its function, the tensors it reads (captures behind the inputs), makes, and lets go."""

    node: Node
    function: Callable[..., Any]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of a graph; `literals` are the values that it brings along, `constants` those that it must be given."""

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    literals: Mapping[str, Any]
    constants: frozenset[str]

    def run(self, inputs: Sequence[Any], given: Mapping[str, Any]) -> list[Any]:
        """The outputs for tensors of the inputs, in order, and the constants (and outer tensors) by name."""
        values = {**self.literals, **given, **dict(zip(self.inputs, inputs, strict=True))}
        for step in self.steps:
            made = step.function(*[values[name] if name else None for name in step.reads])
            if len(step.makes) == 1:
                values[step.makes[0]] = made[0] if isinstance(made, tuple) else made
            else:
                values.update(zip(step.makes, made, strict=False))
            for name in step.frees:
                del values[name]
        return [values[name] for name in self.outputs]


def build(graph: Graph, torch: Any, embed: Collection[str] = ()) -> Program:
    """The program of a graph; the constants named in `embed` become its own.

    Raises UnsupportedOp, with the first reasons, when torch has no form for some node.
    """
    problems = reasons(graph, torch)
    if problems:
        raise UnsupportedOp("; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
    from .ops.sizing import settled

    return _assemble(settled(graph), torch, embed)


def build_body(outer: Graph, body: onnx.GraphProto, torch: Any) -> Program:
    """The program of a body of If, Loop or Scan; it is given the outer tensors that it reads at each run."""
    graph = body_graph(outer, body)
    own = {tensor.name for tensor in body.initializer} | {name for node in graph.nodes for name in node.outputs}
    return build(graph, torch, embed=own)


def reasons(graph: Graph, torch: Any) -> list[str]:
    """Why a graph cannot be lowered: one sentence for each node (none when it can)."""
    from .ops.sizing import settled

    graph, found = settled(graph), []
    for node in _needed(graph):
        try:
            _function(graph, node, torch)
        except NetAdaptError as error:
            found.append(str(error))
    return found


def _assemble(graph: Graph, torch: Any, embed: Collection[str]) -> Program:
    from .ops.runtime import as_tensor

    nodes = _needed(graph)
    reads = [(*node.inputs, *node.captures) for node in nodes]
    outputs = tuple(port.name for port in graph.outputs)
    last = {name: place for place, names in enumerate(reads) for name in names if name}
    made = {name for node in nodes for name in node.outputs if name}
    steps = []
    for place, (node, names) in enumerate(zip(nodes, reads, strict=True)):
        gone = {name for name in names if last.get(name) == place and name in made and name not in outputs}
        unread = {name for name in node.outputs if name and name not in last and name not in outputs}
        makes = tuple(name or f"unnamed/{node.index}/{number}" for number, name in enumerate(node.outputs))
        frees = tuple(sorted(gone | unread))
        steps.append(Step(node, _function(graph, node, torch), names, makes, frees))
    used = {name for names in (*reads, outputs) for name in names}
    literals = {name: as_tensor(np.asarray(graph.known[name]), torch) for name in sorted(used & graph.known.keys())}
    constants = used & graph.constants.keys()
    for name in sorted(constants.intersection(embed)):
        literals[name] = as_tensor(graph.constants[name].array(), torch)
    inputs = tuple(port.name for port in graph.inputs)
    return Program(tuple(steps), inputs, outputs, literals, frozenset(constants.difference(embed)))


def _function(graph: Graph, node: Node, torch: Any) -> Callable[..., Any]:
    """The torch form of a node: its rule's, else that of the function that ONNX defines it as."""
    from .ops import View, lowering_of

    lower = lowering_of(graph, node)
    if lower is not None:
        view = View(graph, node)
        try:
            return lower(view, torch)
        except UnsupportedOp:
            raise
        except (ShapeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UnsupportedOp(f"node '{node.label}' ({node.op_type}) has no torch form: {error}") from error
    body = function_body(graph, node)
    if body is None:
        domain = f" of domain '{node.domain}'" if node.domain else ""
        version = graph.opsets.get(node.domain, 1)
        raise UnsupportedOp(f"node '{node.label}': operator {node.op_type}{domain}, opset {version}, has no torch form")
    program = build(body, torch, embed=body.constants.keys())

    def run(*args: Any) -> Any:
        padded = [*args, *[None] * (len(program.inputs) - len(args))]
        outputs = iter(program.run(padded, {}))
        made = tuple(next(outputs) if name else None for name in node.outputs)
        return made[0] if len(made) == 1 else made

    return run


def _needed(graph: Graph) -> list[Node]:
    """The nodes that the outputs depend on and whose results are not known, in order."""
    wanted = {port.name for port in graph.outputs} - graph.known.keys()
    found = []
    for node in reversed(graph.nodes):
        if any(name in wanted and name not in graph.constants for name in node.outputs):
            found.append(node)
            wanted.update(name for name in (*node.inputs, *node.captures) if name not in graph.known)
    return found[::-1]


def body_graph(outer: Graph, body: onnx.GraphProto, opsets: Mapping[str, int] | None = None) -> Graph:
    """The graph of a body of If, Loop or Scan (or of a function): nothing is known of its shapes before it runs."""
    from .load import _constants, _port

    model = onnx.ModelProto()
    model.graph.CopyFrom(body)
    nodes = tuple(node_view(index, proto) for index, proto in enumerate(body.node))
    constants = _constants(model.graph, nodes)
    own = {name for node in nodes for name in node.outputs} | {value.name for value in body.input}
    seen = {name: constant for name, constant in outer.constants.items() if name not in own} if opsets is None else {}
    inputs = tuple(_port(value) for value in body.input if value.name not in constants)
    outputs = tuple(Port(value.name, (), 0) for value in body.output)
    known = {} if opsets is not None else {name: v for name, v in outer.known.items() if name not in own}
    return Graph(model, nodes, {**seen, **constants}, inputs, outputs, {}, {}, known, opsets or outer.opsets)


def bare_graph(model: onnx.ModelProto) -> Graph:
    """The graph of a model without inference: its program reads all sizes from the tensors that it is given."""
    from .load import _constants, _port

    nodes = tuple(node_view(index, proto) for index, proto in enumerate(model.graph.node))
    constants = _constants(model.graph, nodes)
    inputs = tuple(_port(value) for value in model.graph.input if value.name not in constants)
    outputs = tuple(_port(value) for value in model.graph.output)
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    dtypes = {value.name: value.type.tensor_type.elem_type for value in values}
    dtypes |= {name: int(constant.proto.data_type) for name, constant in constants.items()}
    opsets = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import}
    return Graph(model, nodes, constants, inputs, outputs, {}, dtypes, {}, opsets)


def function_body(graph: Graph, node: Node) -> Graph | None:
    """The graph of the function that ONNX defines an operator as; None when it defines none."""
    version = graph.opsets.get(node.domain, 1)
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None
    proto = graph.model.graph.node[node.index]
    function = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        types = [_type_proto(graph, name).SerializeToString() for name in node.inputs]
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        text = schema.get_context_dependent_function_with_opset_version(
            max(versions, default=version), proto.SerializeToString(), types
        )
        function.ParseFromString(text)
    elif schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= version]
        function.ParseFromString(schema.get_function_with_opset_version(max(versions, default=version)))
    if not function.node:
        return None
    return _function_graph(graph, node, function, schema)


def _type_proto(graph: Graph, name: str) -> onnx.TypeProto:
    found = onnx.TypeProto()
    if not name:
        return found
    tensor = found.tensor_type
    tensor.elem_type = graph.dtypes.get(name, 1)
    if name in graph.shapes:
        tensor.shape.SetInParent()
        tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in graph.shapes[name])
    return found


def _function_graph(graph: Graph, node: Node, function: onnx.FunctionProto, schema: Any) -> Graph:
    body = onnx.GraphProto(name=node.op_type)
    given = {attribute.name: attribute for attribute in graph.model.graph.node[node.index].attribute}
    defaults = {
        name: attribute.default_value for name, attribute in schema.attributes.items() if attribute.default_value.name
    }
    for inner in function.node:
        copy = body.node.add()
        copy.CopyFrom(inner)
        del copy.attribute[:]
        for attribute in inner.attribute:
            source = given.get(attribute.ref_attr_name) or defaults.get(attribute.ref_attr_name)
            if not attribute.ref_attr_name:
                copy.attribute.append(attribute)
            elif source is not None:
                copy.attribute.append(source)
                copy.attribute[-1].name = attribute.name
    body.input.extend(onnx.helper.make_empty_tensor_value_info(name) for name in function.input)
    wanted = [name for name, outer in zip(function.output, node.outputs, strict=False) if outer]
    body.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    opsets = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in function.opset_import}
    return body_graph(graph, body, {**graph.opsets, **opsets})
