"""What a partial channel-level bypass costs (NetAdaptV2: M filters of a layer, T - M channels of x pass it by).

    python benchmarks/bypass.py [--seconds S] [--target T] [--output FILE]

A chain of three layers with T channels each: a 1x1 convolution, the layer in question, a 1x1 convolution that reads it.
It is timed whole, with the layer narrowed to M filters, with M filters and the other channels of x beside them
(Slice and Concat), and without the layer; all of a row in alternation. Writes docs/bypass.md.
"""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt.profiler import Latency, Target, measure_many

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.75, 0.5, 0.25)
PREFACE = """# What a partial bypass costs

Made by `python benchmarks/bypass.py`{options} on {machine}, {cores} cores, ONNX Runtime {runtime}, {target}.
A chain of three layers of T channels; the middle one is whole, or has M filters. "narrow": the next layer reads M
channels; "bypass": T - M channels of the input stand beside them (Slice, Concat), as in NetAdaptV2; "gone": M = 0, an
identity. Ratios of medians to the whole chain; each ran so many times, those of a row in alternation. "busy": other
work disturbed them.

| layer | T | map | M / T | whole, ms | narrow | bypass | bypass / narrow | gone | runs | busy |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of as many outputs as inputs, on a square map; `name` is its kernel."""

    name: str
    channels: int
    size: int


LAYERS = (
    Layer("3x3", 64, 56), Layer("3x3", 128, 28), Layer("3x3", 256, 14),
    Layer("1x1", 64, 56), Layer("1x1", 256, 14), Layer("1x1", 512, 14),
    Layer("depthwise + 1x1", 128, 56), Layer("depthwise + 1x1", 256, 28), Layer("depthwise + 1x1", 512, 14),
)  # fmt: skip


class Chain:
    """The model of a chain under construction."""

    def __init__(self, layer: Layer) -> None:
        self.rng = np.random.default_rng(0)
        self.layer = layer
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        """The name of a new constant."""
        self.tensors.append(numpy_helper.from_array(array, f"c{len(self.tensors)}"))
        return self.tensors[-1].name

    def op(self, kind: str, *inputs: str, **attrs: object) -> str:
        """The output of a new node."""
        self.nodes.append(helper.make_node(kind, inputs, [f"t{len(self.nodes)}"], **attrs))
        return str(self.nodes[-1].output[0])

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, group: int = 1) -> str:
        """A convolution of stride 1 with bias and Relu."""
        weight = self.rng.standard_normal((outputs, inputs // group, kernel, kernel)) / np.sqrt(inputs * kernel**2)
        parts = [self.constant(part.astype(np.float32)) for part in (weight, self.rng.standard_normal(outputs))]
        pads = [kernel // 2] * 4
        return self.op("Relu", self.op("Conv", x, *parts, kernel_shape=[kernel, kernel], pads=pads, group=group))

    def middle(self, x: str, filters: int) -> str:
        """The layer in question, with so many filters."""
        total = self.layer.channels
        if self.layer.name != "depthwise + 1x1":
            return self.conv(x, total, filters, int(self.layer.name[0]))
        return self.conv(self.conv(x, total, total, 3, group=total), total, filters, 1)

    def beside(self, x: str, y: str, filters: int) -> str:
        """The layer's channels, and those of x that pass it by."""
        starts, ends, axes = (self.constant(np.array([n])) for n in (filters, self.layer.channels, 1))
        return self.op("Concat", y, self.op("Slice", x, starts, ends, axes), axis=1)

    def model(self, output: str) -> onnx.ModelProto:
        """The finished model."""
        shape = [1, self.layer.channels, self.layer.size, self.layer.size]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", output)]
        graph = helper.make_graph(self.nodes, "chain", ends[:1], ends[1:], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(layer: Layer, filters: int, *, bypass: bool = False) -> onnx.ModelProto:
    """A chain whose layer has so many filters (none: it is gone), and what passes by beside them where asked for."""
    made, total = Chain(layer), layer.channels
    x = made.conv("x", total, total, 1)
    y = made.middle(x, filters) if filters else x
    y = made.beside(x, y, filters) if bypass else y
    return made.model(made.conv(y, total if bypass or not filters else filters, total, 1))


def row(layer: Layer, share: float, found: tuple[Latency, ...]) -> str:
    """A line of the table."""
    whole, narrow, bypass, gone = (latency.median_ms for latency in found)
    runs, busy = min(latency.runs for latency in found), "yes" if any(latency.busy for latency in found) else ""
    ratios = f"{narrow / whole:.2f} | {bypass / whole:.2f} | {bypass / narrow:.2f} | {gone / whole:.2f}"
    size = f"{layer.size} x {layer.size}"
    return f"| {layer.name} | {layer.channels} | {size} | {share} | {whole:.3f} | {ratios} | {runs} | {busy} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each model")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "bypass.md")
    options = parser.parse_args()
    target, rng = Target.parse(options.target), np.random.default_rng(0)
    lines = []
    for layer in LAYERS:
        total = layer.channels
        feeds = {"x": rng.standard_normal((1, total, layer.size, layer.size), dtype=np.float32)}
        for share in SHARES:
            count = round(total * share)
            models = [chain(layer, total), chain(layer, count), chain(layer, count, bypass=True), chain(layer, 0)]
            found = measure_many(models, target, [feeds] * len(models), min_runs=100, min_seconds=options.seconds)
            lines.append(row(layer, share, found))
            print(lines[-1], flush=True)
    given = f" --seconds {options.seconds:g}" if options.seconds != parser.get_default("seconds") else ""
    preface = PREFACE.format(
        options=given, machine=platform.machine(), cores=os.cpu_count(), runtime=onnxruntime.__version__, target=target
    )
    options.output.write_text(preface + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
