"""Running models over sets of examples, and scoring them against the original."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.inputs import Data, Feeds, Indices
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.metrics import Metric, Outputs
from onnx_netadapt.passes.rows import available_cores, examples_in, in_lanes
from onnx_netadapt.passes.sharing import Part
from onnx_netadapt.profiler import Target

Array = NDArray[Any]
T = TypeVar("T")

BATCH = 32

LANES = 4
"""Batches that are judged at a time at most, each of BATCH / LANES examples; of models of a fixed batch one. On two
cores 1,000 images of ResNet20 took 0.63 s in two lanes of 8 and 0.67 s as batches of 32, 200 of MobileNetV2 1.20 and
1.30 s.
"""

ROWS = 32
"""Examples in one batch when many networks are judged at once: what they make stays in caches (on ResNet20 a masked
image took 0.71 ms of one core in batches of 8 to 32, 0.85 of 64, 1.04 of 256).
"""

FIRST, LEAST_BATCHES = 0.25, 8
"""The share of the examples that all entrants of a race are judged on, and how many batches these must be."""

CLEAR = 3.0
"""Standard errors of the difference by which an entrant must be behind there to be judged no further."""

REFERENCE_BYTES = 400_000_000
"""Outputs of the original are kept up to this size, and worked out anew for each use beyond it."""


def batch_size(graph: Graph, most: int = BATCH) -> int:
    """The model's fixed batch size, or the one that is used when it takes any."""
    fixed = [port.dims[0] for port in graph.inputs if port.dims and port.dims[0] is not None]
    return fixed[0] if fixed else most


def is_fixed(graph: Graph) -> bool:
    """Whether the model takes batches of one size only."""
    return any(port.dims and port.dims[0] is not None for port in graph.inputs)


def examples_for(graph: Graph, macs: float, room: float) -> int:
    """Examples that take so many multiply-accumulates in all, where the model takes `macs` at once."""
    return int(room / max(macs / (max(batch_size(graph), 1) if is_fixed(graph) else 1), 1.0))


def fixed_feeds(
    data: Data, indices: Indices, graph: Graph, most: int = BATCH
) -> Iterator[tuple[Feeds, Array | None, int]]:
    """Batches with labels and the number of real examples; the last one is filled up where the batch size is fixed."""
    fixed = is_fixed(graph)
    size = batch_size(graph, most)
    for start in range(0, len(indices), size):
        at = indices[start : start + size]
        filled = np.resize(at, size) if fixed else at
        for feeds, _ in data.batches(filled, size):
            yield feeds, None if data.labels is None else data.labels[at], len(at)


