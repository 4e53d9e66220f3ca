"""How true the latency table is, on real networks: writes docs/lut.md.

    python benchmarks/lut.py [--only NAME] [--threads N] [--target T] [--noise 0|1|2] [--quick] [--resume]

For each network: the table is filled, then networks of random widths that it has not seen are measured, half of them on
the target's step and half at any widths; estimates are compared with that. Beside it stands a classical table on the
same networks: every fused layer timed alone on a grid of widths, linear between, summed (NetAdapt, Yang et al. 2018,
section 3.3). Rows of the file that are not run again are kept, and each network is written when it is done.

`--noise` runs busy loops beside it, on one core or on two. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx_netadapt.ir.errors import ProfileError
from onnx_netadapt.ir.load import load
from onnx_netadapt.network import Narrowing, by_weight
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import random_feeds
from onnx_netadapt.profiler import Accuracy, LatencyModel, Lut, Network, Target, accuracy, fill, probe
from onnx_netadapt.profiler.isolated import Extractor, alone_us
from onnx_netadapt.profiler.structure import Unit, Widths

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
MIN_KEEP = 0.1
LEVELS = (0.1, 0.4, 0.7, 1.0)
"""Widths of the classical table's grid, as shares, brought onto the step."""


def networks() -> dict[str, Callable[[], onnx.ModelProto]]:
    """The six networks, by name: with seeded random weights, or trained ones from the shared files."""
    built = {"MobileNetV1": "mobilenet_v1", "MobileNetV2": "mobilenet_v2", "ResNet18": "resnet18"}
    built["SqueezeNet"] = "squeezenet1_1"
    files = {"YOLOX-nano": "det_yolox_nano", "ResNet20": "derived_torch_cifar10_resnet20"}
    found: dict[str, Callable[[], onnx.ModelProto]] = {name: _exported(known) for name, known in built.items()}
    for name, file in files.items():
        path = SHARED / f"{file}.onnx"
        if path.is_file():
            found[name] = lambda path=path: onnx.load(path)
        else:
            print(f"{name} is left out: {path.name} is not among the shared files", file=sys.stderr)
    return found


def _exported(name: str) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        from onnx_netadapt.models.architectures import ARCHITECTURES
        from onnx_netadapt.models.export import export

        return export(ARCHITECTURES[name])

    return build


@dataclass
class Case:
    """One network on one target, with all that is needed to fill and to judge."""

    name: str
    target: Target
    narrowing: Narrowing
    lut: Lut
    network: Network

    @staticmethod
    def of(name: str, model: onnx.ModelProto, target: Target) -> Case:
        graph = load(model)
        narrowing = by_weight(couple(graph))
        lut = Lut.open(":memory:", target.fingerprint())
        choices = narrowing.choices(probe(target, lut), MIN_KEEP)
        return Case(name, target, narrowing, lut, narrowing.measurable(choices, random_feeds(graph, 1)[0]))


