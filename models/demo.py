"""Writes the embedded model and its data, so that the tool can be tried: `python -m onnx_netadapt.models.demo DIR`."""

import sys
from pathlib import Path

import numpy as np

from .digits import digits, digits_model


def write_demo(folder: Path) -> tuple[Path, Path]:
    """The paths of digits.onnx and digits.npz in `folder`; the images are those that the network was not trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    model, images = folder / "digits.onnx", folder / "digits.npz"
    made = digits()
    model.write_bytes(digits_model())
    np.savez_compressed(images, image=made.x[made.test], y=made.y[made.test])
    return model, images


def main(arguments: list[str]) -> int:
    """The exit code of the command: 0, or 2 for wrong usage."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m onnx_netadapt.models.demo DIR", file=sys.stderr)
        return 2
    for path in write_demo(Path(arguments[0])):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
