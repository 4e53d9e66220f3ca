"""What a model takes, and a set of examples for it.

1. The first axis of every input counts examples; a rank-0 input is one value for all of them.
2. Examples are read by position and on demand: only the source knows where they are kept.
3. Values are cast within their kind (float to float, integer to integer), never across: bytes that are to become floats
   need to be told how (--preprocess). NaN, infinity and what overflows the model's type are refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx_netadapt.ir.errors import InputError

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Feeds = dict[str, Array]
Inputs = Mapping[str, tuple[Sequence[int | str | None], np.dtype[Any]]]

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of the model; free dimensions, named or not, are None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"input {self.name!r} {shown(self.shape)} {self.dtype}"

    def fitted(self, array: Array, where: str) -> Array:
        """`array` as this input's type; InputError where shape, kind of number or values do not fit."""
        self.check_kind(array, where)
        self.check_shape(array.shape, where)
        if array.dtype == self.dtype:
            cast = array
        else:
            with np.errstate(over="ignore"):  # what overflows is reported below, with its place
                cast = array.astype(self.dtype)
        self._check_values(array, cast, where)
        return cast

    def check_kind(self, array: Array, where: str) -> None:
        """Nothing, or InputError if the array holds another kind of number than this input."""
        if _kind(array.dtype) == _kind(self.dtype):
            return
        bytes_for_floats = array.dtype == np.uint8 and _kind(self.dtype) == "float"
        hint = (
            "say how bytes become the model's numbers with --preprocess, for example --preprocess imagenet"
            if bytes_for_floats
            else f"store the values as {self.dtype}"
        )
        raise InputError(f"{where} is {array.dtype}, but {self} does not take that; {hint}")

    def check_shape(self, shape: tuple[int, ...], where: str) -> None:
        """Nothing, or InputError if an array of this shape cannot be fed, whatever its number of examples."""
        if len(shape) != len(self.shape):
            raise InputError(
                f"{where} has shape {shown(shape)}, rank {len(shape)}, but {self} has rank {len(self.shape)}; "
                "the first axis must count the examples"
            )
        if any(want not in (None, got) for got, want in zip(shape[1:], self.shape[1:], strict=True)):
            raise InputError(
                f"{where} has shape {shown(shape)}, which does not fit {self}; all axes but the first must agree"
            )

    def _check_values(self, array: Array, cast: Array, where: str) -> None:
        good = np.isfinite(cast) if _kind(self.dtype) == "float" else cast == array
        if good.all():
            return
        bad = np.argwhere(~np.asarray(good))
        first = array[tuple(bad[0])]
        place = f" (first: example {bad[0][0]}, value {first})" if array.ndim else f" (value {first})"
        raise InputError(
            f"{where} holds {len(bad)} values{place} that are not finite or that {self.dtype} cannot hold, "
            f"as {self} wants; clean the data"
        )


@dataclass(frozen=True, slots=True)
class Data:
    """`n` examples, read on demand; `labels` (n, ...) or None; `origin` and `warnings` are for people.

    `resized` reads them with their images made anew at another (height, width); None where there are only numbers.
    """

    n: int
    labels: Array | None
    read: Callable[[Indices], Feeds]  # one feed for each input, the asked examples along the first axis
    origin: str
    warnings: tuple[str, ...] = ()
    synthetic: bool = False
    resized: Callable[[Indices, tuple[int, int]], Feeds] | None = None

    def batches(self, indices: Indices, batch_size: int) -> Iterator[tuple[Feeds, Array | None]]:
        """Feeds and labels (None without) of the examples at `indices`, in that order; the last batch may be short."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        for start in range(0, len(indices), batch_size):
            at = indices[start : start + batch_size]
            yield self.read(at), None if self.labels is None else self.labels[at]


def model_inputs(inputs: Inputs) -> dict[str, ModelInput]:
    """The model's inputs by name, free dimensions normalised to None."""
    return {
        name: ModelInput(name, tuple(d if isinstance(d, int) and d > 0 else None for d in shape), np.dtype(dtype))
        for name, (shape, dtype) in inputs.items()
    }


def checked(array: Array, wanted: ModelInput, where: str) -> None:
    """Nothing, or InputError; looks at all values, some examples at a time, so that no second copy is made."""
    wanted.check_shape(array.shape, where)
    if array.ndim == 0:
        wanted.fitted(array, where)
    for start in range(0, len(array) if array.ndim else 0, _BLOCK):
        end = min(start + _BLOCK, len(array))
        part = f"{where}, examples {start} to {end - 1}," if len(array) > _BLOCK else where
        wanted.fitted(array[start:end], part)


def shown(shape: Sequence[int | None]) -> str:
    """A shape as text, `?` for a free dimension."""
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def _kind(dtype: np.dtype[Any]) -> str:
    """Float (bfloat16 and 8-bit floats included, which numpy calls void), integer, or numpy's own letter."""
    if dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name):
        return "float"
    return "integer" if dtype.kind in "iu" else dtype.kind
