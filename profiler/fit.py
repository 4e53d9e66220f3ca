"""The time of a unit as a function of the sizes of its tensors: a physical trend plus a smooth correction.

Trend: t = c0 + c1 x1 + c2 x2 + ..., all c >= 0, where x are amounts that cost time: elements read, elements written,
constants (for a convolution that is work per output position). Least squares on relative errors.
Correction: log(t / trend) as a Gaussian process over log2 x (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, eq. 2.25), with a noise term, so that one noisy sample is not believed fully. Far from all points the
correction fades to zero and the trend is left. Points off the step are set apart by one more coordinate: they cost
some percent more, by an amount of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SPREAD = 0.12  # how far units stray from the trend (relative), seen on staircases of small convolutions
_NOISE = 0.015  # how far one in-place sample strays from another of the same unit
_REACH = 0.8  # in doublings of an amount
_OWN = 0.3  # how far all units of a family stray together from the trend of several families
_SHARES = (0.05, 0.15, 0.55, 0.15, 0.10)  # of a unit's time: overhead, then the amounts in their order
_PRIOR = 0.03  # weight of that belief against one measured point
_APART = 0.8  # distance (in doublings) between points on and off the step
_COMPARED = 0.015  # relative error of a measured network against the sum of its units
_SLOPE_SPREAD, _OFFSET = 0.3, 0.05  # how far the slope strays from one, and the offset (relative) from none
_NODE_MS, _NODE_MS_SPREAD = -0.0018, 0.001  # what profiling adds to the time of a node, seen on four networks
_SLACK = 0.05  # a query this far outside the points (in doublings) still counts as inside


@dataclass(frozen=True, slots=True)
class Smooth:
    """A Gaussian process over points `at` (n, d) with known values: zero mean, squared-exponential kernel."""

    at: Floats
    weights: Floats
    reach: float
    spread: float

    @staticmethod
    def of(at: Floats, values: Floats, *, reach: float, spread: float, noise: float, more: Any = 0.0) -> "Smooth":
        """The process conditioned on `values` (n,); `more` (n, n) is added to the covariance."""
        kernel = _kernel(at, at, reach, spread) + noise**2 * np.eye(len(at)) + more
        return Smooth(at, np.asarray(np.linalg.solve(kernel, values), dtype=np.float64), reach, spread)

    def __call__(self, x: Floats) -> Floats:
        """The expected values (m,) at `x` (m, d)."""
        return np.asarray(_kernel(x, self.at, self.reach, self.spread) @ self.weights, dtype=np.float64)


def _kernel(a: Floats, b: Floats, reach: float, spread: float) -> Floats:
    """Covariances (n, m); the squared distances by a product of matrices, since n may be thousands."""
    centre = b.mean(axis=0)
    a, b = a - centre, b - centre
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * (a @ b.T)
    return np.asarray(spread**2 * np.exp(np.minimum(-square / (2 * reach**2), 0.0)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Points:
    """The four amounts (n, 4) of n units (see `amounts`), and whether a width of each is off the step (n,)."""

    amounts: Floats
    off_step: npt.NDArray[np.bool_]

    @property
    def places(self) -> Floats:
        """The coordinates (n, 5) on which the correction is smooth."""
        return np.column_stack([np.log2(np.maximum(self.amounts, 1.0)), np.where(self.off_step, _APART, 0.0)])

    def __len__(self) -> int:
        return len(self.amounts)

    @staticmethod
    def joined(parts: Sequence["Points"]) -> "Points":
        """All points of at least one part, in order."""
        return Points(np.vstack([p.amounts for p in parts]), np.concatenate([p.off_step for p in parts]))


@dataclass(frozen=True, slots=True)
class UnitFit:
    """Time in microseconds over amounts (d,) for one family of units.

    `own` is the log of the factor by which the family strays from the trend; `low` and `high` are the log2 amounts that
    its own points cover.
    """

    trend: Floats
    correction: Smooth
    own: float
    low: Floats
    high: Floats

    @staticmethod
    def of(points: Points, times_us: Sequence[float], families: Sequence[int] | None = None) -> "UnitFit":
        """The fit to n >= 1 points with their times. `families` (n,) tells them apart (None: all 0); asked is number 0.

        Other families lend their trend and the shape of their correction, and each has a factor of its own: a random
        effect (Rasmussen and Williams, section 2.7), so that one point is enough to place a family.
        """
        family = np.zeros(len(points), dtype=np.int64) if families is None else np.asarray(families)
        times = np.maximum(np.asarray(times_us, dtype=np.float64), 1e-3)
        trend, places, mine = trend_of(points, times), points.places, family == 0
        stray = np.log(times / _value(trend, points.amounts))
        shared = _OWN**2 * (family[:, None] == family[None, :])
        correction = Smooth.of(places, stray, reach=_REACH, spread=_SPREAD, noise=_NOISE, more=shared)
        own = float(_OWN**2 * correction.weights[mine].sum())
        covered = places[mine] if mine.any() else np.full((1, places.shape[1]), np.nan)
        return UnitFit(trend, correction, own, covered.min(axis=0), covered.max(axis=0))

    def __call__(self, points: Points) -> Floats:
        """The expected microseconds (n,)."""
        return np.asarray(_value(self.trend, points.amounts) * np.exp(self.own + self.correction(points.places)))

    def covers(self, points: Points) -> npt.NDArray[np.bool_]:
        """Whether the amounts lie within the family's points (up to a small slack), so that the fit interpolates."""
        place = points.places[:, :-1]
        inside = (place >= self.low[:-1] - _SLACK) & (place <= self.high[:-1] + _SLACK)
        return np.asarray(inside.all(axis=1))


