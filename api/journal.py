"""The journal of a search: one JSON line for each accepted step, so that a killed run goes on where it stopped."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx_netadapt.budgets import at_speed
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.write import write_atomically
from onnx_netadapt.passes.search import Step

SCHEMA_VERSION = 1

_START = "start_ms"
"""In the header what a run measured, which does not make it another one."""


class FileJournal:
    """A journal in a file; `past` are the steps of the run that is continued.

    A run through many budgets sets `goal`, the place of the budget that steps are taken for: `past` are then the steps
    up to that budget, and `finished` names the budgets whose model is written. `start_ms` is what the original takes:
    latencies of steps are multiples of it, and those of a run that measured another one are told at it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool, start_ms: float | None = None) -> None:
        self.path = path
        self.goal = 0
        self._header = {"schema_version": SCHEMA_VERSION, **header, _START: start_ms}
        self._entries: list[_Entry] = _read(path, self._header) if resume else []

    @property
    def past(self) -> list[Step]:
        """The steps up to the present goal, goal by goal."""
        known = [entry for entry in self._entries if entry.step is not None and entry.goal <= self.goal]
        return [entry.step for entry in sorted(known, key=lambda entry: entry.goal) if entry.step is not None]

    @property
    def finished(self) -> frozenset[int]:
        """The goals whose model is written."""
        return frozenset(entry.goal for entry in self._entries if entry.step is None)

    def add(self, step: Step, /) -> None:
        """Keeps a step: the file is whole at any moment."""
        self._keep(_Entry(self.goal, step))

    def finish(self) -> None:
        """Keeps that the model of the present goal is written."""
        self._keep(_Entry(self.goal, None))

    def _keep(self, entry: "_Entry") -> None:
        self._entries.append(entry)
        lines = [json.dumps(self._header, sort_keys=True), *map(_line, self._entries)]
        write_atomically(self.path, ("\n".join(lines) + "\n").encode())

    def remove(self) -> None:
        """Deletes the file."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A step taken for a goal; no step says that the goal's model is written."""

    goal: int
    step: Step | None


def _line(entry: _Entry) -> str:
    told = {"finished": True} if entry.step is None else asdict(entry.step)
    return json.dumps(told | ({"goal": entry.goal} if entry.goal or entry.step is None else {}), sort_keys=True)


def _entry(told: dict[str, Any]) -> _Entry:
    goal = int(told.pop("goal", 0))
    if told.pop("finished", False):
        return _Entry(goal, None)
    return _Entry(goal, Step(**(told | {"proposals": tuple(told["proposals"])})))


def last_widths(path: Path) -> Mapping[str, int] | None:
    """The widths of the last step in a journal; None where there is no such file or step (`FileJournal` says why)."""
    try:
        steps = [_entry(dict(json.loads(line))).step for line in path.read_text().splitlines()[1:] if line]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    found = [step.widths for step in steps if step is not None]
    return found[-1] if found else None


def _read(path: Path, header: Mapping[str, Any]) -> list[_Entry]:
    if not path.is_file():
        raise InputError(f"--resume: there is no journal {path}; start without --resume")
    try:
        first, *lines = [dict(json.loads(line)) for line in path.read_text().splitlines() if line]
        entries = [_entry(line) for line in lines]
        if header[_START] and first.get(_START):
            scale = header[_START] / first[_START]
            entries = [replace(entry, step=entry.step and _at_speed(entry.step, scale)) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"--resume: journal {path} cannot be read ({error}); start without --resume") from error
    names = (header.keys() | first.keys()) - {_START}
    different = sorted(name for name in names if header.get(name) != first.get(name))
    if different:
        parts = ", ".join(f"{name} was {first.get(name)!r} and is {header.get(name)!r}" for name in different)
        raise InputError(f"--resume: journal {path} belongs to another run: {parts}; start without --resume")
    return entries


def _at_speed(step: Step, scale: float) -> Step:
    """A step whose latencies are multiples of another start."""
    proposals = tuple({**told, "estimate": at_speed(told["estimate"], scale)} for told in step.proposals)
    limits, estimate, measured = (at_speed(costs, scale) for costs in (step.limits, step.estimate, step.measured))
    return replace(step, limits=limits, proposals=proposals, estimate=estimate, measured=measured)
