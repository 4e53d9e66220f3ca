"""`--resolution`: the sizes that a model's image input may take, tried on the model itself, and examples at each.

1. The resolution is the shorter side of the input, in pixels; the longer one keeps the proportion, on the same step.
2. Candidates are the multiples of the step within the range that lie below the model's own size, and that size.
3. A size can be taken when the model runs at it and every output keeps its shape. This is tried with real examples,
   whatever operators the model has: heads that pool globally pass, those that read a fixed number of positions fail.
4. Images are made anew at each size as `--preprocess` says. Arrays of numbers are resized from the model's own size,
   bilinear with antialiasing, as images are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx_netadapt.evaluate import Runner
from onnx_netadapt.inputs import Array, Data, Feeds, Indices
from onnx_netadapt.ir.downsample import downsampled
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph, Port, Shape
from onnx_netadapt.ir.load import reshaped
from onnx_netadapt.ir.shapes import image_axes

STEP = 32
"""The default step: networks that halve their maps five times keep whole positions on it."""

SIZES_INSIDE = 14
"""Sizes lie on the largest power of two that fits so many times into the model's own: 16 for 224, 2 for 32 pixels."""

AUTO, NEVER = "auto", "never"
"""What `--downsample` may say beside a number of pixels."""

_HELP = "write a range such as 96..224, or 96..224:16 for another step than 32"


