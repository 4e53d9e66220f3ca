"""Filling a target's table with the units of one network, in place, from whole variants of it.

1. A variant is the network at widths that all change together, on the edges of the target's stairs: one profiled run
   gives a point for every unit at once. Variants: the whole network, the smallest, then a Latin hypercube over the
   edges (every group meets every level about equally often), and a few off the edges for the kernels that run there.
2. Each variant is also measured whole, unprofiled, right after its profile. Both alternate with runs of the base
   network, and are told as multiples of it: the speed of a shared machine changes by tens of percent from second to
   second, CPU time included, and falls out of the ratio.
3. A variant that the table holds already is not measured; nor is anything if it holds enough variants of this network.
4. Where the target gives no times per node, units are measured alone or borrowed (see `capability`); the rest stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from ..ir.errors import ProfileError
from .capability import Capability, survey
from .cost import LatencyModel
from .isolated import KIND as ISOLATED
from .isolated import Extractor, run_alone
from .lut import Entry, Lut
from .plan import Plan, network_entry
from .staircase import Granularity, probe
from .structure import Ran, ShapesOf, Widths, what_ran
from .target import Target
from .timing import LOWER_HALF, NOISY, Comparison, Feeds, Reference, measure_against, runner
from .trace import trace
from .units import attribute

_EARLY = 6  # variants after which a hopeless machine is given up, not at the end
_WHOLE_RUNS = 15  # runs of a variant at least, so that networks of tens of milliseconds do not take minutes
_WHOLE_SECONDS, _WHOLE_ROUNDS = 0.05, 6  # short rounds: a long one has to find a long undisturbed moment
_WHOLE_SURE = 0.015  # what the fit makes of many of them is surer
_HOPELESS = 0.20  # error of comparisons beyond which nothing is stored (at 0.05 a table was good to 1.4%)

Build = Callable[[Widths], onnx.ModelProto]
FeedsFor = Callable[[onnx.ModelProto], Feeds]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Network:
    """A network of changeable widths, as its owner tells it.

    `build`: the network pruned to widths; `shapes`: shapes of all original tensors at widths, by original name;
    `edges`: the widths worth trying of each group, ascending, the base width last; `removable`: the nodes (`node_id`)
    that are not there when a group's width is 0, which is no edge.
    """

    base: Widths
    build: Build
    shapes: ShapesOf
    edges: Mapping[str, Sequence[int]]
    feeds_for: FeedsFor
    removable: Mapping[str, frozenset[str]] = field(default_factory=dict)


def fill(
    lut: Lut,
    target: Target,
    network: Network,
    rng: np.random.Generator,
    *,
    variants: int = 16,
    off_edges: int = 10,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> LatencyModel:
    """The LatencyModel of `network` on `target`, after measuring what the table does not hold (rules 1 to 3).

    `reference` is the base network where its pace is known already.
    """
    plan = plan_on(target, lut, network)
    held = lut.networks(plan.digest)
    wanted = design(network, plan.granularity, rng, variants, off_edges)
    missing = [w for w in wanted if w not in held][: max(0, len(wanted) - len(held))]
    note = _profile(lut, target, network, plan, missing, reference, progress)
    return LatencyModel(plan, lut, notes=(note,) if note else ())


def appraise(lut: Lut, target: Target, network: Network) -> LatencyModel:
    """The LatencyModel of `network` from what the table holds, of whatever networks; adds nothing to the table.

    One profiled run tells which kernels run at the base widths, if the table does not hold this network.
    """
    plan = plan_on(target, lut, network)
    if lut.networks(plan.digest):
        return LatencyModel(plan, lut)
    ran = run_variant(target, network, plan, network.base, {})
    return LatencyModel(plan, lut, seen=(network_entry(plan, network.base, ran, 0.0, 1.0),))


def plan_on(target: Target, lut: Lut, network: Network) -> Plan:
    """The network's Plan on the target, whose granularity comes from the table or is probed."""
    granularity = probe(target, lut)
    model = network.build(network.base)
    other = network.build(smallest(network))
    found = survey(target, model, other, network.feeds_for(model), network.shapes, network.base)
    other_widths, capability = smallest(network), found.capability
    return Plan(found.structure, network.base, other_widths, network.shapes, granularity, capability, network.removable)


def smallest(network: Network) -> dict[str, int]:
    """The widths at which every group is smallest."""
    return {g: min(network.edges.get(g) or (w,)) for g, w in network.base.items()}


def design(
    network: Network, granularity: Granularity, rng: np.random.Generator, variants: int, off_edges: int
) -> list[dict[str, int]]:
    """The widths of the variants to profile (rule 1): `variants` on edges, then `off_edges` anywhere between."""
    inner = _hypercube(network, rng, max(0, variants - 2))
    between = _between(network, granularity, rng, off_edges)
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


def _between(network: Network, granularity: Granularity, rng: np.random.Generator, count: int) -> list[dict[str, int]]:
    """`count` points off the edges, every group at all levels about equally often.

    Most widths in every other point are of no grid, as a ratio gives them; in the others, on an edge, aligned or
    unaligned as likely: which kernel runs depends on how these mix.
    """
    levels = {g: (rng.permutation(count) + rng.random(count)) / max(count, 1) for g in network.base}
    points = []
    for k in range(count):
        grids = [1] if k % 2 == 0 else [0, granularity.align, 1]
        points.append({g: _anywhere(network, g, levels[g][k], int(rng.choice(grids))) for g in network.base})
    return points


