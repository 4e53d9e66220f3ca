"""One profiled session: the graph that ONNX Runtime executes, and the time of each of its nodes, in place.

1. Every node of the model's copy is named after its first output tensor: names survive optimization or turn into
   names that start with them, and tensor names are unique in a graph.
2. The optimized graph is saved by the profiled session itself, so that both speak of the same nodes. A second session
   stops after fusion, before layouts change: there tensors still have their original names.
3. Durations are whole microseconds of wall time, inflated by about 2 us per node. The first runs are dropped; the
   statistic is the mean of the lower half: a mean because integers quantise, the lower half because a preempted run
   adds milliseconds to one node. On a machine so busy that most runs are preempted, twice the runs and the shortest
   few of them.
   Runs are counted so that short networks give many samples and long ones do not take minutes.
4. Nodes inside subgraphs are part of the time of the node that holds them.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..ir.errors import ProfileError, TargetError
from .pace import Processors, Watch
from .target import Target
from .timing import Clocks, Feeds, Reference, clock_of, settled

_SUFFIX = "_kernel_time"
_INNER = "inner:"
_PROFILE_SECONDS = 0.4
_SHARE, _DISTURBED_SHARE = 0.5, 0.15  # of the runs, the shortest, whose mean is taken
_WAITING = 1.15  # wall time over CPU time from which runs count as disturbed
_BETWEEN = 16  # counted runs between two visits of the reference
_PROFILE_EVENTS = 10_000  # each is some 700 bytes of JSON


@dataclass(frozen=True, slots=True)
class NodeTime:
    """The time of one executed node: lower-half mean in microseconds, and the element types of its outputs."""

    us: float
    runs: int
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What was executed: the fused graph, the final graph (None: the provider compiles it), times by node name.

    `inside`: the share of the shortest run that was spent in nodes; `reference_us`: the reference's time beside them.
    """

    original: onnx.GraphProto
    fused: onnx.GraphProto | None
    final: onnx.GraphProto | None
    times: Mapping[str, NodeTime]
    inside: float = float("nan")
    reference_us: float = float("nan")


