"""The embedded default model and its data: scikit-learn's handwritten digits, and a small network trained on them.

The 1,797 images of 8x8 pixels are enlarged to 32x32 (bilinear), so that running the network takes tenths of a
millisecond and can be timed. A fixed split, drawn per class, keeps most images out of training: what is adapted or
judged with them was never seen by the network.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 32
TRAIN_SHARE = 0.44
SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class DigitsData:
    """Images ready for the network, their classes, and the positions used for training and kept out of it."""

    x: npt.NDArray[np.float32]  # (1797, 1, 32, 32), 0 to 1
    y: npt.NDArray[np.int64]  # (1797,), 0 to 9
    train: npt.NDArray[np.int64]  # positions, ascending
    test: npt.NDArray[np.int64]  # positions, ascending; never used in training


def digits() -> DigitsData:
    """The digits as network inputs (N, 1, 32, 32) in [0, 1], with their classes and the fixed train/test split."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    y = np.asarray(bunch.target, dtype=np.int64)
    train = _drawn_per_class(y, TRAIN_SHARE, SPLIT_SEED)
    test = np.setdiff1d(np.arange(len(y)), train)
    return DigitsData(_enlarged(np.asarray(bunch.images) / 16.0, SIDE), y, train, test)


def digits_model() -> bytes:
    """The trained network as ONNX: `image` (N, 1, 32, 32) to `logits` (N, 10); its metadata says how it was made."""
    return files(__package__).joinpath("digits.onnx").read_bytes()


def _enlarged(images: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float32]:
    """Bilinearly enlarged images (N, 1, side, side) of images (N, h, h); pixel centres are aligned, edges repeated."""
    small = images.shape[1]
    at = np.clip((np.arange(side) + 0.5) * small / side - 0.5, 0, small - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(small)))  # (side, small), rows sum to 1
    return np.asarray(weights @ images @ weights.T, dtype=np.float32)[:, None]


def _drawn_per_class(y: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    return np.sort(np.concatenate([m[: round(share * len(m))] for m in members]))
