"""The other commands: prune, measure, profile and verify, as functions that return what they found."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.elastic_record import narrowing_of, wanted_record, without_record
from onnx_netadapt.ir.downsample import same_size
from onnx_netadapt.ir.errors import InputError, TargetError
from onnx_netadapt.ir.external import Lazy, Weights, byte_size, split
from onnx_netadapt.ir.graph import Constant, Graph, Shape
from onnx_netadapt.ir.load import Source, files_of, load, parts, read_apart
from onnx_netadapt.ir.write import PROTOBUF_LIMIT, Array, move_files, save, write_files
from onnx_netadapt.network import Narrowing, by_weight, check_prunable, means_note, selected_groups, why_whole
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import Equivalence, check, check_files, check_runs, random_feeds
from onnx_netadapt.passes.prune import Pruned
from onnx_netadapt.paths import check_output
from onnx_netadapt.profiler import (
    Accuracy,
    LatencyModel,
    Lut,
    Target,
    accuracy,
    appraise,
    fill,
    measure,
    probe,
    reference_of,
)
from onnx_netadapt.progress import Progress
from onnx_netadapt.report import write_json
from onnx_netadapt.resolution import InputSize, at_size, data_at, planned_size
from onnx_netadapt.summary import latency_facts

Shapes = Mapping[str, Shape]

IN_MEMORY_BYTES = 300_000_000
"""Models up to this size are checked in memory, which holds several copies of them; larger ones from the disk."""


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What `prune` did: parameters and multiply-accumulates before and after, and where it is."""

    output: str
    params: tuple[int, int]
    macs: tuple[int, int]
    widths: Mapping[str, int]
    check: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        (p0, p1), (m0, m1) = self.params, self.macs
        return (
            f"{self.output}: parameters {p0:,} -> {p1:,} ({p1 / max(p0, 1):.2f}x), MACs {m0:,} -> {m1:,} "
            f"({m1 / max(m0, 1):.2f}x); latency was not measured: see `onnx-netadapt measure`\n"
            f"  zeroing equals removing: {self.check}" + "".join(f"\n  note: {note}" for note in self.notes)
        )


def prune_model(
    source: Source,
    *,
    keep: float | None = None,
    widths: Mapping[str, int] | None = None,
    exclude: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    renormalize: bool = False,
    shapes: Shapes | None = None,
    on_disk: bool = False,
    elastic: bool | None = None,
) -> tuple[Pruned, Narrowing, dict[str, int]]:
    """The model with a share of every group kept, or at given widths (groups not named stay whole).

    `renormalize` also prunes channels that LayerNormalization and its like mix (see `passes.coupling.couple`).
    `on_disk` leaves large external data where it is (see `ir.load`); the pruned model's lies in `Pruned.weights` then.
    A model of train-elastic is cut in the order that it was trained in, unless `elastic` is False.
    """
    if (keep is None) == (widths is None):
        raise InputError("prune: give either --keep SHARE or --widths FILE")
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep {keep}: must be above 0 and at most 1")
    graph = load(source, shapes=shapes, on_disk=on_disk)
    record = wanted_record(graph, elastic)
    coupling = couple(graph, renormalize=renormalize if record is None else record.renormalize)
    check_prunable(coupling)
    if not coupling.groups:
        check_runs(coupling.graph)
        raise InputError(f"there is nothing to prune in this model{why_whole(coupling)}; `inspect` shows every barrier")
    narrowing = by_weight(coupling) if record is None else narrowing_of(record, coupling)
    if widths is None:
        groups = selected_groups(coupling, exclude, only)
        # at most the share: 1e-9 stands for the rounding of products like 0.29 * 100
        widths = {group.id: max(1, int(group.units * float(keep or 1) + 1e-9)) for group in groups}
    chosen = narrowing.full | _checked_widths(narrowing, widths)
    pruned = narrowing.pruned(chosen)
    return replace(pruned, model=without_record(pruned.model)), narrowing, chosen


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
    renormalize: bool,
    shapes: Shapes,
    elastic: bool | None = None,
) -> PruneReport:
    """`prune`: writes the model and its plan."""
    files = files_of(model)  # before the model is in memory: the file is parsed for it
    check_output(output, inputs=files)
    asked = _read_json(widths, "--widths") if widths is not None else None
    external = len(files) > 1
    pruned, narrowing, chosen = prune_model(
        model,
        keep=keep,
        widths=asked,
        exclude=exclude,
        only=only,
        renormalize=renormalize,
        shapes=shapes,
        on_disk=True,
        elastic=elastic,
    )
    if pruned.weights or byte_size(narrowing.graph.model) > IN_MEMORY_BYTES:
        checked = _proved_and_saved(narrowing.graph, pruned, output, external=external)
    else:
        checked = _proved(partial(check, narrowing.graph.model, pruned.model, pruned.plan), narrowing.graph)
        save(pruned.model, output, external=external)
    write_json(plan_path(output), pruned.plan)
    sizes, full = narrowing.sizes, narrowing.full
    params, macs = ((count(full), count(chosen)) for count in (sizes.params, sizes.macs))
    notes = (*narrowing.graph.notes, *means_note(pruned.plan))
    return PruneReport(str(output), params, macs, chosen, checked, notes)


