"""What a unit's time depends on, as numbers: elements read and written and constants, padded as the runtime pads.

1. In the blocked layout a channel count is padded up to the step; in the plain layout it is what it is. A unit's kind
   tells the layout of each tensor that it reads (`op(layouts)`, b for blocked); what it writes is blocked if it read a
   blocked tensor, or is of the nchwc domain, unless it is the way back to the plain layout.
2. A constant's first axis goes with what is written, its other axes with what is read first (the layout of weights in
   ONNX). At a boundary, what is written is what is read, in the other layout.
3. Kernels work on several blocks of outputs at a time: the last amount pads the first axis of constants to four blocks.
4. Where the step was found by timing and not by a layout, it was that of what is written, and only that is padded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .fit import Floats, Points
from .staircase import Granularity

Dims = tuple[tuple[int, ...], ...]
Ints = npt.NDArray[np.int64]
_BLOCKED_DOMAIN = "nchwc."


@dataclass(frozen=True, slots=True)
class Steps:
    """Channels to which each tensor read (in order) and what is written are padded."""

    read: tuple[int, ...]
    write: int


def steps_of(kind: str, reads: int, granularity: Granularity) -> Steps:
    """The padding of a unit with `reads` inputs that ran as `kind` (rules 1 and 4)."""
    if not granularity.blocked:
        return Steps((1,) * reads, granularity.step)
    layouts = kind.partition("(")[2].partition(")")[0]
    blocked = "b" in layouts
    if "+" in kind or len(layouts) != reads:  # several nodes ran for it, or one read a tensor twice
        layouts = ("b" if blocked else "p") * reads
    back = kind.startswith(f"{_BLOCKED_DOMAIN}ReorderOutput")
    writes_blocked = (blocked or kind.startswith(_BLOCKED_DOMAIN)) and not back
    read = tuple(granularity.step if layout == "b" else 1 for layout in layouts)
    return Steps(read, granularity.step if writes_blocked else 1)


@dataclass(frozen=True, slots=True)
class Form:
    """A skeleton (see `structure`) read: shapes of inputs, constants and outputs, with moving axes set apart.

    An axis is its size where that is fixed, and -1 - k where it is the k-th of the `count` axes that follow widths.
    The sizes of those axes at n widths are an array (n, count).
    """

    inputs: Dims
    constants: Dims
    outputs: Dims
    count: int

    @staticmethod
    def of(skeleton: str) -> "Form":
        """The form of a skeleton."""
        told: list[Any] = json.loads(skeleton)
        (ins, constants, _), wild = told[1], told[2]
        shapes, count = [], 0
        for shape in wild:
            axes = []
            for size in shape:
                axes.append(-1 - count if size == "*" else int(size))
                count += size == "*"
            shapes.append(tuple(axes))
        return Form(tuple(shapes[:ins]), tuple(shapes[ins : ins + constants]), tuple(shapes[ins + constants :]), count)

    def sizes(self, dims: Sequence[Dims]) -> list[int]:
        """The sizes of the moving axes (count,) in the shapes of inputs, constants and outputs."""
        pairs = zip((*self.inputs, *self.constants, *self.outputs), (s for part in dims for s in part), strict=True)
        return [size for axes, shape in pairs for axis, size in zip(axes, shape, strict=True) if axis < 0]

    def channels(self, sizes: Ints) -> Ints:
        """The channel count (axis 1) of each tensor read or written (n, tensors); -1 where there is no such axis."""
        columns = [_at(axes[1], sizes) if len(axes) > 1 else -1 for axes in (*self.inputs, *self.outputs)]
        return np.stack([np.broadcast_to(c, len(sizes)) for c in columns], axis=1).astype(np.int64)

    def points(self, kind: str, granularity: Granularity, sizes: Ints) -> Points:
        """Elements read, work, elements written, and work in groups of four blocks of outputs (rule 3).

        Work is constants times output positions (for convolutions and products, multiply-accumulates). A channel count
        that follows widths and is no multiple of the step sets a point apart: a last block not full costs extra.
        """
        step = steps_of(kind, len(self.inputs), granularity)
        first = next(iter(step.read), 1)
        work, grouped = (
            _elements(self.constants, sizes, times * step.write, first) * self._positions(sizes) for times in (1, 4)
        )
        read = np.zeros(len(sizes))
        for axes, pad in zip(self.inputs, step.read, strict=True):
            read += _elements((axes,), sizes, pad, pad)
        written = _elements(self.outputs or self.inputs, sizes, step.write, step.write)
        return Points(np.stack([read, work, written, grouped], axis=1), (sizes % granularity.step != 0).any(axis=1))

    def _positions(self, sizes: Ints) -> Floats:
        """Elements of one channel of the largest output (n,)."""
        most = np.ones(len(sizes))
        for axes in self.outputs:
            if len(axes) > 1:
                most = np.maximum(most, _elements((axes[:1] + axes[2:],), sizes, 1, 1))
        return most


def _at(axis: int, sizes: Ints) -> Any:
    return sizes[:, -1 - axis] if axis < 0 else axis


def _elements(dims: Dims, sizes: Ints, first: int, other: int) -> Floats:
    """Elements (n,) of all tensors, with moving axes padded: the first axis of each to `first`, others to `other`."""
    total = np.zeros(len(sizes))
    for axes in dims:
        count = np.ones(len(sizes))
        for i, axis in enumerate(axes):
            step = first if i == 0 else other
            count *= -(-_at(axis, sizes) // step) * step if axis < 0 else axis
        total += count
    return total
