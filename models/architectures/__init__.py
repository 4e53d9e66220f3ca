"""Well-known networks with random weights, built in plain torch, for tests and benchmarks of pruning.

They follow the published forms (torchvision's, where it has one, to the last parameter), but carry no trained weights.
Importing this package does not import torch; building a network does.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..spec import Architecture, Input, lazy

__all__ = ["ARCHITECTURES", "Architecture", "Input"]

Inputs = Mapping[str, Input]
Arguments = Mapping[str, Any]


def _pair(
    name: str,
    builder: str,
    inputs: Inputs,
    quick_inputs: Inputs,
    quick: Arguments,
    *,
    full: Arguments | None = None,
    family: str = "conv",
    opset: int = 7,
    outputs: tuple[str, ...] = ("output",),
) -> Architecture:
    """An architecture and its quick variant: `full` and `quick` are the arguments of "module.function"."""
    module, function = builder.split(".")
    where = f"architectures.{module}"

    def make(label: str, arguments: Arguments, shapes: Inputs, small: Architecture | None) -> Architecture:
        build = lazy(where, function, **arguments)
        return Architecture(label, family, build, MappingProxyType(dict(shapes)), outputs, opset, small)

    return make(name, full or {}, inputs, make(f"{name}.quick", {**(full or {}), **quick}, quick_inputs, None))


def _image(name: str, builder: str, sides: tuple[int, int], quick: Arguments, **rest: Any) -> Architecture:
    """An architecture over one square RGB image, of the first side, and for the quick variant of the second."""
    full, small = ({"input": Input((1, 3, side, side))} for side in sides)
    return _pair(name, builder, full, small, quick, **rest)


def _classifiers() -> list[Architecture]:
    small = {"classes": 10}
    shallow = {"depths": (1, 2, 1, 1), "planes": 16, **small}
    deep = {"depths": (3, 4, 6, 3), "deep": True}
    vgg = {"widths": (8, 16, 24, 32, 40), "pooled": 2, "hidden": 56, **small}
    return [
        _image("alexnet", "alexnet.alexnet", (224, 224), {"width": 0.125, "hidden": 96, **small}),
        _image("vgg11_bn", "vgg.vgg", (224, 64), vgg, full={"depth": 11}),
        _image("vgg16_bn", "vgg.vgg", (224, 64), vgg, full={"depth": 16}),
        _image("resnet18", "resnet.resnet", (224, 64), shallow, full={"depths": (2, 2, 2, 2)}),
        _image(
            "resnet34", "resnet.resnet", (224, 64), {**shallow, "depths": (2, 1, 1, 2)}, full={"depths": (3, 4, 6, 3)}
        ),
        _image("resnet50", "resnet.resnet", (224, 64), shallow, full=deep),
        _image("wide_resnet50_2", "resnet.resnet", (224, 64), shallow, full={**deep, "base": 128}),
        _image("wide_resnet28_10", "resnet.wide_resnet", (32, 32), {"blocks": 2, "widths": (16, 32, 48)}),
        _image(
            "resnext50_32x4d",
            "resnet.resnet",
            (224, 64),
            {**shallow, "groups": 8, "base": 16},
            full={**deep, "groups": 32, "base": 4},
        ),
        _image(
            "densenet121", "densenet.densenet", (224, 64), {"depths": (2, 3, 2, 2), "growth": 8, "stem": 16, **small}
        ),
        _image("googlenet", "inception.googlenet", (224, 64), {"divide": 4, **small}),
        _image("inception_v3", "inception.inception_v3", (299, 107), {"divide": 8, **small}),
        _image("squeezenet1_1", "squeezenet.squeezenet", (224, 64), {"divide": 4, **small}),
        _image("regnet_y_400mf", "regnet.regnet_y", (224, 64), {"depths": (1, 1, 2, 1), **small}),
    ]


def _mobile() -> list[Architecture]:
    quarter = {"width": 0.25, "classes": 10}
    half = {"width": 0.5, "classes": 10}
    brief = {"width": 0.5, "depth": 0.4, "classes": 10}
    shuffle = {"widths": (8, 24, 48, 96, 64), "depths": (2, 3, 2), "classes": 10}
    return [
        _image("mobilenet_v1", "mobilenet.mobilenet_v1", (224, 64), quarter),
        _image("mobilenet_v2", "mobilenet.mobilenet_v2", (224, 64), half),
        _image("mobilenet_v3_small", "mobilenet.mobilenet_v3", (224, 64), half, full={"size": "small"}),
        _image("mobilenet_v3_large", "mobilenet.mobilenet_v3", (224, 64), half, full={"size": "large"}),
        _image("mnasnet1_0", "mobilenet.mnasnet", (224, 64), {**half, "last": 160}),
        _image("efficientnet_b0", "efficientnet.efficientnet_b0", (224, 64), brief),
        _image("efficientnet_v2_s", "efficientnet.efficientnet_v2_s", (224, 64), {**brief, "depth": 0.25}),
        _image("shufflenet_v2_x1_0", "shufflenet.shufflenet_v2", (224, 64), shuffle),
        _image("ghostnet", "ghostnet.ghostnet", (224, 64), half),
        _image(
            "convnext_tiny",
            "convnext.convnext",
            (224, 64),
            {"widths": (16, 24, 40, 56), "depths": (1, 1, 2, 1), "classes": 10},
            opset=9,
        ),
    ]


def _dense() -> list[Architecture]:
    trunk = {"depths": (1, 1, 1, 1), "planes": 8}
    levels = tuple(f"level{i}" for i in range(4))
    boxes = ("scores", "boxes")
    yolo = {"widths": (8, 16, 24, 40, 56), "depths": (1, 2, 1, 1), "classes": 7}
    ssd = {"widths": (8, 16, 24, 32), "extras": (40, 24, 16), "classes": 5}
    return [
        _image("unet", "segmentation.unet", (256, 64), {"widths": (8, 16, 24, 40)}),
        _image(
            "fcn_resnet50",
            "segmentation.fcn",
            (224, 64),
            {**trunk, "classes": 5},
            outputs=("scores", "auxiliary"),
            opset=11,
        ),
        _image(
            "deeplabv3_resnet50",
            "segmentation.deeplab_v3",
            (224, 64),
            {**trunk, "width": 24, "classes": 5},
            outputs=("scores", "auxiliary"),
            opset=11,
        ),
        _image(
            "lraspp_mobilenet_v3_large",
            "mobilenet.LrAspp",
            (224, 64),
            {"width": 0.25, "hidden": 24, "classes": 5},
            opset=11,
        ),
        _image("fpn_resnet18", "detection.fpn", (224, 64), {**trunk, "width": 24}, outputs=levels, opset=9),
        _image(
            "retinanet_resnet50",
            "detection.retinanet",
            (256, 128),
            {**trunk, "width": 24, "classes": 5, "anchors": 3, "tower": 2},
            outputs=boxes,
            opset=9,
        ),
        _image("ssd_vgg", "detection.ssd", (300, 64), ssd, outputs=boxes),
        _image(
            "centernet_resnet18",
            "detection.centernet",
            (256, 64),
            {**trunk, "width": 24, "classes": 5, "top": 7},
            outputs=("scores", "sizes"),
            opset=11,
        ),
        _image("yolo_c2f", "yolo.yolo_c2f", (320, 64), yolo, opset=9),
        _image("yolo_focus", "yolo.yolo_focus", (320, 64), yolo, opset=10),
        _pair(
            "espcn",
            "imaging.espcn",
            {"input": Input((1, 1, 128, 128))},
            {"input": Input((1, 1, 13, 17))},
            {"widths": (24, 16)},
        ),
        _image("edsr", "imaging.edsr", (96, 16), {"width": 16, "depth": 2}),
        _image("pose_resnet50", "imaging.pose", (256, 64), {**trunk, "width": 24, "joints": 5}),
    ]


def _attending() -> list[Architecture]:
    tiny = {"side": 32, "patch": 8, "width": 48, "depth": 2, "heads": 3, "classes": 10}
    swin = {"side": 64, "width": 24, "depths": (2, 2), "heads": (2, 3), "window": 4, "classes": 10}
    maxvit = {"stem": 16, "widths": (16, 24), "size": 4, "classes": 10}
    mixer = {"side": 32, "patch": 8, "width": 40, "depth": 2, "across": 24, "hidden": 56, "classes": 10}
    text = {"vocabulary": 61, "length": 11, "width": 24, "heads": 3}
    pair = {"source": Input((1, 32), 1000), "target": Input((1, 24), 1000)}
    quick_pair = {"source": Input((1, 11), 61), "target": Input((1, 7), 61)}
    ids, quick_ids = {"ids": Input((1, 32), 1000)}, {"ids": Input((1, 11), 61)}
    seq = "sequence.encoder_decoder"
    return [
        _image("vit_b_16", "vit.vit", (224, 32), tiny, family="transformer", opset=9),
        _image(
            "vit_tiny",
            "vit.vit",
            (64, 32),
            {**tiny, "width": 40, "depth": 1, "heads": 5},
            full={"side": 64, "patch": 8, "width": 192, "depth": 4, "heads": 3, "classes": 100},
            family="transformer",
            opset=9,
        ),
        _image("swin_t", "swin.swin", (224, 64), swin, family="transformer", opset=10),
        _image("maxvit_stages", "swin.maxvit", (224, 32), maxvit, family="transformer", opset=9),
        _image("mixer_s_16", "vit.mixer", (224, 32), mixer, family="mlp", opset=9),
        _pair(
            "encoder_decoder", seq, pair, quick_pair, {**text, "depth": 1, "hidden": 56}, family="transformer", opset=14
        ),
        _pair(
            "tied_language_model",
            "sequence.tied_language_model",
            ids,
            quick_ids,
            {**text, "depth": 1, "hidden": 56},
            family="transformer",
            opset=14,
        ),
        _pair(
            "shared_blocks",
            "sequence.shared_blocks",
            {"ids": Input((1, 24), 500)},
            quick_ids,
            {**text, "times": 2},
            family="transformer",
            opset=14,
        ),
    ]


def _others() -> list[Architecture]:
    steps, quick_steps = {"input": Input((1, 100, 40))}, {"input": Input((1, 13, 11))}
    cells = {"inputs": 11, "hidden": 24, "layers": 1, "classes": 5}
    sound = {"widths": (8, 16, 24, 40), "depths": (1, 2, 1, 1), "classes": 5}
    clip = {"widths": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "classes": 5}
    towers = {"widths": (8, 16, 24), "hidden": 19}
    both = {"image": Input((1, 3, 64, 64)), "table": Input((1, 29))}
    quick_both = {"image": Input((1, 3, 32, 32)), "table": Input((1, 11))}
    two = {name: Input((1, 3, 64, 64)) for name in ("left", "right")}
    quick_two = {name: Input((1, 3, 32, 32)) for name in ("left", "right")}
    return [
        _pair("lstm", "recurrent.lstm", steps, quick_steps, cells, family="rnn", opset=9),
        _pair("gru", "recurrent.gru", steps, quick_steps, cells, family="rnn", opset=9),
        _pair(
            "crnn",
            "recurrent.crnn",
            {"input": Input((1, 1, 32, 100))},
            {"input": Input((1, 1, 32, 24))},
            {"widths": (8, 16, 24, 32), "hidden": 19, "classes": 11},
            family="rnn",
            opset=9,
        ),
        _pair("conv1d", "dimensional.waveform", {"input": Input((1, 1, 8000))}, {"input": Input((1, 1, 1000))}, sound),
        _pair(
            "conv3d_r3d18",
            "dimensional.r3d",
            {"input": Input((1, 3, 16, 112, 112))},
            {"input": Input((1, 3, 8, 16, 16))},
            clip,
        ),
        _pair("two_towers", "multiple.two_towers", both, quick_both, {**towers, "numbers": 11}),
        _pair("siamese", "multiple.siamese", two, quick_two, towers),
        _image(
            "many_heads",
            "multiple.many_heads",
            (64, 32),
            {"widths": (8, 16, 24)},
            outputs=("label", "box", "features"),
        ),
    ]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {a.name: a for family in (_classifiers, _mobile, _dense, _attending, _others) for a in family()}
)
