"""A run of the main job: everything that can be wrong with its input is found here, before any long work."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import onnx
from onnx_netadapt.budgets import Budget, parse_budgets
from onnx_netadapt.data import load_data
from onnx_netadapt.energy import meter_of
from onnx_netadapt.evaluate import Evaluator, Runner, batch_size, fixed_feeds
from onnx_netadapt.hooks import hooks_of
from onnx_netadapt.inputs import Data, Feeds, Indices
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.external import byte_size
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.ir.load import Source, load
from onnx_netadapt.ir.write import PROTOBUF_LIMIT
from onnx_netadapt.metrics import Outputs, metric_of
from onnx_netadapt.options import Options
from onnx_netadapt.passes.finetune import FinetuneSettings
from onnx_netadapt.passes.rescale import Goal
from onnx_netadapt.passes.rows import Batches
from onnx_netadapt.passes.search import load_search
from onnx_netadapt.passes.teacher import Teacher
from onnx_netadapt.profiler import SLOW, Latency, Reference, Target, measure_reference, runner
from onnx_netadapt.profiler.energy import Meter
from onnx_netadapt.progress import Progress
from onnx_netadapt.splits import MOST_REPORT, split

START_SECONDS = 0.5
"""Seconds that the original is measured on each processor that is tried."""


@dataclass(slots=True)
class Shared:
    """What is worked out once for all budgets, at the original's own input size: its `logits` on the first calibration
    examples, for whoever rescales those of a network, and the `judge` of finished models.
    """

    logits: Goal | None = None
    judge: Evaluator | None = None


@dataclass(slots=True)
class Run:
    """What a run has worked out so far; `outputs` are the original's for `feeds`.

    `reference` runs the original at its own input size, which everything is measured against; `start` is its latency.
    `original` is the run at the model's own input size where this one is at another (`stages`); `depth` is whether
    branches and layers may go whole.
    """

    options: Options
    progress: Progress
    graph: Graph
    target: Target
    budgets: Mapping[str, Budget]
    feeds: Feeds
    outputs: Outputs
    data: Data
    reference: Reference
    start: Latency
    calibration: Indices
    selection: Indices
    report: Indices
    report_data: Data
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    meter: Meter | None = None
    original: "Run | None" = None
    depth: bool = False
    shared: Shared = field(default_factory=Shared)

    @property
    def whole(self) -> "Run":
        """The run at the model's own input size."""
        return self.original or self

    def look_at_start_again(self, table_ms: float = float("inf")) -> None:
        """Measures the start anew where the original is known to be faster, by comparisons since or by a table.

        It was disturbed then, networks would be told as multiples of that, and a budget in milliseconds would not be
        used.
        """
        ms = self.start.median_ms
        if self.reference.pace.slower(ms * 1e6) or ms > SLOW * table_ms:
            again = measure_reference(self.reference, self.target, min_seconds=START_SECONDS)
            self.start = min(self.start, again, key=lambda found: found.median_ms)
            self.progress.say(f"  the original once more: {self.start}")

    @property
    def goal(self) -> Goal:
        """The original's logits at its own input size, worked out once."""
        whole = self.whole
        whole.shared.logits = whole.shared.logits or Goal(Teacher(whole.graph, whole.batches))
        return whole.shared.logits

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall seconds of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def batches(self) -> Iterator[Feeds]:
        """The calibration inputs, batch by batch."""
        for feeds, _, _ in fixed_feeds(self.data, self.calibration, self.graph):
            yield feeds