def trace(
    model: onnx.ModelProto,
    target: Target,
    feeds: Feeds,
    *,
    runs: int | None = None,
    warm_up: int = 4,
    reference: Reference | None = None,
) -> Trace:
    """The Trace of `model` over `runs` counted runs (None: as many as its length asks for, rule 3).

    A `reference` is run between them, at its pace where that can be had, and tells how fast the machine was meanwhile.
    Raises TargetError if the target cannot run the model.
    """
    named = named_copy(model)
    with tempfile.TemporaryDirectory(prefix="netadapt-") as folder:
        final_path, prefix = str(Path(folder, "final.onnx")), str(Path(folder, "profile"))
        final = _saves_graph(named, target, final_path)
        session = target.session(named, profile_prefix=prefix, optimized_path=final_path if final else None)
        try:
            start = time.perf_counter()
            for _ in range(warm_up):
                session.run(None, dict(feeds))
            seconds = (time.perf_counter() - start) / max(warm_up, 1)
            count = _runs(seconds, len(named.graph.node)) if runs is None else runs
            beside = _beside(reference, target) if reference else None
            with beside.watch if beside else nullcontext():
                disturbed = _run_counted(session, feeds, count, beside) and target.on_caller
                if disturbed:
                    _run_counted(session, feeds, count, beside)
        except Exception as error:  # onnxruntime has no common error class
            raise TargetError(f"{target} cannot run the model: {str(error).splitlines()[0]}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        final_graph = onnx.load(final_path, load_external_data=False).graph if final else None
    share = _DISTURBED_SHARE if disturbed else _SHARE
    times = node_times(events, warm_up, share)
    reference_us = lower_mean(beside.times, share) / 1e3 if beside else float("nan")
    return Trace(named.graph, final, final_graph, times, share_inside(events), reference_us)


@dataclass(slots=True)
class Beside:
    """Runs of a reference between those that count, in nanoseconds on a clock, at the reference's pace."""

    run: Callable[[], object]
    clock: str
    watch: Watch
    times: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        """One burst that keeps the pace; its first run finds the other network's data in the caches and is left out."""
        self.times += settled(self.run, 1, self.clock, self.watch, Clocks()).on(self.clock)


def _beside(reference: Reference, target: Target) -> Beside:
    return Beside(reference.run, clock_of(target), Watch(reference.pace, Processors.of(target)))


def _run_counted(session: Any, feeds: Feeds, count: int, beside: Beside | None) -> bool:
    """Runs `count` times; whether the calling thread waited much of that time, as it does on a busy machine."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for i in range(count):
        if beside is not None and i % _BETWEEN == 0:
            beside()
        session.run(None, dict(feeds))
    return time.perf_counter() - wall > _WAITING * (time.thread_time() - cpu)


def _runs(seconds: float, nodes: int) -> int:
    """Counted runs for a network that takes `seconds`: within a time, and within what a profile can hold."""
    return int(np.clip(_PROFILE_SECONDS / max(seconds, 1e-6), 8, min(100, max(8, _PROFILE_EVENTS // max(nodes, 1)))))


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every node is named after its first output (rule 1)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = node_id(node)
        _name_inner(node)
    return copy


def node_id(node: onnx.NodeProto) -> str:
    """The name of the node's first output that has one: what identifies a node in this package."""
    return next((name for name in node.output if name), node.name)


def tensors_read(node: onnx.NodeProto) -> list[str]:
    """All tensors that a node reads, those read from inside its subgraphs included ("": an input left out)."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names += [t for inner in graph.node for t in tensors_read(inner)]
    return names


def _name_inner(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                inner.name = _INNER + node_id(inner)
                _name_inner(inner)


def _saves_graph(model: onnx.ModelProto, target: Target, path: str) -> onnx.GraphProto | None:
    """The graph after fusion and before layout changes, or None if the provider compiles it and cannot save it."""
    try:
        target.session(model, optimized_path=path, fusions_only=True)
    except TargetError as error:
        if "compiled" in str(error).lower():
            return None
        raise
    return onnx.load(path, load_external_data=False).graph


def node_times(events: Iterable[Mapping[str, Any]], warm_up: int, share: float = _SHARE) -> dict[str, NodeTime]:
    """The NodeTime of every node of the outer graph in a list of ONNX Runtime profile events (rules 3 and 4)."""
    durations: dict[str, list[int]] = defaultdict(list)
    types: dict[str, tuple[str, ...]] = {}
    for event in events:
        if not _is_node(event):
            continue
        key = event["name"][: -len(_SUFFIX)]
        durations[key].append(event["dur"])
        types.setdefault(key, _types(event.get("args", {})))
    if not durations:
        raise ProfileError("the profile has no node events: this provider gives no per-node times")
    return {k: NodeTime(lower_mean(d[warm_up:] or d, share), len(d) - warm_up, types[k]) for k, d in durations.items()}


def share_inside(events: Iterable[Mapping[str, Any]]) -> float:
    """The share of the shortest run that was spent in nodes: the run in which the processor was taken away least."""
    told = list(events)
    runs = [event for event in told if event["name"] == "model_run" and event["dur"]]
    if not runs:
        return float("nan")
    shortest = min(runs, key=lambda run: run["dur"])
    start, end = shortest["ts"], shortest["ts"] + shortest["dur"]
    inside = sum(event["dur"] for event in told if _is_node(event) and start <= event["ts"] <= end)
    return float(inside / shortest["dur"])


def _is_node(event: Mapping[str, Any]) -> bool:
    """Whether an event is the time of a node of the outer graph (rule 4)."""
    name = event["name"]
    return event.get("cat") == "Node" and name.endswith(_SUFFIX) and not name.startswith(_INNER)


def lower_mean(durations: Sequence[float], share: float = _SHARE) -> float:
    """The mean of the smaller part (a share of their number, rounded up) of the durations."""
    return float(np.sort(durations)[: max(1, int(np.ceil(len(durations) * share)))].mean())


def _types(args: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(next(iter(shape), "") for shape in args.get("output_type_shape", ()))
