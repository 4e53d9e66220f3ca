"""Filling a target's table with the units of one network, in place, from whole variants of it.

1. A variant is the network at widths that all change together, on the edges of the target's stairs: one profiled run
   gives a point for every unit at once. Variants: the whole network, the smallest, then a Latin hypercube over the
   edges (every group meets every level about equally often), and a few off the edges for the kernels that run there.
2. Each variant is also measured whole, unprofiled, right after its profile, in alternation with the base network,
   and told as a multiple of it: the speed of a shared machine changes by tens of percent from second to second, CPU
   time included, and falls out of the ratio. The unit times of the profile are then scaled to agree with the whole.
3. A variant that the table holds already is not measured; nor is anything if it holds enough variants of this network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ..ir.errors import ProfileError
from .cost import LatencyModel
from .fit import Calibration
from .lut import Entry, Lut
from .plan import Plan, network_entry
from .staircase import Granularity, probe
from .structure import Ran, ShapesOf, Structure, Widths, structure_of, what_ran
from .target import Target
from .timing import Feeds, measure_against, runner
from .trace import named_copy, trace
from .units import attribute

Build = Callable[[Widths], onnx.ModelProto]
FeedsFor = Callable[[onnx.ModelProto], Feeds]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Network:
    """A network of changeable widths, as its owner tells it.

    `build`: the network pruned to widths; `shapes`: shapes of all original tensors at widths, by original name;
    `edges`: the widths worth trying of each group, ascending, the base width last.
    """

    base: Widths
    build: Build
    shapes: ShapesOf
    edges: Mapping[str, Sequence[int]]
    feeds_for: FeedsFor


def fill(
    lut: Lut,
    target: Target,
    network: Network,
    rng: np.random.Generator,
    *,
    variants: int = 16,
    off_edges: int = 4,
    progress: Progress | None = None,
) -> LatencyModel:
    """The LatencyModel of `network` on `target`, after measuring what the table does not hold (rules 1 to 3)."""
    granularity = probe(target, lut)
    structure = structure_on(target, network)
    plan = Plan(structure, network.base, smallest(network), network.shapes, granularity)
    held = lut.networks(plan.digest)
    wanted = design(network, granularity, rng, variants, off_edges)
    missing = [w for w in wanted if w not in held][: max(0, len(wanted) - len(held))]
    _profile(lut, target, network, plan, missing, progress)
    return LatencyModel(plan, lut)


def smallest(network: Network) -> dict[str, int]:
    """The widths at which every group is smallest."""
    return {g: min(network.edges.get(g) or (w,)) for g, w in network.base.items()}


def structure_on(target: Target, network: Network) -> Structure:
    """The Structure of the base network as `target` runs it (one profiled run, of which no time is kept)."""
    model = network.build(network.base)
    traced = trace(model, target, network.feeds_for(model), runs=1, warm_up=0)
    attribution = attribute(traced)
    if not attribution.executed:
        raise ProfileError(f"{target} gives no times per node; measure whole networks on it instead")
    other = named_copy(network.build(smallest(network))).graph
    return structure_of(traced.original, other, attribution, network.shapes(network.base))


def design(
    network: Network, granularity: Granularity, rng: np.random.Generator, variants: int, off_edges: int
) -> list[dict[str, int]]:
    """The widths of the variants to profile (rule 1): `variants` on edges, then `off_edges` anywhere between."""
    inner = _hypercube(network, rng, max(0, variants - 2))
    between = [{g: _anywhere(network, g, granularity, rng) for g in network.base} for _ in range(off_edges)]
    distinct: list[dict[str, int]] = []
    for widths in (dict(network.base), smallest(network), *inner, *between):
        if widths not in distinct:
            distinct.append(widths)
    return distinct


def _hypercube(network: Network, rng: np.random.Generator, count: int) -> list[dict[str, int]]:
    """`count` points; every other one is drawn towards a common level, because searches shrink all groups together."""
    levels = {g: (rng.permutation(count) + rng.random(count)) / max(count, 1) for g in network.base}
    points = []
    for k in range(count):
        common = (k + 0.5) / count
        pull = 0.0 if k % 2 else 0.6
        at = {g: (1 - pull) * levels[g][k] + pull * common for g in network.base}
        points.append({g: _edge(network, g, at[g]) for g in network.base})
    return points


def _edge(network: Network, group: str, level: float) -> int:
    edges = network.edges.get(group) or (network.base[group],)
    return int(edges[min(int(level * len(edges)), len(edges) - 1)])


def _anywhere(network: Network, group: str, granularity: Granularity, rng: np.random.Generator) -> int:
    """A width of the group that is on an edge, aligned, or unaligned, as likely: kernels depend on how these mix."""
    edges = network.edges.get(group) or (network.base[group],)
    grid = int(rng.choice([0, granularity.align, 1]))
    choices = [w for w in range(min(edges), network.base[group] + 1) if grid and w % grid == 0 and w not in edges]
    return int(rng.choice(choices or list(edges)))


def extend(
    model: LatencyModel, target: Target, network: Network, wanted: Sequence[Widths], progress: Progress | None = None
) -> None:
    """Profiles the variants in `wanted` that the model's table does not hold, and makes the model take them over.

    For widths that a search asks about and that the table only extrapolates (`Estimate.doubtful_share`): gather them,
    then call this once.
    """
    held = model.lut.networks(model.plan.digest)
    missing: list[dict[str, int]] = []
    for widths in ({**network.base, **w} for w in wanted):
        if widths not in held and widths not in missing:
            missing.append(widths)
    _profile(model.lut, target, network, model.plan, missing, progress)
    model.reload()


def _profile(
    lut: Lut, target: Target, network: Network, plan: Plan, missing: Sequence[Widths], progress: Progress | None
) -> None:
    """Profiles variants and adds what was measured to the table, in one transaction."""
    if not missing:
        return
    done: list[tuple[Widths, Ran, float, float]] = []
    reference = whole_runner(target, network, network.base)
    for i, widths in enumerate(missing):
        if progress is not None:
            progress(i, len(missing), "profiling variants")
        ran = run_variant(target, network, plan.structure, widths)
        done.append((widths, ran, *run_whole(target, network, widths, reference)))
    if progress is not None:
        progress(len(missing), len(missing), "profiling variants")
    lut.add(_entries(plan, done))


def whole_runner(target: Target, network: Network, widths: Widths) -> Callable[[], object]:
    """A function that runs the network at `widths` once."""
    model = network.build(widths)
    return runner(model, target, network.feeds_for(model))


def run_whole(target: Target, network: Network, widths: Widths, reference: Callable[[], object]) -> tuple[float, float]:
    """The latency at `widths` as a multiple of the reference's, and the reference's in milliseconds (rule 2)."""
    latency, ratio = measure_against(reference, whole_runner(target, network, widths), target)
    return ratio, latency.median_ms / ratio


def run_variant(target: Target, network: Network, structure: Structure, widths: Widths) -> Ran:
    """What one variant ran."""
    model = network.build(widths)
    traced = trace(model, target, network.feeds_for(model))
    return what_ran(structure, traced.original, attribute(traced))


def _entries(plan: Plan, done: Sequence[tuple[Widths, Ran, float, float]]) -> list[Entry]:
    base_ms = float(np.median([reference for *_, reference in done]))
    wholes = [ratio * base_ms for _, _, ratio, _ in done]
    sums = [_sum_ms(ran) for _, ran, _, _ in done]
    line = Calibration.of(sums, np.zeros((len(done), 1)), wholes)
    entries = []
    for (widths, ran, _, _), whole_ms, sum_ms in zip(done, wholes, sums, strict=True):
        speed = (whole_ms - line.offset_ms) / line.slope / sum_ms
        entries += _unit_entries(plan, widths, ran, speed)
        entries.append(network_entry(plan, widths, ran, whole_ms))
    return entries


def _unit_entries(plan: Plan, widths: Widths, ran: Ran, speed: float) -> list[Entry]:
    shapes = plan.shapes(widths)
    units = [*plan.structure.units, *(b.unit for b in plan.structure.boundaries)]
    told = zip(units, (*plan.masks, *plan.boundary_masks), (*ran.units, *ran.boundaries), strict=True)
    return [plan.entry(unit, mask, kind, shapes, us * speed) for unit, mask, (kind, us) in told if kind]


def _sum_ms(ran: Ran) -> float:
    return (sum(us for _, us in (*ran.units, *ran.boundaries)) + ran.loose_us) / 1e3
