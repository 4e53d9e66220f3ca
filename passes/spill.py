"""Spill: arrays put aside, on disk beyond a bound, so that memory does not grow with the number of examples."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

HELD_BYTES = 200_000_000
"""What is kept in memory: the first arrays up to this size."""


class Spill:
    """Arrays by key, for any number of threads; what is not in memory is in a temporary file that is gone once it is
    closed, or when the program ends in whatever way.
    """

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._room = held_bytes
        self._held: dict[Hashable, NDArray[Any]] = {}
        self._file: IO[bytes] | None = None
        self._places: dict[Hashable, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self._size = 0
        self._lock = Lock()

    def put(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keeps an array, which nobody may change from now on."""
        with self._lock:
            if array.nbytes <= self._room:
                self._room -= array.nbytes
                self._held[key] = array
                return
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
            self._places[key] = self._size, array.dtype, array.shape
            self._file.seek(self._size)
            self._file.write(np.ascontiguousarray(array).data)
            self._size += array.nbytes

    def get(self, key: Hashable) -> NDArray[Any]:
        """The array of a key, not to be changed."""
        with self._lock:
            if key in self._held:
                return self._held[key]
            start, dtype, shape = self._places[key]
            found = np.empty(shape, dtype)
            assert self._file is not None
            self._file.seek(start)
            self._file.readinto(found.data)  # type: ignore[attr-defined]
            return found

    def close(self) -> None:
        """Deletes everything."""
        self._held.clear()
        if self._file is not None:
            self._file.close()
