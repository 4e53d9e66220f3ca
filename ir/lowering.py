"""A graph as a program of torch functions.

1. What follows from sizes alone was computed when the graph was loaded (`Graph.known`); the program holds those values.
2. Sizes that depend on values (how many elements are not zero, a shape that is an input) are left to the run.
3. A tensor is dropped after its last reader, so that memory is what a hand-written module would need.
4. An operator without a lowering of its own that ONNX defines as a function of others runs as that function.
torch is passed in: importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

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


def build(graph: Graph, torch: Any) -> Program:
    """The program of a graph; UnsupportedOp when torch has no form for some node."""
    problems = list(reasons(graph, torch))
    if problems:
        raise UnsupportedOp("; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
    return _assemble(graph, torch)


def reasons(graph: Graph, torch: Any) -> Iterator[str]:
    """Why a graph cannot be lowered: one sentence for each node (none when it can)."""
    for node in _needed(graph, _fixed(graph)):
        try:
            _function(graph, node, torch)
        except NetAdaptError as error:
            yield str(error)


def _assemble(graph: Graph, torch: Any) -> Program:
    from .ops.runtime import as_tensor

    fixed = _fixed(graph)
    nodes = _needed(graph, fixed)
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
    literals = {name: as_tensor(np.asarray(fixed[name]), torch) for name in sorted(used & fixed.keys())}
    return Program(
        tuple(steps), tuple(port.name for port in graph.inputs), outputs, literals, frozenset(used & graph.constants.keys())
    )


def _function(graph: Graph, node: Node, torch: Any) -> Callable[..., Any]:
    """The torch form of a node: its rule's, else that of the function that ONNX defines it as."""
    from .ops import View, lowering_of

    lower = lowering_of(graph, node)
    if lower is not None:
        view = View(_honest(graph), node)
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
    program = build(body, torch)

    def run(*args: Any) -> Any:
        padded = [*args, *[None] * (len(program.inputs) - len(args))]
        outputs = program.run(padded, {})
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def _honest(graph: Graph) -> Graph:
    """The graph without values that rest on sizes which depend on values."""
    fixed = _fixed(graph)
    if len(fixed) == len(graph.known):
        return graph
    return Graph(
        graph.model, graph.nodes, graph.constants, graph.inputs, graph.outputs, graph.shapes, graph.dtypes, fixed,
        graph.opsets, graph.notes,
    )  # fmt: skip


def _fixed(graph: Graph) -> Mapping[str, NDArray[Any]]:
    """Known values that hold whatever the inputs' values are (rule 2)."""
    from .ops import sizes_depend_on_values

    if not graph.known:
        return graph.known
    open_sizes: set[str] = set()
    loose: set[str] = set()
    for node in graph.nodes:
        if any(name in loose for name in node.inputs) or (
            node.op_type in ("Shape", "Size") and node.inputs[0] in open_sizes
        ):
            loose.update(name for name in node.outputs if name in graph.known)
        known = graph.known.keys() - loose
        if any(name in open_sizes for name in node.inputs) or sizes_depend_on_values(graph, node, known):
            open_sizes.update(node.outputs)
    return {name: value for name, value in graph.known.items() if name not in loose}


def _needed(graph: Graph, fixed: Mapping[str, Any]) -> list[Node]:
    """The nodes that the outputs depend on and whose results are not known, in order."""
    wanted = {port.name for port in graph.outputs} - fixed.keys()
    found = []
    for node in reversed(graph.nodes):
        made = [name for name in node.outputs if name in wanted and name not in graph.constants]
        if made:
            found.append(node)
            wanted.update(name for name in (*node.inputs, *node.captures) if name not in fixed)
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


def function_body(graph: Graph, node: Node) -> Graph | None:
    """The graph of the function that ONNX defines an operator as; None when it defines none."""
    version = graph.opsets.get(node.domain, 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
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
    for size in graph.shapes.get(name, ()):
        tensor.shape.dim.add().dim_value = size
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
    body.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in function.output[: len(node.outputs)]
    )
    opsets = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in function.opset_import}
    return body_graph(graph, body, opsets or dict(graph.opsets))
