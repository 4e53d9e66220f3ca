import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mobile_net import MobileNet
from onnx_netadapt.ir.errors import ProfileError, TargetError
from onnx_netadapt.profiler import (
    LOWER_HALF,
    MEDIAN,
    Clocks,
    Latency,
    Reference,
    Share,
    Target,
    measure,
    measure_against,
    measure_many,
    measure_reference,
)
from onnx_netadapt.profiler.pace import Pace, Processors
from onnx_netadapt.profiler.timing import Comparison, Samples, clock_of, collect, statistic
from onnx_netadapt.profiler.trace import Beside


class FakeMachine:
    """Time passes only where a model runs: `cpu` and `wall` nanoseconds per run, and everything is remembered."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0
        self.calls: list[str] = []
        self.clocks = Clocks(lambda: self.cpu, lambda: self.wall, lambda: 0)

    def model(self, name: str, cpu: Callable[[], float], wait: float = 0.0) -> Callable[[], object]:
        def run() -> None:
            spent = int(cpu())
            self.calls.append(name)
            self.cpu += spent
            self.wall += spent + int(wait)

        return run

    def collect(self, runs: list[Callable[[], object]], **wanted: float) -> list[Samples]:
        return collect(runs, Target(), Pace(), clocks=self.clocks, **wanted)  # type: ignore[arg-type]

    def compare(self, reference: Callable[[], object], run: Callable[[], object], **wanted: float) -> Comparison:
        return measure_against(
            Reference(reference),
            run,
            Target(),
            clocks=self.clocks,
            **wanted,  # type: ignore[arg-type]
        )


def test_percentiles_of_known_samples() -> None:
    samples = Samples([n * 1_000_000 for n in range(1, 12)], [n * 2_000_000 for n in range(1, 12)])
    assert samples.summary("cpu") == Latency(6.0, 2.0, 10.0, 11, "cpu", 12.0)
    assert samples.summary("wall").median_ms == 12.0


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ProfileError):
        Samples().summary("cpu")


def test_first_runs_are_not_counted() -> None:
    machine = FakeMachine()
    durations = iter([9e9, 9e9, 9e9] + [1e6] * 1000)
    run = machine.model("a", lambda: next(durations))
    (samples,) = machine.collect([run], min_runs=7, min_seconds=0, warm_up=3)
    assert set(samples.cpu) == {1_000_000}
    assert len(samples.cpu) >= 7


def test_runs_go_on_until_enough_time_is_seen() -> None:
    machine = FakeMachine()
    (samples,) = machine.collect([machine.model("a", lambda: 1e6)], min_runs=1, min_seconds=0.1, warm_up=0)
    assert 100 <= len(samples.wall) < 110


def test_slow_models_get_fewer_runs() -> None:
    machine = FakeMachine()
    (samples,) = machine.collect([machine.model("a", lambda: 1e9)], min_runs=100, min_seconds=0.1, warm_up=0)
    assert len(samples.wall) == 5


def test_models_alternate_in_bursts_and_the_first_of_a_burst_is_dropped() -> None:
    machine = FakeMachine()
    runs = [machine.model("a", lambda: 1e6), machine.model("b", lambda: 2e6)]
    samples = machine.collect(runs, min_runs=10, min_seconds=0, warm_up=0)
    assert "".join(machine.calls) == "aaaaaa" + "bbbbbbaaaaaa" * 2  # a burst of the first is before and after each
    assert [len(s.cpu) for s in samples] == [10, 10]


def test_a_comparison_survives_a_machine_that_becomes_faster() -> None:
    machine = FakeMachine()
    speed = lambda: 1.7 if machine.wall < 150e6 else 1.0  # noqa: E731
    runs = [machine.model("a", lambda: 1e6 * speed()), machine.model("b", lambda: 3e6 * speed())]
    found = machine.compare(*runs, min_runs=60, min_seconds=0, rounds=1)
    assert found.ratio == pytest.approx(3.0)
    assert found.error < 0.001
    assert (found.reference.median_ms, found.latency.median_ms) == (1.0, 3.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.8])
def test_bursts_that_are_hit_one_by_one_do_not_change_the_ratio(share: float) -> None:
    """A neighbour for some hundredths of a second hits one of two bursts side by side: neither model counts it."""
    machine, rng = FakeMachine(), np.random.default_rng(5)
    slow = {}

    def took(ms: float) -> float:
        at = len(machine.calls) // 6
        return ms * 1e6 * (slow.setdefault(at, 1.6 if rng.random() < share else 1.0) + 0.02 * rng.standard_normal())

    runs = [machine.model("a", lambda: took(1.0)), machine.model("b", lambda: took(0.7))]
    found = machine.compare(*runs, min_runs=200, min_seconds=0, rounds=1)
    assert found.ratio == pytest.approx(0.7, rel=0.02)
    assert found.latency.median_ms == pytest.approx(0.7, rel=0.02)
    assert found.latency.runs <= (1.2 - share) * 200 * 2
    assert found.error < (0.25 if found.disturbed else 0.03)
    assert found.disturbed == (share > 0.7)


def test_waiting_shows_as_a_busy_machine_but_does_not_count_on_one_thread() -> None:
    machine = FakeMachine()
    quiet, waiting = machine.model("a", lambda: 5e6), machine.model("b", lambda: 5e6, wait=4e6)
    results = [machine.compare(quiet, run, min_runs=10, min_seconds=0) for run in (quiet, waiting)]
    assert [found.latency.busy for found in results] == [False, True]
    assert [found.latency.median_ms for found in results] == [5.0, 5.0]
    assert [found.ratio for found in results] == [1.0, 1.0]
    assert [found.reference.median_ms for found in results] == [5.0, 5.0]
    assert "busy" in str(results[1].latency)


def test_a_comparison_goes_on_while_it_is_unsure_and_tells_its_error() -> None:
    def compared(noise: float, rounds: int = 3, ms: float = 1) -> tuple[Comparison, int]:
        machine, rng = FakeMachine(), np.random.default_rng(4)
        steady = machine.model("a", lambda: ms * 1e6)
        unsteady = machine.model("b", lambda: ms * 1e6 * rng.lognormal(0, noise))
        found = machine.compare(steady, unsteady, min_runs=40, min_seconds=0, rounds=rounds)
        return found, len(machine.calls) - 12  # the warm-up of both and the first burst

    (quiet, few), (noisy, many) = compared(0.002), compared(0.2)
    assert many == 3 * few
    assert compared(0.2, rounds=6)[1] == 6 * few
    assert compared(0.2, rounds=6, ms=30)[1] == 3 * few  # slow models have fewer rounds
    assert quiet.error < 0.01
    assert not quiet.noisy
    assert noisy.noisy
    assert abs(noisy.ratio - 1) < 2 * noisy.error  # what it says about itself is true


def test_statistics_of_known_runs() -> None:
    bursts = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 2.0, 3.0, 4.0, 6.0], [30.0, 20.0, 30.0, 40.0, 60.0]]) * 1e6
    assert statistic(bursts, MEDIAN) == 3e6  # of the first two bursts: the third was disturbed
    assert statistic(bursts, LOWER_HALF) == pytest.approx(np.mean([1, 2, 2, 3, 3, 3]) * 1e6)
    assert statistic(np.stack([bursts, 2 * bursts]), LOWER_HALF) == pytest.approx(np.array([14e6, 28e6]) / 6)


def _noisy(machine: FakeMachine, seed: int, ratio: float = 0.7) -> list[Callable[[], object]]:
    """Two models whose runs are disturbed one by one, as a busy core does: never faster, often slower."""
    rng = np.random.default_rng(seed)
    return [
        machine.model(name, lambda ms=ms: ms * 1e6 * (1 + rng.exponential(0.08)))
        for name, ms in zip("ab", (1, ratio), strict=True)
    ]


def test_the_lower_half_of_the_runs_is_sure_sooner_than_the_median() -> None:
    runs, ratios = {}, {}
    for share in (MEDIAN, LOWER_HALF):
        machines = [FakeMachine() for _ in range(20)]
        found = [
            machine.compare(*_noisy(machine, seed), min_runs=10, min_seconds=0, rounds=50, sure=0.02, share=share)
            for seed, machine in enumerate(machines)
        ]
        runs[share] = sum(one.latency.runs for one in found)
        ratios[share] = np.array([one.ratio for one in found])
        assert all(one.error <= 0.02 for one in found)
    assert runs[LOWER_HALF] < 0.7 * runs[MEDIAN]
    assert np.abs(ratios[LOWER_HALF] / 0.7 - 1).mean() <= 1.1 * np.abs(ratios[MEDIAN] / 0.7 - 1).mean()


@pytest.mark.parametrize(("limit", "ends"), [(0.9, True), (0.5, True), (0.7, False), (None, False)])
def test_a_comparison_ends_when_it_is_clear_of_its_limit(limit: float | None, ends: bool) -> None:
    machine = FakeMachine()
    found = machine.compare(*_noisy(machine, 0), min_runs=20, min_seconds=0, rounds=12, sure=0.0, limit=limit)
    assert (found.latency.runs <= 120) == ends
    assert limit is None or found.clear_of(limit) == ends


def test_a_disturbed_comparison_is_not_clear_of_a_limit() -> None:
    """Its ratio may be off by what no burst shows."""
    machine, rng = FakeMachine(), np.random.default_rng(0)
    hit = lambda: 1.0 if machine.wall < 0.3e9 else 1.5 + 0.02 * rng.standard_normal()  # noqa: E731
    reference = Reference(machine.model("a", lambda: 1e6 * hit()))
    run = machine.model("b", lambda: 0.7e6 * hit())
    asked = {"min_runs": 20, "min_seconds": 0, "rounds": 8, "sure": 0.0, "limit": 0.6, "clocks": machine.clocks}
    quiet = measure_against(reference, run, Target(), **asked)  # type: ignore[arg-type]
    machine.wall = int(1e9)
    beside = measure_against(reference, run, Target(), patience=0.1, **asked)  # type: ignore[arg-type]
    assert (quiet.disturbed, beside.disturbed) == (False, True)
    assert quiet.latency.runs < 80 < beside.latency.runs
    assert quiet.clear_of(0.6)
    assert not beside.clear_of(0.6)


@pytest.mark.parametrize("ms", [0.5, 5.0])
@pytest.mark.parametrize("share", [MEDIAN, LOWER_HALF])
def test_the_error_that_is_told_is_true_where_whole_bursts_are_slower(ms: float, share: Share) -> None:
    within = []
    for seed in range(60):
        machine, rng = FakeMachine(), np.random.default_rng(seed)
        slower: dict[int, float] = {}

        def took(ms: float, machine: FakeMachine = machine, rng: Any = rng, slower: Any = slower) -> float:
            burst = slower.setdefault(len(machine.calls) // 6, rng.exponential(0.04))
            return ms * 1e6 * (1 + burst + rng.exponential(0.04))

        runs = [machine.model("a", lambda took=took: took(ms)), machine.model("b", lambda took=took: took(0.7 * ms))]
        found = machine.compare(*runs, min_runs=10, min_seconds=0.04, rounds=12, sure=0.03, share=share)
        within.append(abs(found.ratio / 0.7 - 1) <= found.error)
    assert np.mean(within) > 0.8


def test_a_single_burst_is_not_called_sure() -> None:
    machine, rng = FakeMachine(), np.random.default_rng(6)
    runs = [machine.model(name, lambda: 2e9 * rng.lognormal(0, 0.05)) for name in "ab"]
    found = machine.compare(*runs, rounds=1)
    assert found.latency.runs <= 5
    assert 0.01 < found.error < 0.2


def test_a_burst_that_was_disturbed_does_not_count() -> None:
    machine = FakeMachine()
    disturbed = lambda: 1e6 * (9 if len(machine.calls) % 60 < 6 else 1)  # noqa: E731
    found = machine.compare(machine.model("a", lambda: 1e6), machine.model("b", disturbed), min_runs=60, min_seconds=0)
    assert found.ratio == pytest.approx(1.0)


class Neighbour:
    """A machine on which `b` takes half of the time of `a`, and 0.7 of it while a neighbour slows both down."""

    def __init__(self, beside: Callable[[int], bool]) -> None:
        self.machine = FakeMachine()
        slow = lambda: beside(self.machine.wall)  # noqa: E731
        self.pair = (
            self.machine.model("a", lambda: 15e5 if slow() else 10e5),
            self.machine.model("b", lambda: 15e5 * 0.7 if slow() else 5e5),
        )

    def compare(self, pace: Pace, patience: float = 3.0, rounds: int = 1, seconds: float = 0.5) -> Comparison:
        options = {"min_runs": 20, "min_seconds": seconds, "sure": 0.0, "rounds": rounds, "clocks": self.machine.clocks}
        return measure_against(Reference(self.pair[0], pace), self.pair[1], Target(), patience=patience, **options)


def never(_: int) -> bool:
    return False


def always(_: int) -> bool:
    return True


def for_two_seconds(now: int) -> bool:
    return now < 2e9


def test_a_neighbour_on_the_same_core_is_waited_for() -> None:
    pace = Pace()
    quiet = Neighbour(never).compare(pace)
    assert quiet.ratio == pytest.approx(0.5)
    assert pace.fast_ns == 1e6
    late = Neighbour(for_two_seconds)
    found = late.compare(pace)
    assert found.ratio == pytest.approx(0.5, rel=0.01)
    assert found.reference.median_ms == pytest.approx(1.0)
    assert found.error < 0.01
    assert late.machine.wall > 2e9
    # negative control: where nothing is known of the reference, the neighbour decides
    assert Neighbour(for_two_seconds).compare(Pace()).ratio == pytest.approx(0.7)


def test_where_no_undisturbed_moment_comes_few_rounds_are_asked_for() -> None:
    def spent(beside: Callable[[int], bool]) -> tuple[Comparison, int]:
        pace, machine = Pace(), Neighbour(beside)
        Neighbour(never).compare(pace)
        return machine.compare(pace, patience=1.0, rounds=100, seconds=0.05), machine.machine.wall

    disturbed, waited = spent(always)
    quiet, measured = spent(never)
    assert (disturbed.disturbed, quiet.disturbed) == (True, False)
    assert measured > 4e9  # two seconds of the faster model, for it is never sure enough
    assert waited < 3.5e9  # a second of patience, and half a second of the faster model


def test_bursts_beside_a_neighbour_are_left_out_of_what_is_told() -> None:
    mixed = Neighbour(lambda now: now % 100_000_000 < 70_000_000)
    found = mixed.compare(Pace(), patience=10.0)
    assert found.ratio == pytest.approx(0.5, rel=0.01)
    assert found.latency.p90_ms < 0.7
    assert found.error < 0.01
    hurried = mixed.compare(Pace(), patience=1.0)
    assert hurried.ratio == pytest.approx(0.5, rel=0.01)
    assert hurried.error >= 0.1


def _hits(also_after: bool) -> tuple[Comparison, FakeMachine]:
    """Nine of ten bursts of `b` are hit, and the first one of the reference after each of them if `also_after`."""
    machine, runs = FakeMachine(), {"b": 0, "a since b": 0}

    def hit() -> bool:
        return (runs["b"] - 4) // 6 % 10 != 9  # three warm it up

    def reference() -> float:
        runs["a since b"] += 1
        return 1.5e6 if also_after and runs["b"] > 3 and hit() and runs["a since b"] <= 6 else 1e6

    def other() -> float:
        runs["b"], runs["a since b"] = runs["b"] + 1, 0
        return 1.4e6 if hit() else 1e6

    pair = machine.model("a", reference), machine.model("b", other)
    return machine.compare(*pair, min_runs=20, min_seconds=0, rounds=1), machine


def test_a_burst_counts_only_if_the_reference_keeps_its_pace_after_it() -> None:
    found, machine = _hits(also_after=True)
    assert found.ratio == pytest.approx(1.0)
    assert not found.disturbed
    assert machine.wall < 3e9
    assert _hits(also_after=False)[0].ratio == pytest.approx(1.4)  # negative control


def test_a_burst_of_the_reference_counts_once_in_its_pace() -> None:
    """Two bursts that the clock made too short are no pace, though each stands before one turn and after another."""
    machine, runs = FakeMachine(), {"a": 0}

    def took() -> float:
        runs["a"] += 1
        return 1e5 if 21 <= runs["a"] < 33 else 1e6

    found = machine.compare(machine.model("a", took), machine.model("b", lambda: 5e5), min_runs=100, min_seconds=0)
    assert not found.disturbed
    assert machine.wall < 1e9


def test_a_machine_without_a_moment_long_enough_is_told_as_disturbed() -> None:
    """The reference is as fast as ever now and then, but never before and after a turn."""
    machine, count = FakeMachine(), {"a": 0}

    def took() -> float:
        count["a"] += 1
        return 1e6 if (count["a"] - 4) // 6 % 2 == 0 else 1.5e6

    found = machine.compare(machine.model("a", took), machine.model("b", lambda: 5e5), min_runs=40, min_seconds=0)
    assert found.disturbed
    assert found.error >= 0.1


def test_a_neighbour_that_stays_is_waited_for_once_and_told() -> None:
    pace = Pace()
    assert Neighbour(never).compare(pace).error < 0.01
    stays, unhurried = Neighbour(always), Neighbour(always)
    found = stays.compare(pace)
    assert found.ratio == pytest.approx(0.7)
    assert found.error >= 0.1
    assert found.noisy
    waited = stays.machine.wall
    assert stays.compare(pace).error >= 0.1
    unhurried.compare(Pace())
    once_more = stays.machine.wall - waited
    assert once_more == unhurried.machine.wall  # no wait at all
    assert 3e9 < waited - once_more < 4e9
    assert pace.fast_ns == 15e5
    faster = Neighbour(never).compare(pace)
    assert faster.error < 0.01
    assert pace.fast_ns == 1e6


def test_a_processor_without_a_neighbour_is_gone_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processors one is always disturbed: whatever the thread starts on, it measures on the other one."""
    for start in (0, 1):
        at = {start}

        def place(_: int, allowed: tuple[int, ...], at: set[int] = at, start: int = start) -> None:
            at.clear()
            at.add(start if start in allowed else allowed[0])

        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", place, raising=False)
        pair, pace = Neighbour(lambda _, at=at: at == {1}), Pace()
        Neighbour(never).compare(pace)
        found = pair.compare(pace)
        assert found.ratio == pytest.approx(0.5, rel=0.01)
        assert found.error < 0.01
        assert pair.machine.wall < 2e9
        assert at == {start}  # it is back


