"""Peak memory by liveness against what ONNX Runtime needs: prints a table, and writes docs/memory.md with --out.

    python benchmarks/memory.py [--out docs/memory.md]

Per network: activations alive at the peak and parameters as the tool tells them (`--budget memory=...` counts both);
the peak that ONNX Runtime's own arena had in use during a run (its profile tells since 1.31), with its memory pattern
off, so that it is what is alive and not what was planned; and by how much a fresh process grew from before loading to
the peak of five runs. Each network whole, and at half of its widths.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from lut import networks
from onnx_netadapt.ir.load import load
from onnx_netadapt.network import by_weight
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import random_feeds
from onnx_netadapt.profiler import Target, memory

HEAD = """# Peak memory: told and needed

Made by `python benchmarks/memory.py`, ONNX Runtime {ort}, one thread. All in MB. "told": by liveness, without running;
"arena": ONNX Runtime's memory in use at the peak of a run (weights are not in it); "process": growth of a fresh process
from before loading to the peak of five runs, which holds the weights in the runtime's layout, code and buffers as well.

| network | widths | activations told | arena | ratio | told with parameters | process | ratio |
|---|---|---|---|---|---|---|---|
"""
MB = 1e6


def arena_bytes(path: str) -> int | None:
    """The runtime's memory in use at the peak of one run; None where it does not tell."""
    graph = load(path)
    feeds = random_feeds(graph, 1)[0]
    with tempfile.TemporaryDirectory() as folder:
        target = Target().with_session_options(["enable_mem_pattern=0"])
        session = target.session(graph.model, profile_prefix=str(Path(folder, "p")))
        session.run(None, feeds)
        before = json.loads(Path(session.end_profiling()).read_text())
    peaks = [int(e["args"]["mem_in_use_peak"]) for e in before if "mem_in_use_peak" in e.get("args", {})]
    held = [int(e["args"]["mem_bytes_in_use"]) for e in before if "mem_bytes_in_use" in e.get("args", {})]
    return max(peaks) - min(held, default=0) if peaks else None


def growth_bytes(path: str) -> int:
    """By how much this process grows from before loading the model to its peak; Linux only, in a fresh process."""
    feeds = feeds_of(path)
    Target().session(onnx.parser.parse_model(TINY)).run(None, {"x": np.zeros(1, np.float32)})  # the runtime's own
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is held now
    before = peak_resident_bytes()
    session = Target().session(path)
    for _ in range(5):
        session.run(None, feeds)
    return peak_resident_bytes() - before


def feeds_of(path: str) -> dict[str, np.ndarray]:
    """Random inputs; nothing of the model itself is held afterwards."""
    return dict(random_feeds(load(path), 1)[0])


def peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


TINY = '<ir_version: 8, opset_import: ["" : 13]> tiny (float[1] x) => (float[1] y) { y = Relu (x) }'


def in_fresh_process(what: str, path: Path) -> float | None:
    found = subprocess.run([sys.executable, __file__, what, str(path)], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def row(name: str, widths: str, path: Path) -> str:
    graph = load(path)
    told = memory(graph.model, graph.shapes)
    arena, process = in_fresh_process("--arena", path), in_fresh_process("--growth", path)
    cells = [name, widths, f"{told.peak_activation_bytes / MB:.2f}"]
    cells += ["-", "-"] if arena is None else [f"{arena / MB:.2f}", f"{told.peak_activation_bytes / arena:.2f}"]
    cells += [f"{told.total_bytes / MB:.2f}", f"{(process or 0) / MB:.2f}", f"{told.total_bytes / (process or 1):.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arena", help=argparse.SUPPRESS)
    parser.add_argument("--growth", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arena or arguments.growth:
        print(json.dumps(arena_bytes(arguments.arena) if arguments.arena else growth_bytes(arguments.growth)))
        return
    import onnxruntime

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in networks().items():
            model = build()
            narrowing = by_weight(couple(load(model)))
            half = narrowing.build({g: max(1, w // 2) for g, w in narrowing.full.items()})
            for widths, one in (("whole", model), ("half", half)):
                path = Path(folder, "model.onnx")
                onnx.save(one, path)
                rows.append(row(name, widths, path))
                print(rows[-1], flush=True)
    if arguments.out:
        arguments.out.write_text(HEAD.format(ort=onnxruntime.__version__) + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
