"""Forward and training step of the torch form beside the network that was written by hand: time and memory, as ratios.

    python benchmarks/torch_speed.py [--threads 1] [--rounds 30] [--batch 8] [--full] [--only NAME]

Both run in turns in this process; a ratio is the median over the rounds of one CPU time over the other (the quartiles
stand beside it), so that what else the machine does falls on both. Exporters fold BatchNorm into convolutions; the
network by hand is folded in the same way, or ours would be ahead by what the exporter saves. Memory is the peak of what
torch's allocator held during a training step, weights and gradients included, which is the same in every run. Without
`--full` the pictures are 64 x 64.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from onnx_netadapt.ir.load import load
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import materialize, to_onnx
from onnx_netadapt.models.spec import Architecture, Input
from onnx_netadapt.passes.to_torch import to_torch

NAMES = ("mobilenet_v2", "resnet18", "vit_tiny")
SIDE = 64

Step = Callable[[torch.nn.Module], object]


def seconds(run: Step, module: torch.nn.Module) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run(module)
    return time.process_time() - start


def ratios(run: Step, hand: torch.nn.Module, ours: torch.nn.Module, rounds: int) -> np.ndarray:
    """Our time over the other for each round, after two warm-ups; who comes first changes from round to round."""
    for module in (hand, ours, hand, ours):
        run(module)
    found = []
    for number in range(rounds):
        order = (hand, ours) if number % 2 else (ours, hand)
        times = {id(module): seconds(run, module) for module in order}
        found.append(times[id(ours)] / times[id(hand)])
    return np.array(found)


def peak_bytes(run: Step, module: torch.nn.Module) -> int:
    """The most that torch's allocator held at once during a step, with what the module holds before it."""
    run(module)
    module.zero_grad(set_to_none=True)
    held = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    with torch.profiler.profile(profile_memory=True) as profile:
        run(module)
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return held + int(np.cumsum([size for _, size in changes]).max())


def subjects(only: str, *, full: bool) -> Iterator[Architecture]:
    for name in NAMES:
        architecture = ARCHITECTURES[name]
        if only in name:
            yield architecture if full else _smaller(architecture)


def _smaller(architecture: Architecture) -> Architecture:
    if architecture.name.startswith("vit"):  # the number of patches is built in
        return architecture
    return replace(architecture, inputs={name: Input((1, 3, SIDE, SIDE)) for name in architecture.inputs})


def folded(module: torch.nn.Module) -> torch.nn.Module:
    """The network without BatchNorm behind convolutions, as the exporter writes it."""
    from torch.fx.experimental.optimization import fuse

    if not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in module.modules()):
        return module
    return fuse(module)


def row(architecture: Architecture, batch: int, rounds: int) -> str:
    hand = materialize(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = to_torch(load(to_onnx(hand, architecture, dynamic_batch=True)))
    hand = folded(hand)
    x = torch.from_numpy(next(iter(architecture.example_inputs(batch=batch).values())))

    def forward(module: torch.nn.Module) -> None:
        with torch.no_grad():
            module(x)

    def step(module: torch.nn.Module) -> None:
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()

    cells = [architecture.name]
    for run in (forward, step):
        low, middle, high = np.quantile(ratios(run, hand, ours, rounds), [0.25, 0.5, 0.75])
        cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    cells.append(f"{peak_bytes(step, ours) / peak_bytes(step, hand):.3f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| network | forward | training step | peak memory |\n|---|---|---|---|")
    for architecture in subjects(arguments.only, full=arguments.full):
        print(row(architecture, arguments.batch, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
