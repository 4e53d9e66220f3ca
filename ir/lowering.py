"""A graph as a program of torch functions.

1. What follows from sizes alone was computed when the graph was loaded (`Graph.known`); the program holds those values.
2. Sizes that depend on values (how many elements are not zero, a shape that is an input) are left to the run.
3. A tensor is dropped after its last reader, so that memory is what a hand-written module would need.
4. An operator without a lowering of its own that ONNX defines as a function of others runs as that function.
5. What exporters spell out though torch has a function for it runs as that function (`ops.fused_torch`).
6. Weights that stand in a body of If, Loop or Scan are given from outside like all others, by their path (`held`).
torch is passed in: importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from .errors import NetAdaptError, ShapeError, UnsupportedOp
from .graph import Constant, Graph, Node, Port


@dataclass(frozen=True, slots=True)
class Step:
    """One call: the node, its function, the tensors it reads, makes, and lets go.

    It reads its inputs, then what its bodies capture, then the weights that stand in its bodies.
    """

    node: Node
    function: Callable[..., Any]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of a graph; `literals` are the values that it brings along, `constants` those that it must be given.

    `moved` are the literals on other devices than the CPU, where they were asked for.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    literals: Mapping[str, Any]
    constants: frozenset[str]
    moved: dict[Any, Mapping[str, Any]] = field(default_factory=dict)

    def run(self, inputs: Sequence[Any], given: Mapping[str, Any]) -> list[Any]:
        """The outputs for tensors of the inputs, in order, and the constants (and outer tensors) by name."""
        literals = self._literals_beside((*inputs, *given.values()))
        values = {**literals, **given, **dict(zip(self.inputs, inputs, strict=True))}
        for step in self.steps:
            made = step.function(*[values[name] if name else None for name in step.reads])
            if len(step.makes) == 1:
                values[step.makes[0]] = made[0] if isinstance(made, tuple) else made
            else:
                values.update(zip(step.makes, made, strict=False))
            for name in step.frees:
                del values[name]
        return [values[name] for name in self.outputs]

    def _literals_beside(self, tensors: Sequence[Any]) -> Mapping[str, Any]:
        """The literals on the device of these tensors (tensors on the CPU may stand beside others: they hold sizes)."""
        devices = (getattr(tensor, "device", None) for tensor in tensors)
        device = next((each for each in devices if getattr(each, "type", "cpu") != "cpu"), None)
        if device is None or not self.literals:
            return self.literals
        if device not in self.moved:
            values = self.literals.items()
            self.moved[device] = {name: value.to(device) if hasattr(value, "to") else value for name, value in values}
        return self.moved[device]


def build(graph: Graph, torch: Any, embed: Collection[str] = ()) -> Program:
    """The program of a graph; the constants named in `embed` become its own.

    Raises UnsupportedOp, with the first reasons, when torch has no form for some node.
    """
    problems = reasons(graph, torch)
    if problems:
        raise UnsupportedOp("; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
    from .ops.sizing import settled

    return _assemble(settled(graph), torch, embed)


@dataclass(frozen=True, slots=True)
class Body:
    """The program of a body of If, Loop or Scan; `path` begins the names of the weights that stand in it."""

    program: Program
    path: str

    def run(self, inputs: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]:
        """The outputs, from the inputs and all outer tensors that the body reads; its own weights are among these."""
        own = {name.removeprefix(self.path): value for name, value in outer.items() if name.startswith(self.path)}
        return self.program.run(inputs, {**outer, **own})


def build_body(outer: Graph, node: Node, name: str, torch: Any) -> Body:
    """The body in attribute `name` of a node."""
    proto = node.attrs[name]
    graph = body_graph(outer, proto)
    own = {tensor.name for tensor in proto.initializer} | {made for inner in graph.nodes for made in inner.outputs}
    embed = own - {tensor_name for tensor_name, _ in weights_of(proto)}
    return Body(build(graph, torch, embed), body_path(node.index, name))


def held(graph: Graph) -> dict[str, Constant]:
    """The graph's constants by name, and the weights that stand in bodies of its nodes by path."""
    inner = {path: Constant(name, tensor, None) for path, name, tensor in body_weights(graph.model.graph.node)}
    return {**inner, **graph.constants}


def body_weights(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str, onnx.TensorProto]]:
    """The weights in bodies of some nodes: path (the node's place, its attribute, the way on inside), name, tensor."""
    for index, node in enumerate(nodes):
        for attribute in node.attribute:
            if attribute.type != onnx.AttributeProto.GRAPH:
                continue
            path = body_path(index, attribute.name)
            yield from ((path + name, name, tensor) for name, tensor in weights_of(attribute.g))
            yield from ((path + inner, name, tensor) for inner, name, tensor in body_weights(attribute.g.node))


