"""Accuracy against latency, beside what users would pick instead: writes docs/tradeoff.md and a plot.

    python benchmarks/tradeoff.py --work DIR [--networks resnet20,...] [--budgets 0.7,0.5,0.35] [--seeds 0,1,2]
                                  [--methods ours,multiplier,...] [--steps 300] [--short 10] [--resource macs]
                                  [--epochs 30] [--prepare] [--report-only [--machine TEXT]] [--quick]

Every row is one network, budget, method and seed. It is kept in DIR/rows.jsonl as soon as it is there, and not made
again: a run that was stopped goes on where it was, and several may work for one DIR. DIR also keeps the MobileNetV1
that is trained here and the latency tables; choose one outside the repository. --prepare makes the files alone, and
--report-only the report alone, from the rows that are there; --machine says where they were made, if elsewhere.

1. All methods have the same calibration and selection examples (by the seed), the same fine-tuning (steps, batch, loss:
   distillation from the original, the best checkpoint on the selection set), the same report examples, and the same
   limit of the latency measured beside the original's (of multiply-accumulates with --resource macs, for a machine
   that is busy).
2. `ours` and `multiplier` are the main job with --search netadapt and multiplier: both have our alignment of widths and
   our recovery in closed form. The others are in `rivals`; `onnxsim` and `tp` are used as their users run them, `tp8`
   and `tp16` round widths to multiples, `onnxsim+` has its own recovery.
3. Seconds: from the first pass over the data or the first ratio tried to the end of recovery, then fine-tuning; not of
   loading, nor of the scores and latencies that the table tells. The latency table, which is filled once for a network
   and target and kept (--lut), is told apart. Images: those that fine-tuning has seen, short-term training of proposals
   included. Training uses CUDA where it is there (`device`).

Needs the folders `models` and `data` of the shared files beside the checkout; says so and stops when they are absent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rivals import Absent, onnxsim_pruned, onnxsim_recovered, recipe, torch_pruned

SHARED = Path(__file__).resolve().parents[2] / "shared"
CIFAR = "mean=0.485,0.456,0.406,std=0.229,0.224,0.225"
METHODS = ("ours", "multiplier", "onnxsim", "onnxsim+", "tp", "tp8", "tp16", "recipe")
NETWORKS = ("resnet20", "resnet56", "mobilenet_v1", "mobilenet_v2", "yolox")
QUICK = 400
"""Images of each part with --quick."""

EPOCHS = 30

MEASURE_SECONDS = 0.5

PRUNING = ("analysis", "statistics", "search", "finalists", "pruning", "recovery")
"""Phases of the main job that stand beside a rival's pruning. Loading, the last measurement and the scores of the
report come before and after, and are not in the rivals' seconds either.
"""


@dataclass(frozen=True)
class Case:
    """A network with its data: one part to adapt with, one to report on; `batch` examples to a training step."""

    name: str
    model: Path
    data: str
    report: str | None
    preprocess: str
    metric: str
    batch: int


@dataclass(frozen=True)
class Row:
    """One result. `score` and `before` are on the report set, `latency` is a share of the original's.

    `table_seconds` are for filling the latency table, also where another row had it filled; None: none was used, or the
    row is of the time when they were part of `prune_seconds`.
    """

    network: str
    budget: float
    method: str
    seed: int
    steps: int
    resource: str
    short: int
    score: float | None = None
    before: float | None = None
    latency: float | None = None
    macs: float | None = None
    prune_seconds: float | None = None
    tune_seconds: float | None = None
    images: int = 0
    note: str = ""
    table_seconds: float | None = None
    device: str = "cpu"

    @property
    def key(self) -> tuple[str, float, str, int, int, str, int]:
        """What tells rows apart; the recipe's short training matters to it alone."""
        short = self.short if self.method == "recipe" else 0
        return self.network, self.budget, self.method, self.seed, self.steps, self.resource, short


