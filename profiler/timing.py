"""How long a model takes, and how sure that is.

Rules (they follow from measurements of ONNX Runtime on shared machines):
1. One thread, and a provider that works on the calling thread then: its CPU time repeats within some percent even
   when the processor is shared, so CPU time is the clock. Otherwise wall time is the clock.
2. Both clocks are read around every run, so that a busy machine is seen (`Latency.busy`), whatever the clock.
3. The first runs allocate memory and fill caches; they are never counted.
4. Models to be compared run in alternating bursts, so that a drift of the machine meets all of them alike. The first
   run of a burst finds the other model's data in the caches and is not counted.
5. A neighbour slows models down, and not all of them alike (`pace`), for seconds or for hundredths of a second, so that
   one of two bursts side by side is hit. So the first of the models, in a comparison the reference, has to be about as
   fast as ever before and after a turn of bursts that counts; otherwise the thread goes to another processor, and waits
   some seconds where none is undisturbed. (Of a single model a burst counts by itself.) What is told is of undisturbed
   bursts: those at most 1.15 times as slow as the fast ones of the same model (all, on a quiet machine).
6. A comparison says how sure it is: what it would be of other bursts like these, drawn from them. While that spreads
   far, more bursts are run; what is left of it is told, and whoever asked decides whether it is still a measurement.
   What decides about a budget is a ratio of medians; where networks are only told apart, one of LOWER_HALF is sure
   sooner.
7. A neighbour on all cores shows in the times that the system took the processor away (involuntary switches), which a
   quiet machine does a few times in a second.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..ir.errors import ProfileError, TargetError
from .pace import PATIENCE_SECONDS, SLOW, Pace, Processors, Watch
from .target import Model, Target

_BURST = 5
_LONGEST_SECONDS = 4.0
_SURE = 0.01  # relative error of a comparison below which it is not continued
_DISTURBED_SECONDS = 0.5  # enough where no undisturbed moment came: more rounds do not show what disturbs them
_ROUNDS = 3  # times that a comparison is measured at most, unless more is asked for
_FAST = 0.1  # share of the bursts that are the fast ones
_TRIED = 2  # processors on which a reference is measured by itself
_FEW = 4  # bursts of which fewer do not tell how far they spread,
_FEW_SECONDS = 0.25  # and are not enough, except of models that are so slow
_RESAMPLES = 100  # by which a comparison finds out how sure it is
_DRAWN = 250  # bursts of a resample at most; of more the error follows by its square root
_DISTURBED = 0.10  # error of comparisons for which no undisturbed moment was found
_SWITCHES = 40.0  # involuntary switches in a second from which the machine is called busy
NOISY = 0.03
"""Relative error of a comparison from which it is called noisy."""

Share = tuple[float, float]
"""A statistic of runs: the mean of those between two shares of them in rising order (a quantile if they are equal)."""

MEDIAN: Share = (0.5, 0.5)
LOWER_HALF: Share = (0.0, 0.5)
"""What disturbs runs makes the slower half of them slower: for the same error a comparison needs half to two thirds as
many runs of it.
"""

Feeds = Mapping[str, npt.NDArray[np.generic]]


def _involuntary_switches() -> int:
    """How often the system took the processor away from this process; 0 where it does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True, slots=True)
class Clocks:
    """The two clocks, in nanoseconds, and the count of involuntary switches so far; tests pass their own."""

    cpu: Callable[[], int] = time.thread_time_ns
    wall: Callable[[], int] = time.perf_counter_ns
    switches: Callable[[], int] = _involuntary_switches


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per run: median and the 10th and 90th percentile on `clock` ("cpu" or "wall")."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    clock: str
    wall_median_ms: float
    switches_per_s: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether other work on the machine disturbed the runs (wall time well above CPU time, or a wide spread)."""
        if self.clock == "cpu":
            return self.wall_median_ms > 1.15 * self.median_ms + 0.02
        return self.p90_ms > 1.5 * self.p10_ms + 0.02 or self.switches_per_s > _SWITCHES

    def __str__(self) -> str:
        note = " (busy machine)" if self.busy else ""
        return f"{self.median_ms:.3f} ms [{self.p10_ms:.3f} to {self.p90_ms:.3f}, {self.runs} runs, {self.clock}]{note}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A latency, how many times the reference's it is, and the relative error of that (half of a 95% interval).

    `reference` is the latency of the other one meanwhile; the ratio is that of the two medians, or of another statistic
    that was asked for. `disturbed` tells that no undisturbed moment was found, which makes the error at least 10%.
    """

    latency: Latency
    ratio: float
    error: float
    reference: Latency
    disturbed: bool = False

    @property
    def noisy(self) -> bool:
        """Whether the ratio is too uncertain to be called measured."""
        return self.error > NOISY

    def clear_of(self, limit: float | None) -> bool:
        """Whether it is known on which side of a limit the ratio is."""
        return limit is not None and not self.noisy and abs(self.ratio - limit) > self.error * self.ratio


