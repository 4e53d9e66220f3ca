"""What a branch that may go gives, and how much of it the layer that writes its shortcut can give instead.

For a branch f(x) and the weights that write x from their input u, the best replacement from u alone is the regression

    f(x) ~ D u + d,   D = E[(f - E f)(u - E u)'] (Cov u + ridge)^-1,   d = E f - D E u

which is added to these weights and their bias when the branch goes (`recover`). A plain layer y = f(x) counts as a
branch of y - x: so the layer that writes x is fitted to y. On ResNet56 and MobileNetV2 it is 20 to
70% of a branch's variance. Where several branches in a row have gone, the layer before them takes over all of them; of
those more than REACH away, and of layers of more than MOST_COLUMNS, the mean alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from ..ir.graph import Graph
from ..ir.ops.maps import Floats, spatial_sizes
from .branches import absorbed
from .consumers import Consumer
from .coupling import Branch, Coupling
from .moments import Sums
from .rows import (
    Batches,
    Feeds,
    Runner,
    added_up,
    columns_of,
    first_pieces,
    lanes_for,
    outputs_of,
    pieces,
    positions,
    sample,
)

EXAMPLES = 320
HELD_OUT = 5
"""One of so many examples is held out of the regression, to say what it leaves."""

REACH = 3
MOST_COLUMNS = 1200
SUMS_BYTES = 400_000_000
RIDGE = 1e-2
OUTPUT_POSITIONS = 200
"""Positions of an image from which means and variances are taken."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """What the writer of a shortcut adds to its weight (outputs, columns) and its bias for a branch that went."""

    matrix: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class BranchMoments:
    """A branch's mean by channel, its variance in its own units, and as a share of that of the sum that it goes into.

    `left` is the share of its variance that stays lost when the layer right before takes over what it can; `takeovers`
    are by the node of the layer that does.
    """

    mean: Floats
    amount: float
    share: float
    left: float
    takeovers: Mapping[int, Takeover]


def branch_moments(
    coupling: Coupling, consumers: Sequence[Consumer], batches: Batches, seed: int = 0
) -> dict[str, BranchMoments]:
    """The moments of every branch that may go, by its id, from the first examples."""
    if not coupling.branches:
        return {}
    graph = coupling.graph
    takers = _takers(coupling, consumers)
    size = sum(taker.bytes for taker in takers)
    lanes = [_Lane(coupling, [_Regression.empty(taker) for taker in takers]) for _ in range(lanes_for(size))]
    ends = (name for branch in coupling.branches for name in (*_read(branch), graph.nodes[branch.total].outputs[0]))
    taps = dict.fromkeys([*ends, *(taker.item.data for taker in takers)])
    runner = Runner(graph.model, tuple(taps))

    def add(number: int, values: Feeds) -> None:
        lanes[number % len(lanes)].add(values, np.random.default_rng((seed, number)))

    for _ in added_up(first_pieces(pieces(graph, batches, runner.taps), EXAMPLES), runner, add, len(lanes)):
        pass
    return reduce(_Lane.plus, lanes).moments()


def _read(branch: Branch) -> tuple[str, ...]:
    """The tensors that tell what a branch gives."""
    return (branch.output, branch.shortcut) if branch.plain else (branch.output,)


def _given(values: Mapping[str, Any], branch: Branch) -> Any:
    """What a branch adds to x, of a plain layer y - x."""
    found = values[branch.output]
    return found - values[branch.shortcut] if branch.plain else found


def _takers(coupling: Coupling, consumers: Sequence[Consumer]) -> list[_Taker]:
    """The layers that can take over a branch when it goes, and up to REACH - 1 branches right before it as well."""
    graph = coupling.graph
    behind = {name: branch for branch in coupling.branches for name in _stream_behind(graph, branch)}
    items = {item.node.index: item for item in consumers if can_take_over(item)}
    found: dict[int, _Taker] = {}
    for reach in range(1, REACH + 1):
        for branch in coupling.branches:
            row = [branch]
            while len(row) < reach and row[-1].shortcut in behind:
                row.append(behind[row[-1].shortcut])
            for index, what in absorbed(graph, consumers, row).items():
                item, channels = items.get(index), graph.shapes[branch.output][branch.axis]
                if item is None or branch not in what.branches or item.map.out_axis != branch.axis:
                    continue
                taker = found.get(index, _Taker(item, channels))
                if taker.channels != channels:
                    continue
                wider = taker if branch in taker.branches else taker.taking(branch, near=reach == 1)
                held = sum(other.bytes for key, other in found.items() if key != index)
                if wider.columns <= MOST_COLUMNS and held + wider.bytes <= SUMS_BYTES:
                    found[index] = wider
    return list(found.values())


def can_take_over(item: Consumer) -> bool:
    """Whether a layer has one block of weights, and a bias of its own that its output shows as it is."""
    return bool(item.bias.name) and item.bias.inside and item.window.groups == 1 and not item.by_channel


def _stream_behind(graph: Graph, branch: Branch) -> list[str]:
    """The tensors that are the shortcut when the branch has gone."""
    after = [] if branch.again is None else list(graph.nodes[branch.again[1]].outputs)
    return [graph.nodes[branch.total].outputs[0], *after]


@dataclass(frozen=True, slots=True)
class _Taker:
    """A layer and the branches, of so many `channels` each, that it may take over; `near`: it is right before them."""

    item: Consumer
    channels: int
    branches: tuple[Branch, ...] = ()
    near: frozenset[str] = frozenset()

    @property
    def columns(self) -> int:
        """Inputs of the layer's product."""
        return self.item.channels * self.item.taps

    @property
    def outputs(self) -> int:
        """Channels of all branches."""
        return len(self.branches) * self.channels

    @property
    def bytes(self) -> int:
        """The size of a regression's sums."""
        return 2 * 8 * self.columns * (self.columns + self.outputs)

    def taking(self, branch: Branch, *, near: bool) -> _Taker:
        """The same with a branch more."""
        return replace(self, branches=(*self.branches, branch), near=self.near | ({branch.id} if near else set()))


