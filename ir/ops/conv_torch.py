"""The torch forms of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import View
from .quant_torch import requantize, shifted
from .runtime import Lowered, Lowering, refuse, torch_pads, window


def lower_conv(view: View, torch: Any) -> Lowered:
    """Conv of one to three spatial axes; asymmetric pads are laid on before."""
    return _convolution(view, torch)


def _convolution(view: View, torch: Any) -> Lowered:
    functional = torch.nn.functional
    convs = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
    group = int(view.attr("group", 1))
    _check_rank(view, convs)

    def run(x: Any, w: Any, b: Any = None) -> Any:
        strides, dilations, before, after = window(view, x.shape[2:], w.shape[2:])
        if before != after or min(before) < 0:
            x, before = functional.pad(x, torch_pads(before, after)), [0] * len(before)
        convolve = convs[x.dim()]
        if max(strides) > 1 and w.shape[1] == 1 and _autocasts(x, torch):
            return _in_float32(convolve, torch, x, w, b, strides, before, dilations, group)
        return convolve(x, w, b, strides, before, dilations, group)

    return run


def _autocasts(x: Any, torch: Any) -> bool:
    """Whether autocast makes convolutions run in a narrower type on the processor."""
    return bool(x.device.type == "cpu" and torch.is_autocast_enabled("cpu"))


def _in_float32(convolve: Any, torch: Any, x: Any, w: Any, b: Any, *rest: Any) -> Any:
    """A convolution outside autocast, its result in the type that the next one wants.

    For depthwise ones with a stride, whose gradients oneDNN computes far slower in bfloat16: 8 times for 576 channels
    of 14x14, 2.2 times over the four of a MobileNetV2 (a processor with AMX, torch 2.13).
    """
    with torch.autocast("cpu", enabled=False):
        y = convolve(x.float(), w.float(), None if b is None else b.float(), *rest)
    return y.to(torch.get_autocast_dtype("cpu"))


def _check_rank(view: View, known: Any) -> None:
    name = view.node.inputs[0]
    rank = len(view.graph.shapes.get(name, (0,) * 4))
    if rank not in known:
        raise refuse(view, f"a convolution over {rank - 2} spatial axes; torch has 1 to 3")


def lower_fused_conv(view: View, torch: Any) -> Lowered:
    """com.microsoft.FusedConv: a Conv, the sum with a further input, then an activation."""
    conv, activate = _convolution(view, torch), _activation(view, torch)

    def run(x: Any, w: Any, b: Any = None, z: Any = None) -> Any:
        y = conv(x, w, b)
        return activate(y if z is None else y + z)

    return run


def _activation(view: View, torch: Any) -> Lowered:
    name, params = view.attr("activation", ""), list(view.attr("activation_params", ()))
    functional = torch.nn.functional
    table: dict[str, Lowered] = {
        "": lambda x: x,
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda x: functional.leaky_relu(x, *(params or [0.01])),
        "Clip": lambda x: torch.clamp(x, *params),
        "HardSigmoid": lambda x: torch.clamp(x * params[0] + params[1], 0, 1),
    }
    if name not in table:
        raise refuse(view, f"activation '{name}'")
    return table[name]


def lower_conv_transpose(view: View, torch: Any) -> Lowered:
    """ConvTranspose: the whole scattered sum, cropped or extended with zeros to the output's size, then the bias."""
    functional = torch.nn.functional
    convs = {3: functional.conv_transpose1d, 4: functional.conv_transpose2d, 5: functional.conv_transpose3d}
    group = int(view.attr("group", 1))
    _check_rank(view, convs)

    def run(x: Any, w: Any, b: Any = None) -> Any:
        strides, dilations, before, after, extra = _transposed_window(view, x.shape[2:], w.shape[2:])
        small = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
        if before == after and min(before) >= 0 and small:
            return convs[x.dim()](x, w, b, strides, before, extra, group, dilations)
        y = convs[x.dim()](x, w, None, strides, 0, 0, group, dilations)
        ends = [e - a for e, a in zip(extra, after, strict=True)]
        y = functional.pad(y, torch_pads([-pad for pad in before], ends))
        return y if b is None else y + b.reshape(-1, *[1] * (x.dim() - 2))

    return run


def _transposed_window(view: View, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], ...]:
    """Strides, dilations, crops before and after, and what is added at the end, for each axis."""
    rank = len(sizes)
    strides, dilations, before, after = window(view, sizes, kernel)
    extra = [int(item) for item in view.attr("output_padding", [0] * rank)]
    auto, wanted = view.attr("auto_pad", "NOTSET"), view.attr("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        return strides, dilations, before, after, extra
    for axis, want in enumerate([int(item) for item in wanted][-rank:]):
        full = strides[axis] * (sizes[axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(full - want, 0)
        small, large = total // 2, total - total // 2
        before[axis], after[axis] = (small, large) if auto == "SAME_UPPER" else (large, small)
        extra[axis] += max(want - full, 0)
    return strides, dilations, before, after, extra


def lower_conv_integer(view: View, torch: Any) -> Lowered:
    """ConvInteger: x, w, x_zero, w_zero; exact, because float64 holds the sums."""
    conv = _convolution(view, torch)

    def run(x: Any, w: Any, x_zero: Any = None, w_zero: Any = None) -> Any:
        y = conv(shifted(x.to(torch.float64), x_zero, 1), shifted(w.to(torch.float64), w_zero, 0))
        return y.to(torch.int32) if not y.requires_grad else y

    return run


def lower_qlinear_conv(view: View, torch: Any) -> Lowered:
    """QLinearConv: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B."""
    conv, finish = _convolution(view, torch), requantize(view, torch, 7)

    def run(x: Any, sx: Any, zx: Any, w: Any, sw: Any, zw: Any, sy: Any, zy: Any, b: Any = None) -> Any:
        bias = None if b is None else b.to(torch.float64)
        x, w = shifted(x.to(torch.float64), zx, 1), shifted(w.to(torch.float64), zw, 0)
        y = conv(x, w, bias)
        scale = (sx * sw).reshape(-1, *[1] * (y.dim() - 2)) / sy
        return finish(y, scale, zy)

    return run


LOWER: dict[str, Lowering] = {
    "Conv": lower_conv,
    "ConvTranspose": lower_conv_transpose,
    "ConvInteger": lower_conv_integer,
    "QLinearConv": lower_qlinear_conv,
}
