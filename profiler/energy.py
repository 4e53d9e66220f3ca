"""Energy of one run of a model, from a real meter; there is no estimate from a data sheet.

Rules (ChamNet, section 4.3; LATENCY 5):
1. A meter counts joules from `begin` to `end`. Counters of processors and boards count everything that runs there, so
   that the idle power is measured first and taken off: energy = (counted - idle watts x seconds) / runs.
2. Counters tick slowly (about a millisecond for RAPL, up to a tenth of a second for NVML): a model runs in a loop of a
   second or more.
3. The median of REPEATS loops counts. A result that is not above zero is an error: the meter does not see the model.
4. RAPL counters wrap around at `max_energy_range_uj`; a loop is far shorter than one turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..ir.errors import ProfileError, TargetError

POWERCAP = Path("/sys/class/powercap")
IDLE_SECONDS = 2.0
LOOP_SECONDS = 1.0
REPEATS = 3


class Meter(Protocol):
    """Counts joules between two calls."""

    name: str

    def begin(self) -> None:
        """Starts to count."""

    def end(self) -> float:
        """Joules since `begin`."""


@dataclass(frozen=True, slots=True)
class EnergyClock:
    """The wall clock in seconds, and how to wait; tests pass their own."""

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Energy:
    """Millijoules per run above idle: median of the loops, their least and most, and what it was worked out from."""

    median_mj: float
    least_mj: float
    most_mj: float
    idle_watts: float
    runs: int
    meter: str

    def __str__(self) -> str:
        return (
            f"{self.median_mj:.3g} mJ [{self.least_mj:.3g} to {self.most_mj:.3g}, {self.runs} runs, {self.meter}, "
            f"idle {self.idle_watts:.3g} W taken off]"
        )


def idle_watts(meter: Meter, clock: EnergyClock, seconds: float | None = None) -> float:
    """The power that is drawn while nothing of ours runs."""
    start = clock.now()
    meter.begin()
    clock.wait(IDLE_SECONDS if seconds is None else seconds)
    joules = meter.end()
    return joules / max(clock.now() - start, 1e-9)


def measure_energy(
    run: Callable[[], object],
    meter: Meter,
    *,
    idle: float,
    seconds: float | None = None,
    clock: EnergyClock | None = None,
) -> Energy:
    """The energy of one call of `run` above `idle` watts (rules 1 to 3); ProfileError when it is not above zero."""
    clock = clock or EnergyClock()
    for _ in range(3):
        run()
    length = LOOP_SECONDS if seconds is None else seconds
    loops = [_loop(run, meter, length, clock) for _ in range(REPEATS)]
    each = [1e3 * (joules - idle * elapsed) / runs for joules, elapsed, runs in loops]
    found = Energy(float(np.median(each)), min(each), max(each), idle, sum(runs for *_, runs in loops), meter.name)
    if not found.median_mj > 0:
        raise ProfileError(
            f"the meter {meter.name} counts {found.median_mj:.3g} mJ per run above idle ({idle:.3g} W): it does not "
            "see what the model draws; measure on a quiet machine, or with another meter (--meter)"
        )
    return found


def _loop(run: Callable[[], object], meter: Meter, seconds: float, clock: EnergyClock) -> tuple[float, float, int]:
    """Joules, seconds and runs of one loop."""
    runs = 0
    meter.begin()
    start = clock.now()
    while clock.now() - start < seconds or not runs:
        run()
        runs += 1
    joules = meter.end()
    return joules, clock.now() - start, runs


@dataclass(slots=True)
class Counter:
    """A meter over counters that only rise: `read` gives them in joules, `turns` where each wraps (0: never)."""

    name: str
    read: Callable[[], Sequence[float]]
    turns: Sequence[float]
    _start: Sequence[float] = field(default=())

    def begin(self) -> None:
        """Starts to count."""
        self._start = self.read()

    def end(self) -> float:
        """Joules since `begin`, over all counters (rule 4)."""
        total = 0.0
        for before, after, turn in zip(self._start, self.read(), self.turns, strict=True):
            total += after - before + (turn if after < before else 0.0)
        return total


def rapl(root: Path = POWERCAP) -> Counter | str:
    """The processor packages' RAPL counters through powercap; why there is none otherwise."""
    zones = [
        zone
        for zone in sorted(root.glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and (zone / "energy_uj").exists()
    ]
    if not zones:
        return f"RAPL: no counter under {root} (virtual machines hide them)"
    try:
        turns = [int((zone / "max_energy_range_uj").read_text()) / 1e6 for zone in zones]
        counter = Counter("RAPL", lambda: [int((zone / "energy_uj").read_text()) / 1e6 for zone in zones], turns)
        counter.read()
    except OSError as error:
        return f"RAPL: {zones[0] / 'energy_uj'} cannot be read ({error.strerror}); allow it with chmod, or run as root"
    return counter


def nvml() -> Counter | str:
    """The energy counter of the first NVIDIA board (Volta or newer); why there is none otherwise."""
    try:
        import pynvml
    except ImportError:
        return "NVML: package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByIndex(0)
        counter = Counter("NVML", lambda: [pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3], [0.0])
        counter.read()
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    return counter


class Zeus:
    """The `zeus` package's monitor: all processors and boards that it knows on this machine."""

    def __init__(self, monitor: Any) -> None:
        self.name = "zeus"
        self._monitor = monitor

    def begin(self) -> None:
        """Starts to count."""
        self._monitor.begin_window("onnx-netadapt")

    def end(self) -> float:
        """Joules since `begin`."""
        found = self._monitor.end_window("onnx-netadapt")
        parts = (found.gpu_energy, found.cpu_energy)
        return float(sum(sum(part.values()) for part in parts if part))


def zeus() -> Zeus | str:
    """The meter of the `zeus` package; why there is none otherwise."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return "zeus: not installed (pip install onnx-netadapt[energy])"
    try:
        return Zeus(ZeusMonitor())
    except Exception as error:  # the package has no common error class
        return f"zeus: {error}"


def find_meter(*, gpu: bool, tried: Sequence[Callable[[], Meter | str]] | None = None) -> Meter:
    """The first meter that works here, that of the board first where the model runs on one.

    Raises TargetError with what each would need when there is none.
    """
    order = tried if tried is not None else ((nvml, zeus) if gpu else (rapl, zeus))
    reasons = []
    for build in order:
        found = build()
        if not isinstance(found, str):
            return found
        reasons.append(found)
    raise TargetError(
        f"no energy meter can be read on this target. {'; '.join(reasons)}. An external meter can be given with "
        "--meter package.module:function, a function that returns the joules counted so far"
    )
