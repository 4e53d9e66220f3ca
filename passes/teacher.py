"""What fine-tuning learns from: the pool of examples, and the original's outputs on them, computed in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.errors import InputError, TargetError
from ..ir.graph import Graph
from .rows import Batches, examples_in

Array = NDArray[Any]
Batch = Mapping[str, Array]

CACHED_BYTES = 2**29
"""Teacher outputs up to this size are kept; larger ones are computed again at each step."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """The original at its own input size, with the examples as it gets them there, in the student's order.

    Where the student has another input size than the original, what is aimed at are the outputs that this one gives.
    """

    graph: Graph
    batches: Batches


class Pool:
    """Examples of all batches, numbered through; inputs without a batch axis are the same for all.

    `drawn` are inputs that the examples do not have: they are drawn for each batch (`finetune.Draw`).
    """

    def __init__(self, batches: Sequence[Batch], graph: Graph, drawn: Collection[str] = ()) -> None:
        if not batches:
            raise InputError("fine-tuning needs at least one batch of inputs; give --data, or --finetune none")
        names = [port.name for port in graph.inputs if port.name not in drawn]
        first = batches[0]
        lengths = [first[name].shape[0] for name in names if first[name].ndim]
        self.shared = {n: first[n] for n in names if not first[n].ndim or first[n].shape[0] != max(lengths)}
        self.names = [name for name in names if name not in self.shared]
        self.batches = batches
        sizes = [len(batch[self.names[0]]) for batch in batches] if self.names else [1]
        self.place = np.array([(b, row) for b, size in enumerate(sizes) for row in range(size)])

    def __len__(self) -> int:
        return len(self.place)

    def take(self, indices: Array) -> dict[str, Array]:
        """The examples with these numbers, as one batch."""
        found = dict(self.shared)
        for name in self.names:
            found[name] = np.stack([self.batches[b][name][row] for b, row in self.place[indices]])
        return found

    def rows(self, arrays: Sequence[Array], indices: Array) -> Array:
        """The rows with these numbers of arrays that go along with the batches."""
        return np.stack([arrays[b][row] for b, row in self.place[indices]])


def runner(model: onnx.ModelProto, names: Sequence[str], fixed: int | None) -> Callable[[Batch], list[Array]]:
    """A function from feeds to the values of tensors, in ONNX Runtime; in pieces where the batch size is fixed."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch works in turn with it
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TargetError(f"ONNX Runtime cannot run the original: {str(error).strip()[:300]}") from error

    def run(feeds: Batch) -> list[Array]:
        count = examples_in(feeds)
        lack = -count % fixed if fixed else 0
        if lack:
            feeds = {n: _lengthened(v, lack) if v.ndim and len(v) == count else v for n, v in feeds.items()}
        parts = [session.run(list(names), dict(part)) for part in pieces(feeds, fixed)]
        found = [np.concatenate(values) if len(parts) > 1 else values[0] for values in zip(*parts, strict=True)]
        # an output may have several rows for each example
        return [value[: len(value) * count // (count + lack)] for value in found] if lack else found

    return run


def _lengthened(value: Array, lack: int) -> Array:
    """The array with its last row repeated."""
    return np.concatenate([value, np.repeat(value[-1:], lack, axis=0)])


def pieces(feeds: Batch, fixed: int | None) -> Iterator[Batch]:
    """The feeds in pieces of a fixed batch size."""
    count = examples_in(feeds)
    if fixed is None or count == fixed:
        yield feeds
        return
    for start in range(0, count, fixed):
        yield {n: v[start : start + fixed] if v.ndim and len(v) == count else v for n, v in feeds.items()}


Targets = Callable[[Array, Batch, Batch | None], list[Array]]
"""What is wanted for the examples of these numbers, from their inputs, and from their inputs at the teacher's own size
where that is another (None: as they are in its pool).
"""


def cached(compute: Targets, pool: Pool, batch: int) -> Targets:
    """The same function with the answers for all examples worked out once, at the first call."""
    table: list[Array] = []

    def run(indices: Array, feeds: Batch, views: Batch | None) -> list[Array]:
        if not table:
            parts = []
            for start in range(0, len(pool), batch):
                some = np.arange(start, min(start + batch, len(pool)))
                parts.append(compute(some, pool.take(some), None))
            table.extend(np.concatenate(values) for values in zip(*parts, strict=True))
        if any(len(values) % len(pool) for values in table):
            return compute(indices, feeds, views)
        rows = [(values.reshape(len(pool), -1, *values.shape[1:]), values.shape[1:]) for values in table]
        return [values[indices].reshape(-1, *shape) for values, shape in rows]

    return run


def shuffled(count: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Numbers of examples, batch by batch, in a new order for each pass; a pass that ends short is filled up."""
    left = np.zeros(0, dtype=np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(count)])
        yield left[:size]
        left = left[size:]
