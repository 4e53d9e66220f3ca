"""Gram matrices: what one pass of the original model over the calibration examples leaves behind.

1. For every consumer the sums of x and of x x' over its input columns x: their size depends on the model alone, not on
   the number of examples.
2. For a consumer whose output is added to a stream, the part that it has in the variance of the sum, from the first
   examples: an error that is large beside the branch may be small beside the stream, or the other way round.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from ..ir.graph import Graph
from ..ir.ops.maps import Floats
from .branch_moments import BranchMoments, branch_moments
from .consumers import Consumer, Consumers, Key, consumers_of, summed_branch
from .coupling import Coupling
from .moments import Moments
from .rows import (
    MEMORY_BYTES,
    Batches,
    Feeds,
    Progress,
    Runner,
    added_up,
    columns_of,
    examples_in,
    first_pieces,
    lanes_for,
    pieces,
    positions,
    sample,
)

SPREAD_EXAMPLES = 64
"""Examples from which the variances of sums are taken."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The moments of every column set that a consumer of a group reads, the number of examples seen, and remarks.

    `parts` are the variances of branches over those of the sums that they go into (rule 2), by the consumer's node;
    `branches` the moments of those that may go whole, by their ids.
    `cache` keeps the latest refits, so that a search that changes one group solves for that group alone.
    """

    consumers: Consumers
    moments: dict[Key, Moments]
    examples: int
    notes: tuple[str, ...]
    parts: Mapping[int, float] = field(default_factory=dict)
    branches: Mapping[str, BranchMoments] = field(default_factory=dict)
    cache: OrderedDict[Any, Any] = field(default_factory=OrderedDict, repr=False, compare=False)


def collect(
    coupling: Coupling,
    batches: Batches,
    *,
    examples: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Statistics:
    """The statistics of one pass of the original model over the batches (feeds by input name).

    Who knows how many `examples` these have spares rows that tell nothing new (`rows`, rule 2). Raises TargetError when
    ONNX Runtime cannot run the model.
    """
    graph = coupling.graph
    consumers = consumers_of(coupling)
    wanted = {item.key: item for items in consumers.by_group.values() for item in items}
    moments: dict[Key, Moments] = {}
    seen = 0
    for chunk in _chunks(graph, list(wanted)):
        reader = _Reader(graph, {key: wanted[key] for key in chunk}, examples, seed)
        seen = 0
        found = pieces(graph, batches, reader.runner.taps)
        for count in added_up(found, reader.run, reader.add, len(reader.lanes)):
            seen += count
            if progress is not None:
                progress(seen, 0, "reading activations")
        moments |= reader.moments()
    notes = [note for key in wanted if (note := _poor(wanted[key], moments[key]))]
    parts = _parts_of_sums(graph, consumers, batches)
    branches = branch_moments(coupling, consumers.all, batches, seed)
    return Statistics(consumers, moments, seen, (*consumers.notes, *notes), parts, branches)


class _Reader:
    """Takes the moments of some column sets from pieces, in lanes."""

    def __init__(self, graph: Graph, wanted: Mapping[Key, Consumer], examples: int | None, seed: int) -> None:
        self.wanted, self.examples, self.seed = wanted, examples, seed
        self.runner = Runner(graph.model, tuple(dict.fromkeys(name for name, _ in wanted)))
        size = sum(8.0 * item.window.groups * item.columns**2 for item in wanted.values())
        self.lanes = [
            {key: Moments.empty(item.window.groups, item.columns) for key, item in wanted.items()}
            for _ in range(lanes_for(size))
        ]

    def run(self, feeds: Feeds) -> tuple[int, Feeds]:
        """The number of examples of a piece, and the tensors that are read."""
        return examples_in(feeds), self.runner(feeds)

    def add(self, number: int, made: tuple[int, Feeds]) -> int:
        """Adds sampled rows of a piece to the sums of its lane; the number of its examples."""
        (examples, values), moments = made, self.lanes[number % len(self.lanes)]
        rng = np.random.default_rng((self.seed, number))
        for key, item in self.wanted.items():
            tensor = values[key[0]]
            places = sample(positions(key[1], tensor.shape), item.columns, rng, examples=self.examples)
            moments[key].add(columns_of(tensor, key[1], places))
        return examples

    def moments(self) -> dict[Key, Moments]:
        """The sums of all lanes."""
        first, *others = self.lanes
        return {key: reduce(Moments.plus, (lane[key] for lane in others), found) for key, found in first.items()}


def _parts_of_sums(graph: Graph, consumers: Consumers, batches: Batches) -> dict[int, float]:
    """Rule 2."""
    sums = {item.node.index: found for item in consumers.all if (found := summed_branch(graph, item)) is not None}
    runner = Runner(graph.model, tuple(dict.fromkeys(name for pair in sums.values() for name in pair)))
    spreads: dict[str, list[Floats]] = {}
    for feeds in first_pieces(pieces(graph, batches, runner.taps), SPREAD_EXAMPLES) if sums else ():
        for name, tensor in runner(feeds).items():
            rows = np.moveaxis(tensor, 1, 0).reshape(tensor.shape[1], -1).astype(np.float64)
            spreads.setdefault(name, []).append(rows.var(axis=1))
    variance = {name: float(np.mean(np.sum(found, axis=1))) for name, found in spreads.items()}
    return {node: variance[branch] / variance[total] for node, (branch, total) in sums.items() if variance[total] > 0}


def _chunks(graph: Graph, keys: Sequence[Key]) -> list[list[Key]]:
    """Runs of keys whose tensors fit into memory together for a single example."""
    found: list[list[Key]] = []
    room = 0.0
    for key in keys:
        size = 4.0 * float(np.prod(graph.shapes[key[0]], dtype=np.float64))
        if not found or size > room:
            found.append([])
            room = MEMORY_BYTES
        found[-1].append(key)
        room -= size
    return found


def _poor(consumer: Consumer, moments: Moments) -> str:
    """The remark about a consumer with too few rows for its columns, or with values that are not finite."""
    if not np.isfinite(moments.total).all():
        return f"{consumer.node.label}: its input is not finite on the calibration data; left as sliced"
    if moments.count < 2 * moments.total.shape[1]:
        return f"{consumer.node.label}: {moments.count} rows for {moments.total.shape[1]} columns; give more examples"
    return ""


def usable(statistics: Statistics, consumer: Consumer) -> bool:
    """Whether there are finite moments for a consumer."""
    found = statistics.moments.get(consumer.key)
    return found is not None and found.count > 0 and bool(np.isfinite(found.total).all())
