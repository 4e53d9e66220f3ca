"""The table of measured times of one target: a SQLite file that survives kills and is shared by processes.

1. Table `target` has one row, the fingerprint; a table made elsewhere is refused, with the differences.
2. Table `unit` has one row per key: attributes (JSON), samples (JSON, microseconds), their median, the time of day.
3. Every write is one immediate transaction on SQLite's rollback journal: a kill leaves the table as it was before or
   after it, two writers wait for each other, and between writes the file is complete in itself (it can be copied).
4. Adding a key that is there appends the samples; nothing that was measured is thrown away.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from ..ir.errors import InputError

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS target (fingerprint TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS unit (key TEXT PRIMARY KEY, attributes TEXT NOT NULL, samples TEXT NOT NULL, "
    "statistic_us REAL NOT NULL, measured_at TEXT NOT NULL)",
)
_COLUMNS = "key, attributes, samples"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: what was measured (`attributes` must hold a "type") and its samples in microseconds."""

    key: str
    attributes: Mapping[str, Any]
    samples_us: tuple[float, ...] = field(default=())

    @property
    def statistic_us(self) -> float:
        """The median of the samples."""
        return float(median(self.samples_us))


class Lut:
    """An open table. Use `Lut.open`; close it, or use it as a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._db = connection
        self.path = path

    @staticmethod
    def open(path: str | Path, fingerprint: Mapping[str, Any] | None = None) -> "Lut":
        """The table at `path` (":memory:" for none), made if absent; a table of another fingerprint raises InputError.

        Without a fingerprint an existing table is opened as it is, and an absent one raises InputError.
        """
        name = str(path)
        if fingerprint is None and (name == ":memory:" or not Path(name).is_file()):
            raise InputError(
                f"LUT file '{name}' does not exist: fill one with `onnx-netadapt profile MODEL --lut FILE`"
            )
        connection = None
        try:
            connection = sqlite3.connect(name, timeout=60, isolation_level=None)
            lut = Lut(connection, name)
            lut._begin(fingerprint)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise InputError(f"LUT file '{name}' cannot be used: {error}; choose another file") from error
            raise
        return lut

    def _begin(self, fingerprint: Mapping[str, Any] | None) -> None:
        with self._writing():
            for statement in _SCHEMA if fingerprint is not None else ():
                self._db.execute(statement)
            row = self._db.execute("SELECT fingerprint FROM target").fetchone()
            if row is None and fingerprint is not None:
                self._db.execute("INSERT INTO target VALUES (?)", (_dumps(fingerprint),))
        if row is not None and fingerprint is not None:
            _refuse_other(self.path, json.loads(row[0]), json.loads(_dumps(fingerprint)))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the target that the table speaks of."""
        row = self._db.execute("SELECT fingerprint FROM target").fetchone()
        return dict(json.loads(row[0]))

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM unit WHERE key = ?", (key,)).fetchone()
        return None if row is None else _entry(row)

    def entries(self, type: str | None = None) -> tuple[Entry, ...]:
        """All entries, ordered by key; with `type`, those whose attributes name that type."""
        likely = "%" if type is None else f'%"type":{_dumps(type)}%'  # what is stored is made by `_dumps`
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM unit WHERE attributes LIKE ? ORDER BY key", (likely,)
        ).fetchall()
        entries = (_entry(row) for row in rows)
        return tuple(e for e in entries if type is None or e.attributes.get("type") == type)

    def networks(self, digest: str) -> list[dict[str, int]]:
        """The widths of all whole networks in the table that were measured for the structure `digest`."""
        return [dict(e.attributes["widths"]) for e in self.entries("network") if e.attributes["digest"] == digest]

    def add(self, entries: Iterable[Entry]) -> None:
        """Stores the entries in one transaction (rules 3 and 4)."""
        now = _now()
        with self._writing():
            for entry in entries:
                known = self._db.execute("SELECT samples FROM unit WHERE key = ?", (entry.key,)).fetchone()
                before = tuple(json.loads(known[0])) if known else ()
                self._put(entry.key, _dumps(entry.attributes), (*before, *entry.samples_us), now)

    def _put(self, key: str, attributes: str, samples: Sequence[float], now: str) -> None:
        row = (key, attributes, _dumps(samples), median(samples), now)
        self._db.execute("INSERT OR REPLACE INTO unit VALUES (?, ?, ?, ?, ?)", row)

    def merge(self, other: "Lut") -> int:
        """The number of entries taken over from `other`, which must have the same fingerprint (else InputError).

        Samples that are in both (a table merged twice) are not doubled. One transaction: another process that merges
        the same table meanwhile waits, and then finds nothing new.
        """
        _refuse_other(other.path, other.fingerprint, self.fingerprint)
        rows = other._db.execute(f"SELECT {_COLUMNS} FROM unit").fetchall()
        now, taken = _now(), 0
        with self._writing():
            held = dict(self._db.execute("SELECT key, samples FROM unit").fetchall())
            for key, attributes, samples in rows:
                if samples == held.get(key):
                    continue
                before = json.loads(held.get(key, "[]"))
                new = set(json.loads(samples)).difference(before)
                if new:
                    self._put(key, attributes, [*before, *(s for s in json.loads(samples) if s in new)], now)
                    taken += 1
        return taken

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM unit").fetchone()[0])

    def __enter__(self) -> "Lut":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for every field in which two fingerprints differ; for sets of flags, only the flags that differ."""
    lines = []
    for name in sorted(a.keys() | b.keys()):
        left, right = a.get(name), b.get(name)
        if left == right:
            continue
        if name == "cpu_flags":
            one, two = set(str(left).split()), set(str(right).split())
            left, right = " ".join(sorted(one - two)) or "-", " ".join(sorted(two - one)) or "-"
        lines.append(f"{name}: {left} | {right}")
    return tuple(lines)


def _refuse_other(path: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    lines = differences(theirs, ours)
    if lines:
        text = "\n  ".join(lines)
        raise InputError(f"LUT file '{path}' is of another target (file | here):\n  {text}\nuse another --lut file")


def _entry(row: tuple[str, str, str]) -> Entry:
    key, attributes, samples = row
    return Entry(key, json.loads(attributes), tuple(json.loads(samples)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
