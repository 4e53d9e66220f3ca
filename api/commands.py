"""The other commands: prune, measure, profile and verify, as functions that return what they found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.ir.errors import InputError, PruneError, TargetError
from onnx_netadapt.ir.graph import Graph, Shape
from onnx_netadapt.ir.load import Source, has_external_data, load, read_model
from onnx_netadapt.ir.write import save
from onnx_netadapt.network import Narrowing, by_weight, selected_groups
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import Equivalence, check, random_feeds
from onnx_netadapt.passes.prune import Pruned
from onnx_netadapt.paths import check_output, check_outputs_apart
from onnx_netadapt.profiler import Accuracy, LatencyModel, Lut, Target, accuracy, fill, measure, probe
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import write_json
from onnx_netadapt.summary import latency_facts

Shapes = Mapping[str, Shape]

CHECKED_BYTES = 300_000_000
"""Models up to this size are checked by `prune` itself: the check holds two copies of the original."""


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What `prune` did: parameters and multiply-accumulates before and after, and where it is."""

    output: str
    params: tuple[int, int]
    macs: tuple[int, int]
    widths: Mapping[str, int]
    check: str

    def __str__(self) -> str:
        (p0, p1), (m0, m1) = self.params, self.macs
        return (
            f"{self.output}: parameters {p0:,} -> {p1:,} ({p1 / max(p0, 1):.2f}x), MACs {m0:,} -> {m1:,} "
            f"({m1 / max(m0, 1):.2f}x); latency was not measured: see `onnx-netadapt measure`\n"
            f"  zeroing equals removing: {self.check}"
        )


def prune_model(
    source: Source,
    *,
    keep: float | None = None,
    widths: Mapping[str, int] | None = None,
    exclude: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    shapes: Shapes | None = None,
) -> tuple[Pruned, Narrowing, dict[str, int]]:
    """The model with a share of every group kept, or at given widths (groups not named stay whole)."""
    if (keep is None) == (widths is None):
        raise InputError("prune: give either --keep SHARE or --widths FILE")
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep {keep}: must be above 0 and at most 1")
    coupling = couple(load(source, shapes=shapes))
    narrowing = by_weight(coupling)
    if widths is None:
        groups = selected_groups(coupling, exclude, only)
        widths = {group.id: max(1, round(group.units * float(keep or 1))) for group in groups}
    chosen = narrowing.full | _checked_widths(narrowing, widths)
    return narrowing.pruned(chosen), narrowing, chosen


def _checked_widths(narrowing: Narrowing, widths: Mapping[str, int]) -> dict[str, int]:
    for name, width in widths.items():
        if name not in narrowing.full:
            raise InputError(f"--widths: there is no group '{name}'; `inspect` lists {len(narrowing.full)} groups")
        if not isinstance(width, int) or not 1 <= width <= narrowing.full[name]:
            raise InputError(f"--widths: group {name} has {narrowing.full[name]} units, and {width!r} was asked for")
    return dict(widths)


def prune_file(
    model: Path,
    output: Path,
    keep: float | None,
    widths: Path | None,
    exclude: tuple[str, ...],
    only: tuple[str, ...],
    shapes: Shapes,
) -> PruneReport:
    """`prune`: writes the model and its plan."""
    check_output(output)
    check_outputs_apart(model, output)
    asked = _read_json(widths, "--widths") if widths is not None else None
    pruned, narrowing, chosen = prune_model(model, keep=keep, widths=asked, exclude=exclude, only=only, shapes=shapes)
    checked = _proved(narrowing.graph, pruned)
    write_json(plan_path(output), pruned.plan)
    save(pruned.model, output, external=has_external_data(model))
    sizes, full = narrowing.sizes, narrowing.full
    params, macs = ((count(full), count(chosen)) for count in (sizes.params, sizes.macs))
    return PruneReport(str(output), params, macs, chosen, checked)


