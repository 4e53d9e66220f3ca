"""MobileNetV1, V2 and V3, and MNASNet: depthwise separable convolutions and inverted residuals.

Sources: "MobileNets", table 1; "MobileNetV2", table 2; "Searching for MobileNetV3", tables 1 and 2; "MnasNet",
figure 7.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .blocks import Activation, Classifier, Residual, SqueezeExcite, conv_bn, divisible


def mobilenet_v1(*, width: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """Thirteen depthwise separable convolutions."""
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    inputs = int(32 * width)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2)]
    for channels, stride in plan:
        outputs = int(channels * width)
        layers += [conv_bn(inputs, inputs, 3, stride, groups=inputs), conv_bn(inputs, outputs)]
        inputs = outputs
    return nn.Sequential(*layers, Classifier(inputs, classes))


def inverted(
    inputs: int,
    hidden: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    act: Activation = nn.ReLU6,
    eps: float = 1e-5,
    dilation: int = 1,
    attention: nn.Module | None = None,
) -> nn.Module:
    """Widen, depthwise, (attention,) narrow; with the input added where the shapes allow it."""
    layers: list[nn.Module] = [] if hidden == inputs else [conv_bn(inputs, hidden, act=act, eps=eps)]
    depthwise_stride = 1 if dilation > 1 else stride
    layers.append(conv_bn(hidden, hidden, kernel, depthwise_stride, groups=hidden, dilation=dilation, act=act, eps=eps))
    layers += [attention] if attention else []
    layers.append(conv_bn(hidden, outputs, act=None, eps=eps))
    branch = nn.Sequential(*layers)
    return Residual(branch) if stride == 1 and inputs == outputs else branch


_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(*, width: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """Inverted residuals with linear bottlenecks, ReLU6."""
    inputs = divisible(32 * width)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2, act=nn.ReLU6)]
    for expand, channels, count, stride in _V2:
        outputs = divisible(channels * width)
        for i in range(count):
            layers.append(inverted(inputs, inputs * expand, outputs, 3, 1 if i else stride))
            inputs = outputs
    last = divisible(1280 * width)
    return nn.Sequential(*layers, conv_bn(inputs, last, act=nn.ReLU6), Classifier(last, classes, dropout=0.2))


# kernel, hidden, outputs, squeeze-and-excite, hard-swish, stride
_V3_LARGE = (
    *((3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1)),
    *((5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1)),
    *((3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1)),
    *((3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1)),
    *((5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1)),
)
_V3_SMALL = (
    *((3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1)),
    *((5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1)),
    *((5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2)),
    *((5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1)),
)


def v3_features(size: str, *, width: float = 1.0, dilated: bool = False) -> tuple[list[nn.Module], list[int]]:
    """The layers of MobileNetV3's trunk and the channels after each; `dilated`: no fourth halving (LR-ASPP)."""
    stem = divisible(16 * width)
    layers: list[nn.Module] = [conv_bn(3, stem, 3, 2, act=nn.Hardswish, eps=1e-3)]
    widths = [stem]
    spread = 1
    for kernel, hidden, outputs, squeeze, swish, stride in _V3_LARGE if size == "large" else _V3_SMALL:
        spread = 2 if dilated and hidden == 672 and stride == 2 else spread
        wide, act = divisible(hidden * width), nn.Hardswish if swish else nn.ReLU
        attention = SqueezeExcite(wide, divisible(wide // 4), gate=nn.Hardsigmoid) if squeeze else None
        place = (widths[-1], wide, divisible(outputs * width), kernel, stride)
        layers.append(inverted(*place, act=act, eps=1e-3, dilation=spread, attention=attention))
        widths.append(place[2])
    widths.append(6 * widths[-1])
    layers.append(conv_bn(widths[-2], widths[-1], act=nn.Hardswish, eps=1e-3))
    return layers, widths


def mobilenet_v3(size: str, *, width: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """MobileNetV3 `large` or `small`: squeeze-and-excite with hard sigmoid, hard-swish."""
    layers, widths = v3_features(size, width=width)
    hidden = divisible((1280 if size == "large" else 1024) * width)
    head = (nn.Linear(widths[-1], hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), *head)


class LrAspp(nn.Module):
    """Lite reduced ASPP over MobileNetV3-large ("Searching for MobileNetV3", 6.4): full-size class scores."""

    def __init__(self, *, width: float = 1.0, hidden: int = 128, classes: int = 21) -> None:
        super().__init__()
        layers, widths = v3_features("large", width=width, dilated=True)
        self.low, self.high = nn.Sequential(*layers[:5]), nn.Sequential(*layers[5:])
        self.project = conv_bn(widths[-1], hidden)
        gate = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], hidden, 1, bias=False), nn.Sigmoid())
        self.gate = nn.Sequential(*gate)
        self.low_scores, self.high_scores = nn.Conv2d(widths[4], classes, 1), nn.Conv2d(hidden, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes, h, w) for x: (n, 3, h, w)."""
        low = self.low(x)
        high = self.high(low)
        gated = self.project(high) * self.gate(high)
        resize = partial(nn.functional.interpolate, mode="bilinear", align_corners=False)
        scores = self.high_scores(resize(gated, size=low.shape[-2:])) + self.low_scores(low)
        return resize(scores, size=x.shape[-2:])


# kernel, stride, expansion, outputs, repeats
_MNASNET = (
    (3, 2, 3, 24, 3),
    (5, 2, 3, 40, 3),
    (5, 2, 6, 80, 3),
    (3, 1, 6, 96, 2),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def mnasnet(*, width: float = 1.0, last: int = 1280, classes: int = 1000) -> nn.Sequential:
    """MNASNet-B1 of the given width."""
    stem, inputs = divisible(32 * width), divisible(16 * width)
    layers: list[nn.Module] = [
        conv_bn(3, stem, 3, 2),
        *(conv_bn(stem, stem, 3, groups=stem), conv_bn(stem, inputs, act=None)),
    ]
    for kernel, stride, expand, channels, count in _MNASNET:
        outputs = divisible(channels * width)
        for i in range(count):
            layers.append(inverted(inputs, inputs * expand, outputs, kernel, 1 if i else stride, act=nn.ReLU))
            inputs = outputs
    return nn.Sequential(*layers, conv_bn(inputs, last), Classifier(last, classes, dropout=0.2))