def test_a_reference_is_measured_where_no_neighbour_is(monkeypatch: pytest.MonkeyPatch) -> None:
    at = {"processor": 0}
    monkeypatch.setattr(Processors, "move", lambda _: at.update(processor=1 - at["processor"]))
    machine = FakeMachine()
    run = machine.model("a", lambda: 1.5e6 if at["processor"] == 0 else 1e6)
    reference = Reference(run)
    found = measure_reference(reference, Target(), min_seconds=0.2, clocks=machine.clocks)
    assert found.median_ms == pytest.approx(1.0)
    assert reference.pace.fast_ns == pytest.approx(1e6)  # what is compared with it later knows
    monkeypatch.setattr(Processors, "move", lambda _: None)  # negative control
    at["processor"] = 0
    stays = measure_reference(Reference(run), Target(), min_seconds=0.2, clocks=machine.clocks)
    assert stays.median_ms == pytest.approx(1.5)


def test_visits_of_a_profile_wait_for_the_pace_of_the_reference() -> None:
    calls: list[int] = []
    answers = iter([False, False, True])
    beside = Beside(lambda: calls.append(1), "wall", SimpleNamespace(keeps=lambda *_: next(answers)))
    beside()
    assert len(calls) == 18
    assert len(beside.times) == 5


def test_a_neighbour_that_takes_the_processor_is_seen_on_the_wall_clock() -> None:
    machine = FakeMachine()
    taken = iter(range(10**6))
    clocks = Clocks(machine.clocks.cpu, machine.clocks.wall, lambda: next(taken))
    alone, with_neighbour = (
        measure_against(
            Reference(machine.model("a", lambda: 1e6)), machine.model("b", lambda: 1e6), Target(threads=2),
            min_runs=20, min_seconds=0, clocks=used,
        ).latency
        for used in (machine.clocks, clocks)
    )  # fmt: skip
    assert (alone.switches_per_s, alone.busy) == (0.0, False)
    assert with_neighbour.switches_per_s == pytest.approx(200)  # one in each burst of five milliseconds
    assert with_neighbour.busy


def test_several_threads_are_timed_by_the_wall() -> None:
    assert clock_of(Target()) == "cpu"
    assert clock_of(Target(threads=2)) == "wall"
    assert clock_of(Target.parse("openvino")) == "cpu"  # with one thread it works on the calling one
    assert clock_of(Target.parse("openvino:device_type=GPU")) == "wall"
    assert clock_of(Target.parse("xnnpack")) == "wall"


def test_real_runs_are_of_a_sensible_order() -> None:
    small, large = MobileNet(), MobileNet(side=160)
    models = [net.build({}) for net in (small, large)]
    feeds = [net.feeds(model) for net, model in zip((small, large), models, strict=True)]
    one, two = measure_many(models, Target(), feeds, min_runs=20, min_seconds=0.02)
    assert 0 < one.p10_ms <= one.median_ms <= one.p90_ms
    assert two.median_ms > 3 * one.median_ms  # 25 times the work
    assert two.median_ms < 1000


def test_feeds_of_the_wrong_shape_are_the_targets_complaint() -> None:
    net = MobileNet()
    with pytest.raises(TargetError, match="cannot run"):
        measure(net.build({}), Target(), {"image": np.zeros((1, 5, 7, 7), np.float32)})