def case_of(name: str, work: Path, quick: bool, epochs: int) -> Case:
    """A network by name; files that it needs are made in the work folder, MobileNetV1 by so many epochs."""
    models, images = SHARED / "models", str(SHARED / "data" / "imagenet_sample")
    if name in ("resnet20", "resnet56"):
        train, test = cifar_files(work, "cifar10_lossless", QUICK if quick else None)
        return Case(name, models / f"derived_torch_cifar10_{name}.onnx", train, test, CIFAR, "top1", 128)
    if name == "mobilenet_v1":
        train, test = cifar_files(work, "cifar10", QUICK if quick else None)
        said = name if epochs == EPOCHS else f"{name} ({epochs} epochs)"
        return Case(said, mobilenet_v1(work, epochs), train, test, CIFAR, "top1", 128)
    if name == "mobilenet_v2":
        model = models / "derived_mbv2_imagenet_dynamo_dequant.onnx"
        return Case(name, model, images, None, "imagenet,crop=1", "top1", 32)
    if name == "yolox":
        return Case(name, models / "det_yolox_nano.onnx", images, None, "size=416,order=BGR,scale=1", "cosine", 8)
    sys.exit(f"there is no network '{name}'; choose from {', '.join(NETWORKS)}")


def cifar_files(work: Path, source: str, most: int | None) -> tuple[str, str]:
    """A CIFAR-10 archive as two files, training and test images, at most so many of each."""
    paths = [work / f"{source}_{part}{most or ''}.npz" for part in ("train", "test")]
    if not all(path.is_file() for path in paths):
        data = np.load(SHARED / "data" / f"{source}.npz")
        for path, part in zip(paths, ("train", "test"), strict=True):
            np.savez(path, x=data[f"x_{part}"][:most], y=data[f"y_{part}"][:most])
    return str(paths[0]), str(paths[1])