@dataclass(frozen=True, slots=True)
class _Regression:
    """Sums over a taker's inputs, and over what its branches give one after the other; a part of the rows held out."""

    taker: _Taker
    fitted: Sums
    held: Sums

    @classmethod
    def empty(cls, taker: _Taker) -> _Regression:
        """Sums over no rows."""
        fitted, held = (Sums.empty(1, taker.outputs, taker.columns) for _ in range(2))
        return cls(taker, fitted, held)

    def plus(self, other: _Regression) -> _Regression:
        """The sums over the rows of both."""
        return _Regression(self.taker, self.fitted.plus(other.fitted), self.held.plus(other.held))

    def add(self, values: Mapping[str, Any], rng: np.random.Generator) -> None:
        """Takes sampled rows of a piece."""
        tensor, window = values[self.taker.item.data], self.taker.item.window
        places = sample(positions(window, tensor.shape), self.taker.columns, rng)
        u = columns_of(tensor, window, places)
        given = [outputs_of(_given(values, branch), branch.axis, 1, places) for branch in self.taker.branches]
        f = np.concatenate(given, axis=2)
        split = u.shape[1] - u.shape[1] // HELD_OUT
        self.fitted.add(u[:, :split], f[:, :split])
        self.held.add(u[:, split:], f[:, split:])

    def takeovers(self) -> dict[str, tuple[Takeover, float]]:
        """The regressions of the module's docstring by branch, and the share of its variance that each leaves."""
        (uu,), (fu,), _ = self.fitted.centred()
        damped = uu + np.eye(len(uu)) * (RIDGE * float(np.trace(uu)) / len(uu) or 1.0)
        matrix = np.linalg.solve(damped, fu.T).T
        bias = self.fitted.goal()[0] - matrix @ self.fitted.inputs.mean()[0]
        rest, whole = _unexplained(self.held, matrix)
        found = {}
        for place, branch in enumerate(self.taker.branches):
            own = slice(place * self.taker.channels, (place + 1) * self.taker.channels)
            lost, all_of_it = float(rest[own].sum()), float(whole[own].sum())
            left = float(np.clip(lost / all_of_it, 0.0, 1.0)) if all_of_it > 0 else 1.0
            found[branch.id] = Takeover(matrix[own], bias[own]), left
        return found