def _proved(graph: Graph, pruned: Pruned) -> str:
    """What the zeroing check of a pruned model said; PruneError when it failed."""
    if graph.model.ByteSize() > CHECKED_BYTES:
        return f"not checked, the model is above {CHECKED_BYTES / 1e6:.0f} MB; `onnx-netadapt verify` does it"
    try:
        found = check(graph.model, pruned.model, pruned.plan, random_feeds(graph, 1))
    except TargetError as error:
        return f"not checked: {error}"
    if not found.passed:
        raise PruneError(
            f"the pruned model differs from the zeroed original by {found.worst:.2g} of the output's range "
            f"(allowed {found.tolerance:.2g}); nothing was written: this is a defect, please report the model"
        )
    return f"passed, worst difference {found.worst:.2g} of the output's range"


def plan_path(model: Path) -> Path:
    """Where the plan of a written model lies."""
    return model.with_name(model.name.removesuffix(".onnx") + ".plan.json")


def _read_json(path: Path, option: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{option} {path}: must hold one JSON object")
    return found


@dataclass(frozen=True, slots=True)
class Measurement:
    """What `measure` found."""

    model: str
    target: str
    shapes: Mapping[str, Shape]
    latency_ms: Mapping[str, Any]
    busy: bool

    def __str__(self) -> str:
        told = self.latency_ms
        note = "; the machine was busy, try again when it is quiet" if self.busy else ""
        return (
            f"{self.model}: {told['median']:.3f} ms on {self.target} (median of {told['runs']} runs, "
            f"p10 {told['p10']:.3f}, p90 {told['p90']:.3f}, {told['clock']} clock, "
            f"wall {told['wall_median']:.3f}){note}"
        )


def measure_model(source: Source, *, target: str = "cpu", shapes: Shapes | None = None, runs: int = 50) -> Measurement:
    """The latency of a whole model on a target with random inputs."""
    where = Target.parse(target)
    graph = load(source, shapes=shapes)
    found = measure(graph.model, where, random_feeds(graph, 1)[0], min_runs=max(runs, 1), min_seconds=1.0)
    name = str(source) if isinstance(source, str | Path) else "model"
    return Measurement(
        name,
        str(where),
        {port.name: graph.shapes[port.name] for port in graph.inputs},
        latency_facts(found),
        found.busy,
    )


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What `profile` found: the target's granularity, the table's size, and how far its estimates are off."""

    model: str
    target: str
    lut: str
    entries: int
    granularity: str
    accuracy: Accuracy | None

    def __str__(self) -> str:
        quality = str(self.accuracy) if self.accuracy is not None else "not checked (--check 0)"
        return f"{self.lut}: {self.entries} entries for {self.target}, granularity {self.granularity}\n{quality}"


def latency_model(narrowing: Narrowing, lut: Path, target: str, min_keep: float = 0.1) -> LatencyModel:
    """The latency model of a network from a table, filled where it does not hold enough."""
    where = Target.parse(target)
    table = Lut.open(lut, where.fingerprint())
    feeds = random_feeds(narrowing.graph, 1)[0]
    choices = narrowing.choices(probe(where, table), min_keep)
    return fill(table, where, narrowing.measurable(choices, feeds), np.random.default_rng(0))


def profile_model(
    source: Source,
    lut: Path | None,
    target: str,
    shapes: Shapes | None,
    variants: int,
    min_keep: float,
    seed: int,
    progress: Progress,
) -> ProfileReport:
    """`profile`: fills the table and judges it by unseen networks of random widths."""
    if lut is None:
        raise InputError("profile: give the table with --lut FILE; it is made when it does not exist")
    check_output(lut)
    where = Target.parse(target)
    graph = load(source, shapes=shapes)
    coupling = couple(graph)
    narrowing = by_weight(coupling)
    table = Lut.open(lut, where.fingerprint())
    feeds = random_feeds(graph, 1)[0]
    with progress.phase("filling the latency table") as report:
        granularity = probe(where, table)
        network = narrowing.measurable(narrowing.choices(granularity, min_keep), feeds)
        model = fill(table, where, network, np.random.default_rng(seed), progress=report)
    found = None
    if variants > 0:
        with progress.phase("judging it by unseen networks") as report:
            found = accuracy(model, where, network, np.random.default_rng(seed + 1), count=variants, progress=report)
    entries = sum(1 for _ in table.entries())
    return ProfileReport(str(source), str(where), str(lut), entries, str(granularity), found)


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: the zeroing check of the plan, and whether the file has the structure the plan gives."""

    passed: bool
    worst: float
    tolerance: float
    samples: int
    refined: bool
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"FAILED: {self.problem}"
        what = "the same model before its weights were refined" if self.refined else "the model"
        return (
            f"{'passed' if self.passed else 'FAILED'}: zeroing equals removing for {what}, worst difference "
            f"{self.worst:.2g} of the output's range (allowed {self.tolerance:.2g}, {self.samples} inputs)"
        )


def verify_files(
    original: Path,
    pruned: Path,
    plan: Path | None,
    data: str | None,
    preprocess: str | None,
    shapes: Shapes,
) -> Verification:
    """`verify`: the zeroing check, from the plan beside the pruned model."""
    read_model(original)
    told = _read_json(plan or plan_path(pruned), "--plan")
    return verify_models(original, pruned, told, shapes=shapes, data=data, preprocess=preprocess)


def verify_models(
    original: Source,
    pruned: Source,
    plan: Mapping[str, Any],
    *,
    shapes: Shapes | None = None,
    data: str | None = None,
    preprocess: str | None = None,
) -> Verification:
    """The zeroing check, from the plan alone; weights that were refined are set back to the original's first."""
    graph = load(original, shapes=shapes)
    try:
        sliced, refined, problem = unrefined(graph, read_model(pruned), plan)
        if problem:
            return Verification(False, float("inf"), 0.0, 0, refined, problem)
        feeds = _verify_feeds(graph, data, preprocess)
        found: Equivalence = check(graph.model, sliced, plan, feeds)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"the plan does not fit the original: {error!r}; is it the plan of this model?") from error
    return Verification(found.passed, found.worst, found.tolerance, found.samples, refined)


