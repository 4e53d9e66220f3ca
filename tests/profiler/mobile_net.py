"""A MobileNetV2-like network of free widths, as its owner would tell it to the profiler; no pruning involved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt.profiler.fill import Network
from onnx_netadapt.profiler.staircase import Granularity

# (expansion, channels, repeats, stride) of each stage
TINY = ((1, 16, 1, 1), (3, 24, 2, 2), (3, 32, 2, 2))
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


@dataclass(frozen=True)
class MobileNet:
    stages: Sequence[tuple[int, int, int, int]] = TINY
    side: int = 32
    stem: int = 32
    head: int = 64
    classes: int = 10

    def base(self) -> dict[str, int]:
        widths = {"stem": self.stem, "head": self.head}
        before = self.stem
        for s, (expansion, channels, repeats, _) in enumerate(self.stages):
            for r in range(repeats):
                if expansion > 1:
                    widths[f"mid{s}_{r}"] = before * expansion
                before = channels
            widths[f"out{s}"] = channels
        return widths

    def build(self, widths: Mapping[str, int]) -> onnx.ModelProto:
        return _Writer(self, {**self.base(), **widths}).model()

    def shapes(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        return _Writer(self, {**self.base(), **widths}, weights=False).shapes

    def feeds(self, model: onnx.ModelProto) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {"image": rng.standard_normal((1, 3, self.side, self.side)).astype(np.float32)}

    def network(self, granularity: Granularity, keep: float = 0.25) -> Network:
        base = self.base()
        edges = {g: granularity.right_edges(w, int(w * keep)) for g, w in base.items()}
        return Network(base, self.build, self.shapes, edges, self.feeds)


class _Writer:
    def __init__(self, net: MobileNet, widths: Mapping[str, int], *, weights: bool = True) -> None:
        self.net, self.widths, self.weights = net, widths, weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, net.side, net.side)}
        self.rng = np.random.default_rng(1)
        self._write()

    def _write(self) -> None:
        net, w = self.net, self.widths
        x = self.conv("stem", "image", w["stem"], 3, 2)
        for s, (expansion, _, repeats, stride) in enumerate(net.stages):
            for r in range(repeats):
                start, at = x, f"s{s}_{r}"
                if expansion > 1:
                    x = self.conv(f"{at}_expand", x, w[f"mid{s}_{r}"], 1, 1)
                x = self.conv(f"{at}_depth", x, self.shapes[x][1], 3, stride if r == 0 else 1, depthwise=True)
                x = self.conv(f"{at}_project", x, w[f"out{s}"], 1, 1, act=False)
                if r:
                    x = self.node("Add", f"{at}_add", [x, start], self.shapes[x])
        x = self.conv("head", x, w["head"], 1, 1)
        x = self.node("GlobalAveragePool", "pooled", [x], (1, w["head"], 1, 1))
        x = self.node("Flatten", "flat", [x], (1, w["head"]))
        inputs = [x, self.constant("fc_w", (net.classes, w["head"])), self.constant("fc_b", (net.classes,))]
        self.node("Gemm", "logits", inputs, (1, net.classes), transB=1)

    def constant(self, name: str, shape: tuple[int, ...]) -> str:
        self.shapes[name] = shape
        if self.weights:
            values = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, op: str, out: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        self.shapes[out] = shape
        return out

    def conv(
        self, name: str, x: str, out: int, kernel: int, stride: int, *, depthwise: bool = False, act: bool = True
    ) -> str:
        channels, side = self.shapes[x][1], self.shapes[x][2]
        w = self.constant(f"{name}_w", (out, 1 if depthwise else channels, kernel, kernel))
        b = self.constant(f"{name}_b", (out,))
        side = -(-side // stride)
        pads, group = [kernel // 2] * 4, channels if depthwise else 1
        shape = (1, out, side, side)
        y = self.node("Conv", f"{name}_conv", [x, w, b], shape, strides=[stride] * 2, pads=pads, group=group)
        return self.node("Relu", f"{name}_relu", [y], shape) if act else y

    def model(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shapes["image"])
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, self.shapes["logits"])
        graph = helper.make_graph(self.nodes, "mobile_net", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
