"""Cutting: the part of a model that computes some of its tensors, as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper


def cut(model: onnx.ModelProto, outputs: Sequence[str], inputs: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """The model that computes the tensors `outputs`, with nothing in it that they do not need.

    `inputs` names inner tensors that are fed from outside, with their ONNX element types; the model's own inputs
    remain where they are still needed. Shapes are left open. KeyError when there is no tensor of a name.
    """
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(model)
    tensors = graph.tensors()
    fed = {
        name: _feed(tensors[name], np.dtype(helper.tensor_dtype_to_np_dtype(t))) for name, t in (inputs or {}).items()
    }
    graph.inputs = [*(tensor for tensor in graph.inputs if tensor.name not in fed), *fed.values()]
    graph.outputs = [tensors[name] for name in outputs]
    graph.cleanup(remove_unused_graph_inputs=True)
    found: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return found


def _feed(tensor: Any, dtype: np.dtype[Any]) -> Any:
    """A new tensor in the place of an old one for all that read it; what makes the old one may still be needed."""
    import onnx_graphsurgeon as gs

    new = gs.Variable(tensor.name, dtype=dtype)
    for user in list(tensor.outputs):
        user.inputs = [new if read is tensor else read for read in user.inputs]
    tensor.name = f"{tensor.name}/cut off"
    return new
