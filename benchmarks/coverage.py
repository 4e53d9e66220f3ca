"""What can be pruned: writes docs/coverage.md.

    python benchmarks/coverage.py [--only NAME] [--rivals] [--out docs/coverage.md]

Every model is pruned at keep 0.75, 0.5 and 0.25 with random units, and checked against the zeroed original with ONNX
Runtime's optimizations off and on. Models: the shared files (skipped when absent), the light models of the onnx
package, the architectures and micro-nets of `models/`, exported by both exporters with shared zero biases, and what
other tools make of those exports (`coverage_variants.py`). Weights that all have one value are replaced by random ones:
a check over channels that cannot be told apart proves nothing. That the check sees something is shown by planting wrong
plans, one group at a time.
`--rivals` makes the other table: onnxsim and Torch-Pruning beside us on the full networks, where they are installed
(`coverage_rivals.py`).
Rows of the file that are not run again are kept, so that a run can be stopped and continued.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from coverage_rivals import NETWORKS, RATIO, RIVALS, elements
from coverage_variants import VARIANTS
from onnx import numpy_helper
from onnx_netadapt.ir import Graph, NetAdaptError, load
from onnx_netadapt.models.export import export
from onnx_netadapt.models.spec import Architecture
from onnx_netadapt.passes.barriers import weight_axes
from onnx_netadapt.passes.coupling import Coupling, constant_tensors, couple
from onnx_netadapt.passes.equivalence import check, random_feeds, run_plain
from onnx_netadapt.passes.prune import prune

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
EXPORTS = (("torchscript", 9), ("torchscript", 17), ("dynamo", 18), ("dynamo", 21))
KEEPS = (0.75, 0.5, 0.25)
CONTROLS = 4
"""Groups per model for which a wrong plan is planted."""

RIVAL_SECONDS = 300
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
"""Types of sums that are shown as outputs: ONNX Runtime 1.31.1's optimizer crashes on some that are float16."""

OURS = ("FAILED", "BLIND")
"""Outcomes that are mistakes of ours: a wrong model, or a check that sees nothing."""


@dataclass(frozen=True)
class Subject:
    """A model, how to get it, and the network it was exported from."""

    name: str
    source: Callable[[], onnx.ModelProto | Path]
    architecture: Architecture | None = None


def subjects() -> Iterator[Subject]:
    for path in sorted(SHARED.glob("*.onnx")):
        yield Subject(path.stem, lambda path=path: path)
    for name, full in NETWORKS.items():
        small = full.quickest
        for exporter, opset in EXPORTS:
            if opset >= full.min_opset:
                yield Subject(f"{name}, {exporter} {opset}", exported(small, exporter, opset), small)
    for name, full in NETWORKS.items():
        for variant in VARIANTS:
            yield Subject(f"{name}, {variant}", varied(full.quickest, variant), full.quickest)
    for path in sorted(LIGHT.glob("*.onnx")):
        yield Subject(path.stem, lambda path=path: path)


def exported(architecture: Architecture, exporter: str, opset: int) -> Callable[[], onnx.ModelProto]:
    return lambda: export(
        architecture, exporter=exporter, opset=opset, distinct_biases=False, dynamic_batch=opset != 21
    )


def varied(architecture: Architecture, variant: str) -> Callable[[], onnx.ModelProto]:
    return lambda: VARIANTS[variant](
        export(architecture, opset=17, distinct_biases=True), architecture.example_inputs(seed=3)
    )


@dataclass
class Weights:
    """Elements of contracted weights: all that are not tied to the model's own inputs and outputs alone, those of them
    that no removable unit runs through, by reason, and whether they are convolutional kernels.
    """

    total: int
    held: Counter[str]
    kernels: int

    @property
    def share(self) -> float:
        return 1 - sum(self.held.values()) / self.total if self.total else 1.0


