"""Spill: arrays put aside on disk, so that memory does not grow with the number of examples."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


class Spill:
    """Arrays by key in a temporary file that is gone once it is closed, or when the program ends in whatever way."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._places: dict[Hashable, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self.size = 0

    def put(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keeps an array."""
        self._places[key] = self.size, array.dtype, array.shape
        if array.size:
            self._file.seek(self.size)
            self._file.write(np.ascontiguousarray(array).data)
            self.size += array.nbytes

    def get(self, key: Hashable) -> NDArray[Any]:
        """The array of a key, read back."""
        start, dtype, shape = self._places[key]
        found = np.empty(shape, dtype)
        if found.size:
            self._file.seek(start)
            self._file.readinto(found.data)  # type: ignore[attr-defined]
        return found

    def close(self) -> None:
        """Deletes everything."""
        self._file.close()
