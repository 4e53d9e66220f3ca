"""Running models over sets of examples, and scoring them against the original."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.inputs import Data, Feeds, Indices
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.metrics import Metric, Outputs
from onnx_netadapt.passes.rows import available_cores, examples_in
from onnx_netadapt.passes.sharing import Part
from onnx_netadapt.profiler import Target

Array = NDArray[Any]

BATCH = 32
ROWS = 32
"""Examples in one batch when many networks are judged at once: enough for the cores, and what they make stays in caches
(on ResNet20 a masked image took 0.71 ms of one core in batches of 8 to 32, 0.85 of 64, 1.04 of 256).
"""

REFERENCE_BYTES = 400_000_000
"""Outputs of the original are kept up to this size, and worked out anew for each use beyond it."""


def batch_size(graph: Graph) -> int:
    """The model's fixed batch size, or the one that is used when it takes any."""
    fixed = [port.dims[0] for port in graph.inputs if port.dims and port.dims[0] is not None]
    return fixed[0] if fixed else BATCH


def is_fixed(graph: Graph) -> bool:
    """Whether the model takes batches of one size only."""
    return any(port.dims and port.dims[0] is not None for port in graph.inputs)


def examples_for(graph: Graph, macs: float, room: float) -> int:
    """Examples that take so many multiply-accumulates in all, where the model takes `macs` at once."""
    return int(room / max(macs / (max(batch_size(graph), 1) if is_fixed(graph) else 1), 1.0))


def fixed_feeds(data: Data, indices: Indices, graph: Graph) -> Iterator[tuple[Feeds, Array | None, int]]:
    """Batches with labels and the number of real examples; the last one is filled up where the batch size is fixed."""
    size, fixed = batch_size(graph), is_fixed(graph)
    for start in range(0, len(indices), size):
        at = indices[start : start + size]
        filled = np.resize(at, size) if fixed else at
        for feeds, _ in data.batches(filled, size):
            yield feeds, None if data.labels is None else data.labels[at], len(at)