def weights_of(coupling: Coupling) -> Weights:
    graph, constant = coupling.graph, constant_tensors(coupling.graph)
    axes: dict[str, list[tuple[str, int]]] = {}
    for name, axis in weight_axes(graph, coupling.relations, constant):
        axes.setdefault(name, []).append(axis)
    reasons: dict[str, list[str]] = {}
    for barrier in coupling.barriers:
        reasons.setdefault(barrier.tensor, []).append(barrier.reason)
    found = Weights(0, Counter(), 0)
    for name, its in axes.items():
        size = int(np.prod(graph.shapes[name]))
        why = [reason for reason in reasons.get(name, ["no reason found"]) if "put of the model" not in reason]
        free = any(axis in coupling.layers for axis in its)
        if free or why:
            found.total += size
            found.kernels += len(graph.shapes[name]) > 3
        if why and not free:
            found.held[why[0]] += size
    return found


def kind_of(subject: Subject, coupling: Coupling, weights: Weights) -> str:
    """The network's family where it is known, else what its products show."""
    if subject.architecture is not None and subject.architecture.family not in ("micro", "regression"):
        return subject.architecture.family
    graph, constant = coupling.graph, constant_tensors(coupling.graph)
    attention = any(
        len(graph.nodes[item.node].inputs) == 2 and not set(graph.nodes[item.node].inputs) & constant
        for item in coupling.relations.contracts
    )
    return "transformer" if attention else "conv" if weights.kernels else "other"


def with_logits(graph: Graph) -> onnx.ModelProto:
    """The model with one more output for each: the nearest sum of products that it comes from. Behind a saturated
    softmax or sigmoid nothing can be told apart, and what is tied to an output is tied to that sum just as well.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    constant = constant_tensors(graph)
    sums = {item.node for item in couple(graph).relations.contracts}
    shown = {port.name for port in graph.outputs}
    for port in graph.outputs:
        node = graph.producer.get(port.name)
        while node is not None and node.index not in sums:
            data = [name for name in node.inputs if name and name not in constant]
            node = graph.producer.get(data[0]) if len(data) == 1 else None
        name = "" if node is None else node.outputs[0]
        if name and name not in shown and graph.dtypes.get(name) in FLOATS:
            shown.add(name)
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, graph.dtypes[name], None))
    return model


def alike(model: onnx.ModelProto) -> bool:
    """Whether every kernel and matrix of a model repeats one value: its channels cannot be told apart then."""
    weights = [t for t in model.graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT]
    return bool(weights) and not any(np.ptp(numpy_helper.to_array(tensor)) for tensor in weights)


def filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every tensor of one repeated value replaced by random ones: kernels and matrices such that sizes
    of activations stay, vectors between 0.5 and 1.5 (some are variances).
    """
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < 2 or np.ptp(array):
            continue
        if array.ndim > 1:
            new = rng.standard_normal(array.shape, np.float32) * np.sqrt(2 / (array.size / array.shape[0]))
        else:
            new = rng.uniform(0.5, 1.5, array.shape)
        tensor.CopyFrom(numpy_helper.from_array(new.astype(np.float32), tensor.name))
    return model


def examine(subject: Subject, graph: Graph) -> dict[str, Any]:
    """Everything that the table says of one model."""
    feeds = [subject.architecture.example_inputs(seed=3)] if subject.architecture else random_feeds(graph, 1)
    began = time.perf_counter()
    coupling = couple(graph)
    seconds = time.perf_counter() - began
    weights = weights_of(coupling)
    found: dict[str, Any] = {"groups": len(coupling.groups), "worst": 0.0, "passed": True, "weights": weights}
    found["kind"] = kind_of(subject, coupling, weights)
    for keep in KEEPS:
        kept = random_kept(coupling, keep)
        began = time.perf_counter()
        pruned = prune(coupling, kept)
        if keep == RATIO:
            found["seconds"] = seconds + time.perf_counter() - began
            found["removed"] = 1 - elements(pruned.model) / max(elements(graph.model), 1)
            found["planted"], found["noticed"] = plant(coupling, kept, feeds)
        for optimize in (False, True):
            result = check(graph.model, pruned.model, pruned.plan, feeds, optimize=optimize)
            found["worst"] = max(found["worst"], result.worst)
            found["passed"] = found["passed"] and result.passed
    found["renormalized"] = renormalized(coupling, feeds)
    return found


