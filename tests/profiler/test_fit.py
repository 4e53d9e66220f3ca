from collections.abc import Sequence

import numpy as np
import pytest
from onnx_netadapt.profiler.fit import Calibration, Points, Sums, UnitFit


def law(points: Points) -> np.ndarray:
    return 3.0 + points.amounts @ [0.002, 0.0001, 0.001, 0.0]


def points(rng: np.random.Generator, count: int, *, off_step: bool = False) -> Points:
    a, b = rng.integers(1, 12, (2, count)) * 16.0
    return Points(100 * np.stack([a, a * b, b, 0 * a], axis=1), np.full(count, off_step))


def one(*amounts: float) -> Points:
    return Points(np.asarray([amounts]), np.asarray([False]))


def test_a_physical_law_is_found_from_noisy_points() -> None:
    rng = np.random.default_rng(3)
    known, unseen = points(rng, 20), points(rng, 50)
    fit = UnitFit.of(known, law(known) * rng.normal(1, 0.01, 20))
    errors = (fit(unseen) / law(unseen) - 1)[fit.covers(unseen)]
    assert len(errors) > 20
    assert np.abs(errors).mean() < 0.015
    assert np.abs(errors).max() < 0.04


def test_one_point_scales_with_its_amounts() -> None:
    fit = UnitFit.of(one(100.0, 1000.0, 10.0, 1000.0), [8.0])
    assert fit(one(100.0, 1000.0, 10.0, 1000.0)) == pytest.approx(8.0, rel=0.01)
    assert fit(one(200.0, 2000.0, 20.0, 2000.0)) == pytest.approx(16.0, rel=0.1)
    assert fit(one(100.0, 500.0, 10.0, 500.0)) == pytest.approx(5.5, rel=0.1)  # most of it is taken for work
    assert not fit.covers(one(200.0, 2000.0, 20.0, 2000.0))[0]


def test_a_family_with_one_point_borrows_the_law_of_others_and_keeps_its_own_factor() -> None:
    rng = np.random.default_rng(5)
    others, mine, unseen = points(rng, 30), points(rng, 1), points(rng, 30)
    times = [*(2 * law(mine)), *law(others)]
    fit = UnitFit.of(Points.joined([mine, others]), times, [0, *[1] * 30])
    assert fit(unseen) / law(unseen) == pytest.approx(np.full(30, 2.0), rel=0.05)
    stranger = UnitFit.of(others, law(others), [1] * 30)
    assert stranger(unseen) / law(unseen) == pytest.approx(np.ones(30), rel=0.05)
    assert not stranger.covers(unseen).any()


def test_points_off_the_step_do_not_spoil_those_on_it() -> None:
    rng = np.random.default_rng(7)
    on, off = points(rng, 15), points(rng, 15, off_step=True)
    fit = UnitFit.of(Points.joined([on, off]), [*law(on), *(1.1 * law(off))])
    assert np.mean(fit(on) / law(on)) == pytest.approx(1.0, abs=0.01)
    assert np.mean(fit(off) / law(off)) == pytest.approx(1.1, abs=0.01)


def sums_of(ms: Sequence[float], executed: Sequence[float] | None = None) -> Sums:
    return Sums(np.asarray(ms, dtype=float), np.zeros(len(ms)) if executed is None else np.asarray(executed))


def at(told: Calibration, sum_ms: float, place: float, executed: float = 0.0) -> float:
    return float(told(sums_of([sum_ms], [executed]), np.array([[place]]))[0])


def test_calibration_finds_slope_and_offset() -> None:
    sums = np.linspace(2, 9, 12)
    places = np.linspace(0.2, 1.0, 12)[:, None]
    told = Calibration.of(sums_of(sums), places, 0.9 * sums - 0.3)
    assert (told.slope, told.offset_ms) == pytest.approx((0.9, -0.3), rel=0.02)
    assert at(told, 5.0, 0.5) == pytest.approx(4.2, rel=2e-3)


def test_calibration_finds_what_profiling_adds_to_each_node() -> None:
    """Networks of equal sums differ by the number of nodes that ran."""
    rng = np.random.default_rng(0)
    executed, sums, places = rng.integers(40, 90, 24), rng.uniform(0.4, 0.6, 24), rng.uniform(0.2, 1.0, (24, 1))
    told = Calibration.of(sums_of(sums, executed), places, sums - 0.0025 * executed)
    assert told.node_ms == pytest.approx(-0.0025, rel=0.05)
    assert at(told, 0.5, 0.6, 50) == pytest.approx(0.375, rel=0.01)
    assert at(told, 0.5, 0.6, 80) == pytest.approx(0.3, rel=0.01)


def test_calibration_without_measurements_changes_nothing() -> None:
    assert at(Calibration.of(sums_of([]), np.zeros((0, 1)), []), 5.0, 0.5) == 5.0


def test_one_measurement_gives_a_ratio() -> None:
    told = Calibration.of(sums_of([4.0]), np.ones((1, 1)), [5.0])
    assert at(told, 8.0, 1.0) == pytest.approx(10.0, rel=0.03)


def test_an_observation_moves_estimates_near_it_and_not_far_from_it() -> None:
    sums, places = np.linspace(2, 9, 12), np.linspace(0.2, 1.0, 12)[:, None]
    told = Calibration.of(sums_of([*sums, 5.0]), np.vstack([places, [[2.0]]]), [*sums, 5.5])
    assert at(told, 5.0, 2.0) > 1.05 * at(told, 5.0, 0.5)
