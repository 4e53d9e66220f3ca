"""The genes of a network for ChamNet: every network is a point of the unit cube, and every point a network.

1. A width gene is the share of its width that a group keeps; beyond MOST_GENES groups, neighbours of one full width (a
   stage) share one. It is decoded to the nearest width that is worth proposing, never to 0.
2. A branch bit stands for each group that may have width 0: in the lower half of its interval the branch is gone,
   whatever its width gene says. (As the lowest end of a width gene, depth came up in some percent of all networks, and
   where a gene is shared, for all branches of a stage at once.)
3. A gene apart stands for each choice that is no group of channels (`Choice.apart`: the size of the input): its values
   have equal intervals.
4. Points are drawn with their width genes pulled towards a common level, because networks within a budget narrow all
   groups together; and with bits that are off at a common rate, drawn for each point, so that every number of branches
   gone is as likely as any other. Genes apart are drawn alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from .common import Choice, Widths, full_widths, without_depth

MOST_GENES = 24

PULL = 0.6
"""How far width genes are drawn to their common level."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Genes:
    """The genes of some choices: width genes first, then branch bits, then genes apart."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        groups = [choice for choice in choices if not choice.apart]
        self.choices = tuple(choices)
        self.shared = tied(without_depth(groups))
        self.branches = tuple(group for group in groups if group.widths[0] == 0)
        self.apart = tuple(choice for choice in choices if choice.apart)
        self._bits = slice(len(self.shared), len(self.shared) + len(self.branches))

    def __len__(self) -> int:
        return len(self.shared) + len(self.branches) + len(self.apart)

    @property
    def draws(self) -> int:
        """The uniform numbers that a drawn point is made of (rule 4)."""
        return len(self) + 1 + bool(self.branches)

    def decode(self, point: Floats) -> Widths:
        """The network of a point (len(self),), rules 1 to 3."""
        return self.decode_all(point[None])[0]

    def decode_all(self, points: Floats) -> list[Widths]:
        """The networks of points (n, len(self))."""
        whole = {group.id: group.widths[-1] for group in self.branches}  # a group may have no width between 0 and this
        found = {name: np.full(len(points), width) for name, width in whole.items()}
        for shares, members in zip(points.T, self.shared, strict=False):
            found |= {group.id: _nearest(group.widths, shares) for group in members}
        for bits, group in zip(points[:, self._bits].T, self.branches, strict=True):
            found[group.id] = np.where(bits < 0.5, 0, found[group.id])
        for values, choice in zip(points[:, self._bits.stop :].T, self.apart, strict=True):
            places = np.minimum((values * len(choice.widths)).astype(int), len(choice.widths) - 1)
            found[choice.id] = np.asarray(choice.widths)[places]
        names = [choice.id for choice in self.choices]
        rows = zip(*(found[name].tolist() for name in names), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def point(self, widths: Mapping[str, int]) -> list[float]:
        """A point that is decoded to a network, as far as shared genes can tell its groups apart."""
        return [
            *(_mean([_place(g.widths, widths[g.id]) for g in members if widths[g.id]]) for members in self.shared),
            *(0.75 if widths[group.id] else 0.25 for group in self.branches),
            *((choice.widths.index(widths[choice.id]) + 0.5) / len(choice.widths) for choice in self.apart),
        ]

    def features(self, widths: Mapping[str, Ints]) -> Floats:
        """What a predictor sees of networks (n, len(self)) with these widths (n,) of each choice.

        For each width gene the mean share of the width that its groups keep, of those that are there; for each branch
        whether it is there; for each gene apart the share of its largest value.
        """
        share = {name: widths[name] / width for name, width in full_widths(self.choices).items()}
        columns = [
            *(_mean_of_present(np.array([share[group.id] for group in members])) for members in self.shared),
            *((share[group.id] > 0).astype(float) for group in self.branches),
            *(share[choice.id] for choice in self.apart),
        ]
        return np.stack(columns, axis=1)

    def spread(self, drawn: Floats) -> Floats:
        """Points (n, len(self)) made of uniform draws (n, self.draws): rule 4."""
        level, found, rate = drawn[:, :1], drawn[:, 1 : len(self) + 1].copy(), drawn[:, -1:]
        found[:, : self._bits.start] = (1 - PULL) * found[:, : self._bits.start] + PULL * level
        found[:, self._bits] = np.where(found[:, self._bits] < rate, 0.25, 0.75)
        return found


def tied(groups: Sequence[Choice]) -> list[list[Choice]]:
    """The groups of each width gene (rule 1)."""
    if len(groups) <= MOST_GENES:
        return [[group] for group in groups]
    return [list(stage) for _, stage in groupby(groups, key=lambda group: group.widths[-1])]


def _nearest(widths: Sequence[int], shares: Floats) -> Ints:
    """For every share (n,) of the way from the least width to the full one the nearest width."""
    every = np.asarray(widths, dtype=np.int64)
    wanted = every[0] + shares * (every[-1] - every[0])
    found: Ints = every[np.abs(every[None] - wanted[:, None]).argmin(axis=1)]
    return found


def _place(widths: Sequence[int], width: int) -> float:
    return (width - widths[0]) / (widths[-1] - widths[0])


def _mean_of_present(shares: Floats) -> Floats:
    """For each network (n,) the mean of the shares (groups, n) above 0; 0 where nothing is left."""
    found: Floats = shares.sum(axis=0) / np.maximum((shares > 0).sum(axis=0), 1)
    return found


def _mean(values: Sequence[float]) -> float:
    """The mean; 0 where nothing is left."""
    return sum(values) / len(values) if values else 0.0