def renormalized(coupling: Coupling, feeds: list[dict[str, np.ndarray]]) -> tuple[float, float, bool] | None:
    """With --renormalize: the prunable share, what goes at the ratio of the tables, and whether the checks pass; None
    where the option changes nothing.
    """
    graph = coupling.graph
    freer = couple(graph, renormalize=True)
    if freer.layers.keys() == coupling.layers.keys():
        return None
    pruned = prune(freer, random_kept(freer, RATIO))
    removed = 1 - elements(pruned.model) / elements(graph.model)
    checks = [check(graph.model, pruned.model, pruned.plan, feeds, optimize=flag).passed for flag in (False, True)]
    return weights_of(freer).share, removed, all(checks)


def random_kept(coupling: Coupling, keep: float) -> dict[str, np.ndarray]:
    """Random units of every group: at most the share to keep, at least one."""
    rng = np.random.default_rng(int(100 * keep))
    return {
        group.id: np.sort(rng.permutation(group.units)[: max(1, int(group.units * keep))]) for group in coupling.groups
    }


def plant(coupling: Coupling, kept: dict[str, np.ndarray], feeds: list[dict[str, np.ndarray]]) -> tuple[int, int]:
    """Negative controls: how many plans with wrong indices for one group were tried, and how many the check noticed."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(coupling.groups))[:CONTROLS]
    planted = noticed = 0
    for group in [coupling.groups[number] for number in sorted(chosen)]:
        pruned = prune(coupling, {group.id: kept[group.id]})
        wrong = swapped(coupling, pruned.plan)
        if wrong != pruned.plan:
            planted += 1
            noticed += not check(coupling.graph.model, pruned.model, wrong, feeds).passed
    return planted, noticed


def swapped(coupling: Coupling, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with half of the consumers' removed positions replaced by positions that stay."""
    wrong = copy.deepcopy(plan)
    for member in (member for group in wrong["groups"] for member in group["members"] if member["role"] == "consumer"):
        length = coupling.graph.shapes[member["tensor"]][member["axis"]]
        gone = member["removed"]
        stay = sorted(set(range(length)) - set(gone))
        count = min(len(stay), (len(gone) + 1) // 2)
        member["removed"] = sorted([*gone[count:], *stay[:count]])
    return wrong


def row(subject: Subject) -> tuple[str, bool]:
    """The line of a model, and whether it is as it should be: what cannot run must say why, all else must pass."""
    try:
        graph = load(subject.source())
        if alike(graph.model):
            graph = load(filled(graph.model))
        graph = load(with_logits(graph))
        feeds = [subject.architecture.example_inputs(seed=3)] if subject.architecture else random_feeds(graph, 1)
        run_plain(graph.model, feeds, optimize=False)
    except NetAdaptError as error:
        told = " ".join(str(error).replace(f"{SHARED}/", "").split())[:110].replace("|", "/")
        return f"| {subject.name} | - | - | - | - | - | - | exit code {error.exit_code}: {told} | - | - | - |", True
    found = examine(subject, graph)
    weights: Weights = found["weights"]
    held = "; ".join(f"{reason} ({count:,})" for reason, count in weights.held.most_common(3)) or "-"
    blind = found["planted"] > 0 and found["noticed"] == 0
    freer = found["renormalized"]
    passed = found["passed"] and (freer is None or freer[2])
    verdict = "FAILED" if not passed else "BLIND" if blind else "passed"
    more = "-" if freer is None else f"{freer[0]:.1%}, {freer[1]:.0%}"
    return (
        f"| {subject.name} | {found['kind']} | {found['groups']} | {weights.total:,} | {weights.share:.1%} "
        f"| {found['removed']:.0%} | {more} | {verdict}, {found['worst']:.0e} | {found['noticed']}/{found['planted']} "
        f"| {found['seconds']:.2f} | {held} |"
    ), verdict == "passed"


def ours(architecture: Architecture) -> str:
    """The share of parameters that we remove from the network's export; WRONG where the check does not pass."""
    graph = load(export(architecture, opset=17, distinct_biases=True))
    feeds = [architecture.example_inputs(seed=3)]
    coupling = couple(graph)
    pruned = prune(coupling, random_kept(coupling, RATIO))
    passed = check(graph.model, pruned.model, pruned.plan, feeds).passed
    said = f"{1 - elements(pruned.model) / elements(graph.model):.1%}"
    freer = renormalized(coupling, feeds)
    if freer is not None:
        said, passed = f"{said}; {freer[1]:.1%} with --renormalize", passed and freer[2]
    return said if passed else f"{said}, WRONG"


def compared(name: str) -> str:
    """The line of a network beside the rivals."""
    cells = [ours(NETWORKS[name]), *(theirs(rival, name) for rival in RIVALS)]
    return f"| {name} | " + " | ".join(cells) + " |"


def theirs(rival: str, name: str) -> str:
    """What a rival does with a network, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("coverage_rivals.py")), rival, name]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=RIVAL_SECONDS, check=False).stdout
    except subprocess.TimeoutExpired:
        return f"no result in {RIVAL_SECONDS} s"
    found = json.loads(out.strip().splitlines()[-1]) if out.strip() else {"error": "crash"}
    if "removed" not in found:
        return found["error"]
    said = f"{found['removed']:.1%}"
    if "error" in found:
        said = f"{found['error']}; {said} with biases that differ"
    if found.get("difference", 0.0) > 1e-4:
        said += f", not exact ({found['difference']:.1g})"
    return said


HEADER = """# Coverage

Made by `python benchmarks/coverage.py`, the second table with `--rivals`. Columns: "weights": elements of the weights
of convolutions, matrix products and whatever holds weights fast, those tied to the model's own inputs and outputs alone
left out; "prunable": the share of them that some removable unit runs through; "removed": the share of all parameters
gone at keep 0.5;
"renormalized": both with `--renormalize`, where that changes anything (LayerNormalization and its like then take their
means over the channels that are kept; the check does the same in the zeroed original);
"check": zeroing equals removing at keep 0.75, 0.5 and 0.25, optimizations off and on, with the worst difference as a
share of the output's range (differences below 1e-6 count as 0); "noticed": of the plans with wrong indices for one
group, planted one at a time in up to four groups, those that the check noticed; "s": analysis and one pruning (other
work ran beside); "held by": the reasons for what is not prunable, with elements. Where all weights of a model have one
value (the `light_` ones), which proves nothing, random ones stand in for them.

"""

TABLE = """
| model | kind | groups | weights | prunable | removed | renormalized | check | noticed | s | held by |
|---|---|---|---|---|---|---|---|---|---|---|
"""

RIVAL_TABLE = """
## Beside others

Share of parameters removed from the full networks at a ratio of 0.5, counted in the ONNX files. onnxsim: the exception
where it fails on the export of a fresh network (whose zero biases are one tensor), and what it removes when all biases
differ. Torch-Pruning prunes the module, told which layers the outputs come from; "not exact": how far its result is
from the network in which the same channels are zero (no check where grouped convolutions read the channels).

| net | ours | onnxsim | Torch-Pruning |
|---|---|---|---|
"""


def summary(rows: dict[str, str]) -> str:
    """The overall figures: models by outcome, and the prunable share by kind of network."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows.values()]
    ran = [cell for cell in cells if cell[1] != "-"]
    noticed, planted = (sum(int(cell[8].split("/")[place]) for cell in ran) for place in (0, 1))
    passed, failed, refused = (sum(cell[7].startswith(word) for cell in cells) for word in ("passed", OURS, "exit"))
    lines = [
        f"{len(cells)} models: {passed} pass, {failed} fail, {refused} cannot be run or made. "
        f"Of {planted:,} planted mistakes the check noticed {noticed:,}.",
        "",
        "| kind | models | prunable, by weights | prunable, mean over models | renormalized, mean | least |",
        "|---|---|---|---|---|---|",
    ]
    for kind in sorted({cell[1] for cell in ran}):
        its = [cell for cell in ran if cell[1] == kind]
        shares = [float(cell[4].rstrip("%")) for cell in its]
        sizes = [int(cell[3].replace(",", "")) for cell in its]
        weighted = np.average(shares, weights=sizes) if sum(sizes) else 100.0
        freer = [float((cell[4] if cell[6] == "-" else cell[6]).split("%")[0]) for cell in its]
        least = min(range(len(its)), key=shares.__getitem__)
        lines.append(
            f"| {kind} | {len(its)} | {weighted:.1f}% | {np.mean(shares):.1f}% | {np.mean(freer):.1f}% "
            f"| {shares[least]:.1f}%: {its[least][0]} |"
        )
    return "\n".join(lines) + "\n"


def kept_rows(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The rows of an earlier run by model, of the table of models and of the table beside others."""
    models: dict[str, str] = {}
    others: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith("| ") and cells[1] not in ("model", "kind", "net"):
            if len(cells) == 13:
                models[cells[1]] = line
            elif len(cells) == 6 and cells[1] in NETWORKS:
                others[cells[1]] = line
    return models, others


def write(path: Path, models: dict[str, str], others: dict[str, str]) -> None:
    """Writes the file in one step, rows in the order of the subjects."""
    order = {subject.name: place for place, subject in enumerate(subjects())}
    models = {name: models[name] for name in sorted(models, key=lambda name: order.get(name, len(order)))}
    text = HEADER + summary(models) + TABLE + "\n".join(models.values()) + "\n"
    if others:
        text += RIVAL_TABLE + "\n".join(others[name] for name in NETWORKS if name in others) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def run_rivals(arguments: argparse.Namespace, models: dict[str, str], others: dict[str, str]) -> int:
    """The table beside others; the number of networks that we prune wrongly."""
    for name in NETWORKS:
        if arguments.only in name and not (arguments.missing and name in others):
            others[name] = compared(name)
            print(others[name], flush=True)
            write(arguments.out, models, others)
    return sum("WRONG" in line for line in others.values())


def run_models(arguments: argparse.Namespace, models: dict[str, str], others: dict[str, str]) -> int:
    """The table of models; the number of those of this run that are not as they should be."""
    failed = 0
    for subject in subjects():
        if arguments.only not in subject.name or (arguments.missing and subject.name in models):
            continue
        try:
            line, good = row(subject)
        except Exception as error:
            said = " ".join(str(error).split())[:80].replace("|", "/")
            told = f"FAILED, {type(error).__name__}: {said}"
            line, good = f"| {subject.name} | - | - | - | - | - | - | {told} | - | - | - |", False
        failed += not good
        models[subject.name] = line
        print(line, flush=True)
        write(arguments.out, models, others)
    print(f"{len(models)} models, {failed} of this run failed")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--missing", action="store_true", help="only models that have no row yet")
    parser.add_argument("--rivals", action="store_true", help="the table of onnxsim and Torch-Pruning beside us")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    models, others = kept_rows(arguments.out)
    sys.exit(bool((run_rivals if arguments.rivals else run_models)(arguments, models, others)))


if __name__ == "__main__":
    main()