def _unexplained(held: Sums, matrix: Floats) -> tuple[Floats, Floats]:
    """The variance of each output that a matrix leaves on rows held out, and all of it; (outputs,) each."""
    if not held.inputs.count:
        return np.zeros(len(matrix)), np.zeros(len(matrix))
    (uu,), (fu,), (squares,) = held.centred()
    return squares - 2 * (matrix * fu).sum(axis=1) + ((matrix @ uu) * matrix).sum(axis=1), squares


@dataclass(slots=True)
class _Spread:
    """Means and variances of the channels of a tensor."""

    axis: int
    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, tensor: Floats, rng: np.random.Generator) -> None:
        """Takes sampled positions of a piece."""
        places = sample(int(np.prod(spatial_sizes(tensor.shape, self.axis))), 10 * OUTPUT_POSITIONS, rng)
        rows = outputs_of(tensor, self.axis, 1, places)[0].astype(np.float64)
        self.count += len(rows)
        self.total, self.squares = self.total + rows.sum(axis=0), self.squares + (rows**2).sum(axis=0)

    def plus(self, other: _Spread) -> _Spread:
        """Over the positions of both."""
        counts = self.count + other.count
        return _Spread(self.axis, counts, self.total + other.total, self.squares + other.squares)

    def mean(self) -> Floats:
        """By channel."""
        return np.asarray(self.total / self.count, dtype=np.float64)

    def variance(self) -> float:
        """Summed over the channels."""
        return float(np.sum(self.squares / self.count - self.mean() ** 2))


class _Lane:
    """What one lane sums up: regressions, and by branch the spread of what it gives and of the sum it goes into."""

    def __init__(self, coupling: Coupling, regressions: list[_Regression]) -> None:
        self.coupling, self.regressions = coupling, regressions
        self.spreads = {branch.id: (_Spread(branch.axis), _Spread(branch.axis)) for branch in coupling.branches}

    def add(self, values: Mapping[str, Any], rng: np.random.Generator) -> None:
        """Takes sampled rows and positions of a piece."""
        for regression in self.regressions:
            regression.add(values, rng)
        for branch in self.coupling.branches:
            given, total = self.spreads[branch.id]
            given.add(_given(values, branch), rng)
            total.add(values[self.coupling.graph.nodes[branch.total].outputs[0]], rng)

    def plus(self, other: _Lane) -> _Lane:
        """What both have seen."""
        both = zip(self.regressions, other.regressions, strict=True)
        found = _Lane(self.coupling, [own.plus(its) for own, its in both])
        for branch, (given, total) in self.spreads.items():
            found.spreads[branch] = given.plus(other.spreads[branch][0]), total.plus(other.spreads[branch][1])
        return found

    def moments(self) -> dict[str, BranchMoments]:
        """The moments of every branch."""
        taken = [(regression.taker, regression.takeovers()) for regression in self.regressions]
        found = {}
        for branch in self.coupling.branches:
            given, total = self.spreads[branch.id]
            own = {taker.item.node.index: what[branch.id][0] for taker, what in taken if branch.id in what}
            near = [what[branch.id][1] for taker, what in taken if branch.id in taker.near]
            amount, whole = given.variance(), total.variance()
            share = amount / whole if whole > 0 else 0.0
            found[branch.id] = BranchMoments(given.mean(), amount, share, min(near, default=1.0), own)
        return found
