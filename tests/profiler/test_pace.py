import os
import sys

import pytest
from onnx_netadapt.profiler import Target
from onnx_netadapt.profiler.pace import Pace, Processors, Watch


def watch(pace: Pace, patience_ns: float = 10.0) -> Watch:
    return Watch(pace, Processors(), patience_ns)


def at_pace(ns: float) -> Pace:
    pace = Pace()
    for _ in range(5):
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


def test_patience_ends_and_the_pace_slows_down() -> None:
    pace = at_pace(100.0)
    one = watch(pace)
    assert [one.keeps(ns, 4.0) for ns in (150.0, 140.0, 160.0)] == [False, False, False]
    assert (pace.fast_ns, pace.disturbed) == (140.0, True)
    assert one.keeps(200.0, 4.0)  # whatever comes
    other = watch(pace)
    assert other.keeps(140.0, 4.0)
    assert not other.keeps(200.0, 4.0)


def test_a_machine_that_is_disturbed_now_and_then_has_not_become_slower() -> None:
    pace = at_pace(100.0)
    one = watch(pace)
    assert [one.keeps(ns, 4.0) for ns in (150.0, 105.0, 150.0, 150.0, 150.0)] == [False, True, False, False, True]
    assert (pace.fast_ns, pace.disturbed) == (105.0, False)


def test_a_machine_that_is_as_fast_as_ever_again_is_no_longer_disturbed() -> None:
    pace = at_pace(100.0)
    pace.slow_down(150.0)
    assert pace.disturbed
    assert all(pace.keeps(100.0) for _ in range(3))
    assert not pace.disturbed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processors can be chosen on Linux only")
def test_the_thread_may_run_everywhere_again_afterwards() -> None:
    allowed = os.sched_getaffinity(0)
    seen = []
    with Processors.of(Target()) as processors:
        for _ in range(2 * len(allowed)):
            processors.move()
            seen.append(os.sched_getaffinity(0))
    assert os.sched_getaffinity(0) == allowed
    if len(allowed) > 1:
        assert set().union(*seen) == allowed
        assert all(len(at) == 1 for at in seen)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processors can be chosen on Linux only")
def test_models_with_threads_of_their_own_are_not_moved() -> None:
    allowed = os.sched_getaffinity(0)
    with Processors.of(Target(threads=2)) as processors:
        processors.move()
        assert os.sched_getaffinity(0) == allowed


def test_a_system_that_forbids_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with Processors((0, 1)) as processors:
        processors.move()
