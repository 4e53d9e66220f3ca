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
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Graph
from ..ir.ops.maps import Floats, spatial_sizes
from .branches import absorbed
from .consumers import Consumer
from .coupling import Branch, Coupling
from .moments import Sums
from .rows import Batches, Runner, columns_of, examples_in, outputs_of, pieces, positions, sample

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
    pairs = _pairs(coupling, consumers)
    spreads = {branch.id: (_Spread(branch.axis), _Spread(branch.axis)) for branch in coupling.branches}
    ends = (name for branch in coupling.branches for name in (*_read(branch), graph.nodes[branch.total].outputs[0]))
    taps = dict.fromkeys([*ends, *(pair.item.data for pair in pairs)])
    runner = Runner(graph.model, tuple(taps))
    rng = np.random.default_rng(seed)
    seen = 0
    for feeds in pieces(graph, batches, runner.taps):
        values = runner(feeds)
        for pair in pairs:
            pair.add(values, rng)
        for branch in coupling.branches:
            spreads[branch.id][0].add(_given(values, branch), rng)
            spreads[branch.id][1].add(values[graph.nodes[branch.total].outputs[0]], rng)
        seen += examples_in(feeds)
        if seen >= EXAMPLES:
            break
    found = {}
    for branch in coupling.branches:
        output, total = spreads[branch.id]
        own = [pair for pair in pairs if pair.branch is branch]
        takeovers = {pair.item.node.index: pair.takeover() for pair in own}
        left = min((pair.left(takeovers[pair.item.node.index]) for pair in own if pair.near), default=1.0)
        amount, whole = output.variance(), total.variance()
        share = amount / whole if whole > 0 else 0.0
        found[branch.id] = BranchMoments(output.mean(), amount, share, left, takeovers)
    return found


def _read(branch: Branch) -> tuple[str, ...]:
    """The tensors that tell what a branch gives."""
    return (branch.output, branch.shortcut) if branch.plain else (branch.output,)


def _given(values: Mapping[str, Any], branch: Branch) -> Any:
    """What a branch adds to x, of a plain layer y - x."""
    found = values[branch.output]
    return found - values[branch.shortcut] if branch.plain else found


def _pairs(coupling: Coupling, consumers: Sequence[Consumer]) -> list[_Pair]:
    """The layers that can take over a branch when it goes, and up to REACH - 1 branches right before it as well."""
    graph = coupling.graph
    behind = {name: branch for branch in coupling.branches for name in _stream_behind(graph, branch)}
    items = {item.node.index: item for item in consumers if can_take_over(item)}
    found: dict[tuple[int, str], _Pair] = {}
    bytes_held = 0
    for reach in range(1, REACH + 1):
        for branch in coupling.branches:
            row = [branch]
            while len(row) < reach and row[-1].shortcut in behind:
                row.append(behind[row[-1].shortcut])
            for index, what in absorbed(graph, consumers, row).items():
                item = items.get(index)
                if item is None or (index, branch.id) in found or branch not in what.branches:
                    continue
                columns = item.channels * item.taps
                bytes_held += 2 * 8 * columns**2
                if columns <= MOST_COLUMNS and bytes_held <= SUMS_BYTES and item.map.out_axis == branch.axis:
                    channels = graph.shapes[branch.output][branch.axis]
                    found[index, branch.id] = _Pair.of(item, branch, channels, near=reach == 1)
    return list(found.values())


def can_take_over(item: Consumer) -> bool:
    """Whether a layer has one block of weights, and a bias of its own that its output shows as it is."""
    return bool(item.bias.name) and item.bias.inside and item.window.groups == 1 and not item.by_channel


def _stream_behind(graph: Graph, branch: Branch) -> list[str]:
    """The tensors that are the shortcut when the branch has gone."""
    after = [] if branch.again is None else list(graph.nodes[branch.again[1]].outputs)
    return [graph.nodes[branch.total].outputs[0], *after]


@dataclass(slots=True)
class _Pair:
    """A layer and a branch that it may take over; `near` when nothing else lies between."""

    item: Consumer
    branch: Branch
    near: bool
    fitted: Sums
    held: Sums

    @classmethod
    def of(cls, item: Consumer, branch: Branch, outputs: int, *, near: bool) -> _Pair:
        """A pair without rows, of a branch with so many channels."""
        fitted, held = (Sums.empty(1, outputs, item.channels * item.taps) for _ in range(2))
        return cls(item, branch, near, fitted, held)

    def add(self, values: Mapping[str, Any], rng: np.random.Generator) -> None:
        """Takes sampled rows of a piece."""
        tensor, window = values[self.item.data], self.item.window
        places = sample(positions(window, tensor.shape), self.item.channels * self.item.taps, rng)
        u = columns_of(tensor, window, places)
        f = outputs_of(_given(values, self.branch), self.branch.axis, 1, places)
        split = u.shape[1] - u.shape[1] // HELD_OUT
        self.fitted.add(u[:, :split], f[:, :split])
        self.held.add(u[:, split:], f[:, split:])

    def takeover(self) -> Takeover:
        """The regression of the module's docstring."""
        (uu,), (fu,), _ = self.fitted.centred()
        damped = uu + np.eye(len(uu)) * (RIDGE * float(np.trace(uu)) / len(uu) or 1.0)
        matrix = np.linalg.solve(damped, fu.T).T
        return Takeover(matrix, self.fitted.goal()[0] - matrix @ self.fitted.inputs.mean()[0])

    def left(self, found: Takeover) -> float:
        """The share of the branch's variance that it leaves on examples held out."""
        if not self.held.inputs.count:
            return 1.0
        (uu,), (fu,), squares = self.held.centred()
        d, ff = found.matrix, float(squares.sum())
        rest = ff - 2 * float(np.vdot(d, fu)) + float(np.vdot(d @ uu, d))
        return float(np.clip(rest / ff, 0.0, 1.0)) if ff > 0 else 1.0


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

    def mean(self) -> Floats:
        """By channel."""
        return np.asarray(self.total / self.count, dtype=np.float64)

    def variance(self) -> float:
        """Summed over the channels."""
        return float(np.sum(self.squares / self.count - self.mean() ** 2))
