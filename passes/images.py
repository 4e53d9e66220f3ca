"""Random views of images, for training on few of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def augmented(images: Array, rng: np.random.Generator, smallest: float = 0.4) -> Array:
    """The images (n, c, h, w) flipped at random, and cropped to `smallest` or more of their area; others as given.

    Each crop is resized back by bilinear interpolation, its sides in proportion within 3/4 to 4/3.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 8 or images.dtype.kind != "f":
        return images
    return np.stack([_view(image, rng, smallest) for image in images]).astype(images.dtype, copy=False)


def _view(image: Array, rng: np.random.Generator, smallest: float) -> Array:
    height, width = image.shape[1:]
    area, ratio = rng.uniform(smallest, 1.0), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    h = min(height, max(1, round(height * math.sqrt(area / ratio))))
    w = min(width, max(1, round(width * math.sqrt(area * ratio))))
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    crop = image[:, top : top + h, left : left + w]
    crop = _stretched(_stretched(crop, height, 1), width, 2)
    return crop[:, :, ::-1] if rng.integers(2) else crop


def _stretched(image: Array, size: int, axis: int) -> Array:
    """An axis resized by linear interpolation between pixel centres."""
    length = image.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(at).astype(np.int64)
    shape = [1, 1, 1]
    shape[axis] = size
    rest = (at - low).astype(np.float32).reshape(shape)
    found: Array = np.take(image, low, axis) * (1 - rest) + np.take(image, np.minimum(low + 1, length - 1), axis) * rest
    return found
