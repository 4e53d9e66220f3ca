"""Importance: for every group a nested order of its units, and the error that each width costs.

Structured optimal brain surgeon (Hassibi and Stork, "Second order derivatives for network pruning", 1992, for blocks of
columns and a least-squares error). With M = E[x x'] + ridge, H = M^-1 over the columns that are left, and C = W' W for
the weights as refitted so far, removing the columns u of a unit and refitting the others costs

    trace(C_uu H_uu^-1)                                                              (1)
    F = H_uu^-1 H_u:,  H -= H_:u F,  C -= C_:u F + F' C_u: - F' C_uu F               (2)

1. The unit with the smallest sum of (1) over all consumers of the group goes next, each consumer's cost as a share of
   the variance of its output, or of the residual sum that this goes into. Widths are nested: each is a prefix of one
   order. The costs of several consumers add up: each of them does its own damage (docs/decisions/0010 has figures).
2. The columns of a unit are all its positions on the consumer's channel axis, under every tap of the kernel.
3. The updates (2) are kept as thin factors and only now and then multiplied out: a step touches single rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.ops.maps import Floats
from .atoms import Ids
from .branch_moments import BranchMoments
from .consumers import Consumer, unit_layers
from .coupling import Coupling, Group
from .gram import Statistics, usable
from .moments import Moments

RIDGE = 1e-3
"""Share of the mean diagonal that is added to it; results were flat from 1e-5 to 1e-2 (RECOVERY.md, A)."""

RIDGE_PER_COLUMN = 0.1
"""What is added to RIDGE for each column per row: nothing to speak of with 50 rows a column, much with one."""

PENDING = 64

SLAB = 1 << 22
"""Elements of a weight that are squared at a time."""


@dataclass(frozen=True, slots=True)
class UnitOrder:
    """The units of a group, kept first to removed first; `error[width]` is the share of the output that a width loses.

    `error` has units + 1 numbers, does not rise with the width (but for width 0, where a branch goes whole), and is 0
    at full width; `amount` is the same as a
    variance in the outputs' own units. `measured` tells that they come from activations; without them both are the
    share of the squared weights.
    """

    order: Ids
    error: Floats
    amount: Floats
    measured: bool

    def kept(self, width: int) -> Ids:
        """The units that a width keeps, sorted."""
        return np.sort(self.order[:width])


def order(coupling: Coupling, statistics: Statistics, *, ridge: float | None = None) -> dict[str, UnitOrder]:
    """The order of every group by elimination (rule 1); by weight norms where no consumer has statistics.

    `ridge` overrides `ridge_for`.
    """
    found = {}
    plain = weight_order(coupling)
    for group in coupling.groups:
        items = [item for item in statistics.consumers.by_group[group.id] if usable(statistics, item)]
        parts = [part for item in items for part in _parts(coupling, statistics, group, item, ridge)]
        found[group.id] = _eliminate(group.units, parts) if parts else plain[group.id]
    for name, moments in statistics.branches.items():
        found[name] = _with_depth(found[name], moments)
    return found


def _with_depth(known: UnitOrder, moments: BranchMoments) -> UnitOrder:
    """The order of a group whose width 0 stands for its branch: what nobody can take over is lost then."""
    error, amount = known.error.copy(), known.amount.copy()
    error[0], amount[0] = moments.left * moments.share, moments.left * moments.amount
    return UnitOrder(known.order, error, amount, known.measured)


def weight_order(coupling: Coupling) -> dict[str, UnitOrder]:
    """The order of every group by the L2 norms of its filters (NetAdapt, section 3.3), largest first."""
    graph = coupling.graph
    contracted = {item.axis for item in coupling.relations.contracts}
    weights = [graph.nodes[index] for index in sorted({item.node for item in coupling.relations.contracts})]
    constants = [(node, slot) for node in weights for slot, name in enumerate(node.inputs) if name in graph.constants]
    energy = {False: np.zeros(len(coupling.unit_group)), True: np.zeros(len(coupling.unit_group))}
    for node, slot in constants:
        constant, use = graph.constants[node.inputs[slot]], graph.use(node, slot)
        axes = [axis for axis in range(len(constant.shape)) if (use, axis) in coupling.layers]
        if not axes or len(constant.shape) < 2:
            continue
        for axis, sums in _square_sums(constant.array(), axes).items():
            _spread(energy[(use, axis) in contracted], coupling.layers[use, axis], sums)
    return {group.id: _by_energy(coupling, group, energy) for group in coupling.groups}


def _square_sums(array: NDArray[Any], axes: list[int]) -> dict[int, Floats]:
    """The sum of squares at each position of the axes, a slab at a time: a large weight is not copied as a whole."""
    found = {axis: np.zeros(array.shape[axis]) for axis in axes}
    rows = max(1, SLAB * len(array) // max(array.size, 1))
    for start in range(0, len(array), rows):
        squares = np.asarray(array[start : start + rows], dtype=np.float64) ** 2
        for axis in axes:
            sums = squares.sum(axis=tuple(other for other in range(array.ndim) if other != axis))
            found[axis][slice(start, start + rows) if axis == 0 else slice(None)] += sums
    return found


def _spread(energy: Floats, layers: Ids, positions: Floats) -> None:
    for row in layers:
        np.add.at(energy, row[row >= 0], positions[row >= 0])


def _by_energy(coupling: Coupling, group: Group, energy: Mapping[bool, Floats]) -> UnitOrder:
    """By the filters that make the units; by the weights that read them where nothing else tells them apart."""
    start = coupling.first_unit[group.id]
    made, read = (energy[side][start : start + group.units] for side in (False, True))
    score = made if made.any() else read
    ranks = np.argsort(-score, kind="stable")
    left = score.sum() - np.concatenate([[0.0], np.cumsum(score[ranks])])
    error = np.maximum.accumulate(np.clip(left / (score.sum() or 1.0), 0.0, None)[::-1])[::-1]
    error[-1] = 0.0
    return UnitOrder(ranks.astype(np.int64), error, error, measured=False)


class _Part:
    """One block of one consumer of a group: H, C (both symmetric) and the columns of each unit (rule 3)."""

    def __init__(self, inverse: Floats, energy: Floats, columns: Ids, whole: float) -> None:
        size = len(inverse)
        self.size = size
        self.whole = whole  # the variance of which the costs are shares
        self.columns = columns  # (units, m), `size` where a unit has fewer
        self.inverse = np.pad(inverse, (0, 1))
        self.inverse[size, size] = 1.0
        self.energy = np.pad(energy, (0, 1))
        pairs = columns[:, :, None], columns[:, None, :]
        self.own_inverse = self.inverse[pairs] * _real(columns, size)  # (units, m, m)
        self.own_inverse += np.eye(columns.shape[1]) * (columns == size)[:, :, None]
        self.own_energy = self.energy[pairs]
        self.used = 0
        self.gone = np.zeros(size, dtype=np.bool_)
        self.f, self.y, self.z = (np.zeros((PENDING + columns.shape[1], size + 1)) for _ in range(3))

    def cost(self) -> Floats:
        """Formula (1) for every unit."""
        if self.columns.shape[1] == 1:
            single: Floats = self.own_energy[:, 0, 0] / np.maximum(self.own_inverse[:, 0, 0], 1e-300)
            return single
        solved = np.linalg.solve(self.own_inverse, self.own_energy)
        found: Floats = np.trace(solved, axis1=1, axis2=2)
        return found

    def remove(self, unit: int) -> None:
        """Formula (2)."""
        own = self.columns[unit]
        own = own[own < self.size]
        if not len(own):
            return
        f, y, z = self.f[: self.used], self.y[: self.used], self.z[: self.used]
        row = self.inverse[own] - f[:, own].T @ y  # H_u:
        energy = self.energy[own] - z[:, own].T @ f - f[:, own].T @ z  # C_u:
        factor = np.linalg.solve(row[:, own], row)
        half = energy - 0.5 * energy[:, own] @ factor
        self._update_own(factor, row, half)
        end = self.used + len(own)
        self.f[self.used : end], self.y[self.used : end], self.z[self.used : end] = factor, row, half
        self.used = end
        self.gone[own] = True
        self.own_inverse[unit], self.own_energy[unit] = np.eye(self.columns.shape[1]), 0.0
        if self.used >= PENDING:
            self._flush()

    def _update_own(self, factor: Floats, row: Floats, half: Floats) -> None:
        f, y, z = (part[:, self.columns].transpose(1, 0, 2) for part in (factor, row, half))  # (units, u, m)
        left = f.transpose(0, 2, 1)
        self.own_inverse -= left @ y
        cross = left @ z
        self.own_energy -= cross + cross.transpose(0, 2, 1)

    def _flush(self) -> None:
        f, y, z = self.f[: self.used], self.y[: self.used], self.z[: self.used]
        self.inverse -= f.T @ y
        cross = f.T @ z
        self.energy -= cross + cross.T
        self.used = 0
        if self.gone.sum() * 4 > self.size:
            self._shrink()

    def _shrink(self) -> None:
        """Leaves out the columns that are gone, which nothing reads any more."""
        live = np.append(np.flatnonzero(~self.gone), self.size)
        place = np.full(self.size + 1, len(live) - 1)
        place[live] = np.arange(len(live))
        self.columns = place[self.columns]
        self.inverse, self.energy = (part[np.ix_(live, live)] for part in (self.inverse, self.energy))
        self.f, self.y, self.z = (part[:, live] for part in (self.f, self.y, self.z))
        self.size = len(live) - 1
        self.gone = np.zeros(self.size, dtype=np.bool_)


def _real(columns: Ids, size: int) -> Floats:
    real = (columns < size).astype(np.float64)
    return real[:, :, None] * real[:, None, :]


def _parts(
    coupling: Coupling, statistics: Statistics, group: Group, item: Consumer, ridge: float | None
) -> list[_Part]:
    """The blocks of a consumer, their costs scaled to shares of the variance of what its output becomes part of."""
    found = statistics.moments[item.key]
    damp = ridge_for(found) if ridge is None else ridge
    moments = found.second(centred=bool(item.bias.name))
    weight = item.matrix(coupling.graph.constants[item.weight].array(), item.window.groups)
    variance = float(sum(np.sum((w @ g) * w) for w, g in zip(weight, moments, strict=True)))
    if not variance > 0:
        return []
    columns = unit_columns(coupling, group, item)
    whole = variance / statistics.parts.get(item.node.index, 1.0)
    return [
        _Part(damped_inverse(g, damp), w.T @ w / whole, own, whole)
        for w, g, own in zip(weight, moments, columns, strict=True)
    ]


def unit_columns(coupling: Coupling, group: Group, item: Consumer) -> Ids:
    """The columns of each unit in each block, (groups, units, m), filled up with the number of columns."""
    layers = unit_layers(coupling, item) - coupling.first_unit[group.id]
    inside = (layers >= 0) & (layers < group.units)
    # a position of several units of one group counts for the first of them
    owner = np.where(inside, layers, group.units).min(axis=0).reshape(item.window.groups, -1)
    size = owner.shape[1] * item.taps
    lists = [
        [
            (np.flatnonzero(block == unit)[:, None] * item.taps + np.arange(item.taps)).reshape(-1)
            for unit in range(group.units)
        ]
        for block in owner
    ]
    most = max(1, max(len(own) for block in lists for own in block))
    return np.array([[np.pad(own, (0, most - len(own)), constant_values=size) for own in block] for block in lists])


def damped_inverse(gram: Floats, ridge: float) -> Floats:
    """(G + ridge mean(diag G) I)^-1."""
    from scipy.linalg import lapack

    damped = gram + np.eye(len(gram)) * damping(gram, ridge)
    factor, fault = lapack.dpotrf(damped, lower=1)
    if fault:
        return np.linalg.pinv(damped, hermitian=True)
    inverse = lapack.dpotri(factor, lower=1)[0]
    whole: Floats = np.tril(inverse) + np.tril(inverse, -1).T
    return whole


def ridge_for(moments: Moments) -> float:
    """The ridge, as a share of the mean diagonal, for sums over so many rows."""
    return RIDGE + RIDGE_PER_COLUMN * int(moments.total.shape[1]) / max(moments.count, 1)


def damping(gram: Floats, ridge: float) -> float:
    """The number that is added to the diagonal of a Gram matrix."""
    scale = float(np.trace(gram)) / len(gram)
    return ridge * scale if scale > 0 else 1.0


def _eliminate(units: int, parts: list[_Part]) -> UnitOrder:
    """Rule 1."""
    error, amount = np.zeros(units + 1), np.zeros(units + 1)
    left = np.ones(units, dtype=np.bool_)
    removed = []
    for width in range(units - 1, -1, -1):
        costs = [part.cost() for part in parts]
        unit = int(np.argmin(np.where(left, sum(costs), np.inf)))
        shares = [max(float(cost[unit]), 0.0) for cost in costs]
        error[width] = error[width + 1] + sum(shares)
        amount[width] = amount[width + 1] + sum(s * part.whole for s, part in zip(shares, parts, strict=True))
        left[unit] = False
        removed.append(unit)
        for part in parts:
            part.remove(unit)
    return UnitOrder(np.array(removed[::-1], dtype=np.int64), error, amount, measured=True)
