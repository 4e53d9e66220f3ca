"""Rows: running a model over examples piece by piece, and reading sampled rows of what its weights are multiplied with.

1. Examples go through in pieces whose tapped tensors fit into MEMORY_BYTES, whatever the size of the batches. LANES
   pieces are at work at a time, each run and read in a thread of its own (`in_lanes`).
2. Neighbouring positions of an image tell nearly the same: POSITIONS_PER_COLUMN positions per column (and image)
   are read, at random places, but at least MIN_POSITIONS: a Gram matrix of K columns sees 50 K rows from 500 images.
   Who needs fewer rows reads a share of those (`targets`), or no more than ENOUGH_PER_COLUMN of them from all of its
   examples (`gram`).
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.cut import cut
from ..ir.errors import TargetError
from ..ir.graph import Graph, Shape
from ..ir.ops.maps import Floats, Ints, Window, channels_first, spatial_sizes

Feeds = Mapping[str, NDArray[Any]]
Batches = Callable[[], Iterator[Feeds]]
Progress = Callable[[int, int, str], None]
T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")

MEMORY_BYTES = 200_000_000

LANES = 2
"""Pieces at work at a time, on every machine, so that sums come out the same on all. One thread for numpy beside all of
ONNX Runtime's kept 1.2 of two cores busy in a refit of ResNet20.
"""

LANE_BYTES = 1_000_000_000
"""Sums of all lanes together; where they would be more there is one set of sums for all."""

MAX_PIECE = 64
POSITIONS_PER_COLUMN = 1 / 10
MIN_POSITIONS = 20

ENOUGH_PER_COLUMN = 50
"""Rows for each column from which a Gram matrix is as good as from more: with these of ResNet20's 2,000 images,
refitted networks of half its multiply-accumulates diverged by 0.243, 0.227 and 0.184 on the selection set, and by
0.243, 0.225 and 0.185 with up to four times as many (three seeds).
"""


def pieces(graph: Graph, batches: Batches, taps: Sequence[str]) -> Iterator[Feeds]:
    """The batches, cut along the first axis so that the `taps` of a piece fit into memory (rule 1).

    A model whose inputs fix the number of examples gets its batches as they are.
    """
    size = piece_size(graph, taps)
    open_batch = all(port.dims and port.dims[0] is None for port in graph.inputs)
    for feeds in batches():
        counts = {len(value) for value in feeds.values() if np.ndim(value)}
        if not open_batch or len(counts) != 1:
            yield feeds
            continue
        for start in range(0, counts.pop(), size):
            yield {name: value[start : start + size] for name, value in feeds.items()}


def first_pieces(found: Iterable[Feeds], examples: int) -> Iterator[Feeds]:
    """Of these pieces as many as it takes to have so many examples."""
    seen = 0
    for feeds in found:
        yield feeds
        seen += examples_in(feeds)
        if seen >= examples:
            return


def piece_size(graph: Graph, taps: Sequence[str]) -> int:
    """Examples whose tapped tensors fit into memory together, at most MAX_PIECE."""
    examples = max([1, *(graph.shapes[port.name][0] for port in graph.inputs if graph.shapes.get(port.name))])
    wanted = sum(4 * int(np.prod(graph.shapes[name], dtype=np.int64)) for name in taps) / examples
    return int(np.clip(MEMORY_BYTES // max(wanted, 1), 1, MAX_PIECE))


def in_lanes(items: Iterable[T], work: Callable[[int, T], R], lanes: int = LANES) -> Generator[R, None, None]:
    """What `work(number, item)` gives for each item in turn, worked out in threads while further items are made.

    Items whose numbers are equal modulo `lanes` are worked on one after the other, and may add to the same sums.
    """
    with ThreadPoolExecutor(lanes) as threads:
        waiting: deque[Future[R]] = deque()
        for number, item in enumerate(items):
            if len(waiting) == lanes:
                yield waiting.popleft().result()
            waiting.append(threads.submit(work, number, item))
        while waiting:
            yield waiting.popleft().result()


def added_up(items: Iterable[T], run: Callable[[T], V], add: Callable[[int, V], R], lanes: int) -> Iterator[R]:
    """What `add(number, run(item))` gives for each item in turn; all in lanes where each has sums of its own.

    Where there is one set of sums alone, items are run in lanes all the same, and added one after the other.
    """
    if lanes > 1:
        yield from in_lanes(items, lambda number, item: add(number, run(item)), lanes)
        return
    for number, values in enumerate(in_lanes(items, lambda _, item: run(item))):
        yield add(number, values)


def lanes_for(size: float) -> int:
    """How many sets of sums of so many bytes there may be, one for each lane or one for all."""
    return LANES if size * LANES <= LANE_BYTES else 1


def examples_in(feeds: Feeds) -> int:
    """How many examples a piece has."""
    return max((len(value) for value in feeds.values() if np.ndim(value)), default=1)


def available_cores() -> int:
    """The cores that this process may use: fewer than the machine has where it is pinned (Linux), or in a container."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@dataclass(slots=True)