def _anywhere(network: Network, group: str, level: float, grid: int) -> int:
    """The width of the group nearest to a level that is a multiple of `grid` (0: an edge)."""
    if not grid:
        return _edge(network, group, level)
    edges = network.edges.get(group) or (network.base[group],)
    width = min(edges) + level * (max(edges) - min(edges))
    return int(np.clip(round(width / grid) * grid, min(edges), max(edges)))


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
    note = _profile(model.lut, target, network, model.plan, missing, None, progress)
    model.notes += (note,) if note else ()
    model.reload()


def _profile(
    lut: Lut,
    target: Target,
    network: Network,
    plan: Plan,
    missing: Sequence[Widths],
    reference: Reference | None,
    progress: Progress | None,
) -> str:
    """Profiles variants, adds what was measured to the table in one transaction, and tells of noise (`check_noise`)."""
    if not missing:
        return ""
    done: list[tuple[Widths, Ran, Comparison]] = []
    reference = reference or reference_of(target, network)
    known = {e.key: e.statistic_us for e in lut.entries("unit")} if plan.capability is Capability.ISOLATED else {}
    for i, widths in enumerate(missing):
        if progress is not None:
            progress(i, len(missing), "profiling variants")
        ran = run_variant(target, network, plan, widths, known, reference)
        done.append((widths, ran, run_whole(target, network, widths, reference)))
        if i + 1 == _EARLY:
            check_noise(target, [whole for *_, whole in done])
    if progress is not None:
        progress(len(missing), len(missing), "profiling variants")
    note = check_noise(target, [whole for *_, whole in done])
    lut.add(_entries(plan, done))
    return note


def whole_runner(target: Target, network: Network, widths: Widths) -> Callable[[], object]:
    """A function that runs the network at `widths` once."""
    model = network.build(widths)
    return runner(model, target, network.feeds_for(model))


def reference_of(target: Target, network: Network) -> Reference:
    """The network at its base widths, which all others are compared with."""
    return Reference(whole_runner(target, network, network.base))


def run_whole(target: Target, network: Network, widths: Widths, reference: Reference) -> Comparison:
    """The latency at `widths` as a multiple of the reference's (rule 2), at the reference's pace."""
    run = whole_runner(target, network, widths)
    return measure_against(
        reference, run, target,
        min_runs=_WHOLE_RUNS, min_seconds=_WHOLE_SECONDS, rounds=_WHOLE_ROUNDS, sure=_WHOLE_SURE,
        share=LOWER_HALF,
    )  # fmt: skip


def check_noise(target: Target, wholes: Sequence[Comparison]) -> str:
    """What there is to say about how noisy the machine was: nothing, a warning, or ProfileError where it is hopeless.

    Beyond the limit, half of the ratios could be that far off, and the table would be wrong without saying so.
    """
    error = float(np.median([whole.error for whole in wholes]))
    busy = sum(whole.latency.busy for whole in wholes)
    told = (
        f"the machine was too noisy: networks compared with an error of {error:.1%} (median of {len(wholes)}; "
        f"{NOISY:.0%} is the limit), and it was seen busy in {busy} of them"
    )
    if error > _HOPELESS:
        raise ProfileError(f"{target} cannot be measured: {told}; end other work on it and try again")
    return f"{told}: estimates may be off by as much" if error > NOISY else ""


def run_variant(
    target: Target,
    network: Network,
    plan: Plan,
    widths: Widths,
    known: dict[str, float],
    reference: Reference | None = None,
) -> Ran:
    """What one variant ran, as far as the target can tell, and how long the reference took beside it.

    `known` holds times of units measured alone, by key.
    """
    model = network.build(widths)
    if plan.capability is Capability.ISOLATED:
        extractor = Extractor(model, plan.shapes(widths))
        return run_alone(target, extractor, plan.structure, plan.keys(ISOLATED, widths), known)
    if plan.capability is Capability.WHOLE:
        near = Target(threads=target.threads)
        traced = trace(model, near, network.feeds_for(model))
        return what_ran(plan.structure, traced.original, attribute(traced)).borrowed(near.provider)
    traced = trace(model, target, network.feeds_for(model), reference=reference)
    ran = what_ran(plan.structure, traced.original, attribute(traced))
    return replace(ran, reference_us=traced.reference_us)


def _entries(plan: Plan, done: Sequence[tuple[Widths, Ran, Comparison]]) -> list[Entry]:
    base_ms = float(np.median([whole.reference.median_ms for *_, whole in done]))
    wholes = [whole.ratio * base_ms for *_, whole in done]
    entries = []
    for (widths, ran, _), whole_ms in zip(done, wholes, strict=True):
        speed = 1.0 if np.isnan(ran.reference_us) else base_ms * 1e3 / ran.reference_us
        entries += _unit_entries(plan, widths, ran, speed)
        entries.append(network_entry(plan, widths, ran, whole_ms, speed))
    return entries


def _unit_entries(plan: Plan, widths: Widths, ran: Ran, speed: float) -> list[Entry]:
    shapes = plan.shapes(widths)
    units = [*plan.structure.units, *(b.unit for b in plan.structure.boundaries)]
    told = zip(units, (*plan.masks, *plan.boundary_masks), (*ran.units, *ran.boundaries), strict=True)
    return [plan.entry(unit, mask, kind, shapes, us * speed) for unit, mask, (kind, us) in told if kind]
