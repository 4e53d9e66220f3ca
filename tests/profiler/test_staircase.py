import math

import numpy as np
import pytest
from onnx_netadapt.profiler import Granularity, Lut, Target, probe
from onnx_netadapt.profiler import staircase as module
from onnx_netadapt.profiler.staircase import STAIRS, infer

WIDTHS = tuple(range(32, 81))


def noisy(times: list[float], seed: int = 0) -> list[float]:
    return list(np.asarray(times) * np.random.default_rng(seed).normal(1.0, 0.01, len(times)))


@pytest.mark.parametrize("step", [4, 8, 16])
def test_a_plain_stair_gives_its_step(step: int) -> None:
    found = infer(WIDTHS, noisy([3.0 + math.ceil(w / step) * step for w in WIDTHS]))
    assert found.step == step
    assert found.align == 1


def test_a_smooth_curve_has_step_one() -> None:
    found = infer(WIDTHS, noisy([5.0 + w for w in WIDTHS]))
    assert (found.step, found.align) == (1, 1)


def test_a_flat_line_is_no_stair() -> None:
    assert infer(WIDTHS, noisy([100.0] * len(WIDTHS))).step == 1


def test_a_cliff_off_multiples_of_four_is_seen() -> None:
    found = infer(WIDTHS, noisy([(5.0 + w) * (1.0 if w % 4 == 0 else 1.4) for w in WIDTHS]))
    assert (found.step, found.align) == (4, 4)
    assert 1.2 < found.cliff < 1.6


STAIR = Granularity(16, 4, True, 1.3)


def test_right_edges_are_ascending_and_end_with_the_original() -> None:
    assert STAIR.right_edges(96, 9) == (12, 16, 32, 48, 64, 80, 96)
    assert STAIR.right_edges(24, 1) == (4, 8, 12, 16, 24)
    assert STAIR.right_edges(3, 1) == (3,)
    assert STAIR.right_edges(37, 37) == (37,)
    assert Granularity(1, 1, False, 1.0).right_edges(5, 3) == (3, 4, 5)


def test_right_edges_count_channels_where_a_unit_is_several() -> None:
    assert STAIR.right_edges(24, 1, channels_per_unit=4) == (1, 2, 3, 4, 8, 12, 16, 20, 24)
    assert STAIR.right_edges(7, 1, channels_per_unit=9) == (1, 3, 5, 7)  # 9, 27, 45 channels fit under 16, 32, 48


def test_places_on_the_stairs() -> None:
    assert "".join(STAIRS[c] for c in STAIR.codes(np.array([16, 48, 20, 21, 12, 13, -1]))) == "ssauAU-"
    assert STAIR.round_up(17) == 32


def test_probing_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lut.open(":memory:", {"t": 1}) as lut:
        first = probe(Target(), lut)
        assert first.step % first.align == 0
        assert first.cliff >= 0.5
        monkeypatch.setattr(module, "_probe", lambda _: pytest.fail("probed again"))
        assert probe(Target(), lut) == first


def test_the_step_of_a_blocked_layout_is_what_its_graphs_show() -> None:
    block = module.blocked_channels(Target(), 1, 1)
    if not block:
        pytest.skip("this machine's runtime has no blocked layout")
    assert block in (8, 16)
    assert module.blocked_channels(Target(), 2 * block, 1) == block
    assert module.blocked_channels(Target(), 2 * block + 1, 1) == 0  # off the alignment: no blocked kernel
