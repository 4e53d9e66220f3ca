"""One operator by itself, in ONNX Runtime and in torch, for the tests of lowerings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.to_torch import to_torch

Array = np.ndarray


def node_model(
    op: str,
    inputs: Sequence[Array | None],
    *,
    constants: Mapping[int, Array] = {},
    outputs: int = 1,
    opset: int = 17,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node; the inputs at the places in `constants` are initializers, absent ones None."""
    places = range(max([len(inputs), *[place + 1 for place in constants]]))
    given = {place: array for place, array in enumerate(inputs) if array is not None}
    names = [f"x{place}" if place in given or place in constants else "" for place in places]
    made = [f"y{number}" for number in range(outputs)]
    values = [
        helper.make_tensor_value_info(f"x{place}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for place, array in given.items()
    ]
    tensors = [numpy_helper.from_array(array, f"x{place}") for place, array in constants.items()]
    graph = helper.make_graph(
        [helper.make_node(op, names, made, **attrs)],
        "single",
        values,
        [helper.make_empty_tensor_value_info(name) for name in made],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def both(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> tuple[list[Array], list[Array]]:
    """The outputs of ONNX Runtime and of the torch form."""
    import torch

    names = [value.name for value in model.graph.input]
    feeds = dict(zip(names, [array for array in inputs if array is not None], strict=True))
    wanted = run_plain(model, [feeds], optimize=False)[0]
    with torch.no_grad():
        found = to_torch(load(model))({name: torch.from_numpy(array) for name, array in feeds.items()})
    found = found if isinstance(found, tuple) else (found,)
    return wanted, [value.numpy() for value in found]


def assert_alike(model: onnx.ModelProto, inputs: Sequence[Array | None], rtol: float = 1e-5) -> None:
    """Both give the same shapes and, to a share of the range, the same numbers."""
    for want, have in zip(*both(model, inputs), strict=True):
        assert have.shape == want.shape
        span = float(np.abs(want).max(initial=0)) or 1.0
        assert np.abs(want.astype(np.float64) - have).max(initial=0) <= rtol * span
