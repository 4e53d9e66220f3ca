"""The journal of a search: one JSON line for each accepted step, so that a killed run goes on where it stopped."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.write import write_atomically
from onnx_netadapt.passes.search import Step

SCHEMA_VERSION = 1


class FileJournal:
    """A journal in a file; `past` are the steps of the run that is continued."""

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._header = {"schema_version": SCHEMA_VERSION, **header}
        self.past: list[Step] = _read(path, self._header) if resume else []
        self._lines = [json.dumps(self._header, sort_keys=True), *map(_line, self.past)]

    def add(self, step: Step, /) -> None:
        """Keeps a step: the file is whole at any moment."""
        self._lines.append(_line(step))
        write_atomically(self.path, ("\n".join(self._lines) + "\n").encode())

    def remove(self) -> None:
        """Deletes the file."""
        self.path.unlink(missing_ok=True)


def _line(step: Step) -> str:
    return json.dumps(asdict(step), sort_keys=True)


def _read(path: Path, header: Mapping[str, Any]) -> list[Step]:
    if not path.is_file():
        raise InputError(f"--resume: there is no journal {path}; start without --resume")
    try:
        first, *lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        steps = [Step(**(line | {"proposals": tuple(line["proposals"])})) for line in lines]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"--resume: journal {path} cannot be read ({error}); start without --resume") from error
    different = sorted(name for name in header.keys() | first.keys() if header.get(name) != first.get(name))
    if different:
        parts = ", ".join(f"{name} was {first.get(name)!r} and is {header.get(name)!r}" for name in different)
        raise InputError(f"--resume: journal {path} belongs to another run: {parts}; start without --resume")
    return steps