def _proved_and_saved(graph: Graph, pruned: Pruned, output: Path, *, external: bool) -> str:
    """`_proved` and `save` for a large model: both networks of the check are read from the disk, one by one."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        written = Path(folder) / output.name
        write_files(pruned.model, written, pruned.weights)
        original = _apart(graph)
        checked = _proved(lambda feeds: check_files(*original, written, pruned.plan, feeds, Path(folder)), graph)
        if pruned.weights or external or byte_size(pruned.model) >= PROTOBUF_LIMIT:
            move_files(written, output)
        else:
            save(pruned.model, output)
    return checked


def _proved(run: Callable[[list[dict[str, Array]]], Equivalence], graph: Graph) -> str:
    """What the zeroing check of a pruned model said; PruneError when it failed, TargetError when it cannot be made."""
    try:
        found = run(random_feeds(graph, 1))
    except TargetError as error:
        raise TargetError(f"{error}; what cannot run cannot be proved right either, so nothing was written") from error
    found.require()
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
    capability: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [f"{self.lut}: {self.entries} entries for {self.target} ({_HOW[self.capability]})"]
        told.append(f"granularity: {self.granularity}")
        if self.accuracy is not None:
            return "\n".join([*told, str(self.accuracy)])
        return "\n".join([*told, *(f"Warning: {note}" for note in self.notes), "not checked (--check 0)"])


_HOW = {
    "per_node": "units timed in place",
    "isolated": "it tells no times of nodes: units timed alone",
    "whole": "it runs only whole networks: units timed on the cpu provider, calibrated by whole networks here",
}


def latency_model(narrowing: Narrowing, lut: Path, target: str, min_keep: float = 0.1) -> LatencyModel:
    """The latency model of a network from what an existing table holds; InputError if it does not exist."""
    where = Target.parse(target)
    Lut.open(lut).close()
    table = Lut.open(lut, where.fingerprint())
    feeds = random_feeds(narrowing.graph, 1)[0]
    choices = narrowing.choices(probe(where, table), min_keep)
    return appraise(table, where, narrowing.measurable(choices, feeds))


def profile_model(
    source: Source,
    lut: Path | None,
    target: str,
    shapes: Shapes | None,
    variants: int,
    min_keep: float,
    seed: int,
    progress: Progress,
    merge: Sequence[Path] = (),
) -> ProfileReport:
    """`profile`: takes over other tables, fills the table and judges it by unseen networks of random widths."""
    if lut is None:
        raise InputError("profile: give the table with --lut FILE; it is made when it does not exist")
    check_output(lut)
    where = Target.parse(target)
    graph = load(source, shapes=shapes)
    coupling = couple(graph)
    narrowing = by_weight(coupling)
    table = Lut.open(lut, where.fingerprint())
    for other in merge:
        with Lut.open(other) as theirs:
            progress.say(f"{table.merge(theirs)} entries taken over from {other}")
    feeds = random_feeds(graph, 1)[0]
    with progress.phase("filling the latency table") as report:
        granularity = probe(where, table)
        network = narrowing.measurable(narrowing.choices(granularity, min_keep), feeds)
        reference = reference_of(where, network)
        model = fill(table, where, network, np.random.default_rng(seed), reference=reference, progress=report)
    found = None
    if variants > 0:
        with progress.phase("judging it by unseen networks") as report:
            rng = np.random.default_rng(seed + 1)
            found = accuracy(model, where, network, rng, count=variants, reference=reference, progress=report)
    entries = len(table)
    told = str(model.plan.capability)
    return ProfileReport(str(source), str(where), str(lut), entries, str(granularity), found, told, model.notes)


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
    graph = load(original, shapes=shapes, on_disk=True)
    try:
        size = planned_size(graph, plan)
        feeds = _verify_feeds(graph, size, data, preprocess)
        graph = graph if size is None else at_size(graph, size)
        read = read_apart(pruned)
        small, refined, problem = unrefined(graph, *read, plan)
        if size is not None and size.inside and not same_size(graph, parts(*read)[1]):
            problem = f"the model does not make its image {size}, as the plan says"
        if problem:
            return Verification(False, float("inf"), 0.0, 0, refined, problem)
        found = _checked(graph, *small, plan, feeds)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"the plan does not fit the original: {error!r}; is it the plan of this model?") from error
    return Verification(found.passed, found.worst, found.tolerance, found.samples, refined)


def _checked(
    graph: Graph, small: onnx.ModelProto, weights: Weights, plan: Mapping[str, Any], feeds: list[dict[str, Array]]
) -> Equivalence:
    """The zeroing check; of large models from files in a temporary folder."""
    if not (weights or graph.weights) and byte_size(graph.model) <= IN_MEMORY_BYTES:
        return check(graph.model, small, plan, feeds)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "pruned.onnx"
        write_files(small, written, weights)
        return check_files(*_apart(graph), written, plan, feeds, Path(folder))


def _apart(graph: Graph) -> tuple[onnx.ModelProto, dict[str, Lazy]]:
    """The skeleton of a graph's model, and all its large weights, wherever they are."""
    skeleton, held = split(graph.model)
    return skeleton, {**held, **graph.weights}