def first_examples(run: Run, count: int) -> Batches:
    """The batches that have the first so many calibration examples of a run."""
    return lambda: islice(run.batches(), -(-count // batch_size(run.graph)))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps numpy's matrix products to one thread: beside ONNX Runtime's spinning threads more of them are slower."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def prepare(
    source: Source, options: Options, progress: Progress, *, budgets: Mapping[str, Budget] | None = None
) -> Run:
    """Everything that can be wrong with the input is found here, before any long work.

    `budgets` stand in for those of the options, for a job that has none.
    """
    began = time.perf_counter()
    budgets = parse_budgets(options.budgets) if budgets is None else budgets
    target = Target.parse(options.target)
    meter = meter_of(target, options.meter) if "energy" in budgets else None
    load_search(options.search)
    FinetuneSettings.parse(options.finetune or "none")
    hooks_of(options)
    metric = metric_of(options.metric) if options.metric else None
    graph = load(source, shapes=options.shapes)
    _check_size(graph)
    _check_weights(graph)
    inputs = {port.name: (port.dims, onnx.helper.tensor_dtype_to_np_dtype(port.dtype)) for port in graph.inputs}
    if options.data is None:
        inputs = {name: (graph.shapes[name], dtype) for name, (_, dtype) in inputs.items()}
    target.session(graph.model)
    data = load_data(options.data, inputs, options.preprocess, options.seed)
    graph = _at_data_shape(source, options, graph, data)
    splits = split(data, options.seed, reporting_apart=options.report_data is not None)
    report_data, report = data, splits.report
    if options.report_data is not None:
        report_data = load_data(options.report_data, inputs, options.preprocess, options.seed)
        report = np.arange(min(report_data.n, MOST_REPORT))
    if metric and metric.labelled and data.labels is None:
        raise InputError(f"--metric {metric.name} needs labels, and {data.origin} has none")
    feeds = measuring_feeds(graph, data)
    seconds = {"loading": time.perf_counter() - began}
    reference = Reference(runner(graph.model, target, feeds))
    with progress.phase("measuring the original"):
        start = measure_reference(reference, target, min_seconds=START_SECONDS)
    seconds["measuring"] = time.perf_counter() - began - seconds["loading"]
    progress.say(f"  {start}")
    warnings = [*graph.notes, *data.warnings, *splits.warnings, *_cannot_train(options, graph, data)]
    for warning in warnings:
        progress.say(f"  warning: {warning}")
    return Run(
        options, progress, graph, target, budgets, feeds, Runner(graph.model)(feeds), data, reference, start,
        splits.calibration, splits.selection, report, report_data, warnings, seconds, meter,
    )  # fmt: skip


def _cannot_train(options: Options, graph: Graph, data: Data) -> list[str]:
    """Why the model cannot be fine-tuned, said before any work starts; the rest goes on without gradients."""
    if options.finetune == "none" or (data.synthetic and options.finetune is None):
        return []
    from onnx_netadapt.passes.to_torch import unsupported

    reasons = unsupported(graph)
    if not reasons:
        return []
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return [f"torch cannot run the model, so it is not fine-tuned: {reasons[0]}{more}"]


def _check_size(graph: Graph) -> None:
    if byte_size(graph.model) >= PROTOBUF_LIMIT:
        raise InputError(
            f"the model has {byte_size(graph.model) / 1e9:.1f} GB, and ONNX Runtime takes at most 2 GB from memory, "
            "where the main job keeps it; `onnx-netadapt prune` works on models of any size: prune it first"
        )


def _check_weights(graph: Graph) -> None:
    for name, constant in graph.constants.items():
        array = constant.array()
        if array.dtype.kind == "f" and np.isnan(array).any():
            count = int(np.isnan(array).sum())
            raise InputError(
                f"tensor '{name}' of the model holds {count} NaN among its {array.size} values; "
                "such a model cannot be judged: export it again from a sound checkpoint"
            )


def _at_data_shape(source: Source, options: Options, graph: Graph, data: Data) -> Graph:
    """The graph at the data's shapes where the model leaves dimensions open and the user fixed none."""
    sample = data.read(np.zeros(1, dtype=np.int64))
    shapes = dict(options.shapes)
    for port in graph.inputs:
        if port.name in shapes or None not in port.dims[1:]:
            continue
        shapes[port.name] = (graph.shapes[port.name][0], *sample[port.name].shape[1:])
    return graph if shapes == dict(options.shapes) else load(graph.model, shapes=shapes)


def measuring_feeds(graph: Graph, data: Data) -> Feeds:
    """One batch of real examples at the shapes for measuring."""
    sizes = [graph.shapes[port.name][0] for port in graph.inputs if graph.shapes[port.name]]
    count = sizes[0] if sizes else 1
    feeds = data.read(np.arange(count) % data.n)
    for port in graph.inputs:
        if tuple(feeds[port.name].shape) != graph.shapes[port.name]:
            raise InputError(
                f"the data gives input '{port.name}' as {list(feeds[port.name].shape)}, "
                f"and it is to be measured at {list(graph.shapes[port.name])}; change --shape or --data"
            )
    return feeds