@dataclass(frozen=True)
class Row:
    """One line of the document; the first five cells are its key."""

    network: str
    target: str
    noise: int
    table: str
    widths: str
    found: Accuracy
    fill_s: float
    per_second: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return (self.network, self.target, str(self.noise), self.table, self.widths)

    def __str__(self) -> str:
        raw, f = self.found, self.found.without_drift()
        cells = [
            *self.key, str(len(f.checks)), f"{f.bias:+.1%}", f"{f.mape:.1%}", f"{f.worst:.1%}", f"{f.within(0.05):.0%}",
            f"{f.within(0.1):.0%}", f"{f.spearman:.3f}", f"{raw.drift:.3f}", f"{raw.mape:.1%}", f"{raw.worst:.1%}",
            f"{self.fill_s:.0f}", "" if self.per_second is None else f"{self.per_second:,.0f}",
            "noisy" if f.notes else "",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEAD = """# How true the latency table is

Made by `python benchmarks/lut.py` on {machine}, ONNX Runtime {ort}; tables and networks drawn with seed 0.
Each row: {{n}} unseen networks of random widths, estimated and then measured whole. "in place" is this tool's table;
"isolated layers" is a classical one on the same networks. `noise`: busy loops running beside it. `drift`: how many times as
slow the unpruned network, measured beside each of them, was as the table says: a property of the machine's speed then and
now, and taken out of the columns before it (budgets are judged by such ratios); the two columns after it have it in.
"noisy": the tool itself said that the machine was too noisy.

| network | target | noise | table | widths | n | bias | mean error | worst | within 5% | within 10% | Spearman | drift | mean error with it | worst with it | filling, s | estimates/s | said |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
KEY = 5


def judge(case: Case, noise: int, count: int, *, classical: bool) -> Iterator[Row]:
    """The rows of one network."""
    start = time.perf_counter()
    model = fill(case.lut, case.target, case.network, np.random.default_rng(0))
    seconds = time.perf_counter() - start
    label = str(case.target)
    speed = estimates_per_second(model, case.network)
    found = {}
    for widths, on_edges in (("on the step", True), ("any", False)):
        rng = np.random.default_rng(1 + on_edges)
        found[widths] = accuracy(model, case.target, case.network, rng, count=count, on_edges=on_edges)
        yield Row(case.name, label, noise, "in place", widths, found[widths], seconds, speed)
    if classical:
        start = time.perf_counter()
        table = Classical(case, model)
        seconds = time.perf_counter() - start
        for widths, seen in found.items():
            yield Row(case.name, label, noise, "isolated layers", widths, table.judged(seen), seconds)


def estimates_per_second(model: LatencyModel, network: Network, count: int = 5000) -> float:
    """Estimates of new networks in a second, at any widths, by the wall clock."""
    rng = np.random.default_rng(9)
    low = {g: min(network.edges.get(g) or (w,)) for g, w in network.base.items()}
    drawn = [{g: int(rng.integers(low[g], w + 1)) for g, w in network.base.items()} for _ in range(count)]
    start = time.perf_counter()
    model.estimates(drawn)
    return count / (time.perf_counter() - start)


class Classical:
    """A table of layers timed alone: a grid over the widths that each depends on, linear in between."""

    def __init__(self, case: Case, model: LatencyModel) -> None:
        self._network, self._target = case.network, case.target
        self._known: dict[str, float] = {}
        granularity = model.plan.granularity
        self._levels = {
            g: sorted({min(w, granularity.round_up(max(1, round(w * s)))) for s in LEVELS})
            for g, w in case.network.base.items()
        }
        parts = zip(model.plan.structure.units, model.plan.masks, strict=True)
        self._layers = [self._layer(model, i, unit, mask.groups) for i, (unit, mask) in enumerate(parts)]

    def _layer(self, model: LatencyModel, index: int, unit: Unit, groups: tuple[str, ...]) -> Callable[[Widths], float]:
        """Microseconds of one layer by widths: over a grid, or where it depends on many groups along their diagonal."""
        from scipy.interpolate import RegularGridInterpolator

        base = self._network.base
        if len(groups) > 2:
            shares = np.asarray(LEVELS)
            times = [self._us(model, index, unit, {g: max(1, round(base[g] * s)) for g in groups}) for s in LEVELS]
            return lambda w: float(np.interp(np.mean([w.get(g, base[g]) / base[g] for g in groups]), shares, times))
        axes = [self._levels[g] for g in groups]
        grid = [self._us(model, index, unit, dict(zip(groups, at, strict=True))) for at in itertools.product(*axes)]
        if not groups:
            return lambda _: grid[0]
        short = [i for i, axis in enumerate(axes) if len(axis) < 2]
        values = np.reshape(grid, [len(axis) for axis in axes])
        for i in short:  # a width with one level only: the time does not depend on it
            axes[i] = [axes[i][0], axes[i][0] + 1]
            values = np.repeat(values, 2, axis=i)
        between = RegularGridInterpolator(axes, values, bounds_error=False, fill_value=None)
        return lambda w: float(between([w.get(g, base[g]) for g in groups])[0])

    def _us(self, model: LatencyModel, index: int, unit: Unit, widths: Widths) -> float:
        key = model.plan.keys("classical", {**self._network.base, **widths})[index]
        if key not in self._known:
            full = {**self._network.base, **widths}
            extractor = Extractor(self._network.build(full), self._network.shapes(full))
            self._known[key] = alone_us(self._target, extractor, unit)
        return self._known[key]

    def estimate(self, widths: Widths) -> float:
        """Milliseconds: the plain sum."""
        return sum(layer(widths) for layer in self._layers) / 1e3

    def judged(self, seen: Accuracy) -> Accuracy:
        """The same measured networks with this table's estimates; the drift is the factor that makes the base right."""
        base_ms = seen.checks[0].reference_ms
        checks = tuple(replace(c, estimate_ms=self.estimate(c.widths), doubtful_share=0.0) for c in seen.checks)
        return Accuracy(checks, base_ms / self.estimate(self._network.base), seen.notes)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Busy loops beside what is measured."""
    started = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def _spin() -> None:
    numbers = np.random.default_rng(0).standard_normal(1 << 20)
    while True:
        numbers = numbers * 1.0000001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of networks, with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--noise", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--count", type=int, default=50, help="networks on the step, and as many at any widths")
    parser.add_argument("--quick", action="store_true", help="6 networks each, no classical table, nothing written")
    parser.add_argument("--resume", action="store_true", help="leave out networks whose rows are there")
    parser.add_argument("--no-classical", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/lut.md"))
    arguments = parser.parse_args()
    text = arguments.target + (f"{',' if ':' in arguments.target else ':'}threads={arguments.threads}")
    target = Target.parse(text)
    rows = kept_rows(arguments.out)
    wanted = [name.lower() for name in arguments.only.split(",") if name]
    for name, build in networks().items():
        if wanted and name.lower() not in wanted:
            continue
        if arguments.resume and any(key[:3] == (name, str(target), str(arguments.noise)) for key in rows):
            continue
        run(name, build(), target, arguments, rows)


def run(
    name: str, model: onnx.ModelProto, target: Target, arguments: argparse.Namespace, rows: dict[tuple[str, ...], str]
) -> None:
    """Judges one network and writes its rows."""
    case = Case.of(name, model, target)
    began = time.perf_counter()
    classical = not (arguments.quick or arguments.no_classical or arguments.noise)
    with neighbours(arguments.noise):
        try:
            for row in judge(case, arguments.noise, 6 if arguments.quick else arguments.count, classical=classical):
                rows[row.key] = str(row)
                print(row, flush=True)
        except ProfileError as error:
            print(f"{name}: {error}", flush=True)
            key = (name, str(target), str(arguments.noise), "in place", "refused")
            rows[key] = f"| {' | '.join(key)} | {' | '.join(['-'] * 12)} | {error} |"
    print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if not arguments.quick:
        write(arguments.out, rows)


def write(path: Path, rows: Mapping[tuple[str, ...], str]) -> None:
    """The document, whole or not at all."""
    import onnxruntime

    head = HEAD.format(machine=machine(), ort=onnxruntime.__version__).replace("{n} unseen", "`n` unseen")
    draft = path.with_suffix(".tmp")
    draft.write_text(head + "\n".join(rows.values()) + "\n")
    draft.replace(path)


def kept_rows(path: Path) -> dict[tuple[str, ...], str]:
    """The rows of earlier runs, by their key."""
    lines = path.read_text().splitlines() if path.is_file() else []
    cells: Sequence[list[str]] = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {
        tuple(c[1 : 1 + KEY]): line for c, line in zip(cells, lines, strict=True) if len(c) > KEY + 1 and c[3].isdigit()
    }


def machine() -> str:
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
