"""Forward and training step of the torch form beside the network that was written by hand: time, as a ratio.

    python benchmarks/torch_speed.py [threads]

Both run in turns in this process; each figure is the least of several CPU times of the process.
"""

import sys
import time
import warnings
from collections.abc import Callable

import torch
from onnx_netadapt.ir.load import load
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import materialize, to_onnx
from onnx_netadapt.passes.to_torch import to_torch

NAMES = ("mobilenet_v2", "resnet18", "vit_tiny")
BATCH, ROUNDS = 4, 12


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """The least time of each, measured in turns after one warm-up."""
    one(), other()
    pairs = [(seconds(one), seconds(other)) for _ in range(ROUNDS)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print("network | by hand, forward ms | ratio | by hand, training step ms | ratio")
    for name in (key for key in ARCHITECTURES if key.startswith(NAMES)):
        architecture = ARCHITECTURES[name]
        hand = materialize(architecture)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lowered = to_torch(load(to_onnx(hand, architecture, dynamic_batch=True)))
        x = torch.from_numpy(next(iter(architecture.example_inputs(batch=BATCH).values())))

        def forward(module: torch.nn.Module, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                module(x)

        def step(module: torch.nn.Module, x: torch.Tensor = x) -> None:
            module.zero_grad()
            module(x).square().mean().backward()

        cells = [name]
        for run in (forward, step):
            a, b = compare(lambda run=run, hand=hand: run(hand), lambda run=run, lowered=lowered: run(lowered))
            cells += [f"{a * 1e3:.0f}", f"{b / a:.2f}"]
        print(" | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
