"""Moments and sums: the numbers of the rows themselves, about whatever centre, and in single precision too."""

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_netadapt.passes.moments import Moments, Sums

Rows = NDArray[np.float64]


def _rows(count: int, columns: int, *, offset: float = 0.0, scale: float = 1.0, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return offset + scale * rng.standard_normal((2, count, columns))


def _moments(rows: Rows, *parts: int) -> Moments:
    found = Moments.empty(len(rows), rows.shape[2])
    for part in np.split(rows, parts, axis=1):
        found.add(part)
    return found


def _sums(x: Rows, t: Rows) -> Sums:
    found = Sums.empty(len(x), t.shape[2], x.shape[2])
    found.add(x, t)
    return found


@pytest.mark.parametrize("centred", [True, False])
def test_the_moments_are_those_of_the_rows(centred: bool) -> None:
    rows = _rows(31, 5, offset=3.0)
    found = _moments(rows, 4, 17)
    rest = rows - rows.mean(axis=1, keepdims=True) if centred else rows
    assert found.count == 31
    assert np.allclose(found.mean(), rows.mean(axis=1))
    assert np.allclose(found.second(centred=centred), np.einsum("grk,grl->gkl", rest, rest) / 31)


def test_single_precision_keeps_variances_far_from_nothing() -> None:
    """Means of a thousand standard deviations: about 0, float32 has no digit left of the variance."""
    rows = _rows(4000, 3, offset=100.0, scale=0.1)
    want = np.stack([np.cov(block.T, bias=True) for block in rows])
    found = _moments(rows.astype(np.float32), 64).second(centred=True)
    assert np.abs(found - want).max() < 1e-3 * want.max()
    single = rows.astype(np.float32)
    mean = single.mean(axis=1)
    plain = np.einsum("grk,grl->gkl", single, single) / np.float32(4000) - mean[:, :, None] * mean[:, None, :]
    assert np.abs(plain - want).max() > 0.1 * want.max()  # what the centre is for


def test_sums_move_to_any_centre_and_add_up() -> None:
    x, t = _rows(40, 4, offset=2.0), _rows(40, 3, offset=-1.0, seed=1)
    whole, parts = _sums(x, t), [_sums(x[:, :13], t[:, :13]), _sums(x[:, 13:], t[:, 13:])]
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((2, 4)), rng.standard_normal((2, 3))
    for found in (whole, parts[0].plus(parts[1])):
        xx, tx, tt = found.second(*centres)
        dx, dt = x - centres[0][:, None], t - centres[1][:, None]
        assert np.allclose(xx, np.einsum("grk,grl->gkl", dx, dx) / 40)
        assert np.allclose(tx, np.einsum("gro,grk->gok", dt, dx) / 40)
        assert np.allclose(tt, (dt**2).mean(axis=1))
        assert np.allclose(found.goal(), t.mean(axis=1))


def test_rows_of_no_number_change_nothing() -> None:
    empty = np.zeros((2, 0, 4))
    found = _sums(_rows(9, 4), _rows(9, 3))
    before = found.cross.copy()
    found.add(empty, empty[:, :, :3])
    assert (found.inputs.count, found.cross.tolist()) == (9, before.tolist())
    late = Sums.empty(2, 3, 4)
    late.add(empty, empty[:, :, :3])
    late.add(_rows(9, 4), _rows(9, 3))
    assert np.allclose(late.centred()[1], found.centred()[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_totals(bad: float) -> None:
    rows = _rows(9, 4).astype(np.float32)
    rows[0, 3, 1] = bad
    found = _sums(rows, rows[:, :, :3])
    assert np.isfinite(found.inputs.total).tolist() == [[True, False, True, True], [True] * 4]
    assert not np.isfinite(found.squares[0, 1])
