"""`--preprocess`: how the bytes of an image become the model's input, in this order.

1. Colours: three channels (`order=RGB` or `BGR`), or one, grey, where the model takes one.
2. Size: an image that already has `size` (S or HxW, default: the model's) is left alone. Others are stretched to it,
   or with `crop=C` resized in proportion until `size` covers the share C of the side that limits it, and the middle is
   taken. Resampling is bilinear with antialiasing.
3. Numbers: (x * scale - mean) / std, x from 0 to 255; `mean` and `std` have one value or one for each channel, in the
   model's order of channels; default scale 1/255, mean 0, std 1. A model that takes bytes gets them as they are.
4. Layout: `NCHW` or `NHWC`, default: where the model's shape has the channels, else NCHW.

`imagenet` is short for size=224 (unless the model's is fixed), crop=0.875, mean=0.485,0.456,0.406 and
std=0.229,0.224,0.225; what follows it replaces its parts: `imagenet,crop=1`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from onnx_netadapt.inputs import Array, ModelInput
from onnx_netadapt.ir.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]
Pixels = npt.NDArray[np.uint8]
_KNOWN = "imagenet, or size=, crop=, scale=, mean=, std=, layout=, order= separated by commas"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `--preprocess` says; None where it leaves the choice to the model's input. Sizes are (height, width)."""

    size: Size | None = None
    fallback: Size | None = None  # the size where neither the user nor the model says one
    crop: float | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    order: str = "RGB"


