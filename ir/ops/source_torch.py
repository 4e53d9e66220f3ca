"""The torch forms of operators that make tensors out of sizes or of chance, and of those that look at sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from . import View
from .runtime import Lowered, Lowering, as_tensor, carrier, ints


def lower_constant_of_shape(view: View, torch: Any) -> Lowered:
    """ConstantOfShape: one value everywhere, by default 0.0."""
    read = ints(view, "", 0)
    proto = view.attr("value")
    value = onnx.numpy_helper.to_array(proto) if proto is not None else np.zeros(1, np.float32)
    filled = as_tensor(value.reshape(-1), torch)
    return lambda *args: filled.to(args[0].device).expand(filled.numel()).reshape(()).expand(read(args)).clone()


def lower_shape(view: View, torch: Any) -> Lowered:
    """Shape, or the part of it from `start` to `end`."""
    start, end = view.attr("start", 0), view.attr("end")
    return lambda x: torch.tensor(tuple(x.shape)[start:end], dtype=torch.int64)


def lower_size(view: View, torch: Any) -> Lowered:
    """Size."""
    return lambda x: torch.tensor(x.numel() if isinstance(x, torch.Tensor) else x.size, dtype=torch.int64)


def lower_constant(view: View, torch: Any) -> Lowered:
    """Constant nodes whose value the graph does not hold: sparse ones, and texts."""
    sparse = view.attr("sparse_value")
    if sparse is not None:
        from ..load import _densify

        value = as_tensor(_densify(sparse), torch)
        return lambda: value
    texts = view.attr("value_strings", [view.attr("value_string", b"")])
    array = np.array([t.decode() if isinstance(t, bytes) else t for t in texts], dtype=object)
    return lambda: array if "value_strings" in view.node.attrs else array.reshape(())


def lower_range(view: View, torch: Any) -> Lowered:
    """Range: from start to below limit, in steps of delta."""

    def run(start: Any, limit: Any, delta: Any) -> Any:
        first, last, step = (each.reshape(-1)[0].item() for each in (start, limit, delta))
        count = max(int(np.ceil((last - first) / step)), 0)
        places = torch.arange(count, device=start.device)
        return (places.to(start.dtype) * step + first).to(start.dtype)

    return run


def lower_eye_like(view: View, torch: Any) -> Lowered:
    """EyeLike: ones on a diagonal."""
    k, dtype = int(view.attr("k", 0)), view.attr("dtype")

    def run(x: Any) -> Any:
        kind = x.dtype if dtype is None else carrier(int(dtype), torch)
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return (torch.arange(x.shape[1], device=x.device)[None, :] - rows == k).to(kind)

    return run


def _random(view: View, torch: Any, shape: Any, device: Any, dtype: int) -> Any:
    kind = carrier(dtype, torch)
    seed = view.attr("seed")
    generator = None
    if seed is not None:
        generator = torch.Generator(device=device or "cpu").manual_seed(int(seed))
    if "Normal" in view.node.op_type:
        noise = torch.randn(shape, generator=generator, dtype=kind, device=device)
        return noise * float(view.attr("scale", 1.0)) + float(view.attr("mean", 0.0))
    low, high = float(view.attr("low", 0.0)), float(view.attr("high", 1.0))
    return torch.rand(shape, generator=generator, dtype=kind, device=device) * (high - low) + low


def lower_random(view: View, torch: Any) -> Lowered:
    """RandomNormal and RandomUniform."""
    return lambda: _random(view, torch, tuple(view.attr("shape")), None, int(view.attr("dtype", 1)))


def lower_random_like(view: View, torch: Any) -> Lowered:
    """RandomNormalLike and RandomUniformLike."""
    dtype = view.attr("dtype") or view.graph.dtypes.get(view.node.outputs[0], 1)
    return lambda x: _random(view, torch, x.shape, x.device, int(dtype))


def lower_bernoulli(view: View, torch: Any) -> Lowered:
    """Bernoulli: ones with the given probabilities."""
    dtype = view.attr("dtype")

    def run(x: Any) -> Any:
        kind = x.dtype if dtype is None else carrier(int(dtype), torch)
        return torch.bernoulli(x).to(kind)

    return run


def lower_multinomial(view: View, torch: Any) -> Lowered:
    """Multinomial: samples of the classes with the given log-probabilities."""
    count, dtype = int(view.attr("sample_size", 1)), int(view.attr("dtype", 6))
    return lambda x: torch.multinomial(torch.softmax(x, -1), count, replacement=True).to(carrier(dtype, torch))


LOWER: dict[str, Lowering] = {
    "Bernoulli": lower_bernoulli,
    "Constant": lower_constant,
    "ConstantOfShape": lower_constant_of_shape,
    "EyeLike": lower_eye_like,
    "Multinomial": lower_multinomial,
    "RandomNormal": lower_random,
    "RandomNormalLike": lower_random_like,
    "RandomUniform": lower_random,
    "RandomUniformLike": lower_random_like,
    "Range": lower_range,
    "Shape": lower_shape,
    "Size": lower_size,
}
