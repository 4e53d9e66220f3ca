"""The time of a unit as a function of the sizes of its tensors: a physical trend plus a smooth correction.

Trend: t = c0 + c1 x1 + c2 x2 + ..., all c >= 0, where x are amounts that cost time: elements read, elements written,
constants (for a convolution that is work per output position). Least squares on relative errors.
Correction: log(t / trend) as a Gaussian process over log2 x (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, eq. 2.25), with a noise term, so that one noisy sample is not believed fully. Far from all points the
correction fades to zero and the trend is left. Points off the step are set apart by one more coordinate: they cost
some percent more, by an amount of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SPREAD = 0.12  # how far units stray from the trend (relative), seen on staircases of small convolutions
_NOISE = 0.015  # how far one in-place sample strays from another of the same unit
_REACH = 0.8  # in doublings of an amount
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
    def of(at: Floats, values: Floats, *, reach: float, spread: float, noise: float) -> "Smooth":
        """The process conditioned on `values` (n,)."""
        kernel = _kernel(at, at, reach, spread) + noise**2 * np.eye(len(at))
        return Smooth(at, np.asarray(np.linalg.solve(kernel, values), dtype=np.float64), reach, spread)

    def __call__(self, x: Floats) -> float:
        """The expected value at `x` (d,)."""
        return float((_kernel(x[None, :], self.at, self.reach, self.spread) @ self.weights)[0])


def _kernel(a: Floats, b: Floats, reach: float, spread: float) -> Floats:
    square = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(spread**2 * np.exp(-square / (2 * reach**2)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Point:
    """The four amounts of one unit (see `amounts`), and whether a width is off the step."""

    amounts: Sequence[float]
    off_step: bool = False

    @property
    def place(self) -> list[float]:
        """The coordinates (d + 1,) on which the correction is smooth."""
        return [*(math.log2(max(a, 1.0)) for a in self.amounts), _APART if self.off_step else 0.0]


@dataclass(frozen=True, slots=True)
class UnitFit:
    """Time in microseconds over amounts (d,); `low` and `high` are the log2 amounts that points cover."""

    trend: Floats
    correction: Smooth
    low: Floats
    high: Floats

    @staticmethod
    def of(points: Sequence[Point], times_us: Sequence[float], trend: Floats | None = None) -> "UnitFit":
        """The fit to n >= 1 points with their times; a given trend is scaled to them, else it is fitted to them."""
        x, t = _arrays(points, times_us)
        if trend is None:
            trend = trend_of(points, times_us)
        else:
            trend = trend * float(np.exp(np.median(np.log(t / _value(trend, x)))))
        places = np.asarray([p.place for p in points])
        stray = np.log(t / _value(trend, x))
        correction = Smooth.of(places, stray, reach=_REACH, spread=_SPREAD, noise=_NOISE)
        return UnitFit(trend, correction, places.min(axis=0), places.max(axis=0))

    def __call__(self, point: Point) -> float:
        """The expected microseconds."""
        trend = _value(self.trend, np.asarray(point.amounts, dtype=np.float64))
        return float(trend * np.exp(self.correction(np.asarray(point.place))))

    def covers(self, point: Point) -> bool:
        """Whether the amounts lie within the points (up to a small slack), so that the fit interpolates."""
        place = np.asarray(point.place)[:-1]
        return bool(np.all(place >= self.low[:-1] - _SLACK) and np.all(place <= self.high[:-1] + _SLACK))


def trend_of(points: Sequence[Point], times_us: Sequence[float]) -> Floats:
    """Coefficients (1 + d,) >= 0 of the trend through n >= 1 points: least squares on relative errors.

    A weak prior (`_SHARES` of the largest time) decides what the points leave open, such as all of it for one point.
    """
    from scipy.optimize import nnls

    x, t = _arrays(points, times_us)
    scale = np.maximum(x.max(axis=0), 1.0)
    columns = np.column_stack([np.ones(len(x)), x / scale])
    shares = np.asarray([_SHARES[0], *np.where(x.max(axis=0) > 0, _SHARES[1:], 0.0)])
    prior = _PRIOR * np.eye(columns.shape[1]) / t.max()
    rows = np.vstack([columns / t[:, None], prior])
    solved, _ = nnls(rows, np.concatenate([np.ones(len(t)), _PRIOR * shares / shares.sum()]))
    return np.concatenate([solved[:1], solved[1:] / scale])


def _arrays(points: Sequence[Point], times_us: Sequence[float]) -> tuple[Floats, Floats]:
    x = np.asarray([p.amounts for p in points], dtype=np.float64)
    return x, np.maximum(np.asarray(times_us, dtype=np.float64), 1e-3)


def _value(trend: Floats, x: Floats) -> Floats:
    return np.asarray(np.maximum(trend[0] + x @ trend[1:], 1e-3))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whole-network milliseconds from the sum of units: (slope * sum + offset) * a smooth local correction."""

    slope: float
    offset_ms: float
    correction: Smooth | None

    @staticmethod
    def of(sums_ms: Sequence[float], places: Floats, measured_ms: Sequence[float]) -> "Calibration":
        """The calibration on measured networks at `places` (n, groups: relative widths)."""
        if not len(sums_ms):
            return Calibration(1.0, 0.0, None)
        s, m = np.asarray(sums_ms, dtype=np.float64), np.asarray(measured_ms, dtype=np.float64)
        slope, offset = _line(s, m)
        stray = np.log(m / np.maximum(slope * s + offset, 1e-6))
        correction = Smooth.of(places, stray, reach=0.15, spread=0.02, noise=0.01)
        return Calibration(slope, offset, correction)

    def __call__(self, sum_ms: float, place: Floats) -> float:
        """The expected milliseconds of a network at `place` (groups,) whose units sum to `sum_ms`."""
        local = 1.0 if self.correction is None else float(np.exp(self.correction(place)))
        return max(self.slope * sum_ms + self.offset_ms, 1e-6) * local


def _line(s: Floats, m: Floats) -> tuple[float, float]:
    """Slope and offset of m over s, least squares on relative errors; without spread in s, a ratio."""
    if np.ptp(s) < 0.1 * s.max():
        return float(np.median(m / s)), 0.0
    columns = np.column_stack([s, np.ones(len(s))]) / m[:, None]
    slope, offset = np.linalg.lstsq(columns, np.ones(len(s)), rcond=None)[0]
    sound = 0.3 < slope < 3.0 and bool(np.all(slope * s + offset > 0.5 * m))
    return (float(slope), float(offset)) if sound else (float(np.median(m / s)), 0.0)