class Runner:
    """Runs the part of a model that makes the tensors `taps` (in ONNX Runtime, on the CPU), in any lane."""

    model: onnx.ModelProto
    taps: tuple[str, ...]
    inputs: Mapping[str, int] = field(default_factory=dict)
    _session: Any = field(default=None, init=False, repr=False)
    _making: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __call__(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The tapped tensors by name; those that are fed are handed through. TargetError when the model cannot run."""
        made = [name for name in self.taps if name not in feeds]
        found = {name: feeds[name] for name in self.taps if name in feeds}
        if not made:
            return found
        try:
            with self._making:
                self._session = self._session or session_of(cut(self.model, made, self.inputs))
            wanted = {port.name for port in self._session.get_inputs()}
            values = self._session.run(made, {name: value for name, value in feeds.items() if name in wanted})
        except Exception as error:
            raise TargetError(f"ONNX Runtime cannot run the model: {str(error).strip()[:300]}") from error
        return found | dict(zip(made, values, strict=True))


def session_of(model: onnx.ModelProto) -> Any:
    """A session on the CPU whose threads, and those of the lanes that call it, are as many as the cores.

    They do not spin, because numpy works there too.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, available_cores() - LANES + 1)  # one of these is the thread that calls
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def sample(count: int, columns: int, rng: np.random.Generator, share: float = 1.0, examples: int | None = None) -> Ints:
    """Which of `count` output positions to read for so many columns, in rising order: those of rule 2, or a share.

    With `examples`, the number of all of them, no more than ENOUGH_PER_COLUMN need.
    """
    wanted = sampled(count, columns, share, examples)
    if wanted == count:
        return np.arange(count, dtype=np.int64)
    return np.sort(rng.choice(count, wanted, replace=False))


def sampled(count: int, columns: int, share: float = 1.0, examples: int | None = None) -> int:
    """How many positions `sample` gives."""
    each = POSITIONS_PER_COLUMN if not examples else min(POSITIONS_PER_COLUMN, ENOUGH_PER_COLUMN / examples)
    return min(count, math.ceil(max(MIN_POSITIONS, columns * each) * share))


def positions(window: Window, shape: Shape) -> int:
    """The number of output positions for an input of a shape."""
    return len(_table(window, spatial_sizes(shape, window.axis)))


def columns_of(tensor: Floats, window: Window, places: Ints) -> Floats:
    """The columns (groups, rows, channels x taps), float32 or more, that a window reads at the positions `places`."""
    x = channels_first(tensor, window.axis)  # (N, C, S)
    table = _table(window, spatial_sizes(tensor.shape, window.axis))[places]  # (P, k)
    read = np.take(x, np.maximum(table, 0).reshape(-1), axis=2).reshape(*x.shape[:2], *table.shape)  # (N, C, P, k)
    if (table < 0).any():
        read[:, :, table < 0] = 0
    examples, channels = x.shape[:2]
    blocks = read.reshape(examples, window.groups, channels // window.groups, *table.shape).transpose(1, 0, 3, 2, 4)
    return np.ascontiguousarray(blocks, dtype=_at_least_float32(x)).reshape(window.groups, examples * len(places), -1)


def outputs_of(tensor: Floats, axis: int, groups: int, places: Ints) -> Floats:
    """The rows (groups, rows, outputs), float32 or more, of an output tensor at the positions `places`."""
    y = np.take(channels_first(tensor, axis), places, axis=2)  # (N, O, P)
    blocks = y.reshape(len(y), groups, -1, len(places)).transpose(1, 0, 3, 2)
    return np.ascontiguousarray(blocks, dtype=_at_least_float32(y)).reshape(groups, len(y) * len(places), -1)


def _at_least_float32(array: NDArray[Any]) -> np.dtype[Any]:
    """The type to compute in: half floats are too coarse for sums."""
    return np.promote_types(array.dtype, np.float32)


@lru_cache(maxsize=512)
def _table(window: Window, spatial: Shape) -> Ints:
    return window.table(spatial)
