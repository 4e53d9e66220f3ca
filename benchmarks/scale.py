"""How analysis and pruning grow with a model's size: seconds, and microseconds per node.

    python benchmarks/scale.py [--nodes 100,300,1000,3000] [--files ../shared/models/det_yolox_nano.onnx ...]
    python benchmarks/scale.py --memory [--gigabytes 1.0] [--folder DIR]

The first form prints, for generated networks (residual convolutions in stages; transformer blocks) and for the largest
real ones, the best of --repeat runs of: load, couple (the analysis), prune (half of every group), write, and `inspect`
as a whole. The last column is the growth exponent of load + couple + prune between a row and the one above it: 1 is
linear in the nodes.
--memory writes a stack of matrix products of so many gigabytes with external data, runs the commands on it in processes
of their own, and prints the peak of their resident memory; it needs about three times that much on the disk.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
PHASES = ("load", "couple", "prune", "write", "inspect")
STAGE = 8
"""Residual blocks that share one stream of channels."""


class Builder:
    """A graph in the making: weights are drawn as they are asked for, names count up."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, **attrs: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"t{len(self.nodes)}"], **attrs))
        return f"t{len(self.nodes) - 1}"

    def constant(self, value: object, dtype: type = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), f"w{len(self.tensors)}"))
        return f"w{len(self.tensors) - 1}"

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape) / math.sqrt(max(math.prod(shape[1:]), 1)))

    def model(self, given: tuple[int, ...], out: str) -> onnx.ModelProto:
        ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)]
        outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "scale", ports, outputs, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residual(nodes: int, width: int = 32) -> onnx.ModelProto:
    """Residual blocks of two convolutions in stages of a stream each, about `nodes` nodes."""
    net = Builder()
    x = net.op("Conv", "x", net.weight(width, 3, 3, 3), pads=[1] * 4)
    while len(net.nodes) < nodes:
        x = net.op("Relu", net.op("Conv", x, net.weight(width, width, 1, 1)))
        for _ in range(STAGE):
            a = net.op("Conv", x, net.weight(width, width, 3, 3), net.weight(width), pads=[1] * 4)
            b = net.op("Conv", net.op("Relu", a), net.weight(width, width, 3, 3), net.weight(width), pads=[1] * 4)
            x = net.op("Relu", net.op("Add", b, x))
    return net.model((1, 3, 8, 8), net.op("Conv", x, net.weight(10, width, 1, 1)))


def transformer(nodes: int, width: int = 32, heads: int = 4, length: int = 6) -> onnx.ModelProto:
    """Pre-norm transformer blocks as exporters spell them out, about `nodes` nodes."""
    net = Builder()
    split, joined = (net.constant(shape, np.int64) for shape in ((0, 0, heads, -1), (0, 0, -1)))
    x = net.op("MatMul", "x", net.weight(7, width))
    while len(net.nodes) < nodes:
        normal = net.op("LayerNormalization", x, net.weight(width), net.weight(width))
        rows = (net.op("Add", net.op("MatMul", normal, net.weight(width, width)), net.weight(width)) for _ in range(3))
        perms = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        q, k, v = (
            net.op("Transpose", net.op("Reshape", row, split), perm=perm) for row, perm in zip(rows, perms, strict=True)
        )
        scores = net.op("Softmax", net.op("Mul", net.op("MatMul", q, k), net.constant(0.35)), axis=-1)
        mixed = net.op("Reshape", net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3]), joined)
        x = net.op("Add", x, net.op("Add", net.op("MatMul", mixed, net.weight(width, width)), net.weight(width)))
        normal = net.op("LayerNormalization", x, net.weight(width), net.weight(width))
        hidden = net.op("Add", net.op("MatMul", normal, net.weight(width, 2 * width)), net.weight(2 * width))
        hidden = net.op("Mul", hidden, net.op("Sigmoid", hidden))
        x = net.op("Add", x, net.op("Add", net.op("MatMul", hidden, net.weight(2 * width, width)), net.weight(width)))
    return net.model((1, length, 7), net.op("MatMul", x, net.weight(width, 10)))


@dataclass(frozen=True, slots=True)
class Row:
    """The seconds of one model, phase by phase."""

    name: str
    nodes: int
    groups: int
    seconds: Mapping[str, float]

    @property
    def analysis(self) -> float:
        return sum(self.seconds[phase] for phase in ("load", "couple", "prune"))


