"""The oracle: zeroing equals removing.

The original model, with the consumer slices of a plan set to zero, must give the same outputs as the pruned model. This
file works from the plan alone (CONTRACTS section 2): it shares no code with coupling or pruning, so that a mistake
there cannot hide here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..ir.errors import InputError, PruneError, TargetError
from ..ir.external import Lazy, Weights
from ..ir.graph import Graph
from ..ir.ops.means import restricted
from ..ir.ops.quant import rounds_activations
from ..ir.write import write_files

Array = NDArray[Any]
Feeds = Mapping[str, Array]

TOLERANCE = {onnx.TensorProto.FLOAT16: 2e-2, onnx.TensorProto.BFLOAT16: 2e-1}
DEFAULT_TOLERANCE = 1e-4

ROUNDED_TOLERANCE = 3e-2
"""For models that round activations to 8 bits, of the original output's range, which the 255 steps were made for: sums
in another order tip a value over to the next step, and the zeroed original's outputs may span a few steps only."""

ROUNDING = 1e-6
"""An absolute difference that is not counted: sigmoids and softmaxes near 0 have it from rounding at 1."""


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The outcome of a check: the worst difference as a share of the output's range, output by output."""

    worst: float
    tolerance: float
    by_output: Mapping[str, float]
    samples: int

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return self.worst <= self.tolerance

    def require(self) -> None:
        """Raises PruneError when the check failed: such a model must not be written."""
        if not self.passed:
            raise PruneError(
                f"the pruned model differs from the zeroed original by {self.worst:.2g} of the output's range "
                f"(allowed {self.tolerance:.2g}); nothing was written: this is a defect, please report the model"
            )


def zeroed(original: onnx.ModelProto, plan: Mapping[str, Any]) -> onnx.ModelProto:
    """The original model with every consumer slice of the plan, and what makes the branches that went, set to zero.

    A plain layer that went is an Identity there.
    """
    return zeroed_apart(original, {}, plan)[0]


def zeroed_apart(
    original: onnx.ModelProto, weights: Weights, plan: Mapping[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Lazy]]:
    """The same for a skeleton and the weights of its placeholders (`ir.external`), which are zeroed when asked for."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    tensors, apart = _tensors(model), dict(weights)
    for entry in (*plan["groups"], *plan.get("branches", ())):
        for member in entry["members"]:
            if member["role"] != "consumer":
                continue
            tensor = tensors.get(member["tensor"])
            if tensor is None:
                raise InputError(f"the plan names tensor '{member['tensor']}', which the original does not have")
            if "node" in member:
                tensor = _own_copy(model, tensors, apart, member)
            point = _zero_point(tensors, apart, member)
            lazy = apart.get(tensor.name)
            if lazy is None:
                array = _with_zeros(numpy_helper.to_array(tensor), member, point)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            else:
                make = partial(_made_with_zeros, lazy, member, point)
                apart[tensor.name] = Lazy(lazy.shape, lazy.dtype, make)
    _restrict_means(model, plan)
    _pass_by(model, plan)
    return model, apart


def _pass_by(model: onnx.ModelProto, plan: Mapping[str, Any]) -> None:
    """Puts Identities in the place of the plain layers that went."""
    for entry in plan.get("branches", ()):
        if "layer" in entry:
            places = [place for place, node in enumerate(model.graph.node) if entry["output"] in node.output]
            if not places:
                raise InputError(f"the plan names tensor '{entry['output']}', which the original does not have")
            idle = helper.make_node("Identity", [entry["shortcut"]], [entry["output"]])
            model.graph.node[places[0]].CopyFrom(idle)


def _restrict_means(model: onnx.ModelProto, plan: Mapping[str, Any]) -> None:
    """Rewrites the nodes that the plan's `means` name, so that their means are over the channels that are kept."""
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for group in plan["groups"]:
        for entry in group.get("means", ()):
            entries.setdefault(entry["node"], []).append(entry)
    if not entries:
        return
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        own = entries.pop(node.name or (node.output[0] if node.output else ""), [])
        removed: dict[int, set[int]] = {}
        for entry in own:
            removed.setdefault(entry["axis"], set()).update(entry["removed"])
        gone = {axis: sorted(places) for axis, places in removed.items()}
        lengths = {entry["axis"]: entry["length"] for entry in own}
        made = restricted(node, gone, lengths, own[0]["over"], own[0]["type"], opset) if own else ([node], [])
        if made is None:
            raise InputError(f"the plan says that '{own[0]['node']}' takes a mean, which {node.op_type} does not")
        nodes += made[0]
        model.graph.initializer.extend(made[1])
    if entries:
        raise InputError(f"the plan names node '{next(iter(entries))}', which the original does not have")
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _made_with_zeros(lazy: Lazy, member: Mapping[str, Any], point: Array | None) -> Array:
    return _with_zeros(lazy.make(), member, point)


def _with_zeros(array: Array, member: Mapping[str, Any], point: Array | None) -> Array:
    """A copy of an array with a member's slices set to what stands for zero: 0, or its zero point."""
    array = array.copy()
    places = (slice(None),) * member["axis"] + (np.asarray(member["removed"], dtype=np.int64),)
    if point is None:
        array[places] = 0
        return array
    if point.ndim == 1 and point.size > 1:
        shape = [1] * array.ndim
        shape[member["zero"]["axis"]] = point.size
        point = point.reshape(shape)
    whole = np.broadcast_to(point.reshape(()) if point.size == 1 else point, array.shape).astype(array.dtype)
    array[places] = whole[places]
    return array


