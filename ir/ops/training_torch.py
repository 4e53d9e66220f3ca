"""The torch form of ONNX's own differentiation (domain ai.onnx.preview.training)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..graph import Graph, Port
from . import View
from .runtime import Lowered, Lowering, refuse

TRAINING = "ai.onnx.preview.training"


def lower_gradient(view: View, torch: Any) -> Lowered:
    """Gradient: the derivatives of tensor `y` by the tensors `xs`, at the values that the node's inputs give.

    `y` is computed anew from `xs` and `zs`: the inputs need not be the tensors of these names. Where gradients are
    recorded the result can be differentiated once more.
    """
    from ..lowering import build, held

    xs, zs = ([_text(name) for name in view.attr(key, ())] for key in ("xs", "zs"))
    graph = _between(view.graph, (*xs, *zs), _text(view.attr("y")))
    free = [port.name for port in view.graph.inputs if port.name not in (*xs, *zs)]
    if free and any(name in free for node in graph.nodes for name in node.inputs):
        raise refuse(view, f"y depends on inputs that are neither in xs nor in zs ({', '.join(free)})")
    program = build(graph, torch, embed=held(graph).keys())

    def run(*args: Any) -> Any:
        higher = torch.is_grad_enabled()
        with torch.enable_grad():
            at = [x if higher and x.requires_grad else x.detach().requires_grad_() for x in args[: len(xs)]]
            # a view of its own for each, so that one tensor given twice has two derivatives
            at = [x.view_as(x) for x in at]
            (y,) = program.run([*at, *args[len(xs) :]], {})
            found = torch.autograd.grad(
                y, at, torch.ones_like(y), create_graph=higher, allow_unused=True, materialize_grads=True
            )
        return found[0] if len(found) == 1 else found

    return run


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _between(graph: Graph, names: tuple[str, ...], y: str) -> Graph:
    """The part of a graph that leads from some tensors to one."""
    nodes, wanted = [], {y}
    for node in reversed(graph.nodes):
        if any(name in wanted and name not in names for name in node.outputs):
            nodes.append(node)
            wanted.update((*node.inputs, *node.captures))
    inputs = tuple(Port(name, (), graph.dtypes.get(name, 0)) for name in names)
    constants = {name: constant for name, constant in graph.constants.items() if name not in names}
    known = {name: value for name, value in graph.known.items() if name not in names}
    outputs = (Port(y, (), graph.dtypes.get(y, 0)),)
    return replace(graph, nodes=tuple(nodes[::-1]), constants=constants, inputs=inputs, outputs=outputs, known=known)


TRAINING_LOWER: dict[str, Lowering] = {"Gradient": lower_gradient}