def body_path(index: int, attribute: str) -> str:
    """How the paths of the weights in a node's body begin."""
    return f"{index}:{attribute}:"


def weights_of(body: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Floating-point tensors of more than one element that a body brings along."""
    tensors = [(tensor.name, tensor) for tensor in body.initializer]
    for node in body.node:
        tensors += [
            (node.output[0], attribute.t)
            for attribute in node.attribute
            if not node.input and attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR
        ]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return ((name, t) for name, t in tensors if t.data_type in floats and np.prod(t.dims, dtype=np.int64) > 1)


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


@dataclass(frozen=True, slots=True)
class _Call:
    """What becomes a step: a node (the last of several that run as one), its function, and what that reads."""

    node: Node
    function: Callable[..., Any]
    reads: tuple[str, ...]


def _calls(graph: Graph, torch: Any) -> list[_Call]:
    from .ops.fused_torch import fusions

    nodes = _needed(graph)
    fused = fusions(graph, nodes, torch)
    gone = {index for one in fused.values() for index in one.nodes}
    found = []
    for node in nodes:
        if node.index in fused:
            found.append(_Call(node, fused[node.index].function, fused[node.index].reads))
        elif node.index not in gone:
            reads = (*node.inputs, *node.captures, *inner_weights(graph, node))
            found.append(_Call(node, _function(graph, node, torch), reads))
    return found


def _assemble(graph: Graph, torch: Any, embed: Collection[str]) -> Program:
    from .ops.runtime import as_tensor

    calls, constants = _calls(graph, torch), held(graph)
    outputs = tuple(port.name for port in graph.outputs)
    last = {name: place for place, call in enumerate(calls) for name in call.reads if name}
    made = {name for call in calls for name in call.node.outputs if name}
    steps = []
    for place, call in enumerate(calls):
        gone = {name for name in call.reads if last.get(name) == place and name in made and name not in outputs}
        unread = {name for name in call.node.outputs if name and name not in last and name not in outputs}
        makes = tuple(name or f"unnamed/{call.node.index}/{number}" for number, name in enumerate(call.node.outputs))
        steps.append(Step(call.node, call.function, call.reads, makes, tuple(sorted(gone | unread))))
    used = {name for call in calls for name in call.reads} | set(outputs)
    literals = {name: as_tensor(np.asarray(graph.known[name]), torch) for name in sorted(used & graph.known.keys())}
    read = used & constants.keys()
    for name in sorted(read.intersection(embed)):
        literals[name] = as_tensor(constants[name].array(), torch)
    inputs = tuple(port.name for port in graph.inputs)
    return Program(tuple(steps), inputs, outputs, literals, frozenset(read.difference(embed)))


def inner_weights(graph: Graph, node: Node) -> tuple[str, ...]:
    """The paths of the weights that stand in bodies of a node."""
    if not any(isinstance(value, onnx.GraphProto) for value in node.attrs.values()):
        return ()
    start = f"{node.index}:"
    return tuple(path for path, _, _ in body_weights(graph.model.graph.node) if path.startswith(start))


def _function(graph: Graph, node: Node, torch: Any) -> Callable[..., Any]:
    """The torch form of a node: its rule's, else that of the function that ONNX defines it as."""
    from .ops import View
    from .ops.torch_only import lowering_of

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
    program = build(body, torch, embed=held(body).keys())

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
    from .load import _port, parts

    model = onnx.ModelProto()
    model.graph.CopyFrom(body)
    nodes, constants = parts(model)
    own = {name for node in nodes for name in node.outputs} | {value.name for value in body.input}
    seen = {name: constant for name, constant in outer.constants.items() if name not in own} if opsets is None else {}
    inputs = tuple(_port(value) for value in body.input if value.name not in constants)
    outputs = tuple(Port(value.name, (), 0) for value in body.output)
    known = {} if opsets is not None else {name: v for name, v in outer.known.items() if name not in own}
    return Graph(model, nodes, {**seen, **constants}, inputs, outputs, {}, {}, known, opsets or outer.opsets)


def bare_graph(model: onnx.ModelProto) -> Graph:
    """The graph of a model without inference: its program reads all sizes from the tensors that it is given."""
    from .load import _port, parts

    nodes, constants = parts(model)
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
