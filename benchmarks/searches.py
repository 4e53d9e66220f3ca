"""The searches beside each other: writes docs/searches.md.

    python benchmarks/searches.py [--networks digits,resnet20] [--budgets 0.5x] [--resource latency]
                                  [--targets cpu] [--seeds 0] [--out docs/searches.md]

Eight budgets on two targets, the case that ChamNet is made for:

    python benchmarks/searches.py --budgets 0.9x,0.8x,0.7x,0.6x,0.5x,0.45x,0.4x,0.35x --targets cpu,cpu:threads=2
                                  --apart netadapt

1. A line is one run of the command line for one network, target, search and seed; with several budgets it is one sweep,
   and the predictor of `chamnet` is shared by the targets. Searches named by --apart run once for each budget instead.
   Nothing is fine-tuned: what is compared are the networks.
2. "netadapt" is the published algorithm (`--published`), "default" the same with error curves and budget given back.
3. Masked scoring is timed against building, opening and running each network, in alternation, on processor time.

`digits` comes with the package; `resnet20` and `resnet56` need the shared files beside the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx_netadapt.models.demo import write_demo

SHARED = Path(__file__).resolve().parents[2] / "shared"
CIFAR = "mean=0.485,0.456,0.406,std=0.229,0.224,0.225"
SEARCHES = {
    "multiplier": ["--search", "multiplier"],
    "netadapt": ["--search", "netadapt", "--published"],
    "default": [],
    "mcd": ["--search", "mcd"],
    "chamnet": ["--search", "chamnet"],
}
MASKED_PROPOSALS = 64
Kind = Callable[[dict[str, int], np.random.Generator], dict[str, int]]


@dataclass(frozen=True)
class Found:
    """The reports of a search, loosest budget first, its wall seconds, and the number of budgets without a model."""

    reports: list[dict[str, Any]]
    wall: float
    missed: int


@dataclass(frozen=True)
class Network:
    """A model file and the options that feed it."""

    name: str
    model: Path
    options: list[str]


def network(name: str, folder: Path) -> Network:
    """One of the networks by name; SystemExit when its files are not here."""
    if name == "digits":
        model, data = write_demo(folder)
        return Network(name, model, ["--data", str(data)])
    model = SHARED / "models" / f"derived_torch_cifar10_{name}.onnx"
    if not model.exists():
        raise SystemExit(f"{model} is not here; --networks digits needs no other files")
    files = np.load(SHARED / "data" / "cifar10_lossless.npz")
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", x=files[f"x_{part}"], y=files[f"y_{part}"])
    data = ["--data", str(folder / "train.npz"), "--report-data", str(folder / "test.npz"), "--preprocess", CIFAR]
    return Network(name, model, data)


def run(net: Network, search: str, budgets: str, target: str, seed: int, folder: Path) -> Found:
    """One run of the command line."""
    stem = f"{net.name}_{search}_{seed}_{target.replace(':', '_').replace('=', '')}"
    lut = folder / f"{net.name}_{target.replace(':', '_')}.lut"
    options = [*net.options, "--finetune", "none", "--target", target, "--seed", str(seed), *SEARCHES[search]]
    if search == "chamnet":
        options += ["--predictor", str(folder / f"{net.name}_{seed}.predictor.json")]
    if "latency" in budgets or "=" not in budgets:
        options += ["--lut", str(lut)]
    out = folder / f"{stem}.onnx"
    command = [
        sys.executable,
        "-m",
        "onnx_netadapt.cli",
        str(net.model),
        "--budget",
        budgets,
        "-o",
        str(out),
        "--quiet",
    ]
    began = time.monotonic()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    wall = time.monotonic() - began
    if done.returncode not in (0, 3):
        raise SystemExit(f"{stem}: exit code {done.returncode}\n{done.stderr}")
    if done.returncode:
        print(f"{stem} {budgets}: {done.stderr.strip()}", flush=True)
    written = sorted(folder.glob(f"{stem}.*report.json"))
    reports = [json.loads(path.read_text()) for path in written]
    for path in written:
        path.unlink()
    reports.sort(key=lambda report: -report["budgets"][0]["limit"])
    return Found(reports, wall, len(budgets.split(",")) - len(reports))


def runs(net: Network, search: str, budgets: str, target: str, seed: int, folder: Path) -> Found:
    """The same from one run for each budget."""
    each = [run(net, search, budget, target, seed, folder) for budget in budgets.split(",")]
    reports = [report for found in each for report in found.reports]
    return Found(reports, sum(found.wall for found in each), sum(found.missed for found in each))


def proposals_of(report: dict[str, Any]) -> int:
    """Networks that were judged up to this budget: proposals of all steps, and the predictor's samples."""
    proposed = sum(max(len(step["proposals"]), 1) for step in report["history"])
    return proposed + int(report["search"].get("predictor", {}).get("samples", 0))


def steps_to_budget(report: dict[str, Any]) -> int:
    """Steps until the budget was met for the first time: those that spend what is left of it, or correct it, follow."""
    history, resource = report["history"], report["budgets"][0]["resource"]
    aim = min((step["limits"][resource] for step in history), default=0.0)
    within = (place for place, step in enumerate(history, 1) if step["measured"][resource] <= aim)
    return next(within, len(history))