@dataclass(frozen=True, slots=True)
class Range:
    """What `--resolution` says: multiples of `step` from `low` to `high`, in pixels; `text` as it was written."""

    low: int
    high: int
    step: int
    text: str

    def __str__(self) -> str:
        return f"--resolution {self.text}"

    @property
    def sides(self) -> range:
        """The multiples of the step within the range."""
        return range(-(-self.low // self.step) * self.step, self.high + 1, self.step)


@dataclass(frozen=True, slots=True)
class InputSize:
    """A size of one input: its whole shape, and which `axes` of it are height and width.

    `inside` tells that the model takes the input as ever, and makes it that small itself (`downsampling`).
    """

    name: str
    shape: Shape
    axes: tuple[int, int]
    inside: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[self.axes[0]], self.shape[self.axes[1]]

    @property
    def resolution(self) -> int:
        """The shorter side."""
        return min(self.sides)

    def __str__(self) -> str:
        return f"{self.sides[0]}x{self.sides[1]}"

    def at(self, resolution: int, step: int) -> "InputSize":
        """The size at another resolution (rule 1)."""
        shape, own = list(self.shape), self.resolution
        for axis, side in zip(self.axes, self.sides, strict=True):
            shape[axis] = resolution if side == own else max(round(side * resolution / own / step), 1) * step
        return replace(self, shape=tuple(shape))


def parse_resolution(text: str) -> Range:
    """The range of a `--resolution 96..224` or `96..224:16` option; InputError when it is none."""
    span, _, step = text.partition(":")
    low, dots, high = span.partition("..")
    try:
        found = Range(int(low), int(high), int(step) if step else STEP, text)
    except ValueError as error:
        raise InputError(f"--resolution {text}: this is no range of sizes; {_HELP}") from error
    if not dots or min(found.low, found.step) < 1 or not found.sides:
        raise InputError(f"--resolution {text}: there is no multiple of {found.step} in this range; {_HELP}")
    return found


def parse_downsample(text: str) -> int | None:
    """The side in pixels that a `--downsample` option fixes; None for auto and never. InputError for other words."""
    if text in (AUTO, NEVER):
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--downsample {text}: write auto, never, or the shorter side in pixels, as in 160")
    return int(text)


def images_of(graph: Graph) -> list[tuple[Port, tuple[int, int]]]:
    """The inputs that could be batches of images, with the axes of their height and width."""
    return [(port, (axes[0], axes[1])) for port in graph.inputs if (axes := image_axes(port))]


def own_size(graph: Graph, wanted: Range) -> InputSize:
    """The size of the model's one image input as it stands; InputError where it has none, or several."""
    images = images_of(graph)
    if len(images) != 1:
        raise InputError(
            f"{wanted}: the model has {len(images)} inputs that could be images (four axes), and must have one; "
            "leave --resolution out"
        )
    port, (height, width) = images[0]
    return InputSize(port.name, graph.shapes[port.name], (height, width))


def planned_size(graph: Graph, plan: Mapping[str, Any]) -> InputSize | None:
    """The size of the input that a plan goes with; None where that is the model's own."""
    if "input" not in plan:
        return None
    name, shape = plan["input"]["name"], tuple(plan["input"]["shape"])
    found = [axes for port in graph.inputs if port.name == name and len(axes := image_axes(port)) == len(shape) - 2]
    if not found:
        raise InputError(f"the plan goes with input '{name}' {list(shape)}, and the original has no such input")
    height, width = found[0]
    size = InputSize(name, shape, (height, width), bool(plan["input"].get("inside", False)))
    own = graph.shapes[name]
    if size.inside and not all(isinstance(shape[axis], int) and 0 < shape[axis] <= own[axis] for axis in size.axes):
        raise InputError(f"the plan has the model make its image {size}, and it is {own[height]}x{own[width]} large")
    return size


def planned(size: InputSize) -> dict[str, Any]:
    """What a plan says of the size that it goes with."""
    return {"name": size.name, "shape": list(size.shape), **({"inside": True} if size.inside else {})}


def at_size(graph: Graph, size: InputSize) -> Graph:
    """The graph at a size, which it may not be able to run at."""
    if size.inside:
        return downsampled(graph, size.name, size.axes, size.sides)
    return reshaped(graph, size.name, size.shape)


def sizes_below(own: InputSize, wanted: Range) -> list[InputSize]:
    """The candidates below the model's own size (rule 2), ascending; InputError when there are none."""
    sides = wanted.sides  # of any length: what lies above the model's own size is not gone through
    below = range(sides.start, min(sides.stop, own.resolution), sides.step)
    found = [own.at(side, wanted.step) for side in below]
    if not found:
        raise InputError(f"{wanted}: no size of this range is below the model's own, {own}; {_HELP}")
    return found


def sizes_inside(own: InputSize) -> list[InputSize]:
    """The sizes that a model may make its image itself, ascending: from half the side up, on a power of two."""
    step = 1 << max(0, int(np.log2(own.resolution / SIZES_INSIDE)))
    sides = range(-(-own.resolution // (2 * step)) * step, own.resolution, step)
    return [replace(own.at(side, step), inside=True) for side in sides]


def data_at(data: Data, size: InputSize) -> Data:
    """The same examples with the image input at a size (rule 4)."""
    if size.inside:
        return data
    images = data.resized

    def read(indices: Indices) -> Feeds:
        if images is not None:
            return images(indices, size.sides)
        feeds = data.read(indices)
        return feeds | {size.name: resized(feeds[size.name], size)}

    return replace(data, read=read, resized=None)


def resized(array: Array, size: InputSize) -> Array:
    """A batch (n, C, H, W) or (n, H, W, C) at another height and width, of the same type."""
    from PIL import Image

    height, width = size.sides
    upright = np.moveaxis(array, size.axes, (-2, -1))  # (n, C, H, W)
    planes = upright.reshape(-1, *upright.shape[-2:]).astype(np.float32)
    small = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in planes]
    found = np.stack(small).reshape(*upright.shape[:2], height, width)
    rounded = np.rint(found) if array.dtype.kind in "iu" else found
    return np.ascontiguousarray(np.moveaxis(rounded, (-2, -1), size.axes).astype(array.dtype))


def tried(graph: Graph, size: InputSize, data: Data, outputs: Sequence[Array]) -> Graph | str:
    """The graph at a size, or why the model cannot take it (rule 3).

    `data` are the examples at that size, `outputs` the original's for a batch of the graph's own number of examples.
    """
    count = graph.shapes[size.name][0]
    try:
        found = at_size(graph, size)
        made = Runner(found.model)(data.read(np.arange(count) % data.n))
    except Exception as error:  # shape inference and ONNX Runtime fail in many ways: each says that this cannot be
        return _first_line(error)
    for port, new, old in zip(graph.outputs, made, outputs, strict=True):
        if np.shape(new) != np.shape(old):
            return f"output '{port.name}' has shape {list(np.shape(new))} there, and {list(np.shape(old))} as it is"
    return found


def refused(wanted: Range, own: InputSize, reasons: dict[InputSize, str]) -> InputError:
    """What to say when no size but the model's own can be taken."""
    size, reason = max(reasons.items(), key=lambda item: item[0].resolution)
    return InputError(
        f"{wanted}: the model works at its own size {own} only: at {size}, {reason}. Leave --resolution out, or export "
        "the model with a head that pools globally and whose outputs do not grow with the input"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"it cannot run ({lines[0][:200] if lines else type(error).__name__})"