def unrefined(graph: Graph, small: onnx.ModelProto, plan: Mapping[str, Any]) -> tuple[onnx.ModelProto, bool, str]:
    """The pruned model with the original's weights, sliced by the plan, in place of its own; whether they differed; and
    a problem when a tensor has not the shape that the plan gives it.
    """
    gone: dict[str, dict[int, set[int]]] = {}
    for group in plan.get("groups", ()):
        for member in group["members"]:
            if "node" not in member:
                gone.setdefault(member["tensor"], {}).setdefault(member["axis"], set()).update(member["removed"])
    model = onnx.ModelProto()
    model.CopyFrom(small)
    theirs = load(small).constants
    refined = False
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, constant in graph.constants.items():
        if name not in theirs:
            continue
        array = constant.array()
        for axis, positions in gone.get(name, {}).items():
            array = np.delete(array, sorted(positions), axis=axis)
        if name in gone and array.shape != theirs[name].shape:
            return (
                model,
                refined,
                (f"tensor '{name}' has shape {list(theirs[name].shape)}, and the plan gives {list(array.shape)}"),
            )
        if array.shape == theirs[name].shape and not np.array_equal(array, theirs[name].array()):
            node = theirs[name].node
            target = tensors[name] if node is None else model.graph.node[node].attribute[0].t
            target.CopyFrom(onnx.numpy_helper.from_array(array, target.name))
            refined = True
    return model, refined, ""


def _verify_feeds(graph: Graph, data: str | None, preprocess: str | None) -> list[dict[str, Any]]:
    if data is None:
        return random_feeds(graph, 4)
    from onnx_netadapt.data import load_data

    inputs = {port.name: (port.dims, onnx.helper.tensor_dtype_to_np_dtype(port.dtype)) for port in graph.inputs}
    found = load_data(data, inputs, preprocess)
    size = graph.shapes[graph.inputs[0].name][0]
    return [found.read(np.arange(place, place + size) % found.n) for place in range(0, min(found.n, 4 * size), size)]
