"""Made-up inputs, for when there is no data: better than none, far worse than any natural images.

Floats with the axes of a signal or an image get noise with the spectrum of photographs (amplitude falls as
1/frequency), on which recovery keeps more than on white noise; other floats are standard normal. Integers are 0 or 1,
valid as token ids, positions or masks alike; bytes use their whole range.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx_netadapt.inputs import Array, Data, Feeds, Indices, ModelInput, shown
from onnx_netadapt.ir.errors import InputError

EXAMPLES = 1_000
WARNING = (
    "no --data: made-up inputs are used, on which much less accuracy is kept and none can be measured; "
    "any natural inputs of the right kind, without labels, are far better"
)


def synthetic_data(wanted: dict[str, ModelInput], seed: int) -> Data:
    """`EXAMPLES` seeded examples, each made when it is asked for; InputError for a free dimension besides the first."""
    for one in wanted.values():
        if None in one.shape[1:]:
            raise InputError(
                f"{one} has free dimensions, and there is no data to tell their sizes; "
                f"give --data, or --shape {one.name}={','.join('1' if d is None else str(d) for d in one.shape)} "
                f"with the right sizes in place of {shown(one.shape)}"
            )

    def read(indices: Indices) -> Feeds:
        return {name: _stacked(one, (seed, place), indices) for place, (name, one) in enumerate(wanted.items())}

    return Data(EXAMPLES, None, read, origin="made-up inputs", warnings=(WARNING,), synthetic=True)


def _stacked(one: ModelInput, seed: tuple[int, int], indices: Indices) -> Array:
    if not one.shape:
        return _example(one.dtype, (), np.random.default_rng(seed))
    shape = tuple(d for d in one.shape[1:] if d is not None)
    made = [_example(one.dtype, shape, np.random.default_rng((*seed, int(i)))) for i in indices]
    return np.stack(made) if made else np.empty((0, *shape), one.dtype)


def _example(dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if dtype.kind in "iub":
        values: Array = rng.integers(0, 256 if dtype == np.uint8 else 2, shape)
    elif len(shape) >= 2:
        values = _smooth(shape, rng)
    else:
        values = rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise of mean 0 and deviation 1 whose amplitude falls as 1/frequency along the axes that are not channels."""
    channel = len(shape) - 1 if shape[-1] <= 4 < shape[0] else 0
    axes = [axis for axis in range(len(shape)) if axis != channel]
    squares = np.zeros([1] * len(shape))
    for axis in axes:
        cycles = np.fft.fftfreq(shape[axis]) * max(shape[a] for a in axes)
        squares = squares + np.square(cycles).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    spectrum = np.fft.fftn(rng.standard_normal(shape), axes=axes) / np.sqrt(np.maximum(squares, 1.0))
    values = np.real(np.fft.ifftn(spectrum, axes=axes))
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12))
