"""Where files are written: checked before any long work, so that nothing fails at the end for a wrong folder."""

import os
from pathlib import Path

from onnx_netadapt.ir.errors import InputError


def check_output(path: Path, option: str = "--output") -> None:
    """Raises InputError, which names the option, when a file could not be written there."""
    folder = path.parent if str(path.parent) else Path()
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if not folder.is_dir():
        raise InputError(f"{option} {path}: folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: folder {folder} cannot be written to; choose another")


def check_outputs_apart(model: Path, output: Path) -> None:
    """Raises InputError when the output would overwrite the input."""
    if model.exists() and output.exists() and model.resolve() == output.resolve():
        raise InputError(f"--output {output} is the input itself, which is never touched; name another file")