IMAGENET = Recipe(fallback=(224, 224), crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Preprocess:
    """A recipe worked out for one input of the model."""

    target: ModelInput
    size: Size | None
    crop: float | None
    channels: Literal[1, 3]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool
    reverse: bool

    def at(self, size: Size) -> "Preprocess":
        """The same for an input of another height and width."""
        low, high = (1, 3) if self.channels_last else (2, 4)
        shape = (*self.target.shape[:low], *size, *self.target.shape[high:])
        return replace(self, size=size, target=replace(self.target, shape=shape))

    def stacked(self, pixels: Sequence[Pixels], where: str) -> Array:
        """`numbers` of images that are apart; InputError where they have different sizes."""
        if len({p.shape for p in pixels}) > 1:
            raise InputError(
                f"{where}: images have different sizes, such as {pixels[0].shape[:2]} and "
                f"{next(p.shape for p in pixels if p.shape != pixels[0].shape)[:2]}; give --preprocess size=HxW"
            )
        return self.numbers(np.stack(pixels), where)

    def numbers(self, pixels: Pixels, where: str) -> Array:
        """The model's input, (n, C, H, W) or (n, H, W, C), of bytes (n, H, W, C); InputError where they do not fit."""
        ordered = pixels[..., ::-1] if self.reverse else pixels
        if not self.channels_last:
            ordered = ordered.transpose(0, 3, 1, 2)
        whole = np.ascontiguousarray(ordered)
        return self.target.fitted(whole if self.target.dtype.kind in "iu" else self._normalised(whole), where)

    def pixels(self, image: "Image.Image", where: str) -> Pixels:
        """The bytes (H, W, C) of a pillow image (rules 1 and 2); InputError where it has other numbers than bytes."""
        if image.mode[0] in "IF":
            raise InputError(
                f"{where}: an image has more than 8 bits for each channel ({image.mode}); save it with 8 bits"
            )
        plain = image.convert("L" if self.channels == 1 else "RGB")
        pixels = np.asarray(_resized(plain, self.size, self.crop), dtype=np.uint8)
        return pixels.reshape(*pixels.shape[:2], self.channels)

    def _normalised(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        shape = (-1,) if self.channels_last else (-1, 1, 1)
        mean, std = (np.asarray(v, dtype=np.float32).reshape(shape) for v in (self.mean, self.std))
        values = pixels.astype(np.float32)
        values *= np.float32(self.scale)
        values -= mean
        values /= std
        return values


def parsed(text: str | None) -> Recipe:
    """The recipe that a `--preprocess` option stands for (none: the defaults); InputError if it is not understood."""
    recipe = Recipe()
    for position, (key, values) in enumerate(_pairs(text or "")):
        if position == 0 and key == "imagenet" and not values:
            recipe = IMAGENET
        elif key in _READERS and values:
            recipe = _READERS[key](recipe, values)
        else:
            raise InputError(f"--preprocess {text}: {key!r} is not understood; known are {_KNOWN}")
    return recipe


def fitted_to(recipe: Recipe, target: ModelInput) -> Preprocess:
    """The recipe with the sizes, channels and layout of `target`; InputError where they contradict each other."""
    if len(target.shape) != 4:
        raise InputError(f"{target} has rank {len(target.shape)}: images need rank 4; give the data as .npz")
    last = recipe.layout == "NHWC" if recipe.layout else target.shape[1] not in (1, 3) and target.shape[3] in (1, 3)
    height, width = target.shape[1:3] if last else target.shape[2:4]
    made = Preprocess(
        target=target,
        size=_size(recipe, (height, width), target),
        crop=recipe.crop,
        channels=_channels(target, 3 if last else 1),
        scale=recipe.scale or (1.0 if target.dtype.kind in "iu" else 1 / 255),
        mean=recipe.mean,
        std=recipe.std,
        channels_last=last,
        reverse=recipe.order == "BGR",
    )
    _check_numbers(made)
    return made


def _size(recipe: Recipe, fixed: tuple[int | None, int | None], target: ModelInput) -> Size | None:
    height, width = fixed
    said = recipe.size
    if said and any(want not in (None, got) for got, want in zip(said, fixed, strict=True)):
        raise InputError(f"--preprocess size={said[0]}x{said[1]} does not fit {target}; leave size out, or change it")
    if said or height is None or width is None:
        return said or recipe.fallback
    return height, width


def _channels(target: ModelInput, axis: int) -> Literal[1, 3]:
    count = target.shape[axis]
    if count == 1:
        return 1
    if count in (None, 3):
        return 3
    raise InputError(
        f"{target} has {count} channels at axis {axis} ({'NHWC' if axis == 3 else 'NCHW'}): images have 1 or 3; "
        "give --preprocess layout=, or the data as .npz"
    )


def _check_numbers(made: Preprocess) -> None:
    for name, values in (("mean", made.mean), ("std", made.std)):
        if len(values) not in (1, made.channels):
            raise InputError(
                f"--preprocess {name} has {len(values)} values, but {made.target} has {made.channels} channels; "
                "give one value, or one for each channel"
            )
    plain = made.scale == 1 and set(made.mean) == {0.0} and set(made.std) == {1.0}
    if made.target.dtype.kind in "iu" and not plain:
        raise InputError(f"{made.target} takes bytes as they are: --preprocess must be left out, or say scale=1 only")


def _resized(image: "Image.Image", size: Size | None, crop: float | None) -> "Image.Image":
    """The image of `size` (height, width): rule 2 of the module."""
    if size is None or (image.height, image.width) == size:
        return image
    from PIL import Image

    height, width = size
    if crop is None:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    factor = max(height / (crop * image.height), width / (crop * image.width))
    larger = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    left, top = round((larger[0] - width) / 2), round((larger[1] - height) / 2)
    return image.resize(larger, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _pairs(text: str) -> list[tuple[str, list[str]]]:
    """Keys with their values: `a,b=1,2,c=3` gives a [], b [1, 2], c [3]; what has no `=` belongs to the key before."""
    pairs: list[tuple[str, list[str]]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = item.partition("=")
        if equals or not pairs or not pairs[-1][1]:
            pairs.append((key.strip().lower(), [value.strip()] if equals else []))
        else:
            pairs[-1][1].append(item)
    return pairs


def _number(key: str, text: str) -> float:
    try:
        value = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as e:
        raise InputError(f"--preprocess {key}={text} is not a number; write 0.5, 127.5 or 1/255") from e
    if not isfinite(value) or (key in ("scale", "std", "crop") and value <= 0) or (key == "crop" and value > 1):
        raise InputError(f"--preprocess {key}={text} must be above 0{' and at most 1' if key == 'crop' else ''}")
    return value


def _numbers(key: str, values: list[str]) -> tuple[float, ...]:
    return tuple(_number(key, value) for value in values)


def _one(key: str, values: list[str]) -> float:
    if len(values) != 1:
        raise InputError(f"--preprocess {key} takes one value, not {len(values)}: {','.join(values)}")
    return _number(key, values[0])


def _choice(key: str, values: list[str], known: tuple[str, ...]) -> str:
    word = ",".join(values).upper()
    if word not in known:
        raise InputError(f"--preprocess {key}={word} is not known; use {' or '.join(known)}")
    return word


def _height_width(values: list[str]) -> Size:
    parts = ",".join(values).lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            f"--preprocess size={','.join(values)} is not a size; write 224, or HEIGHTxWIDTH such as 320x640"
        )
    return int(parts[0]), int(parts[-1])


_READERS: dict[str, Callable[[Recipe, list[str]], Recipe]] = {
    "size": lambda recipe, values: replace(recipe, size=_height_width(values)),
    "crop": lambda recipe, values: replace(recipe, crop=_one("crop", values)),
    "scale": lambda recipe, values: replace(recipe, scale=_one("scale", values)),
    "mean": lambda recipe, values: replace(recipe, mean=_numbers("mean", values)),
    "std": lambda recipe, values: replace(recipe, std=_numbers("std", values)),
    "layout": lambda recipe, values: replace(recipe, layout=_choice("layout", values, ("NCHW", "NHWC"))),
    "order": lambda recipe, values: replace(recipe, order=_choice("order", values, ("RGB", "BGR"))),
}