def unrefined(
    graph: Graph, small: onnx.ModelProto, weights: Weights, plan: Mapping[str, Any]
) -> tuple[tuple[onnx.ModelProto, Weights], bool, str]:
    """The pruned model with the original's weights, sliced by the plan, in place of its own; whether they differed; and
    a problem when a tensor has not the shape that the plan gives it. `weights` are those of its placeholders.
    """
    gone: dict[str, dict[int, set[int]]] = {}
    for group in plan.get("groups", ()):
        for member in group["members"]:
            if "node" not in member:
                gone.setdefault(member["tensor"], {}).setdefault(member["axis"], set()).update(member["removed"])
    model, apart = onnx.ModelProto(), dict(weights)
    model.CopyFrom(small)
    theirs = parts(small, weights)[1]
    refined = False
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, constant in graph.constants.items():
        if name not in theirs:
            continue
        array = _without(constant, gone.get(name, {}))
        shape = theirs[name].shape
        if name in gone and array.shape != shape:
            problem = f"tensor '{name}' has shape {list(shape)}, and the plan gives {list(array.shape)}"
            return (model, apart), refined, problem
        if array.shape != shape or np.array_equal(array, theirs[name].array()):
            continue
        refined = True
        if name in apart:
            apart[name] = Lazy(shape, array.dtype, partial(_without, constant, gone.get(name, {})))
        else:
            node = theirs[name].node
            target = tensors[name] if node is None else model.graph.node[node].attribute[0].t
            target.CopyFrom(onnx.numpy_helper.from_array(array, target.name))
    return (model, apart), refined, ""


def _without(constant: Constant, gone: Mapping[int, set[int]]) -> Array:
    """A constant without the positions that are gone from its axes."""
    array = constant.array()
    for axis, positions in gone.items():
        array = np.delete(array, sorted(positions), axis=axis)
    return array


def _verify_feeds(
    graph: Graph, planned: InputSize | None, data: str | None, preprocess: str | None
) -> list[dict[str, Any]]:
    """Inputs for the check, at the size that the plan goes with."""
    if data is None:
        return random_feeds(graph if planned is None else at_size(graph, planned), 4)
    from onnx_netadapt.data import load_data

    inputs = {port.name: (port.dims, onnx.helper.tensor_dtype_to_np_dtype(port.dtype)) for port in graph.inputs}
    found = load_data(data, inputs, preprocess)
    found = found if planned is None else data_at(found, planned)
    size = graph.shapes[graph.inputs[0].name][0]
    return [found.read(np.arange(place, place + size) % found.n) for place in range(0, min(found.n, 4 * size), size)]
