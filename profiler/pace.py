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
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle

from .target import Target

SLOW = 1.15
"""Times a reference's fastest burst from which one was disturbed."""

PATIENCE_SECONDS = 3.0
"""Runs found disturbed that a measurement waits for, unless more is asked for."""

_FREAKS = 2
"""Bursts that may be faster than they can be, by the clock's error."""


@dataclass(slots=True)
class Pace:
    """How fast a reference is where nothing disturbs it; `best_ns` is the fastest that it ever was for long."""

    best_ns: float = float("inf")
    _fastest: list[float] = field(default_factory=list)

    @property
    def fast_ns(self) -> float:
        """Nanoseconds of its third fastest burst, since the machine was last found slower."""
        return self._fastest[-1]

    def keeps(self, ns: float) -> bool:
        """Whether a burst of the reference was about as fast as ever."""
        insort(self._fastest, ns)
        del self._fastest[_FREAKS + 1 :]
        if len(self._fastest) > _FREAKS:
            self.best_ns = min(self.best_ns, self.fast_ns)
        return ns <= SLOW * self.fast_ns

    def slow_down(self, ns: float) -> None:
        """Takes this for the machine's pace until it is faster again."""
        self._fastest = [ns] * (_FREAKS + 1)

    @property
    def disturbed(self) -> bool:
        """Whether the machine is slower than it was known to be."""
        return self.fast_ns > SLOW * self.best_ns


@dataclass(slots=True)
class Processors:
    """The processors that the calling thread may run on: `move` goes to the next, leaving the block frees it again.

    Threads that are started in the block may run where it was at that moment only. Where the system does not tell
    processors apart (all but Linux), nothing happens.
    """

    allowed: tuple[int, ...] = ()
    _places: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self._places = cycle(self.allowed)

    @staticmethod
    def of(target: Target) -> "Processors":
        """Those that models of the target may run on; none to choose from where they have threads of their own."""
        told = target.on_caller and hasattr(os, "sched_getaffinity")
        return Processors(tuple(sorted(os.sched_getaffinity(0))) if told else ())

    def move(self) -> None:
        """Goes on to the next processor, where there are several."""
        if len(self.allowed) > 1:
            self._pin((next(self._places),))

    def __enter__(self) -> "Processors":
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.allowed) > 1:
            self._pin(self.allowed)

    @staticmethod
    def _pin(places: tuple[int, ...]) -> None:
        with contextlib.suppress(OSError):  # some sandboxes forbid it, and processors can be taken away
            os.sched_setaffinity(0, places)


@dataclass(slots=True)
class Watch:
    """Decides in one measurement which bursts count, by those of the reference, and leaves disturbed processors.

    When its patience is over whatever comes counts; if nothing kept the pace the machine has become slower, and so has
    the pace.
    """

    pace: Pace
    processors: Processors
    patience_ns: float = PATIENCE_SECONDS * 1e9
    _fastest: float = float("inf")

    def keeps(self, ns: float, spent_ns: float) -> bool:
        """Whether what was run beside a burst of the reference counts; `ns` is its median, `spent_ns` all of it."""
        self._fastest = min(self._fastest, ns)
        if self.pace.keeps(ns) or self.patience_ns <= 0:
            return True
        self.patience_ns -= spent_ns
        if self.patience_ns <= 0:
            self.pace.slow_down(self._fastest)
        else:
            self.processors.move()
        return False