def line(net: Network, search: str, target: str, seed: int, found: Found) -> str:
    """The row of one run."""
    if not found.reports:
        return f"| {net.name} | {target} | {search} | {seed} | - | no budget | - | - | - | {found.wall:.0f} | - |"
    reports, last = found.reports, found.reports[-1]
    scores = ", ".join(f"{r['after']['score']['value']:.3f}" if r["after"]["score"] else "-" for r in reports)
    reached = ", ".join(f"{r['budgets'][0]['share']:.3f}{'' if r['met'] else ' (missed)'}" for r in reports)
    reached += f", {found.missed} not reached" if found.missed else ""
    seconds = sum(r["seconds"].get("search", 0.0) for r in reports)
    tau = last["search"].get("predictor", {}).get("kendall")
    told = "-" if tau is None else f"{tau:.2f}"
    return (
        f"| {net.name} | {target} | {search} | {seed} | {scores} | {reached} | {steps_to_budget(last)} "
        f"| {proposals_of(last)} | {seconds:.0f} | {found.wall:.0f} | {told} |"
    )


def all_groups(full: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
    """A network whose groups all keep shares of their own."""
    return {name: max(1, int(width * rng.uniform(0.4, 1))) for name, width in full.items()}


def one_group(full: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
    """What `netadapt` proposes: one group narrower than a network that keeps three quarters of everything."""
    present = {name: max(1, 3 * width // 4) for name, width in full.items()}
    name = str(rng.choice([name for name, width in present.items() if width > 1]))
    return present | {name: int(rng.integers((present[name] + 1) // 2, present[name]))}


def proposals(kind: Kind, full: dict[str, int], rng: np.random.Generator) -> list[dict[str, int]]:
    """Distinct networks of a kind."""
    found: dict[tuple[int, ...], dict[str, int]] = {}
    while len(found) < MASKED_PROPOSALS:
        widths = kind(full, rng)
        found[tuple(widths.values())] = widths
    return list(found.values())


KINDS = {"all groups": all_groups, "one group": one_group}
MASKED_EXAMPLES = (4, 16, 64)


def masked_line(net: Network, kind: str, examples: int, repeats: int = 3) -> str:
    """How many times faster masked proposals are scored than networks that are built, opened and run."""
    from onnx_netadapt.evaluate import Evaluator
    from onnx_netadapt.inputs import Data
    from onnx_netadapt.ir.load import load
    from onnx_netadapt.metrics import metric_of
    from onnx_netadapt.network import by_weight
    from onnx_netadapt.passes.coupling import couple
    from onnx_netadapt.scoring import MaskedScorer

    graph = load(net.model)
    narrowing = by_weight(couple(graph))
    port = graph.inputs[0]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, *graph.shapes[port.name][1:])).astype(np.float32)
    data = Data(examples, None, lambda at: {port.name: x[at]}, "random inputs")
    evaluator = Evaluator(graph, data, np.arange(examples), metric_of("fidelity"))
    networks = proposals(KINDS[kind], narrowing.full, rng)
    seconds: dict[str, list[float]] = {"masked": [], "sliced": []}
    for _ in range(repeats):
        scorer = MaskedScorer(narrowing, evaluator)
        start = time.process_time()
        masked = scorer.many(networks)
        seconds["masked"].append(time.process_time() - start)
        start = time.process_time()
        sliced = [evaluator.score(narrowing.build(widths)) for widths in networks]
        seconds["sliced"].append(time.process_time() - start)
    own, other = (float(np.median(seconds[name])) for name in ("masked", "sliced"))
    worst = float(np.max(np.abs(np.array(masked) - np.array(sliced))))
    same = "yes" if int(np.argmax(masked)) == int(np.argmax(sliced)) else "NO"
    return f"| {net.name} | {kind} | {examples} | {own:.2f} | {other:.2f} | {other / own:.1f} | {worst:.1e} | {same} |"


HEAD = """# Searches

Made by `python benchmarks/searches.py {arguments}` on {machine}, ONNX Runtime {runtime}, without fine-tuning.

Scores are on examples that chose nothing, and "reached" is the measured share of each budget's limit, one number for
each budget ({budgets}). "Steps" are those to the last budget, without those that spend what is left of it. "Judged"
counts networks, coarse scores included; seconds are wall time, of the search and of the whole command. Apart: {apart}
ran once for each budget.

| network | target | search | seed | score | reached | steps | judged | search s | all s | Kendall |
|---|---|---|---|---|---|---|---|---|---|---|
"""

MASKED_HEAD = f"""
## Masked scoring of {MASKED_PROPOSALS} proposals

Processor seconds, median of three, in alternation; "difference" is the largest of two scores of one network.

| network | narrowed | examples | masked s | built, opened and run s | ratio | difference | same best |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default="digits,resnet20")
    parser.add_argument("--searches", default=",".join(SEARCHES))
    parser.add_argument("--budgets", default="0.5x")
    parser.add_argument("--resource", default="latency")
    parser.add_argument("--targets", default="cpu")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--apart", default="", help="searches that run once for each budget")
    parser.add_argument("--out", type=Path, default=Path("docs/searches.md"))
    asked = parser.parse_args()
    import onnxruntime

    prefix = "" if asked.resource == "latency" else f"{asked.resource}="
    budgets = ",".join(prefix + budget for budget in asked.budgets.split(","))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    told = {"arguments": " ".join(sys.argv[1:]), "machine": machine, "runtime": onnxruntime.__version__}
    text = HEAD.format(**told, budgets=budgets, apart=asked.apart or "none")
    masked = MASKED_HEAD
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for net in [network(wanted, folder) for wanted in asked.networks.split(",")]:
            for search in asked.searches.split(","):
                for seed in map(int, asked.seeds.split(",")):
                    for target in asked.targets.split(","):
                        one = runs if search in asked.apart.split(",") else run
                        row = line(net, search, target, seed, one(net, search, budgets, target, seed, folder))
                        print(row, flush=True)
                        text += row + "\n"
            for kind in KINDS:
                for examples in MASKED_EXAMPLES:
                    masked += masked_line(net, kind, examples) + "\n"
    print(masked)
    asked.out.write_text(text + masked)


if __name__ == "__main__":
    main()