def mobilenet_v1(work: Path, epochs: int, seed: int = 0) -> Path:
    """MobileNetV1 for 32x32 images, trained on the CIFAR-10 images (cross-entropy, crops and flips) unless it is there.

    The stem and the first narrowing keep the resolution, as is usual for small images.
    """
    path = work / f"mobilenet_v1_cifar10_{epochs}.onnx"
    if path.is_file():
        return path
    import torch
    from onnx_netadapt.models.architectures.mobilenet import mobilenet_v1 as build

    torch.manual_seed(seed)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    net = build(classes=10)
    strided = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    for layer in strided[:2]:
        layer.stride = (1, 1)
    data = np.load(SHARED / "data" / "cifar10.npz")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (torch.from_numpy(data["x_train"]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    y = torch.from_numpy(data["y_train"].astype(np.int64))
    fast = {"device": place, "memory_format": torch.channels_last}  # 1.3 times faster on a processor, in bfloat16
    _train(net.to(**fast), x.to(**fast), y.to(place), epochs, seed)
    example = torch.zeros(2, 3, 32, 32)
    torch.onnx.export(
        net.to("cpu", memory_format=torch.contiguous_format).eval(), (example,), str(path),
        input_names=["input"], output_names=["logits"], opset_version=17,
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    return path


def _train(net: Any, x: Any, y: Any, epochs: int, seed: int) -> None:
    import torch

    rng, batch = torch.Generator().manual_seed(seed), 128
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        for picked in torch.split(torch.randperm(len(x), generator=rng)[: len(x) // batch * batch], batch):
            images = torch.nn.functional.pad(x[picked], (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,), generator=rng).tolist()
            images = images[:, :, top : top + 32, left : left + 32]
            images = images.flip(3) if torch.rand((), generator=rng) < 0.5 else images
            optimizer.zero_grad()
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                logits = net(images)
            torch.nn.functional.cross_entropy(logits.float(), y[picked]).backward()
            optimizer.step()
            schedule.step()
        print(f"  MobileNetV1, epoch {epoch + 1} of {epochs}", flush=True)


class Bencher:
    """One network, budget and seed: what all methods share."""

    def __init__(self, case: Case, budget: float, seed: int, given: argparse.Namespace) -> None:
        import torch
        from onnx_netadapt.options import Options
        from onnx_netadapt.pipeline import set_up
        from onnx_netadapt.progress import Progress

        self.case, self.budget, self.seed = case, budget, seed
        self.steps, self.resource, self.short = given.steps, given.resource, given.short
        self.options = Options(
            budgets=(f"{self.resource}={budget}x",), data=case.data, report_data=case.report,
            preprocess=case.preprocess, seed=seed, finetune=f"steps={self.steps},batch={case.batch},patience=100",
            step=0.25 if given.quick else None, downsample="never", allow_depth=False,
            lut=given.work / f"{case.name}.lut",
        )  # fmt: skip
        self.device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.bench = set_up(case.model, self.options, case.name, Progress(quiet=True), "")
        self.run = self.bench.run
        self.filled = filling(given.work / f"{case.name}.filled", self.run.seconds.get("table", 0.0))
        self.original = self.run.graph.model

    def latency(self, model: onnx.ModelProto) -> float:
        """The measured share of the original's latency."""
        from onnx_netadapt.profiler import measure_many

        feeds = [self.run.feeds, _renamed(self.run.feeds, model)]
        one, other = measure_many([self.original, model], self.run.target, feeds, min_seconds=MEASURE_SECONDS)
        return other.median_ms / one.median_ms

    def share(self, model: onnx.ModelProto) -> float:
        """What counts against the budget, as a share of the original's."""
        return self.latency(model) if self.resource == "latency" else _macs(model) / _macs(self.original)

    def score(self, model: onnx.ModelProto) -> tuple[float, float]:
        """The original's and the model's score on the report set."""
        from onnx_netadapt.evaluate import Evaluator
        from onnx_netadapt.metrics import metric_of

        evaluator = Evaluator(self.run.graph, self.run.report_data, self.run.report, metric_of(self.case.metric))
        return evaluator.score(self.original), evaluator.score(model)

    def tuned(self, model: onnx.ModelProto, steps: int, *, select: bool = True) -> tuple[onnx.ModelProto, int]:
        """The model after our distillation, and the images that it has seen; the last weights without `select`."""
        from onnx_netadapt.distill import training_of
        from onnx_netadapt.evaluate import Evaluator
        from onnx_netadapt.passes.finetune import finetune

        evaluator = self.bench.scorer.evaluator
        evaluator = Evaluator(self.run.graph, self.run.data, self.run.selection, evaluator.metric)
        batches, labels, settings = training_of(self.run)
        settings = replace(settings, steps=steps, check_every=0 if select else steps)
        count = iter(range(1_000_000))
        judge: Callable[[onnx.ModelProto], float] = evaluator.score if select else lambda _: float(next(count))
        found = finetune(model, self.original, batches, settings, judge, labels=labels)
        return found.model, found.images

    def batches(self, most: int) -> Iterator[Mapping[str, Any]]:
        """Calibration inputs, at most so many."""
        for seen, feeds in enumerate(self.run.batches()):
            if seen * 32 >= most:
                return
            yield feeds

    def row(self, method: str) -> Row:
        """The result of a method."""
        from onnx_netadapt.ir.errors import BudgetError

        began = time.monotonic()
        base = Row(self.case.name, self.budget, method, self.seed, self.steps, self.resource, self.short)
        base = replace(base, device=self.device)
        try:
            if method in ("ours", "multiplier"):
                return self._adapted(base)
            model, images, note = self._pruned(method)
        except (Absent, BudgetError) as reason:
            return replace(base, note=str(reason))
        pruned = time.monotonic()
        tuned, seen = self.tuned(model, self.steps)
        done = time.monotonic()
        return self._told(base, tuned, pruned - began, done - pruned, images + seen, note)

    def _adapted(self, base: Row) -> Row:
        from onnx_netadapt.pipeline import adapt

        search = "netadapt" if base.method == "ours" else "multiplier"
        found = adapt(self.case.model, replace(self.options, search=search, downsample="auto", allow_depth=None))
        seconds, tuned = found.report.seconds, found.report.finetune
        spent, table = seconds.get("finetune", 0.0), seconds.get("table")
        rest, images = sum(seconds.get(phase, 0.0) for phase in PRUNING), int(tuned.get("images", 0))
        # the set-up of the bench has filled the table already: what the job says is for what it added to it
        base = replace(base, table_seconds=None if table is None else self.filled + table)
        return self._told(base, found.model, rest, spent, images, tuned.get("said", ""))

    def _pruned(self, method: str) -> tuple[onnx.ModelProto, int, str]:
        limit = self.budget
        if method == "recipe":
            short = lambda model: self.tuned(model, self.short, select=False)[0]  # noqa: E731
            model, trained = recipe(self.bench, short, self.bench.scorer.evaluator.score)
            return model, trained * self.short * self.case.batch, f"{trained} proposals trained"
        if method.startswith("tp"):
            model, ratio = torch_pruned(self.original, int(method[2:] or 0) or None, self.share, limit)
            return model, 0, f"ratio {ratio:.3f}"
        model, ratio = onnxsim_pruned(self.original, self.share, limit)
        if method == "onnxsim+":
            model = onnxsim_recovered(self.original, model, list(self.batches(512)))
        return model, 0, f"ratio {ratio:.3f}"

    def _told(self, base: Row, model: onnx.ModelProto, pruning: float, tuning: float, images: int, note: str) -> Row:
        before, after = self.score(model)
        return replace(
            base, score=after, before=before, latency=self.latency(model), macs=_macs(model) / _macs(self.original),
            prune_seconds=pruning, tune_seconds=tuning, images=images, note=note,
        )  # fmt: skip


def _renamed(feeds: Mapping[str, Any], model: onnx.ModelProto) -> dict[str, Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [port.name for port in model.graph.input if port.name not in constants]
    return dict(zip(names, feeds.values(), strict=True))


def _macs(model: onnx.ModelProto) -> float:
    import onnx_netadapt as na

    return float(na.inspect(model).totals["macs"])


def append(path: Path, line: str) -> None:
    """A line more, in one write: other processes may be adding theirs."""
    with path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def filling(path: Path, seconds: float) -> float:
    """What filling a latency table took, kept in a file: who finds the table filled spends less on it."""
    known = max((float(line) for line in (path.read_text().split() if path.is_file() else ())), default=0.0)
    if seconds > known:
        append(path, f"{seconds:.2f}")
    return max(seconds, known)


def read_rows(path: Path) -> dict[tuple[Any, ...], Row]:
    """The rows of earlier runs; a line that was cut off is left out."""
    rows: dict[tuple[Any, ...], Row] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError):
            continue
        rows[row.key] = row
    return rows


def table(rows: Sequence[Row]) -> str:
    """Mean and spread over the seeds, a line for each network, budget and method."""
    lines = [
        "| network | budget | method | score (original) | kept | latency | MACs "
        "| pruning, s | fine-tuning, s | table, s | images | seeds | trained on |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network, budget, method, own in grouped(rows):
        done = [row for row in own if row.score is not None and row.before]
        if not done:
            lines.append(f"| {network} | {budget}x | {method} | {own[0].note} | | | | | | | | | |")
            continue
        mean = {name: np.mean([getattr(row, name) for row in done]) for name in
                ("before", "latency", "macs", "prune_seconds", "tune_seconds", "images")}  # fmt: skip
        lines.append(
            f"| {network} | {budget}x | {method} | {_spread([row.score for row in done])} ({mean['before']:.4f}) "
            f"| {_spread([row.score / row.before for row in done])} | {_spread([row.latency for row in done], 3)} "
            f"| {mean['macs']:.3f} | {mean['prune_seconds']:.0f} | {mean['tune_seconds']:.0f} | {_longest(done)} "
            f"| {mean['images']:.0f} | {len(done)} | {', '.join(sorted({row.device for row in done}))} |"
        )
    return "\n".join(lines)


def _longest(rows: Sequence[Row]) -> str:
    """The seconds of filling a latency table, of which one of the rows may have had a part to do for all."""
    found = [row.table_seconds for row in rows if row.table_seconds is not None]
    return f"{max(found):.0f}" if found else "-"


def grouped(rows: Sequence[Row]) -> Iterator[tuple[str, float, str, list[Row]]]:
    """Rows that differ in the seed alone, in a fixed order."""
    order = {method: place for place, method in enumerate(METHODS)}
    keys = sorted({(r.network, r.budget, r.method) for r in rows}, key=lambda k: (k[0], -k[1], order.get(k[2], 99)))
    for network, budget, method in keys:
        yield network, budget, method, [r for r in rows if (r.network, r.budget, r.method) == (network, budget, method)]


def _spread(values: Sequence[Any], digits: int = 4) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def curve(rows: Sequence[Row], network: str, method: str) -> list[tuple[float, float]]:
    """(latency, score) means over the seeds by budget, the fastest first."""
    found = []
    for name, _, which, own in grouped(rows):
        done = [row for row in own if row.score is not None]
        if (name, which) == (network, method) and done:
            found.append((float(np.mean([r.latency for r in done])), float(np.mean([r.score for r in done]))))
    return sorted(found)


def speedups(rows: Sequence[Row]) -> str:
    """How much faster ours is than each rival at the rival's own score, interpolated on our curve."""
    lines = ["| network | rival | its latency, score | ours at that score | times faster |", "|---|---|---|---|---|"]
    for network in dict.fromkeys(row.network for row in rows):
        ours = curve(rows, network, "ours")
        for method in METHODS[1:]:
            for latency, score in curve(rows, network, method):
                mine = latency_at(ours, score)
                told = f"{mine:.3f} | {latency / mine:.2f}" if mine is not None else "outside our curve | -"
                lines.append(f"| {network} | {method} | {latency:.3f}, {score:.4f} | {told} |")
    return "\n".join(lines)


def latency_at(points: Sequence[tuple[float, float]], score: float) -> float | None:
    """The least latency at which a curve of (latency, score) reaches a score; None where it does not or always does.

    Linear between points. A score below the whole curve is reached somewhere below its first point: there the first
    point itself counts, which flatters nobody.
    """
    if not points or score > max(value for _, value in points):
        return None
    before: tuple[float, float] | None = None
    for latency, value in points:
        if value >= score:
            if before is None:
                return latency
            share = (score - before[1]) / (value - before[1])
            return before[0] + share * (latency - before[0])
        before = (latency, value)
    return None


def plot(rows: Sequence[Row], path: Path) -> bool:
    """One panel for each network; False when matplotlib is not there."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    networks = list(dict.fromkeys(row.network for row in rows if row.score is not None))
    figure, axes = pyplot.subplots(1, max(len(networks), 1), figsize=(5 * max(len(networks), 1), 4), squeeze=False)
    for place, network in zip(axes[0], networks, strict=False):
        for method in METHODS:
            points = curve(rows, network, method)
            if points:
                place.plot(
                    *zip(*points, strict=True), marker="o", linewidth=2.5 if method == "ours" else 1, label=method
                )
        place.set(title=network, xlabel="latency, share of the original's", ylabel="score on the report set")
        place.grid(alpha=0.3)
    if networks:
        axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True


HEADER = """# Accuracy against latency, beside other pruners

Made by `python benchmarks/tradeoff.py {arguments}` on {machine}, one thread, batch 1.
Every method: the same calibration and selection examples, the same {steps} steps of distillation from the original with
the best checkpoint on the selection set kept, the same report examples; latency measured in alternation with the
original. `multiplier` has our alignment, recovery and fine-tuning; `onnxsim` and `tp` (Torch-Pruning) are used as their
users run them, `tp8` and `tp16` round widths, `onnxsim+` adds its own closed-form recovery, `recipe` is NetAdapt as
published with {short} training steps for each proposal. Mean and standard deviation over seeds.

"""


AT_EQUAL_SCORE = """The latency of ours is interpolated between its budgets. Where a rival scores less than the smallest
of ours, that one counts, and the figure is a lower bound."""


def main() -> None:
    """Makes the rows that are missing, and writes the table and the plot after each of them."""
    parser = argparse.ArgumentParser(description="accuracy against latency, beside other pruners")
    parser.add_argument("--work", type=Path, required=True, help="folder for rows and trained networks")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--budgets", default="0.7,0.5,0.35")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--short", type=int, default=10, help="training steps of each proposal of the recipe")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of training MobileNetV1 (30: 48 min on two cores)")
    parser.add_argument("--resource", choices=("latency", "macs"), default="latency")
    parser.add_argument("--out", type=Path, default=Path("docs/tradeoff.md"))
    parser.add_argument("--machine", default=_machine(), help="what the report calls the machine of the rows")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--prepare", action="store_true", help="make the files that the networks need, and stop")
    only.add_argument("--report-only", action="store_true", help="write the report from the rows that are there")
    parser.add_argument(
        "--quick", action="store_true", help="ResNet20, one budget, one seed, a few steps: does it run?"
    )
    given = parser.parse_args()
    if not given.report_only and not (SHARED / "data").is_dir():
        sys.exit("the shared models and data are not beside this checkout: nothing to run")
    if given.quick:
        given.networks, given.budgets, given.seeds, given.steps = "resnet20", "0.5", "0", 8
        given.resource, given.short = "macs", 1
        given.out = given.work / "tradeoff.md"
    for folder in (given.work, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    store = given.work / "rows.jsonl"
    for network in () if given.report_only else given.networks.split(","):
        case = case_of(network, given.work, given.quick, given.epochs)
        if not given.prepare:
            make_rows(case, given, store)
    if not given.prepare:
        write(given, store)


def make_rows(case: Case, given: argparse.Namespace, store: Path) -> None:
    """The missing rows of a network, and the report after each of them."""
    for budget in map(float, given.budgets.split(",")):
        for seed in map(int, given.seeds.split(",")):
            wanted = {
                m: Row(case.name, budget, m, seed, given.steps, given.resource, given.short).key
                for m in given.methods.split(",")
            }
            rows = read_rows(store)
            missing = [method for method, key in wanted.items() if key not in rows]
            bencher = Bencher(case, budget, seed, given) if missing else None
            for method in missing:
                assert bencher is not None
                row = bencher.row(method)
                append(store, json.dumps(asdict(row)))
                print(row, flush=True)
                write(given, store)


def write(given: argparse.Namespace, store: Path) -> None:
    """The table, the speed-ups and the plot, of all rows of these settings."""
    rows = [row for row in read_rows(store).values() if (row.steps, row.resource) == (given.steps, given.resource)]
    picture = given.out.with_suffix(".svg")
    drawn = plot(rows, picture)
    head = HEADER.format(arguments="--work DIR", machine=given.machine, steps=given.steps, short=given.short)
    shown = f"![accuracy against latency]({picture.name})" if drawn else "No plot: matplotlib is not installed."
    faster = f"## At equal score\n\n{AT_EQUAL_SCORE}\n\n{speedups(rows)}"
    given.out.write_text(f"{head}{shown}\n\n{table(rows)}\n\n{faster}\n")


def _machine() -> str:
    import onnxruntime

    kind = platform.processor() or platform.machine()
    return f"{kind}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}"


if __name__ == "__main__":
    main()
