"""Data from the user's own code: `package.module:function` yields batches, which are kept in memory.

A batch is (inputs, labels) or inputs alone for a model with one input, or a dict by input name, with labels as `y`.
Functions may be endless: what comes after `MOST_EXAMPLES` examples or `MOST_BYTES` bytes is left alone.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx_netadapt.inputs import Array, ModelInput, shown
from onnx_netadapt.ir.errors import InputError

MOST_EXAMPLES = 4_000
MOST_BYTES = 1 << 30  # joining the batches takes twice that for a moment


def function_arrays(spec: str, wanted: dict[str, ModelInput]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """All inputs by name, labels as `y`, and warnings; InputError where the function fails or gives something else."""
    batches: list[dict[str, Array]] = []
    examples = size = 0
    with _current_folder_importable():
        for batch in _guarded(spec, _called(spec)):
            batches.append(_named(batch, wanted, f"{spec}, batch {len(batches)}"))
            examples += max((len(a) for a in batches[-1].values() if a.ndim), default=0)
            size += sum(a.nbytes for a in batches[-1].values())
            if examples >= MOST_EXAMPLES or size >= MOST_BYTES:
                break
        else:
            return _joined(spec, batches), ()
    return _joined(spec, batches), (f"{spec}: stopped after {examples} examples, {size / 1e6:.0f} MB",)


def load_function(spec: str, option: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; InputError when it cannot be had."""
    module, _, name = spec.partition(":")
    try:
        with _current_folder_importable():
            function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as e:  # the module's own code runs here, and may fail in any way
        raise InputError(
            f"{option} {spec}: cannot be imported ({type(e).__name__}: {e}); is it on the Python path?"
        ) from e
    if not callable(function):
        raise InputError(f"{option} {spec} is {type(function).__name__}, not a function")
    return function


def _called(spec: str) -> Iterable[Any]:
    function = load_function(spec, "--data")
    try:
        made = function()
    except Exception as e:
        raise InputError(f"--data {spec}: the function failed ({type(e).__name__}: {e})") from e
    if not isinstance(made, Iterable):
        raise InputError(f"--data {spec} returned {type(made).__name__}; it must yield batches")
    return made


def _guarded(spec: str, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; whatever goes wrong in the user's code is told as such."""
    try:
        yield from batches
    except Exception as e:
        raise InputError(f"--data {spec}: the function failed ({type(e).__name__}: {e})") from e


def _named(batch: Any, wanted: dict[str, ModelInput], where: str) -> dict[str, Array]:
    """The arrays of a batch by the names of the inputs, labels as `y`."""
    if isinstance(batch, Mapping):
        return {str(name): np.asarray(value) for name, value in batch.items()}
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(wanted) != 1:
        raise InputError(
            f"{where}: the model has {len(wanted)} inputs ({', '.join(wanted)}); yield a dict by input name"
        )
    if len(parts) not in (1, 2):
        raise InputError(
            f"{where} has {len(parts)} parts; yield (inputs, labels), inputs alone, or a dict by input name"
        )
    names = [*wanted, *({"y"} - set(wanted))]
    return {name: np.asarray(value) for name, value in zip(names, parts, strict=False)}


def _joined(spec: str, batches: list[dict[str, Array]]) -> dict[str, Array]:
    if not batches:
        raise InputError(f"--data {spec} gave no batches")
    first = batches[0]
    for number, batch in enumerate(batches):
        _check_alike(first, batch, f"--data {spec}, batch {number}")
    return {
        name: np.concatenate([batch[name] for batch in batches]) if value.ndim else value
        for name, value in first.items()
    }


def _check_alike(first: dict[str, Array], batch: dict[str, Array], where: str) -> None:
    if batch.keys() != first.keys():
        raise InputError(
            f"{where} has {sorted(batch)}, batch 0 has {sorted(first)} (labels are 'y'): all batches must have the same"
        )
    for name, value in batch.items():
        if value.shape[1:] != first[name].shape[1:] or value.ndim != first[name].ndim:
            raise InputError(
                f"{where}: {name!r} has shape {shown(value.shape)}, in batch 0 it has {shown(first[name].shape)}; "
                "all axes but the first must agree"
            )


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Lets `mine:f` be found in the current folder, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
