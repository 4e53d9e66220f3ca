"""Targets: what refits aim at, sampled rows of the original's tensors, put aside (`spill`).

1. One pass of the original reads the rows of all targets that are asked for; a later refit of another network of the
   same original runs it only for targets that are new.
2. The rows of a layer are at the same places whatever network is refitted, so that what differs is the network.
3. What is put aside is bounded: examples beyond what `DISK_BYTES` holds are not read, here nor by the refits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ..ir.graph import Graph
from ..ir.ops.maps import Floats, Ints, spatial_sizes
from .consumers import Consumer
from .rows import Batches, Feeds, Runner, examples_in, in_lanes, outputs_of, pieces, sample
from .spill import Spill

DISK_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """Rows of a tensor, channels on `axis` in `groups` blocks, for a layer with so many columns (its node's index)."""

    node: int
    tensor: str
    axis: int
    groups: int
    columns: int


class Targets:
    """The rows by target and piece, for refits of networks narrowed from one original.

    `share` is that of the rows of each example that are read (`rows`, rule 2).
    """

    def __init__(
        self,
        graph: Graph,
        consumers: Collection[Consumer],
        batches: Batches,
        *,
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.graph, self.batches, self.seed, self.share = graph, batches, seed, share
        self.count = self.examples = 0
        # pieces must be the same for all refits, whatever they tap
        self._taps = tuple(dict.fromkeys(name for item in consumers for name in (item.output, item.data)))
        self._rows = Spill()
        self._known: set[Target] = set()

    def close(self) -> None:
        """Deletes what is on the disk."""
        self._rows.close()

    def pieces(self) -> Iterator[Feeds]:
        """The examples, piece by piece; no more of them than have targets, once these were read."""
        found = pieces(self.graph, self.batches, self._taps)
        return islice(found, self.count) if self.count else found

    def places(self, target: Target, positions: int, piece: int) -> Ints:
        """The sampled ones of so many positions."""
        rng = np.random.default_rng((self.seed, target.node, piece))
        return sample(positions, target.columns, rng, self.share)

    def read(self, wanted: Sequence[Target]) -> None:
        """Puts the rows of those that are not there yet aside."""
        new = [target for target in dict.fromkeys(wanted) if target not in self._known]
        if not new:
            return
        bounded = not self.count
        runner = Runner(self.graph.model, tuple(dict.fromkeys(target.tensor for target in new)))

        def put_aside(piece: int, feeds: Feeds) -> tuple[int, int]:
            values, size = runner(feeds), 0
            for target in new:
                tensor = values[target.tensor]
                positions = int(np.prod(spatial_sizes(tensor.shape, target.axis)))
                rows = outputs_of(tensor, target.axis, target.groups, self.places(target, positions, piece))
                rows = rows.astype(np.float32, copy=False)
                self._rows.put((target, piece), rows)
                size += rows.nbytes
            return size, examples_in(feeds)

        total = 0
        with closing(in_lanes(self.pieces(), put_aside)) as done:
            for size, examples in done:
                total += size
                if bounded:
                    self.count += 1
                    self.examples += examples
                    if total > DISK_BYTES:
                        break
        self._known.update(new)

    def rows(self, target: Target, piece: int) -> Floats:
        """The rows (groups, rows, outputs) of a target that was read."""
        return self._rows.get((target, piece))
