"""Trains the embedded default model: `python -m onnx_netadapt.models.train_digits OUT.onnx`, some minutes on two cores.

MobileNetV1 (Howard et al., 2017) in miniature: a 3x3 stem, then depthwise-separable blocks, each convolution
with BatchNorm and ReLU, global average pooling, one linear layer. The seed fixes weights, order and augmentation; other
versions of torch may still round differently. The file is what a user of torch's exporter gets: BatchNorm folded,
dynamic batch, generated names.
"""

import io
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from .digits import DigitsData, digits

if TYPE_CHECKING:
    import torch

SEED, EPOCHS, BATCH, PEAK_RATE, OPSET = 0, 60, 32, 5e-3, 17
STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (192, 2), (192, 1), (192, 1), (256, 2), (256, 1))  # (channels, stride)


def network() -> "torch.nn.Module":
    """The untrained network: (N, 1, 32, 32) to logits (N, 10)."""
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers, width = conv(1, STEM, 3), STEM
    for channels, stride in BLOCKS:
        layers += conv(width, width, 3, stride, groups=width) + conv(width, channels, 1)
        width = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def train(net: "torch.nn.Module", made: DigitsData, epochs: int, seed: int) -> None:
    """Trains `net` in place on the training images, each turned, scaled and moved a little at random."""
    import torch
    from torch.nn import functional as nnf

    rng = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(made.x[made.train]), torch.from_numpy(made.y[made.train])
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for picked in torch.split(torch.randperm(len(x), generator=rng)[: len(x) // BATCH * BATCH], BATCH):
            optimiser.zero_grad()
            loss: Any = nnf.cross_entropy(net(_jittered(x[picked], rng)), y[picked], label_smoothing=0.05)
            loss.backward()
            optimiser.step()
            schedule.step()


def _jittered(x: "torch.Tensor", rng: "torch.Generator") -> "torch.Tensor":
    """The images, each turned by up to 0.2 rad, scaled by up to 15% and moved by up to 4 pixels."""
    import torch
    from torch.nn import functional as nnf

    turn, scale, right, down = (torch.rand(len(x), generator=rng) * 2 - 1 for _ in range(4))
    turn, scale = 0.2 * turn, 1 + 0.15 * scale
    rows = (scale * turn.cos(), -scale * turn.sin(), 0.25 * right, scale * turn.sin(), scale * turn.cos(), 0.25 * down)
    grid = nnf.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return nnf.grid_sample(x, grid, align_corners=False)


def accuracy(net: "torch.nn.Module", made: DigitsData) -> float:
    """The share of the held-out images that `net` classifies correctly."""
    import torch

    net.eval()
    with torch.no_grad():
        guesses = net(torch.from_numpy(made.x[made.test])).argmax(1).numpy()
    return float(np.mean(guesses == made.y[made.test]))


def export(net: "torch.nn.Module") -> onnx.ModelProto:
    """`net` as torch's TorchScript-based exporter writes it, less the doc strings, which name paths of the machine."""
    import torch

    buffer: Any = io.BytesIO()  # which this exporter takes, whatever its annotation says
    dynamic = {"image": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this exporter is on its way out; its files are not
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, 1, 32, 32),),
            buffer,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:
        node.ClearField("doc_string")
    return model


def made_model(epochs: int = EPOCHS, seed: int = SEED) -> onnx.ModelProto:
    """The trained model; its metadata say how it was made: script, data, seed, epochs, version, held-out accuracy."""
    import torch

    torch.manual_seed(seed)
    made, net = digits(), network()
    train(net, made, epochs, seed)
    model = export(net)
    onnx.helper.set_model_props(
        model,
        {
            "made_by": "python -m onnx_netadapt.models.train_digits",
            "training_data": f"scikit-learn load_digits, {len(made.train)} images, enlarged to 32x32",
            "seed": str(seed),
            "epochs": str(epochs),
            "torch": torch.__version__,
            "test_images": str(len(made.test)),
            "test_accuracy": f"{accuracy(net, made):.4f}",
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main(arguments: list[str]) -> int:
    """The exit code of the command: 0, or 2 for wrong usage."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m onnx_netadapt.models.train_digits OUT.onnx", file=sys.stderr)
        return 2
    model = made_model()
    Path(arguments[0]).write_bytes(model.SerializeToString())
    print({entry.key: entry.value for entry in model.metadata_props})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
