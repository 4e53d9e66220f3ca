"""The NVML meter against work of known size: prints a table.

    python benchmarks/energy_meter.py [--size 8192]

One, two and four matrix products (bfloat16) to a run must take energies in the ratio 1 : 2 : 4, and the power above
idle plus that at idle must be what `nvidia-smi` shows. Needs CUDA, torch built for it, and the `energy` extra.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from onnx_netadapt.profiler.energy import EnergyClock, idle_watts, measure_energy, nvml


def seconds_of(run: Callable[[], object], length: float = 1.0) -> float:
    """Seconds per run, from a loop as long as the meter's."""
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < length:
        run()
        runs += 1
    return (time.perf_counter() - start) / runs


def shown_watts() -> str:
    """What `nvidia-smi` says of the board's power."""
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="the NVML meter against work of known size")
    parser.add_argument("--size", type=int, default=8192)
    size = parser.parse_args().size
    meter = nvml()
    if isinstance(meter, str) or not torch.cuda.is_available():
        sys.exit(f"nothing to measure: {meter if isinstance(meter, str) else 'torch sees no CUDA device'}")
    idle = idle_watts(meter, EnergyClock(), 3.0)
    matrix = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, idle {idle:.1f} W\n")
    print("| products | J per run | W above idle | W in all | nvidia-smi |\n|---|---|---|---|---|")
    for products in (1, 2, 4):

        def run(count: int = products) -> None:
            for _ in range(count):
                matrix @ matrix
            torch.cuda.synchronize()

        joules = measure_energy(run, meter, idle=idle).median_mj / 1e3
        watts = joules / seconds_of(run)
        print(f"| {products} | {joules:.3f} | {watts:.0f} | {watts + idle:.0f} | {shown_watts()} |")


if __name__ == "__main__":
    main()