class Runner:
    """A model in ONNX Runtime with all cores, for throughput; latency is the profiler's business."""

    def __init__(self, model: onnx.ModelProto | bytes) -> None:
        self._session = Target(threads=available_cores()).session(model)

    def __call__(self, feeds: Feeds) -> list[Array]:
        """The outputs for one batch."""
        outputs: list[Array] = self._session.run(None, feeds)
        return outputs

    def named(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name, for feeds among which there may be more than the model takes."""
        taken = {port.name for port in self._session.get_inputs()}
        names = [port.name for port in self._session.get_outputs()]
        return dict(zip(names, self({name: feeds[name] for name in taken}), strict=True))


class Evaluator:
    """Scores of models on one set of examples, by one metric, against the original.

    `seen` are the same examples as the judged models get them, where that is not as the original does: at another size.
    """

    def __init__(self, graph: Graph, data: Data, indices: Indices, metric: Metric, seen: Data | None = None) -> None:
        if metric.labelled and data.labels is None:
            raise InputError(f"metric {metric.name} needs labels, but {data.origin} has none; choose another --metric")
        self.graph, self.data, self.indices, self.metric, self.seen = graph, data, indices, metric, seen
        self._original = Runner(graph.model)
        self._kept: list[list[Array]] | None = []
        self._batches: list[tuple[Feeds, Array | None, int]] = []
        self._fill()

    def on(self, indices: Indices | None = None, metric: Metric | None = None) -> "Evaluator":
        """The same on other examples of the set, or by another metric."""
        chosen = self.indices if indices is None else indices
        return Evaluator(self.graph, self.data, chosen, metric or self.metric, self.seen)

    def seeing(self, seen: Data) -> "Evaluator":
        """The same for models that get the examples otherwise."""
        return Evaluator(self.graph, self.data, self.indices, self.metric, seen)

    def _examples(self) -> Iterator[tuple[Feeds, Feeds, Array | None, int]]:
        """Batches as the original gets them and as judged models do, labels, and the number of real examples."""
        given = fixed_feeds(self.data, self.indices, self.graph)
        if self.seen is None:
            for feeds, labels, count in given:
                yield feeds, feeds, labels, count
            return
        for (feeds, labels, count), (own, _, _) in zip(
            given, fixed_feeds(self.seen, self.indices, self.graph), strict=True
        ):
            yield feeds, own, labels, count

    def _fill(self) -> None:
        """Keeps the original's outputs and the batches when they are small enough."""
        held = 0
        for feeds, own, labels, count in self._examples():
            outputs = self._original(feeds)
            held += sum(array.nbytes for array in (*outputs, *own.values()))
            if self._kept is None or held > REFERENCE_BYTES:
                self._kept, self._batches = None, []
                return
            self._kept.append(outputs)
            self._batches.append((own, labels, count))

    def _reference(self) -> Iterator[tuple[Feeds, Array | None, int, list[Array]]]:
        if self._kept is not None:
            for (feeds, labels, count), outputs in zip(self._batches, self._kept, strict=True):
                yield feeds, labels, count, outputs
            return
        for feeds, own, labels, count in self._examples():
            yield own, labels, count, self._original(feeds)

    def score(self, model: onnx.ModelProto | bytes) -> float:
        """The metric's mean over the set; minus infinity when the model gives numbers that are not finite."""
        run, tally = Runner(model), _Tally(self.metric)
        for feeds, labels, count, original in self._reference():
            tally.add(run(feeds), original, labels, count)
        return tally.mean()

    def score_rows(self, run: Runner, rows: Mapping[str, Array]) -> list[float]:
        """A score for each row of the inputs `rows`, which every example of a batch may have of its own.

        A model that takes any batch gets ROWS examples at once, several rows beside each other.
        """
        tallies = [_Tally(self.metric) for _ in range(len(next(iter(rows.values()))))]
        for feeds, labels, count, original in self._reference():
            for row, outputs in self._beside(run, feeds, rows, len(tallies)):
                tallies[row].add(outputs, original, labels, count)
        return [tally.mean() for tally in tallies]

    def score_shared(self, parts: Sequence[Part]) -> list[float]:
        """A score for each network of the parts; what they have in common is run once."""
        tallies = {row: _Tally(self.metric) for part in parts for row in part.rows}
        leads = [None if part.lead is None else Runner(part.lead) for part in parts]
        runs = [Runner(part.model) for part in parts]
        for feeds, labels, count, original in self._reference():
            for part, lead, run in zip(parts, leads, runs, strict=True):
                made = {} if lead is None else lead.named(feeds)
                feeds = {name: made[name] if name in made else feeds[name] for name in part.fed}
                for row, outputs in self._beside(run, feeds, part.masks, len(part.rows)):
                    tallies[part.rows[row]].add(outputs, original, labels, count)
        return [tallies[row].mean() for row in range(len(tallies))]

    def _beside(
        self, run: Runner, feeds: Feeds, rows: Mapping[str, Array], number: int
    ) -> Iterator[tuple[int, list[Array]]]:
        """Every row with its outputs for a batch; without inputs of their own all rows have the same."""
        if not rows:
            outputs = run(feeds)
            yield from ((row, outputs) for row in range(number))
            return
        fixed, size = is_fixed(self.graph), examples_in(feeds)
        step = 1 if fixed else max(1, ROWS // size)
        if step == 1:
            for row in range(number):
                own = {name: value[row : row + 1] for name, value in rows.items()}
                yield row, run({**feeds, **({n: np.repeat(v, size, axis=0) for n, v in own.items()} if fixed else own)})
            return
        for start in range(0, number, step):
            own = {name: np.repeat(value[start : start + step], size, axis=0) for name, value in rows.items()}
            beside = min(step, number - start)
            outputs = run({name: np.concatenate([value] * beside) for name, value in feeds.items()} | own)
            parts = [np.split(array, beside) for array in outputs]
            yield from ((start + place, [part[place] for part in parts]) for place in range(beside))


class _Tally:
    """The sum of a metric over batches."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._total, self._seen = 0.0, 0
        self._outputs: list[list[Array]] = []
        self._labels: list[Array] = []

    def add(self, outputs: Outputs, original: Outputs, labels: Array | None, count: int) -> None:
        """Counts the first `count` examples of a batch."""
        if self.metric.whole is not None:
            self._outputs.append([array[:count] for array in outputs])
            self._labels += [] if labels is None else [labels]
            return
        self._total += float(np.sum(_per_example(self.metric, outputs, original, labels, count)))
        self._seen += count

    def mean(self) -> float:
        """The mean so far; minus infinity when it is not finite."""
        if self.metric.whole is not None:
            joined = [np.concatenate(parts) for parts in zip(*self._outputs, strict=True)]
            return self.metric.whole(joined, np.concatenate(self._labels) if self._labels else None)
        mean = self._total / max(self._seen, 1)
        return mean if np.isfinite(mean) else float("-inf")


def _per_example(metric: Metric, outputs: Outputs, original: Outputs, labels: Array | None, count: int) -> Array:
    """One value per real example; a model whose outputs do not count examples is one example per batch."""
    assert metric.per_example is not None
    examples = len(outputs[0]) if outputs and outputs[0].ndim else 0
    if examples < count:
        one = [np.asarray(array)[None] for array in outputs], [np.asarray(array)[None] for array in original]
        return np.repeat(metric.per_example(*one, labels), count)
    return metric.per_example([array[:count] for array in outputs], [array[:count] for array in original], labels)
