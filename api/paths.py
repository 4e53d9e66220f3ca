"""Where files are written: checked before any long work, so that nothing fails at the end for a wrong folder."""

import os
from collections.abc import Iterable
from pathlib import Path

from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.write import data_file


def check_output(path: Path, option: str = "--output", inputs: Iterable[Path] = ()) -> None:
    """Raises InputError, which names the option, when a file could not be written there or would replace an input."""
    folder = path.parent if str(path.parent) else Path()
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if not folder.is_dir():
        raise InputError(f"{option} {path}: folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: folder {folder} cannot be written to; choose another")
    written = {path.resolve(), data_file(path).resolve()}
    replaced = next((file for file in inputs if file.resolve() in written), None)
    if replaced is not None:
        raise InputError(f"{option} {path} would replace {replaced}, which the input needs; name another file")
