import os
import sys

import numpy as np
import pytest
from onnx_netadapt.profiler import Target
from onnx_netadapt.profiler import pace as pace_module
from onnx_netadapt.profiler.pace import Pace, Processors, Watch


def watch(pace: Pace, patience_ns: float = 10.0) -> Watch:
    return Watch(pace, Processors(), patience_ns)


def at_pace(ns: float) -> Pace:
    pace = Pace()
    for _ in range(10):
        pace.keeps(ns)
    return pace


def test_a_burst_keeps_the_pace_up_to_the_limit() -> None:
    pace = at_pace(100.0)
    assert [pace.keeps(ns) for ns in (90.0, 100.0, 114.0, 116.0, 150.0)] == [True, True, True, False, False]


def test_two_freaks_do_not_make_the_machine_slow_for_ever() -> None:
    pace = at_pace(100.0)
    assert pace.keeps(1.0)
    assert pace.keeps(1.0)
    assert pace.keeps(100.0)
    assert not pace.disturbed
    assert pace.keeps(50.0)  # the third is the machine's
    assert not pace.keeps(100.0)


def test_the_first_burst_counts_and_a_faster_one_corrects_it() -> None:
    pace = Pace()
    assert pace.keeps(150.0)
    assert all(pace.keeps(100.0) for _ in range(3))
    assert not pace.keeps(150.0)
    assert not pace.disturbed


def test_what_varies_by_itself_keeps_the_pace_however_long_it_is_watched() -> None:
    """The fastest bursts of many are exceptions: measured by them, most of the others would be disturbed."""
    pace, rng = Pace(), np.random.default_rng(0)
    kept = [pace.keeps(ns) for ns in 100.0 * (1 + 0.05 * rng.standard_normal(3000))]
    assert np.mean(kept[-1000:]) > 0.8
    disturbed = [pace.keeps(ns) for ns in 150.0 * (1 + 0.05 * rng.standard_normal(1000))]
    assert np.mean(disturbed) < 0.05
    assert not pace.disturbed


def test_patience_ends_and_the_pace_slows_down() -> None:
    pace = at_pace(100.0)
    with watch(pace) as one:
        assert [one.keeps(ns, 4.0) for ns in (150.0, 140.0, 160.0)] == [False, False, False]
        assert one.given_up
        assert (pace.fast_ns, pace.disturbed) == (160.0, True)  # the third fastest
        assert one.keeps(200.0, 4.0)  # whatever comes
    with watch(pace) as other:
        assert other.keeps(170.0, 4.0)
        assert not other.keeps(200.0, 4.0)
        assert not other.given_up


def test_a_machine_that_is_disturbed_now_and_then_has_not_become_slower() -> None:
    pace = at_pace(100.0)
    with watch(pace) as one:
        assert [one.keeps(ns, 4.0) for ns in (150.0, 105.0, 150.0, 150.0, 150.0)] == [False, True, False, False, True]
        assert one.given_up
    assert (pace.fast_ns, pace.disturbed) == (100.0, False)


def test_a_freak_does_not_become_the_pace_where_patience_ends() -> None:
    pace = at_pace(100.0)
    with watch(pace) as one:
        assert one.keeps(1.0, 4.0)
        assert [one.keeps(150.0, 4.0) for _ in range(3)] == [False] * 3
    assert pace.fast_ns == 100.0
    assert pace.keeps(100.0)
    assert not pace.disturbed


def test_each_wait_in_vain_halves_the_next_one() -> None:
    pace = at_pace(100.0)
    left = []
    for _ in range(3):
        with watch(pace) as one:
            left.append(one.patience_ns)
            assert one.keeps(100.0, 4.0)
            while not one.keeps(150.0, 4.0):
                pass
    assert left == [10.0, 5.0, 2.5]
    with watch(pace) as one:
        assert one.keeps(100.0, 4.0)
    with watch(pace) as one:
        assert one.patience_ns == 10.0


def test_a_machine_that_is_as_fast_as_ever_again_is_no_longer_disturbed() -> None:
    pace = at_pace(100.0)
    pace.slow_down(150.0)
    assert pace.disturbed
    assert all(pace.keeps(100.0) for _ in range(3))
    assert not pace.disturbed


def test_a_processor_that_has_left_its_turbo_is_not_disturbed_for_ever() -> None:
    pace = at_pace(1e6)
    pace.slow_down(1.3e6)
    for _ in range(5000):
        assert pace.keeps(1.3e6)
        assert pace.disturbed
    for _ in range(5000):
        pace.keeps(1.3e6)
    assert not pace.disturbed


def test_nothing_is_known_of_a_new_pace() -> None:
    assert Pace().fast_ns == float("inf")
    assert not Pace().disturbed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processors can be chosen on Linux only")
def test_the_thread_may_run_everywhere_again_afterwards() -> None:
    allowed = os.sched_getaffinity(0)
    seen = []

    def measurement() -> None:
        with Watch(at_pace(100.0), Processors.of(Target())) as one:
            for _ in range(2 * len(allowed)):
                assert not one.keeps(150.0, 1.0)
                seen.append(os.sched_getaffinity(0))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measurement()
    assert os.sched_getaffinity(0) == allowed
    if len(allowed) > 1:
        assert set().union(*seen) == allowed
        assert all(len(at) == 1 for at in seen)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processors can be chosen on Linux only")
def test_models_with_threads_of_their_own_are_not_moved() -> None:
    allowed = os.sched_getaffinity(0)
    processors = Processors.of(Target(threads=2))
    processors.move()
    assert os.sched_getaffinity(0) == allowed
    processors.free()


def test_a_system_that_forbids_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    processors = Processors((0, 1))
    processors.move()
    processors.free()


def test_what_is_allowed_changes_only_where_the_thread_was_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, places: asked.append(places), raising=False)
    monkeypatch.setattr(pace_module, "_processor", lambda: 4)
    processors = Processors((1, 4, 6))
    processors.free()
    assert asked == []
    for _ in range(4):
        processors.move()
    processors.free()
    assert asked == [(6,), (1,), (4,), (6,), (1, 4, 6)]  # it goes on from where it is