def timed(name: str, source: onnx.ModelProto | Path, repeat: int) -> Row:
    """The best seconds of every phase over `repeat` runs."""
    from onnx_netadapt.inspection import inspect
    from onnx_netadapt.ir import load
    from onnx_netadapt.ir.write import save
    from onnx_netadapt.passes.coupling import couple
    from onnx_netadapt.passes.prune import prune

    best = dict.fromkeys(PHASES, math.inf)
    with tempfile.TemporaryDirectory() as folder:
        path = source if isinstance(source, Path) else Path(folder) / "model.onnx"
        if not isinstance(source, Path):
            onnx.save(source, path)
        for _ in range(repeat):
            clock = [time.perf_counter()]
            graph = load(path)
            clock.append(time.perf_counter())
            coupling = couple(graph)
            clock.append(time.perf_counter())
            pruned = prune(coupling, {g.id: np.arange((g.units + 1) // 2) for g in coupling.groups})
            clock.append(time.perf_counter())
            save(pruned.model, Path(folder) / "pruned.onnx")
            clock.append(time.perf_counter())
            inspect(path)
            clock.append(time.perf_counter())
            for phase, start, end in zip(PHASES, clock, clock[1:], strict=False):
                best[phase] = min(best[phase], end - start)
    return Row(name, len(graph.nodes), len(coupling.groups), best)


def real_models(files: list[Path]) -> Iterator[tuple[str, onnx.ModelProto | Path]]:
    """The files, and the largest networks of `models`."""
    from onnx_netadapt.models.architectures import ARCHITECTURES
    from onnx_netadapt.models.export import export

    for path in files:
        if path.is_file():
            yield path.stem, path
        else:
            print(f"{path.name}: not there, skipped")
    for name in ("densenet121", "vit_b_16"):
        if name in ARCHITECTURES:
            yield name, export(ARCHITECTURES[name])


def scale(nodes: list[int], files: list[Path], repeat: int) -> None:
    print(
        f"{'model':<24}{'nodes':>7}{'groups':>7}" + "".join(f"{phase:>9}" for phase in PHASES) + "  us/node  exponent"
    )
    kinds: tuple[tuple[str, Callable[[int], onnx.ModelProto]], ...] = (
        ("residual", residual),
        ("transformer", transformer),
    )
    for kind, build in kinds:
        last: Row | None = None
        for count in nodes:
            row = timed(f"{kind} {count}", build(count), repeat)
            show(row, last)
            last = row
    for name, source in real_models(files):
        show(timed(name, source, repeat), None)


def show(row: Row, last: Row | None) -> None:
    """One line; the exponent compares with the row above."""
    exponent = (
        "" if last is None else f"{math.log(row.analysis / last.analysis) / math.log(row.nodes / last.nodes):.2f}"
    )
    times = "".join(f"{row.seconds[phase]:>9.3f}" for phase in PHASES)
    print(
        f"{row.name:<24}{row.nodes:>7}{row.groups:>7}{times}{row.analysis / row.nodes * 1e6:>9.0f}{exponent:>10}",
        flush=True,
    )


def matrices(folder: Path, gigabytes: float, width: int = 5792) -> Path:
    """A stack of matrix products with ReLUs, its weights in one file of about so many gigabytes, written bit by bit."""
    net, count = Builder(), max(2, round(gigabytes * 1e9 / (4 * width * width)))
    rng, path = np.random.default_rng(0), folder / "matrices.onnx"
    x = "x"
    with (folder / "matrices.data").open("wb") as stream:
        for number in range(count):
            tensor = TensorProto(name=f"m{number}", data_type=TensorProto.FLOAT, dims=[width, width], data_location=1)
            record = {"location": "matrices.data", "offset": stream.tell(), "length": 4 * width * width}
            for key, value in record.items():
                tensor.external_data.add(key=key, value=str(value))
            stream.write((rng.standard_normal((width, width), dtype=np.float32) * math.sqrt(2 / width)).tobytes())
            net.tensors.append(tensor)
            x = net.op("MatMul", x, f"m{number}")
            x = net.op("Relu", x) if number < count - 1 else x
    path.write_bytes(net.model((1, width), x).SerializeToString())
    return path


def peak(*arguments: str) -> tuple[int, float, str]:
    """The exit code of a Python process, the peak of its resident memory in GB, and the last line that it printed."""
    child = [sys.executable, "-c", CHILD, *arguments]
    found = subprocess.run(child, capture_output=True, text=True, check=False)
    lines = (found.stdout + found.stderr).strip().splitlines() or [""]
    memory, _, text = lines[-1].partition(" ")
    return found.returncode, float(memory) / 1e6, text


CHILD = """
import contextlib, io, resource, sys
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    if sys.argv[1] == "save":  # the write path of the main job, which holds the model in memory
        from pathlib import Path
        from onnx_netadapt.ir.load import load
        from onnx_netadapt.ir.write import save
        save(load(sys.argv[2]).model, Path(sys.argv[3]), external=True)
        code = 0
    else:
        from onnx_netadapt.cli import _run
        code = _run(sys.argv[1:])
last = (out.getvalue().strip().splitlines() or [""])[-1]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, last)
sys.exit(code)
"""


def memory(gigabytes: float, folder: Path) -> None:
    path, out = matrices(folder, gigabytes), folder / "out.onnx"
    size = (folder / "matrices.data").stat().st_size / 1e9
    for name, arguments in (
        ("inspect", ["inspect", str(path)]),
        ("prune --keep 0.5", ["prune", str(path), "--keep", "0.5", "-o", str(out)]),
        ("prune --keep 0.9", ["prune", str(path), "--keep", "0.9", "-o", str(out)]),
        ("verify", ["verify", str(path), str(out)]),
        ("load and save", ["save", str(path), str(folder / "copy.onnx")]),
    ):
        code, most, text = peak(*arguments)
        print(f"{name:<18} of {size:.2f} GB: exit code {code}, peak {most:.2f} GB  {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="100,300,1000,3000")
    parser.add_argument("--files", type=Path, nargs="*", default=[SHARED / "det_yolox_nano.onnx"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where to write the large model [a temporary folder]")
    given = parser.parse_args()
    if given.memory:
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            memory(given.gigabytes, Path(place))
        sys.exit()
    scale([int(count) for count in given.nodes.split(",")], given.files, given.repeat)