def _zero_point(tensors: Mapping[str, onnx.TensorProto], apart: Weights, member: Mapping[str, Any]) -> Array | None:
    """The number that stands for zero which the member's `zero` names, along its axis; None: it is 0."""
    if "zero" not in member:
        return None
    name = member["zero"]["tensor"]
    return apart[name].make() if name in apart else numpy_helper.to_array(tensors[name])


def _tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if not node.input and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _own_copy(
    model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto], apart: dict[str, Lazy], member: Mapping[str, Any]
) -> onnx.TensorProto:
    """A copy of a shared tensor for the one node that the member names (made once)."""
    name = f"{member['tensor']}@{member['node']}"
    if name not in tensors:
        copy = model.graph.initializer.add()
        copy.CopyFrom(tensors[member["tensor"]])
        copy.name = name
        tensors[name] = copy
        if member["tensor"] in apart:
            apart[name] = apart[member["tensor"]]
        for node in model.graph.node:
            if (node.name or (node.output[0] if node.output else "")) == member["node"]:
                node.input[:] = [name if read == member["tensor"] else read for read in node.input]
    return tensors[name]


def run_plain(model: onnx.ModelProto, feeds: Sequence[Feeds], *, optimize: bool) -> list[list[Array]]:
    """The outputs of a model on each of the feeds; TargetError when ONNX Runtime cannot run it."""
    return _run(lambda: model.SerializeToString(), feeds, optimize=optimize, prepack=True)


def _run(
    source: Callable[[], bytes | str], feeds: Sequence[Feeds], *, optimize: bool, prepack: bool
) -> list[list[Array]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = onnxruntime.InferenceSession(source(), options, providers=["CPUExecutionProvider"])
        return [session.run(None, dict(feed)) for feed in feeds]
    except Exception as error:
        said = " ".join(str(error).split())
        raise TargetError(f"ONNX Runtime cannot run the model: {said[:300]}") from error


def check(
    original: onnx.ModelProto,
    pruned: onnx.ModelProto,
    plan: Mapping[str, Any],
    feeds: Sequence[Feeds],
    *,
    optimize: bool = False,
) -> Equivalence:
    """Compares the zeroed original with the pruned model on the feeds.

    The tolerance is 1e-4 of the output's range (its largest magnitude in the zeroed original), more for 16-bit floats
    and for activations rounded to 8 bits.
    """
    expected = run_plain(zeroed(original, plan), feeds, optimize=optimize)
    found = run_plain(pruned, feeds, optimize=optimize)
    scales = run_plain(original, feeds, optimize=optimize) if rounds_activations(original) else expected
    return _compared(original, expected, found, scales)


def check_runs(graph: Graph, file: Path | None = None) -> None:
    """Raises TargetError when ONNX Runtime cannot run a graph's model once on random inputs; from its file if given."""
    feeds, file = random_feeds(graph, 1), file or graph.file
    if file is None:
        run_plain(graph.model, feeds, optimize=False)
    else:
        _run(lambda: str(file), feeds, optimize=False, prepack=False)


def check_files(
    original: onnx.ModelProto,
    weights: Weights,
    pruned: Path,
    plan: Mapping[str, Any],
    feeds: Sequence[Feeds],
    scratch: Path,
) -> Equivalence:
    """`check` for models that are too large to be held twice: a skeleton with its weights, and a file.

    The zeroed original is written to the folder `scratch`; ONNX Runtime maps the weights of one after the other from
    the disk, and makes no copies of its own of them.
    """
    model, apart = zeroed_apart(original, weights, plan)
    path = scratch / "zeroed.onnx"
    write_files(model, path, apart)
    expected = _run(lambda: str(path), feeds, optimize=False, prepack=False)
    found = _run(lambda: str(pruned), feeds, optimize=False, prepack=False)
    return _compared(original, expected, found, expected)


def _compared(
    original: onnx.ModelProto, expected: list[list[Array]], found: list[list[Array]], scales: list[list[Array]]
) -> Equivalence:
    """`scales` are outputs whose range is one with that of `expected` as the range of an output."""
    names = [value.name for value in original.graph.output]
    runs = list(zip(expected, found, scales, strict=True))
    by_output = {
        name: max(_difference(want[place], have[place], scale[place]) for want, have, scale in runs)
        for place, name in enumerate(names)
    }
    return Equivalence(max(by_output.values(), default=0.0), tolerance_of(original), by_output, len(expected))


def tolerance_of(model: onnx.ModelProto) -> float:
    """1e-4, or what the coarsest float type of the model's weights allows, or the rounding of its activations."""
    types = {tensor.data_type for tensor in _tensors(model).values()}
    allowed = [DEFAULT_TOLERANCE, *(value for dtype, value in TOLERANCE.items() if dtype in types)]
    return max([*allowed, ROUNDED_TOLERANCE] if rounds_activations(model) else allowed)


def _difference(want: Any, have: Any, scale: Any) -> float:
    if not isinstance(want, np.ndarray):
        return 0.0 if want == have else float("inf")
    if want.shape != have.shape:
        return float("inf")
    if want.size == 0:
        return 0.0
    if not np.issubdtype(want.dtype, np.floating):
        return 0.0 if np.array_equal(want, have) else float("inf")
    a, b = want.astype(np.float64), have.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    span = max(float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in (want, scale))
    apart = max(float(np.abs(a[finite] - b[finite]).max(initial=0.0)) - ROUNDING, 0.0)
    return apart / (span or 1.0)


def random_feeds(graph: Graph, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """Seeded random inputs of the graph's shapes and types."""
    from ..ir.shapes import random_input

    rng = np.random.default_rng(seed)
    return [
        {
            port.name: random_input(rng, graph.shapes[port.name], helper.tensor_dtype_to_np_dtype(port.dtype))
            for port in graph.inputs
        }
        for _ in range(count)
    ]
