"""Images as data: folders of them, decoded when they are first asked for, and bytes of images in arrays.

A sub-folder is a class. Names that are all numbers are the class index; others are numbered in the order
of their names.
Images directly in the folder have no labels. Hidden files, and files that are no images by their suffix,
are passed over.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx_netadapt.inputs import Array, Data, Indices, ModelInput
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.preprocess import Pixels, Preprocess, fitted_to, parsed

Reader = Callable[[Indices], Array]

KEPT_BYTES = 200_000_000
"""Bytes of decoded images that are kept, for each size that they are read at: 1,300 of 224x224. Decoding was half of
what a refit of MobileNetV2 took.
"""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def folder_data(folder: Path, wanted: dict[str, ModelInput], preprocess: str | None) -> Data:
    """The images of a folder for a model with one image input; InputError where folder or first image do not fit."""
    if len(wanted) != 1:
        raise InputError(
            f"{folder}: a folder of images cannot feed a model with {len(wanted)} inputs ({', '.join(wanted)}); "
            "give an .npz with one array for each"
        )
    (target,) = wanted.values()
    paths, labels, warnings = _listed(folder)
    recipe = fitted_to(parsed(preprocess), target)
    if preprocess is None and target.dtype.kind not in "iu":
        warnings += (
            f"{folder}: no --preprocess, so bytes are divided by 255 and nothing else; "
            "if the model was trained otherwise (for example --preprocess imagenet), all scores are wrong",
        )

    def reader(recipe: Preprocess) -> Reader:
        return _reader(lambda place: _decoded(paths[place], recipe), recipe, str(folder), KEPT_BYTES)

    read, sized = reader(recipe), cache(lambda size: reader(recipe.at(size)))
    read(np.zeros(1, dtype=np.int64))  # what does not fit is said now, not in the middle of the work
    return Data(
        len(paths),
        labels,
        lambda indices: {target.name: read(indices)},
        origin=f"{len(paths)} images of {folder}",
        warnings=warnings,
        resized=lambda indices, size: {target.name: sized(size)(indices)},
    )


def array_reader(pixels: Pixels, recipe: Preprocess, where: str) -> Reader:
    """Reads the model's input made of bytes (n, H, W, C) or (n, H, W); InputError where they are no images."""
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
        raise InputError(
            f"{where} has shape {pixels.shape}: --preprocess takes bytes as (n, H, W, 1 or 3), or (n, H, W) for grey; "
            "transpose the array"
        )
    deep = pixels if pixels.ndim == 4 else pixels[..., None]
    as_it_is = recipe.size in (None, deep.shape[1:3])
    if as_it_is and deep.shape[3] == recipe.channels:
        return lambda indices: recipe.numbers(deep[indices], where)
    from PIL import Image

    flat = deep[..., 0] if deep.shape[3] == 1 else deep
    room = 0 if as_it_is else KEPT_BYTES  # what is in memory already is not kept twice
    made = lambda place: recipe.pixels(Image.fromarray(np.ascontiguousarray(flat[place])), where)  # noqa: E731
    return _reader(made, recipe, where, room)


def _reader(made: Callable[[int], Pixels], recipe: Preprocess, where: str, room: int) -> Reader:
    """Reads images as the model's input; their bytes are kept as long as there is room, for every pass asks again."""
    kept: dict[int, Pixels] = {}

    def pixels(place: int) -> Pixels:
        nonlocal room
        if place in kept:
            return kept[place]
        found = made(place)
        if found.nbytes <= room:
            room -= found.nbytes
            kept[place] = found
        return found

    return lambda indices: recipe.stacked([pixels(int(place)) for place in indices], where)


def _decoded(path: Path, recipe: Preprocess) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as e:
        raise InputError(f"{path}: cannot be read as an image ({e}); repair or remove it") from e
    return recipe.pixels(opened, str(path))


def _listed(folder: Path) -> tuple[list[Path], npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """Paths, their class indices (None for a flat folder), warnings."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    flat, classes = [p for p in entries if _is_image(p)], [p for p in entries if p.is_dir()]
    members = {sub: sorted(p for p in sub.rglob("*") if _is_image(p)) for sub in classes}
    inside = sum(map(len, members.values()))
    if flat and inside:
        raise InputError(
            f"{folder}: {len(flat)} images beside {len(classes)} folders of images: are the folders classes or not? "
            "move either elsewhere"
        )
    if not flat and not inside:
        raise InputError(f"{folder}: no images in it ({', '.join(SUFFIXES)}); is it the right folder?")
    if flat:
        return flat, None, ()
    indices = _class_indices(folder, classes)
    order = sorted(classes, key=lambda sub: indices[sub.name])
    labels = np.array([indices[sub.name] for sub in order for _ in members[sub]], dtype=np.int64)
    warnings = (f"{folder}: one folder only, so all images are class {labels[0]}",) if len(classes) == 1 else ()
    return [p for sub in order for p in members[sub]], labels, warnings


def _class_indices(folder: Path, classes: Sequence[Path]) -> dict[str, int]:
    names = [sub.name for sub in classes]
    if not all(name.isdecimal() for name in names):
        return {name: index for index, name in enumerate(sorted(names))}
    indices = {name: int(name) for name in names}
    if len(set(indices.values())) < len(names):
        raise InputError(f"{folder}: two folders have the same class number, among {', '.join(names)}; rename one")
    return indices


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
