"""When and where a machine is undisturbed: the pace of a reference, and processors to go to.

A virtual processor is often one half of a core whose other half is somebody else's. While the neighbour works, all that
runs beside it takes 1.3 to 1.5 times as long, CPU time included, and not all models alike: one that took 1.04 times as
long as its original took 1.12 and 1.21 times in such moments. They last hundredths of a second to tens of seconds, and
every processor has a neighbour of its own: two of one machine were disturbed 63% and 65% of 40 s, both 42% of it, no
more often together than by chance (correlation 0.05). So whoever measures moves to another processor first, and waits
when there is none.
"""

import contextlib
import os
from bisect import bisect, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from .target import Target

SLOW = 1.15
"""Times the fast bursts from which one was disturbed."""

PATIENCE_SECONDS = 3.0
"""Runs found disturbed that a measurement waits for, unless more is asked for."""

_FREAKS = 2
"""Bursts that the clock's error may have made too short."""

_FIRST = 10
"""Bursts among which three undisturbed ones are expected."""

_FAST_SHARE = 0.05
"""The burst that is slower than this share of all is a fast one: it is the median of the fastest tenth. The third
fastest of all becomes an exception in time: of 3,387 bursts of ResNet20 on an Intel Xeon VM that took 0.55 ms, 5% took
less than 0.63, half less than 0.69, so that of the last 1,000 pairs in a row 56% were left out, though nothing had
disturbed them.
"""

_FORGOTTEN_NS = 12e9
"""Medians of bursts, added up, after which a slower pace is the machine's own: a processor that has left its turbo is
not disturbed. About a minute of runs.
"""


@dataclass(slots=True)
class Pace:
    """How fast a reference is where nothing disturbs it; `best_ns` is the fastest that it was known to be.

    `vain` counts the measurements in a row whose patience ended.
    """

    best_ns: float = float("inf")
    vain: int = 0
    _bursts: list[float] = field(default_factory=list)
    _slower_ns: float = 0.0

    @property
    def fast_ns(self) -> float:
        """Nanoseconds of its fast bursts since the machine was last found slower (_FAST_SHARE); of few the fastest."""
        if not self._bursts:
            return float("inf")
        place = int(_FAST_SHARE * len(self._bursts))
        return self._bursts[max(place, _FREAKS) if len(self._bursts) >= _FIRST else 0]

    def keeps(self, ns: float) -> bool:
        """Whether a burst of the reference was about as fast as ever; each burst is asked about once."""
        insort(self._bursts, ns)
        if len(self._bursts) >= _FIRST:
            self.best_ns = min(self.best_ns, self.fast_ns)
        self._slower_ns = self._slower_ns + ns if self.disturbed else 0.0
        if self._slower_ns > _FORGOTTEN_NS:
            self.best_ns = self.fast_ns
        return not self.slower(ns)

    def slower(self, ns: float) -> bool:
        """Whether a time is that of a disturbed moment."""
        return ns > SLOW * self.fast_ns

    def slow_down(self, ns: float) -> None:
        """Takes this for the machine's pace until it is faster again."""
        self._bursts = [ns] * _FIRST

    @property
    def disturbed(self) -> bool:
        """Whether the machine is slower than it was known to be."""
        return self.fast_ns > SLOW * self.best_ns


@dataclass(slots=True)
class Processors:
    """The processors that the calling thread may run on: `move` goes to the next, `free` undoes it.

    Threads that are started in between may run where it was at that moment only. Where the system does not tell
    processors apart (all but Linux), nothing happens.
    """

    allowed: tuple[int, ...] = ()
    _places: Iterator[int] | None = field(default=None, init=False)

    @staticmethod
    def of(target: Target) -> "Processors":
        """Those that models of the target may run on; none to choose from where they have threads of their own."""
        told = target.on_caller and hasattr(os, "sched_getaffinity")
        return Processors(tuple(sorted(os.sched_getaffinity(0))) if told else ())

    def move(self) -> None:
        """Goes on from where it is to the next processor, where there are several."""
        if len(self.allowed) < 2:
            return
        if self._places is None:
            after = bisect(self.allowed, _processor())
            self._places = cycle(self.allowed[after:] + self.allowed[:after])
        self._pin((next(self._places),))

    def free(self) -> None:
        """Lets the thread run on all of them again."""
        if self._places is not None:
            self._pin(self.allowed)

    @staticmethod
    def _pin(places: tuple[int, ...]) -> None:
        with contextlib.suppress(OSError):  # some sandboxes forbid it, and processors can be taken away
            os.sched_setaffinity(0, places)


def _processor() -> int:
    """The processor that the calling thread was last seen on; -1 where the system does not tell (proc(5), field 39)."""
    try:
        return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])
    except (OSError, ValueError, IndexError):
        return -1


@dataclass(slots=True)
class Watch:
    """Decides in one measurement which bursts count, by those of the reference, and leaves disturbed processors.

    When its patience is over whatever comes counts. If nothing kept the pace by then the machine has become slower, and
    so has the pace; after each measurement in vain the next one waits half as long.
    """

    pace: Pace
    processors: Processors
    patience_ns: float = PATIENCE_SECONDS * 1e9
    _fastest: list[float] = field(default_factory=list)

    def __enter__(self) -> "Watch":
        self.patience_ns *= 0.5**self.pace.vain
        return self

    def __exit__(self, *_: object) -> None:
        self.processors.free()
        self.pace.vain = self.pace.vain + 1 if self.given_up else 0

    @property
    def given_up(self) -> bool:
        """Whether its patience is over."""
        return self.patience_ns <= 0

    def keeps(self, ns: float, spent_ns: float) -> bool:
        """Whether what was run beside a burst of the reference counts; `ns` is its median, `spent_ns` all of it."""
        insort(self._fastest, ns)
        del self._fastest[_FREAKS + 1 :]  # the last one is no freak
        if self.pace.keeps(ns) or self.given_up:
            return True
        self.patience_ns -= spent_ns
        if not self.given_up:
            self.processors.move()
        elif self._fastest[0] > SLOW * self.pace.fast_ns:
            self.pace.slow_down(self._fastest[-1])
        return False
