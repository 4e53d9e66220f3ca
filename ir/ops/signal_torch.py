"""The torch forms of signal processing, determinants, and operators of older exporters that only prepare an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import View
from .runtime import Lowered, Lowering, as_tensor, carrier, ints, scalar


def lower_dft(view: View, torch: Any) -> Lowered:
    """DFT: the last axis holds real parts, or real and imaginary ones; before opset 20 the axis is an attribute."""
    inverse, onesided = bool(view.attr("inverse", 0)), bool(view.attr("onesided", 0))
    fixed = (int(view.attr("axis", 1)),) if view.version < 20 else None
    read_axis = ints(view, "", 2, (-2,)) if fixed is None else lambda args: fixed
    read_length = ints(view, "", 1)

    def run(*args: Any) -> Any:
        x, (axis,), length = args[0], read_axis(args) or (-2,), read_length(args)
        place = axis % x.dim()
        n = length[0] if length else None
        if inverse and onesided:
            z = torch.view_as_complex(x.contiguous())
            return torch.fft.irfft(z, n=n, dim=place).unsqueeze(-1)
        z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1).to(torch.complex64)
        z = z if x.dtype != torch.float64 else z.to(torch.complex128)
        z = torch.fft.ifft(z, n=n, dim=place) if inverse else torch.fft.fft(z, n=n, dim=place)
        if onesided:
            z = z.narrow(place, 0, z.shape[place] // 2 + 1)
        return torch.view_as_real(z)

    return run


def lower_stft(view: View, torch: Any) -> Lowered:
    """STFT: frames of the signal, times the window, each transformed."""
    onesided = bool(view.attr("onesided", 1))
    read_step, read_length = scalar(view, 1), scalar(view, 3)

    def run(*args: Any) -> Any:
        x, window = args[0], args[2] if len(args) > 2 else None
        length = read_length(args)
        size = int(length) if length is not None else len(args[2])
        z = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
        frames = z.unfold(1, size, int(read_step(args)))  # (batch, frames, size)
        if window is not None:
            frames = frames * window
        if onesided and not frames.is_complex():
            return torch.view_as_real(torch.fft.rfft(frames))
        return torch.view_as_real(torch.fft.fft(frames))

    return run


def lower_mel_weight_matrix(view: View, torch: Any) -> Lowered:
    """MelWeightMatrix: triangles that gather the bins of a spectrum into bands of equal width in mel."""
    dtype = carrier(int(view.attr("output_datatype", 1)), torch)

    def run(*args: Any) -> Any:
        bands, size, rate, low, high = (float(each.reshape(-1)[0]) for each in args)
        ends = [float(2595 * np.log10(1 + hertz / 700)) for hertz in (low, high)]
        mel = np.linspace(ends[0], ends[1], int(bands) + 2, endpoint=False)
        edges = np.floor((700 * (10 ** (mel / 2595) - 1)) * (int(size) + 1) / rate).astype(np.int64)
        found = np.zeros((int(size) // 2 + 1, int(bands)), dtype=np.float64)
        for band, (left, middle, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            if middle == left:
                found[middle, band] = 1
            else:
                found[left : middle + 1, band] = np.arange(middle - left + 1) / (middle - left)
            if right > middle:
                found[middle:right, band] = np.arange(right - middle, 0, -1) / (right - middle)
        return torch.from_numpy(found).to(dtype)

    return run


def lower_image_scaler(view: View, torch: Any) -> Lowered:
    """ImageScaler of the first ONNX versions: x * scale + a bias per channel."""
    scale, bias = float(view.attr("scale", 1.0)), as_tensor(np.asarray(view.attr("bias"), np.float32), torch)
    return lambda x: x * scale + bias.to(x.device).reshape(1, -1, 1, 1)


def lower_crop(view: View, torch: Any) -> Lowered:
    """Crop of the first ONNX versions: a border (left, top, right, bottom) goes, or what lies outside a size."""
    left, top, right, bottom = (int(item) for item in view.attr("border"))
    size = view.attr("scale")

    def run(x: Any) -> Any:
        height, width = (x.shape[2] - top - bottom, x.shape[3] - left - right) if size is None else map(int, size)
        return x[:, :, top : top + height, left : left + width]

    return run


def lower_affine(view: View, torch: Any) -> Lowered:
    """Affine of the first ONNX versions: alpha * x + beta."""
    alpha, beta = float(view.attr("alpha", 1.0)), float(view.attr("beta", 0.0))
    return lambda x: x * alpha + beta


LOWER: dict[str, Lowering] = {
    "Affine": lower_affine,
    "Crop": lower_crop,
    "DFT": lower_dft,
    "Det": lambda view, torch: torch.linalg.det,
    "ImageScaler": lower_image_scaler,
    "MelWeightMatrix": lower_mel_weight_matrix,
    "STFT": lower_stft,
}