class Runner:
    """A model in ONNX Runtime for throughput, with all cores when so many `lanes` run it at a time.

    Latency is the profiler's business.
    """

    def __init__(self, model: onnx.ModelProto | bytes, lanes: int = 1) -> None:
        # each lane is one of the threads that work
        self._session = Target(threads=max(1, available_cores() - lanes + 1)).session(model)

    def __call__(self, feeds: Feeds) -> list[Array]:
        """The outputs for one batch."""
        outputs: list[Array] = self._session.run(None, feeds)
        return outputs

    def named(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name, for feeds among which there may be more than the model takes."""
        taken = {port.name for port in self._session.get_inputs()}
        names = [port.name for port in self._session.get_outputs()]
        return dict(zip(names, self({name: feeds[name] for name in taken}), strict=True))


_Examples = tuple[Feeds, Feeds, Array | None, int]
_Judged = Any
"""Of a batch the sum of a metric over its examples, or their outputs for a metric of the whole set."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Examples as judged models get them, their labels, how many of them are real, and the original's outputs."""

    feeds: Feeds
    labels: Array | None
    count: int
    original: list[Array]


class Evaluator:
    """Scores of models on one set of examples, by one metric, against the original.

    `seen` are the same examples as the judged models get them, where that is not as the original does: at another size.
    """

    def __init__(
        self,
        graph: Graph,
        data: Data,
        indices: Indices,
        metric: Metric,
        seen: Data | None = None,
        original: Runner | None = None,
    ) -> None:
        if metric.labelled and data.labels is None:
            raise InputError(f"metric {metric.name} needs labels, but {data.origin} has none; choose another --metric")
        self.graph, self.data, self.indices, self.metric, self.seen = graph, data, indices, metric, seen
        self.lanes = 1 if is_fixed(graph) else min(LANES, available_cores())
        self._original = original or self.runner(graph.model)
        self._kept = self._few()
        self._others: dict[tuple[bytes, Metric], Evaluator] = {}

    def on(self, indices: Indices | None = None, metric: Metric | None = None) -> "Evaluator":
        """The same on other examples of the set, or by another metric; made once for each."""
        chosen, metric = self.indices if indices is None else indices, metric or self.metric
        if np.array_equal(chosen, self.indices) and metric == self.metric:
            return self
        key = chosen.tobytes(), metric
        if key not in self._others:
            self._others[key] = Evaluator(self.graph, self.data, chosen, metric, self.seen, self._original)
        return self._others[key]

    def seeing(self, seen: Data) -> "Evaluator":
        """The same for models that get the examples otherwise."""
        return Evaluator(self.graph, self.data, self.indices, self.metric, seen, self._original)

    def runner(self, model: onnx.ModelProto | bytes) -> Runner:
        """What runs a model that is judged."""
        return Runner(model, self.lanes)

    def _examples(self) -> Iterator[_Examples]:
        """Batches as the original gets them and as judged models do, labels, and the number of real examples."""
        size = BATCH // LANES
        given = fixed_feeds(self.data, self.indices, self.graph, size)
        if self.seen is None:
            for feeds, labels, count in given:
                yield feeds, feeds, labels, count
            return
        for (feeds, labels, count), (own, _, _) in zip(
            given, fixed_feeds(self.seen, self.indices, self.graph, size), strict=True
        ):
            yield feeds, own, labels, count

    def _batch(self, examples: _Examples) -> _Batch:
        feeds, own, labels, count = examples
        return _Batch(own, labels, count, self._original(feeds))

    def _few(self) -> list[_Batch] | None:
        """All batches with the original's outputs, when they are small enough to be kept."""
        held, kept = 0, []
        with closing(in_lanes(self._examples(), lambda _, given: self._batch(given), self.lanes)) as batches:
            for batch in batches:
                held += sum(array.nbytes for array in (*batch.original, *batch.feeds.values()))
                if held > REFERENCE_BYTES:
                    return None
                kept.append(batch)
        return kept

    def _each(self, work: Callable[[_Batch], T], start: int = 0, stop: int | None = None) -> Generator[T, None, None]:
        """What `work` makes of every batch from `start` to before `stop`, several at a time."""
        if self._kept is not None:
            return in_lanes(self._kept[start:stop], lambda _, batch: work(batch), self.lanes)
        given = islice(self._examples(), start, stop)
        return in_lanes(given, lambda _, examples: work(self._batch(examples)), self.lanes)

    def score(self, model: onnx.ModelProto | bytes) -> float:
        """The metric's mean over the set; minus infinity when the model gives numbers that are not finite."""
        return self.mean(self.judged(self.runner(model)))

    @cached_property
    def original_score(self) -> float:
        """The original's own score, from the outputs that all others are held against."""
        return self.mean([*self._each(lambda batch: self._judged(batch.original, batch))])

    def judged(self, run: Runner, start: int = 0, stop: int | None = None) -> list[_Judged]:
        """What each batch from `start` to before `stop` adds to the score of a model."""
        return [*self._each(lambda batch: self._judged(run(batch.feeds), batch), start, stop)]

    def score_rows(self, run: Runner, rows: Mapping[str, Array]) -> list[float]:
        """A score for each row of the inputs `rows`, which every example of a batch may have of its own.

        A model that takes any batch gets ROWS examples at once, several rows beside each other.
        """
        number = len(next(iter(rows.values())))
        found = [*self._each(lambda batch: [*self._beside(run, batch.feeds, rows, number, batch)])]
        return [self.mean(own) for own in zip(*found, strict=True)]

    def score_shared(self, parts: Sequence[Part]) -> list[float]:
        """A score for each network of the parts; what they have in common is run once."""
        leads = [None if part.lead is None else self.runner(part.lead) for part in parts]
        runs = [self.runner(part.model) for part in parts]

        def in_parts(batch: _Batch) -> list[_Judged]:
            feeds, found = batch.feeds, list[_Judged]()
            for part, lead, run in zip(parts, leads, runs, strict=True):
                made = {} if lead is None else lead.named(feeds)
                feeds = {name: made[name] if name in made else feeds[name] for name in part.fed}
                found += self._beside(run, feeds, part.masks, len(part.rows), batch)
            return found

        scores = [self.mean(own) for own in zip(*self._each(in_parts), strict=True)]
        by_row = dict(zip((row for part in parts for row in part.rows), scores, strict=True))
        return [by_row[row] for row in range(len(by_row))]

    def _beside(
        self, run: Runner, feeds: Feeds, rows: Mapping[str, Array], number: int, batch: _Batch
    ) -> Iterator[_Judged]:
        """Every row's part of its score for a batch; without inputs of their own all rows have the same."""
        if not rows:
            yield from [self._judged(run(feeds), batch)] * number
            return
        fixed, size = is_fixed(self.graph), examples_in(feeds)
        counted = all(np.ndim(value) and len(value) == size for value in (*feeds.values(), *batch.original))
        step = max(1, ROWS // size) if counted and not fixed else 1
        if step == 1:
            for row in range(number):
                own = {name: value[row : row + 1] for name, value in rows.items()}
                own = {name: np.repeat(value, size, axis=0) for name, value in own.items()} if fixed else own
                yield self._judged(run({**feeds, **own}), batch)
            return
        for start in range(0, number, step):
            own = {name: np.repeat(value[start : start + step], size, axis=0) for name, value in rows.items()}
            beside = min(step, number - start)
            outputs = run({name: np.concatenate([value] * beside) for name, value in feeds.items()} | own)
            parts = [np.split(array, beside) for array in outputs]
            for place in range(beside):
                yield self._judged([part[place] for part in parts], batch)

    def _judged(self, outputs: list[Array], batch: _Batch) -> _Judged:
        """What the real examples of a batch add to the score."""
        if self.metric.whole is not None:
            return [array[: batch.count] for array in outputs]
        return float(np.sum(_per_example(self.metric, outputs, batch.original, batch.labels, batch.count)))

    def mean(self, found: Sequence[_Judged]) -> float:
        """The score from what each batch added; minus infinity when it is not finite."""
        if self.metric.whole is not None:
            joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
            return self.metric.whole(joined, None if self.data.labels is None else self.data.labels[self.indices])
        mean = sum(found) / max(len(self.indices), 1)
        return mean if np.isfinite(mean) else float("-inf")


@dataclass(frozen=True, slots=True)
class Standing:
    """An entrant's score, and on how many examples it was judged: on fewer than all, the score is the winner's less the
    difference of the two on these.
    """

    score: float
    examples: int


def race(entrants: Sequence[tuple[Evaluator, onnx.ModelProto]]) -> list[Standing]:
    """The scores of models, each by its evaluator, all of the same examples: of models that are clearly behind the best
    on the first of them, by paired differences of batches, no more is judged.

    (Racing: Maron and Moore, 1994.) Where examples are few, or the metric is of the whole set, all are judged on all.
    """
    lead = entrants[0][0]
    runs = [evaluator.runner(model) for evaluator, model in entrants]
    size = batch_size(lead.graph, BATCH // LANES)
    stop = int(FIRST * len(lead.indices)) // size
    if lead.metric.whole is not None or stop < LEAST_BATCHES:
        stop = 0
    first = [evaluator.judged(run, 0, stop) for (evaluator, _), run in zip(entrants, runs, strict=True)]
    behind = _behind(np.array(first)) / max(stop * size, 1) if stop else np.zeros(len(entrants))
    scores: dict[int, float] = {}
    for place in np.argsort(behind, kind="stable").tolist():
        if behind[place] and max(scores.values(), default=-np.inf) > -np.inf:
            break  # the others are further behind
        evaluator = entrants[place][0]
        scores[place] = evaluator.mean([*first[place], *evaluator.judged(runs[place], stop)])
    best = max(scores.values())
    return [
        Standing(scores[place], len(lead.indices)) if place in scores else Standing(best - own, stop * size)
        for place, own in enumerate(behind)
    ]


def _behind(sums: Array) -> Array:
    """How much less than the best the entrants have over all of their batches, (entrants, batches); 0 where that is not
    clear, infinity where their numbers are not finite.
    """
    totals = sums.sum(axis=1)
    finite = np.isfinite(totals)
    if not finite.any():
        return np.zeros(len(sums))
    lost = sums[np.argmax(np.where(finite, totals, -np.inf))] - np.where(finite[:, None], sums, 0.0)
    error = lost.std(axis=1, ddof=1) * np.sqrt(lost.shape[1])
    clear: Array = np.where(lost.sum(axis=1) > CLEAR * error, lost.sum(axis=1), 0.0)
    return np.where(finite, clear, np.inf)


def _per_example(metric: Metric, outputs: Outputs, original: Outputs, labels: Array | None, count: int) -> Array:
    """One value per real example; a model whose outputs do not count examples is one example per batch."""
    assert metric.per_example is not None
    examples = len(outputs[0]) if outputs and outputs[0].ndim else 0
    if examples < count:
        one = [np.asarray(array)[None] for array in outputs], [np.asarray(array)[None] for array in original]
        return np.repeat(metric.per_example(*one, labels), count)
    return metric.per_example([array[:count] for array in outputs], [array[:count] for array in original], labels)
