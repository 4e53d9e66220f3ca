"""Progress for people: a line for each long phase on standard error, with the time left and the best so far."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int, str], None]


def silent(done: int, total: int, note: str) -> None:
    """Says nothing."""


class Progress:
    """Phases of a run; `quiet` says nothing at all. A terminal gets a moving bar, a log file a line per phase."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Prints one line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, title: str) -> Iterator[Report]:
        """A phase: the yielded function takes (done, total, note)."""
        if self.quiet:
            yield silent
            return
        start = time.monotonic()
        last = [""]
        with _bar(title) if self._terminal else _lines(title) as report:

            def told(done: int, total: int, note: str) -> None:
                last[0] = note
                report(done, total, note)

            yield told
        self.say(f"  {title}: {time.monotonic() - start:.1f} s{f', {last[0]}' if last[0] else ''}")


@contextmanager
def _lines(title: str) -> Iterator[Report]:
    """For logs: a line when ten seconds have gone by since the last one, with the time left."""
    start = spoken = time.monotonic()

    def report(done: int, total: int, note: str) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken > 10 and total > 0:
            spoken = now
            left = (now - start) / max(done, 1) * (total - done)
            print(f"  {title}: {done} of {total}, {left:.0f} s left {note}", file=sys.stderr, flush=True)

    yield report


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns: list[Any] = [TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    bars = Bars(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True
    )
    with bars:
        task = bars.add_task(title, total=None, note="")
        yield lambda done, total, note: bars.update(task, completed=done, total=total or None, note=note)
