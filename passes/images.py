"""Random views of images, for training on few of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEAST_SIDE = 8
"""Images with a shorter side are left as they are."""


def augmented(images: Array, rng: np.random.Generator, smallest: float = 0.4) -> Array:
    """The images (n, c, h, w) flipped at random, and cropped to `smallest` or more of their area; others as given.

    Each crop is resized back by bilinear interpolation, its sides in proportion within 3/4 to 4/3.
    """
    if images.ndim != 4 or min(images.shape[2:]) < LEAST_SIDE or images.dtype.kind != "f":
        return images
    import torch

    # affine_grid maps places of the view, from -1 to 1 along each axis, to places of the image
    views = np.zeros((len(images), 2, 3), np.float32)
    area = rng.uniform(smallest, 1.0, len(images))
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), len(images)))
    width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
    views[:, 0, 0] = width * rng.choice((-1, 1), len(images))
    views[:, 1, 1] = height
    views[:, 0, 2] = (1 - width) * rng.uniform(-1, 1, len(images))
    views[:, 1, 2] = (1 - height) * rng.uniform(-1, 1, len(images))
    source = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    grid = torch.nn.functional.affine_grid(torch.from_numpy(views), list(source.shape), align_corners=False)
    found: Array = torch.nn.functional.grid_sample(
        source, grid, mode="bilinear", padding_mode="border", align_corners=False
    ).numpy()
    return found.astype(images.dtype, copy=False)
