"""What a unit's time depends on, as numbers: elements read and written and constants, padded as the runtime pads.

1. In the blocked layout a channel count is padded up to the step; in the plain layout it is what it is. A unit's kind
   tells the layouts that it reads (`op(layouts)`, b for blocked); what it writes is blocked if it read a blocked
   tensor, or is of the nchwc domain.
2. A constant's first axis goes with what is written, its other axes with what is read (the layout of weights in ONNX).
3. Kernels work on several blocks of outputs at a time: the last amount pads the first axis of constants to four blocks.
4. Where the step was found by timing and not by a layout, every channel count is padded.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .staircase import Granularity

Dims = tuple[tuple[int, ...], ...]
_BLOCKED_DOMAIN = "nchwc."


@dataclass(frozen=True, slots=True)
class Steps:
    """Channels to which what is read and what is written are padded."""

    read: int
    write: int


def steps_of(kind: str, granularity: Granularity) -> Steps:
    """The padding of a unit that ran as `kind` (rules 1 and 4)."""
    if not granularity.blocked:
        return Steps(granularity.step, granularity.step)
    reads_blocked = "b" in kind.partition("(")[2].partition(")")[0]
    writes_blocked = reads_blocked or kind.startswith(_BLOCKED_DOMAIN)
    return Steps(granularity.step if reads_blocked else 1, granularity.step if writes_blocked else 1)


def amounts(kind: str, skeleton: str, dims: Sequence[Dims], granularity: Granularity) -> tuple[float, ...]:
    """Elements read, work, elements written, and work in groups of four blocks of outputs (rule 3).

    Work is constants times output positions (for convolutions and products, multiply-accumulates).

    `dims` are the shapes of inputs, constants and outputs; `skeleton` (see `structure`) tells which axes are widths.
    """
    ins, constants, outs = dims
    wild = _wild(skeleton)
    moving = (wild[: len(ins)], wild[len(ins) : len(ins) + len(constants)], wild[len(ins) + len(constants) :])
    step = steps_of(kind, granularity)
    positions = max((math.prod(shape) / max(shape[1], 1) for shape in outs if len(shape) > 1), default=1.0)
    return (
        _elements(ins, moving[0], step.read, step.read),
        _elements(constants, moving[1], step.write, step.read) * positions,
        _elements(outs, moving[2], step.write, step.write),
        _elements(constants, moving[1], 4 * step.write, step.read) * positions,
    )


def off_step(skeleton: str, dims: Sequence[Dims], granularity: Granularity) -> bool:
    """Whether a channel count that is a width is no multiple of the step: a last block not full costs extra."""
    shapes = [shape for part in dims for shape in part]
    told = zip(shapes, _wild(skeleton), strict=True)
    return any(m and size % granularity.step for shape, axes in told for size, m in zip(shape, axes, strict=True))


def _wild(skeleton: str) -> list[list[bool]]:
    told: list[Any] = json.loads(skeleton)[2]
    return [[size == "*" for size in shape] for shape in told]


def _elements(dims: Dims, moving: Sequence[Sequence[bool]], first: int, other: int) -> float:
    total = 0.0
    for shape, axes in zip(dims, moving, strict=True):
        count = 1.0
        for i, (size, moves) in enumerate(zip(shape, axes, strict=True)):
            step = (first if i == 0 else other) if moves else 1
            count *= -(-size // step) * step
        total += count
    return total
