import numpy as np
import pytest
from onnx_netadapt.profiler.fit import Calibration, Point, UnitFit


def law(read: float, work: float, written: float, _: float) -> float:
    return 3.0 + 0.002 * read + 0.0001 * work + 0.001 * written


def points(rng: np.random.Generator, count: int) -> list[Point]:
    blocks = rng.integers(1, 12, (count, 2)) * 16
    return [Point((100.0 * a, 100.0 * a * b, 100.0 * b, 0.0)) for a, b in blocks]


def test_a_physical_law_is_found_from_noisy_points() -> None:
    rng = np.random.default_rng(3)
    known, unseen = points(rng, 20), points(rng, 50)
    fit = UnitFit.of(known, [law(*p.amounts) * rng.normal(1, 0.01) for p in known])
    errors = [fit(p) / law(*p.amounts) - 1 for p in unseen if fit.covers(p)]
    assert len(errors) > 20
    assert max(map(abs, errors)) < 0.03


def test_one_point_scales_with_its_amounts() -> None:
    fit = UnitFit.of([Point((100.0, 1000.0, 10.0, 1000.0))], [8.0])
    assert fit(Point((100.0, 1000.0, 10.0, 1000.0))) == pytest.approx(8.0, rel=0.01)
    assert fit(Point((200.0, 2000.0, 20.0, 2000.0))) == pytest.approx(16.0, rel=0.1)
    assert fit(Point((100.0, 500.0, 10.0, 500.0))) == pytest.approx(5.5, rel=0.1)  # most of it is taken for work
    assert not fit.covers(Point((200.0, 2000.0, 20.0, 2000.0)))


def test_a_borrowed_trend_is_scaled_to_the_few_points() -> None:
    rng = np.random.default_rng(5)
    many = points(rng, 30)
    trend = UnitFit.of(many, [law(*p.amounts) for p in many]).trend
    fit = UnitFit.of(many[:1], [2 * law(*many[0].amounts)], trend)
    assert [fit(p) / law(*p.amounts) for p in many] == pytest.approx([2.0] * 30, rel=0.02)


def test_points_off_the_step_do_not_spoil_those_on_it() -> None:
    rng = np.random.default_rng(7)
    on = points(rng, 15)
    off = [Point(p.amounts, off_step=True) for p in points(rng, 15)]
    times = [law(*p.amounts) for p in on] + [1.1 * law(*p.amounts) for p in off]
    fit = UnitFit.of(on + off, times)
    assert np.mean([fit(p) / law(*p.amounts) for p in on]) == pytest.approx(1.0, abs=0.01)
    assert np.mean([fit(p) / law(*p.amounts) for p in off]) == pytest.approx(1.1, abs=0.01)


def test_calibration_finds_slope_and_offset() -> None:
    sums = np.linspace(2, 9, 12)
    places = np.linspace(0.2, 1.0, 12)[:, None]
    told = Calibration.of(sums, places, 0.9 * sums - 0.3)
    assert (told.slope, told.offset_ms) == pytest.approx((0.9, -0.3))
    assert told(5.0, np.array([0.5])) == pytest.approx(4.2, rel=1e-3)


def test_calibration_without_measurements_changes_nothing() -> None:
    assert Calibration.of([], np.zeros((0, 1)), [])(5.0, np.array([0.5])) == 5.0


def test_one_measurement_gives_a_ratio() -> None:
    assert Calibration.of([4.0], np.ones((1, 1)), [5.0])(8.0, np.ones(1)) == pytest.approx(10.0, rel=1e-3)


def test_an_observation_moves_estimates_near_it_and_not_far_from_it() -> None:
    sums, places = np.linspace(2, 9, 12), np.linspace(0.2, 1.0, 12)[:, None]
    told = Calibration.of([*sums, 5.0], np.vstack([places, [[2.0]]]), [*sums, 5.5])
    assert told(5.0, np.array([2.0])) > 1.05 * told(5.0, np.array([0.5]))