@dataclass(slots=True)
class Samples:
    """Raw nanoseconds of every counted run on both clocks, their sum on the wall clock, and involuntary switches."""

    cpu: list[int] = field(default_factory=list)
    wall: list[int] = field(default_factory=list)
    switches: int = 0
    spent_ns: int = 0

    def summary(self, clock: str) -> Latency:
        """The Latency of these samples; the wall median is always that of the wall clock."""
        chosen = self.on(clock)
        if not chosen:
            raise ProfileError("no run was counted: ask for at least one run")
        p10, p50, p90 = np.percentile(chosen, [10, 50, 90]) / 1e6
        wall_ms, rate = float(np.median(self.wall)) / 1e6, self.switches * 1e9 / max(sum(self.wall), 1)
        return Latency(float(p50), float(p10), float(p90), len(chosen), clock, wall_ms, rate)

    def on(self, clock: str) -> list[int]:
        """Those of a clock."""
        return self.cpu if clock == "cpu" else self.wall

    def extend(self, more: "Samples") -> None:
        """Takes over the samples of another round."""
        self.cpu += more.cpu
        self.wall += more.wall
        self.spent_ns += more.spent_ns
        self.switches += more.switches

    def bursts(self, clock: str) -> npt.NDArray[np.float64]:
        """The nanoseconds of the runs of every burst, (bursts, runs)."""
        times = self.on(clock)
        return np.reshape(np.array(times[: len(times) // _BURST * _BURST], np.float64), (-1, _BURST))

    @property
    def tell(self) -> bool:
        """Whether there are bursts enough to tell how far they spread."""
        return len(self.wall) >= _FEW * _BURST or self.spent_ns >= _FEW_SECONDS * 1e9

    def middle(self, clock: str) -> float:
        """The median nanoseconds."""
        return float(np.median(self.on(clock)))

    def undisturbed(self, clock: str) -> "Samples":
        """The samples of the undisturbed bursts (rule 5); switches, which are counted as a whole, in proportion."""
        places = np.flatnonzero(_undisturbed(self.bursts(clock)))
        cpu, wall = ([x for p in places for x in of[p * _BURST : (p + 1) * _BURST]] for of in (self.cpu, self.wall))
        return Samples(cpu, wall, round(self.switches * len(wall) / max(len(self.wall), 1)), sum(wall))


def _undisturbed(bursts: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of some bursts (..., bursts, runs) are about as fast as the fast ones of them (rule 5).

    Of those a machine is seldom without: their time is the mean of the fastest tenth's medians.
    """
    medians = np.median(bursts, axis=-1)
    count = max(1, round(_FAST * medians.shape[-1]))
    fast = np.sort(medians)[..., :count].mean(axis=-1, keepdims=True)
    found: npt.NDArray[np.bool_] = medians <= SLOW * fast
    return found


def statistic(bursts: npt.NDArray[np.float64], share: Share) -> npt.NDArray[np.float64]:
    """What a statistic is of the runs of undisturbed bursts, of each set of bursts (..., bursts, runs)."""
    kept = _undisturbed(bursts)
    runs = np.sort(np.where(kept[..., None], bursts, np.inf).reshape(*kept.shape[:-1], -1))
    count = np.count_nonzero(kept, axis=-1)[..., None] * bursts.shape[-1]
    first, last = (np.floor(share[0] * (count - 1)), np.ceil(share[1] * (count - 1)))
    place = np.arange(runs.shape[-1])
    within = (first <= place) & (place <= last)
    found: npt.NDArray[np.float64] = np.where(within, runs, 0.0).sum(axis=-1) / np.count_nonzero(within, axis=-1)
    return np.maximum(found, 1.0)


@dataclass(frozen=True, slots=True)
class Reference:
    """What others are compared with: a function that runs it once, and its pace; all comparisons with it share them.

    One that begins in a disturbed minute takes that for its pace: the longer one is used, the surer it is.
    """

    run: Callable[[], object]
    pace: Pace = field(default_factory=Pace)


def clock_of(target: Target) -> str:
    """The name of the clock to trust on `target` (rule 1)."""
    return "cpu" if target.on_caller else "wall"


def measure(
    model: Model,
    target: Target,
    feeds: Feeds,
    *,
    min_runs: int = 20,
    min_seconds: float = 0.5,
    warm_up: int = 3,
    clocks: Clocks | None = None,
) -> Latency:
    """The latency of one model on `target` over at least `min_runs` runs and `min_seconds`, after `warm_up` runs."""
    return measure_many(
        [model], target, [feeds], min_runs=min_runs, min_seconds=min_seconds, warm_up=warm_up, clocks=clocks
    )[0]


def measure_reference(
    reference: Reference, target: Target, *, min_seconds: float, clocks: Clocks | None = None
) -> Latency:
    """The latency of a reference by itself; what is compared with it later knows its pace from here.

    Little is known of that pace yet, so that two processors are tried, `min_seconds` each; of slow models the first.
    """
    clock, clocks, both = clock_of(target), clocks or Clocks(), Samples()
    watch = Watch(reference.pace, Processors.of(target))
    with watch, closing(_turns([reference.run], clock, watch, 3, clocks)) as turns:
        for _ in range(_TRIED):
            new = [Samples()]
            while not _enough(new, 20 // _TRIED, min_seconds):
                _extend(new, next(turns))
            both.extend(new[0])
            if both.spent_ns > _LONGEST_SECONDS * 1e9 / 2:
                break
            watch.processors.move()
    return both.undisturbed(clock).summary(clock)


def measure_many(
    models: Sequence[Model],
    target: Target,
    feeds: Sequence[Feeds],
    *,
    min_runs: int = 20,
    min_seconds: float = 0.5,
    warm_up: int = 3,
    clocks: Clocks | None = None,
) -> tuple[Latency, ...]:
    """The latencies of several models, run in alternation (rules 4 and 5); `min_seconds` is meant per model."""
    clock, runs = clock_of(target), [runner(model, target, one) for model, one in zip(models, feeds, strict=True)]
    samples = collect(
        runs, target, Pace(), min_runs=min_runs, min_seconds=min_seconds, warm_up=warm_up, clocks=clocks or Clocks()
    )
    return tuple(s.undisturbed(clock).summary(clock) for s in samples)


def measure_against(
    reference: Reference,
    run: Callable[[], object],
    target: Target,
    *,
    min_runs: int = 20,
    min_seconds: float = 0.2,
    sure: float = _SURE,
    rounds: int = _ROUNDS,
    patience: float = PATIENCE_SECONDS,
    share: Share = MEDIAN,
    limit: float | None = None,
    clocks: Clocks | None = None,
) -> Comparison:
    """The latency of `run` and how many times that of `reference` it is, from alternating bursts (rules 4 to 6).

    The ratio is that of the statistic `share`. It is measured in `rounds` of `min_runs` and `min_seconds` each until
    its error is at most `sure`, or at most NOISY and leaves no doubt on which side of `limit` the ratio is; slow models
    have fewer of them. An undisturbed moment is waited for `patience` seconds; without one the error has a part that
    bursts do not show.
    """
    clock, counted = clock_of(target), 0
    pair, new = (Samples(), Samples()), (Samples(), Samples())
    watch = Watch(reference.pace, Processors.of(target), patience * 1e9)
    with watch, closing(_turns([reference.run, run], clock, watch, 3, clocks or Clocks())) as turns:
        for turn in turns:
            _extend(new, turn)
            if not _enough(new, min_runs, min_seconds):
                continue
            _extend(pair, new)
            new, counted = (Samples(), Samples()), counted + 1
            found = _compared(*pair, clock, share)
            disturbed = watch.given_up or reference.pace.disturbed
            longest = _DISTURBED_SECONDS if watch.given_up else _LONGEST_SECONDS / 2
            tired = counted >= _ROUNDS and pair[1].spent_ns > longest * 1e9
            known = found.error <= sure and pair[1].tell
            clear = counted >= _ROUNDS and not disturbed and found.clear_of(limit)
            if known or clear or counted >= rounds or tired:
                break
    return replace(found, error=math.hypot(found.error, _DISTURBED), disturbed=True) if disturbed else found


def _compared(reference: Samples, other: Samples, clock: str, share: Share) -> Comparison:
    """The comparison of two models' undisturbed bursts; its error is 1.96 standard deviations of the bootstrap's."""
    before, after = (samples.undisturbed(clock).summary(clock) for samples in (reference, other))
    first, second = (samples.bursts(clock) for samples in (reference, other))
    ratio = float(statistic(second, share) / statistic(first, share))
    return Comparison(after, ratio, 1.96 * math.hypot(_deviation(first, share), _deviation(second, share)), before)


def _deviation(bursts: npt.NDArray[np.float64], share: Share) -> float:
    """The relative standard deviation of a statistic over resamples, drawn with replacement (bootstrap; Efron 1979).

    Bursts are drawn; of slow models, which have few of them, runs.
    """
    if len(bursts) < _FEW:
        bursts = bursts.reshape(-1, 1)
    count = min(len(bursts), _DRAWN)
    drawn = np.random.default_rng(0).integers(len(bursts), size=(_RESAMPLES, count))
    found = float(np.std(np.log(statistic(bursts[drawn], share))))
    return found * math.sqrt(count / len(bursts))


def runner(model: Model, target: Target, feeds: Feeds) -> Callable[[], object]:
    """A function that runs `model` once on `target` with `feeds`; it raises TargetError if the run fails."""
    session = target.session(model)
    inputs = dict(feeds)

    def run() -> object:
        try:
            return session.run(None, inputs)
        except Exception as error:  # onnxruntime has no common error class
            raise TargetError(f"{target} cannot run the model: {str(error).splitlines()[0]}") from error

    return run


def collect(
    runs: Sequence[Callable[[], object]],
    target: Target,
    pace: Pace,
    *,
    min_runs: int,
    min_seconds: float,
    warm_up: int,
    clocks: Clocks,
) -> list[Samples]:
    """Samples of every function in `runs`, called in alternating bursts until each has its runs and seconds.

    They are at the pace of the first one, which is waited for. Functions so slow that `min_runs` would take longer than
    `_LONGEST_SECONDS` get fewer runs, at least one burst.
    """
    samples = [Samples() for _ in runs]
    watch = Watch(pace, Processors.of(target))
    with watch, closing(_turns(runs, clock_of(target), watch, warm_up, clocks)) as turns:
        for turn in turns:
            _extend(samples, turn)
            if _enough(samples, min_runs, min_seconds):
                break
    return samples


def _turns(
    runs: Sequence[Callable[[], object]], clock: str, watch: Watch, warm_up: int, clocks: Clocks
) -> Generator[list[Samples], None, None]:
    """A burst of every function in `runs`, again and again, while the first one keeps its pace (rules 4 and 5)."""
    for run in runs:
        for _ in range(warm_up):
            run()
    skipped = 1 if len(runs) > 1 else 0
    before = settled(runs[0], skipped, clock, watch, clocks)
    while True:
        turn, after = [before, *(burst(run, skipped, clocks) for run in runs[1:])], None
        if len(runs) > 1 and before.spent_ns < watch.patience_ns:  # bursts of seconds are not waited for
            after = burst(runs[0], skipped, clocks)
            if not watch.keeps(after.middle(clock), sum(one.spent_ns for one in (*turn, after))):
                before = settled(runs[0], skipped, clock, watch, clocks)
                continue
        yield turn
        before = after or settled(runs[0], skipped, clock, watch, clocks)


def settled(run: Callable[[], object], skipped: int, clock: str, watch: Watch, clocks: Clocks) -> Samples:
    """The first burst of the reference that counts."""
    while True:
        found = burst(run, skipped, clocks)
        if watch.keeps(found.middle(clock), found.spent_ns):
            return found


def burst(run: Callable[[], object], skipped: int, clocks: Clocks) -> Samples:
    """Some runs one after another, after those that are `skipped`."""
    for _ in range(skipped):
        run()
    found, before = Samples(), clocks.switches()
    for _ in range(_BURST):
        _timed(run, found, clocks)
    found.switches = clocks.switches() - before
    return found


def _enough(samples: Sequence[Samples], min_runs: int, min_seconds: float) -> bool:
    """Whether each of them has its runs and seconds, or has taken too long."""
    needed = min_seconds * 1e9
    return all(
        (len(s.wall) >= min_runs and s.spent_ns >= needed) or s.spent_ns > max(needed, _LONGEST_SECONDS * 1e9)
        for s in samples
    )


def _extend(samples: Sequence[Samples], more: Sequence[Samples]) -> None:
    for into, new in zip(samples, more, strict=True):
        into.extend(new)


def _timed(run: Callable[[], object], into: Samples, clocks: Clocks) -> None:
    wall, cpu = clocks.wall(), clocks.cpu()
    run()
    into.cpu.append(clocks.cpu() - cpu)
    into.wall.append(clocks.wall() - wall)
    into.spent_ns += into.wall[-1]