def trend_of(points: Points, times: Floats) -> Floats:
    """Coefficients (1 + d,) >= 0 of the trend through n >= 1 points: least squares on relative errors.

    A weak prior (`_SHARES` of the largest time) decides what the points leave open, such as all of it for one point.
    """
    from scipy.optimize import nnls

    x = points.amounts
    scale = np.maximum(x.max(axis=0), 1.0)
    columns = np.column_stack([np.ones(len(x)), x / scale])
    shares = np.asarray([_SHARES[0], *np.where(x.max(axis=0) > 0, _SHARES[1:], 0.0)])
    prior = _PRIOR * np.eye(columns.shape[1]) / times.max()
    rows = np.vstack([columns / times[:, None], prior])
    solved, _ = nnls(rows, np.concatenate([np.ones(len(times)), _PRIOR * shares / shares.sum()]))
    return np.concatenate([solved[:1], solved[1:] / scale])


def _value(trend: Floats, x: Floats) -> Floats:
    return np.asarray(np.maximum(trend[0] + x @ trend[1:], 1e-3))


@dataclass(frozen=True, slots=True)
class Sums:
    """Of n networks: the milliseconds of all units (n,), and how many nodes ran (n,)."""

    ms: Floats
    executed: Floats


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whole-network milliseconds from the sum of units: (slope * sum + node * executed + offset) * a local correction.

    `node_ms` is negative: it is what profiling adds to the time of each node.
    """

    slope: float
    node_ms: float
    offset_ms: float
    correction: Smooth | None

    @staticmethod
    def of(sums: Sums, places: Floats, measured_ms: Sequence[float]) -> "Calibration":
        """The calibration on measured networks at `places` (n, groups: relative widths)."""
        if not len(sums.ms):
            return Calibration(1.0, 0.0, 0.0, None)
        m = np.asarray(measured_ms, dtype=np.float64)
        line = Calibration(*_line(sums, m), None)
        stray = np.log(m / line.straight(sums))
        return replace(line, correction=Smooth.of(places, stray, reach=0.15, spread=0.02, noise=0.01))

    def alone(self) -> "Calibration":
        """The line without the local correction."""
        return replace(self, correction=None)

    def straight(self, sums: Sums) -> Floats:
        """The expected milliseconds (n,) without the local correction."""
        return np.maximum(self.slope * sums.ms + self.node_ms * sums.executed + self.offset_ms, 1e-6)

    def __call__(self, sums: Sums, places: Floats) -> Floats:
        """The expected milliseconds (n,) of networks at `places` (n, groups)."""
        local = 1.0 if self.correction is None else np.exp(self.correction(places))
        return np.asarray(self.straight(sums) * local)


def _line(sums: Sums, measured: Floats) -> tuple[float, float, float]:
    """Slope, milliseconds per node and offset: least squares on relative errors with a normal prior.

    Bayesian linear regression (Rasmussen and Williams, section 2.1.1), so that few networks leave it where profiles
    usually are.
    """
    scale = float(np.median(measured))
    usual, spread = np.asarray([1.0, _NODE_MS, 0.0]), np.asarray([_SLOPE_SPREAD, _NODE_MS_SPREAD, _OFFSET * scale])
    columns = np.column_stack([sums.ms, sums.executed, np.ones(len(measured))])
    rows = np.vstack([columns / measured[:, None] / _COMPARED, np.diag(1 / spread)])
    slope, node, offset = np.linalg.lstsq(
        rows, np.concatenate([np.full(len(measured), 1 / _COMPARED), usual / spread])
    )[0]
    return float(slope), float(node), float(offset)
