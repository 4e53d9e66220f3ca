"""The time of a unit as a function of the sizes of its tensors: a physical trend plus a smooth correction.

Trend: t = c0 + c1 x1 + c2 x2 + ..., all c >= 0, where x are amounts that cost time: elements read, elements written,
constants (for a convolution that is work per output position). Least squares on relative errors.
Correction: log(t / trend) as a Gaussian process over log2 x (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, eq. 2.25), with a noise term, so that one noisy sample is not believed fully. Far from all points the
correction fades to zero and the trend is left. Points off the step are set apart by one more coordinate: they cost
some percent more, by an amount of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
class Calibration:
    """Whole-network milliseconds from the sum of units: (slope * sum + offset) * a smooth local correction."""

    slope: float
    offset_ms: float
    correction: Smooth | None

    @staticmethod
    def of(sums_ms: Sequence[float] | Floats, places: Floats, measured_ms: Sequence[float]) -> "Calibration":
        """The calibration on measured networks at `places` (n, groups: relative widths)."""
        if not len(sums_ms):
            return Calibration(1.0, 0.0, None)
        s, m = np.asarray(sums_ms, dtype=np.float64), np.asarray(measured_ms, dtype=np.float64)
        slope, offset = _line(s, m)
        stray = np.log(m / np.maximum(slope * s + offset, 1e-6))
        correction = Smooth.of(places, stray, reach=0.15, spread=0.02, noise=0.01)
        return Calibration(slope, offset, correction)

    def alone(self) -> "Calibration":
        """The line without the local correction."""
        return Calibration(self.slope, self.offset_ms, None)

    def __call__(self, sums_ms: Floats, places: Floats) -> Floats:
        """The expected milliseconds (n,) of networks at `places` (n, groups) whose units sum to `sums_ms` (n,)."""
        local = 1.0 if self.correction is None else np.exp(self.correction(places))
        return np.asarray(np.maximum(self.slope * sums_ms + self.offset_ms, 1e-6) * local)


def _line(s: Floats, m: Floats) -> tuple[float, float]:
    """Slope and offset of m over s, least squares on relative errors; without spread in s, a ratio."""
    if np.ptp(s) < 0.1 * s.max():
        return float(np.median(m / s)), 0.0
    columns = np.column_stack([s, np.ones(len(s))]) / m[:, None]
    slope, offset = np.linalg.lstsq(columns, np.ones(len(s)), rcond=None)[0]
    sound = 0.3 < slope < 3.0 and bool(np.all(slope * s + offset > 0.5 * m))
    return (float(slope), float(offset)) if sound else (float(np.median(m / s)), 0.0)
