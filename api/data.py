"""`--data` and `--preprocess`: examples for a model from a file, a folder, a function, or made up."""

import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from onnx_netadapt.functions import function_arrays
from onnx_netadapt.images import Reader, array_reader, folder_data
from onnx_netadapt.inputs import Array, Data, Feeds, Indices, Inputs, ModelInput, checked, model_inputs
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.preprocess import Preprocess, Size, fitted_to, parsed
from onnx_netadapt.synthetic import synthetic_data

__all__ = ["Data", "Feeds", "Inputs", "array_data", "load_data"]

LABELS = "y"
ANY_INPUT = "x"  # the name that stands for the model's only input


def load_data(spec: str | None, inputs: Inputs, preprocess: str | None = None, seed: int = 0) -> Data:
    """The examples that a `--data` option stands for; `inputs` maps the model's inputs to (shape, dtype).

    `spec` is an .npz file (arrays named after the inputs, or `x` for a single one; labels `y`), a folder of images
    (sub-folder = class), `package.module:function` yielding batches, or None: made-up inputs drawn from `seed`.
    Free dimensions take the data's size. InputError for whatever cannot be read or does not fit the model.
    """
    wanted = model_inputs(inputs)
    parsed(preprocess)
    if spec is None:
        if preprocess is not None:
            raise InputError(f"--preprocess {preprocess} needs images: give --data")
        return synthetic_data(wanted, seed)
    path = Path(spec)
    if path.is_dir():
        return folder_data(path, wanted, preprocess)
    if path.is_file() or path.suffix == ".npz":
        return array_data(_npz_arrays(path), inputs, preprocess, origin=spec)
    if ":" in spec:
        arrays, warnings = function_arrays(spec, wanted)
        return array_data(arrays, inputs, preprocess, origin=spec, warnings=warnings)
    raise InputError(
        f"--data {spec}: no such file or folder; give an .npz file, a folder of images, or package.module:function"
    )


def array_data(
    arrays: Mapping[str, Array],
    inputs: Inputs,
    preprocess: str | None = None,
    origin: str = "arrays",
    warnings: tuple[str, ...] = (),
) -> Data:
    """Examples that are in memory, by input name, labels as `y`; rank-0 arrays are fed to every batch as they are.

    With `preprocess`, arrays of bytes (n, H, W, C) or (n, H, W) become images for their inputs, one batch at a time.
    """
    wanted = model_inputs(inputs)
    found = {name: _array_for(name, arrays, wanted, origin) for name in wanted}
    recipes = _recipes(found, wanted, preprocess, origin)
    for name, array in found.items():
        if name not in recipes:
            checked(array, wanted[name], f"{origin}: array {name!r}")
    n = _count(found, origin)
    labels = None if LABELS in wanted else _labels(arrays.get(LABELS), n, origin)
    used = {*wanted, LABELS} | ({ANY_INPUT} if len(wanted) == 1 else set())
    unused = sorted(set(arrays) - used)
    if unused:
        warnings += (f"{origin}: arrays not used: {', '.join(unused)} (labels are called {LABELS!r})",)

    def readers(recipes: Mapping[str, Preprocess]) -> dict[str, Reader]:
        return {
            name: _reader(array, wanted[name], recipes.get(name), f"{origin}: array {name!r}")
            for name, array in found.items()
        }

    own = readers(recipes)
    sized = cache(lambda size: readers({name: recipe.at(size) for name, recipe in recipes.items()}))

    def read(indices: Indices) -> Feeds:
        return {name: reader(indices) for name, reader in own.items()}

    def resized(indices: Indices, size: Size) -> Feeds:
        return {name: reader(indices) for name, reader in sized(size).items()}

    read(np.zeros(1, dtype=np.int64))  # what does not fit is said now, not in the middle of the work
    told = f"{n} examples of {origin}"
    return Data(n, labels, read, origin=told, warnings=warnings, resized=resized if recipes else None)


def _npz_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file; pickled objects are refused, never loaded."""
    try:
        with path.open("rb") as opened:  # numpy leaves a damaged file open
            archive = np.load(opened, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, SyntaxError) as e:
        raise InputError(f"{path}: cannot be read as an .npz file ({e}); save it anew with numpy.savez") from e
    raise InputError(f"{path}: holds a single array, not an .npz archive; save it with numpy.savez")


def _array_for(name: str, arrays: Mapping[str, Array], wanted: dict[str, ModelInput], origin: str) -> Array:
    if name in arrays:
        return arrays[name]
    if len(wanted) == 1 and ANY_INPUT in arrays:
        return arrays[ANY_INPUT]
    either = f" or {ANY_INPUT!r}" if len(wanted) == 1 else ""
    raise InputError(
        f"{origin}: no array {name!r}{either} for {wanted[name]}; there are {', '.join(arrays) or 'none'}; rename one"
    )


def _recipes(
    found: dict[str, Array], wanted: dict[str, ModelInput], preprocess: str | None, origin: str
) -> dict[str, Preprocess]:
    """How bytes become numbers, by the name of the input; empty without --preprocess."""
    if preprocess is None:
        return {}
    names = [name for name, array in found.items() if array.dtype == np.uint8 and array.ndim in (3, 4)]
    if not names:
        types = ", ".join(f"{name!r} {array.dtype}" for name, array in found.items())
        raise InputError(
            f"{origin}: --preprocess is for bytes of images (uint8), but the arrays are {types}; leave it out"
        )
    return {name: fitted_to(parsed(preprocess), wanted[name]) for name in names}


def _count(found: dict[str, Array], origin: str) -> int:
    counts = {name: len(array) for name, array in found.items() if array.ndim}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise InputError(f"{origin}: the arrays have different numbers of examples: {told}")
    n = next(iter(counts.values()), 0)
    if n == 0:
        raise InputError(f"{origin}: there are no examples in it")
    return n


def _labels(labels: Array | None, n: int, origin: str) -> Array | None:
    """Labels with n along the first axis; classes as int64 (n,), also when stored as a column or as whole floats."""
    if labels is None:
        return None
    where = f"{origin}: labels {LABELS!r}"
    if labels.ndim == 0 or len(labels) != n:
        raise InputError(f"{where} have shape {labels.shape}, but there are {n} examples; give one label for each")
    if labels.dtype.kind not in "iufb":
        raise InputError(f"{where} are {labels.dtype}; store the class indices, 0 to the number of classes - 1")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InputError(f"{where} hold {np.count_nonzero(~np.isfinite(labels))} label values that are not finite")
    flat = labels.reshape(n) if labels.size == n else labels
    whole = flat.ndim == 1 and bool((flat == np.floor(flat.astype(np.float64))).all())
    return flat.astype(np.int64) if whole else flat


def _reader(array: Array, wanted: ModelInput, recipe: Preprocess | None, where: str) -> Reader:
    if recipe is not None:
        return array_reader(array, recipe, where)
    return lambda indices: wanted.fitted(array[indices] if array.ndim else array, where)
