"""The latency of a network at any widths, from the table, without building it.

    latency = calibration( sum over units of t(kind, shapes) + sum over boundaries of t(kind, shapes) )

1. The kind of a unit (which kernel in which layout) follows from where its channels stand on the target's stairs; the
   rule is learnt from the variants that were profiled, for each skeleton. A boundary's kind follows from the kinds of
   the units around it.
2. A time is the entry of the exact key, or a fit (`fit.UnitFit`) over the entries of the same kind and skeleton, with
   channel counts rounded up to the step where the layout is blocked.
3. Sums are calibrated against whole networks that were measured (`fit.Calibration`): profiling inflates times.
4. Every lookup is remembered by the widths that it depends on: an estimate is a hundred dictionary reads.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from .amounts import Dims, amounts, off_step
from .fit import Calibration, Floats, Point, UnitFit, trend_of
from .lut import Entry, Lut
from .plan import Kinds, Plan, around, family_of, key_of
from .structure import Boundary, Mask, Shapes, Unit, Widths, digest_of

_ENOUGH = 8  # points from which a family's own trend is used


@dataclass(frozen=True, slots=True)
class Part:
    """One term of an estimate: `source` is "measured", "fitted", "extrapolated", or "unknown" (kind never seen)."""

    nodes: tuple[str, ...]
    kind: str
    us: float
    source: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Milliseconds with all their parts; `doubtful_share` is the share of the sum that no measured points surround."""

    ms: float
    parts: tuple[Part, ...]

    @property
    def doubtful_share(self) -> float:
        """The share of the time that was extrapolated or of unknown kind."""
        doubtful = sum(p.us for p in self.parts if p.source in ("extrapolated", "unknown"))
        return doubtful / max(sum(p.us for p in self.parts), 1e-9)


class LatencyModel:
    """Estimates of one network on one target. Built by `fill` (module `fill`), which also stores what it needs."""

    def __init__(self, plan: Plan, lut: Lut) -> None:
        self.plan = plan
        self.lut = lut
        self._observed: list[tuple[dict[str, int], float]] = []
        self.reload()

    def reload(self) -> None:
        """Takes over what the table holds now."""
        self._times: dict[str, float] = {}
        self._families: dict[str, list[Entry]] = defaultdict(list)
        self._relatives: dict[str, list[Entry]] = defaultdict(list)
        networks = []
        for entry in self.lut.entries():
            if entry.attributes["type"] == "unit":
                self._times[entry.key] = entry.statistic_us
                self._families[entry.attributes["family"]].append(entry)
                self._relatives[entry.attributes["relatives"]].append(entry)
            elif entry.attributes.get("digest") == self.plan.digest:
                networks.append(entry)
        self._fits: dict[str, UnitFit] = {}
        self._learn(networks)
        self._terms = self._make_terms()
        self._calibrate()

    def _learn(self, networks: Sequence[Entry]) -> None:
        self._kinds, self._layouts = Kinds(), Kinds()
        self._networks: list[tuple[dict[str, int], float]] = []
        self._loose_us = 0.0
        structure, active = self.plan.structure, set()
        for entry in networks:
            told = entry.attributes
            shapes = self.plan.shapes(told["widths"])
            for unit, mask, kind in zip(structure.units, self.plan.masks, told["kinds"], strict=True):
                for what in (mask.skeleton, unit.ops):
                    self._kinds.learn(what, self.plan.stairs(unit, shapes), kind)
            for i, (boundary, kind) in enumerate(zip(structure.boundaries, told["layouts"], strict=True)):
                self._layouts.learn(None, around(boundary, told["kinds"]), kind)
                active |= {i} if kind else set()
            self._loose_us += told["loose_us"] / len(networks)
            self._networks.append((dict(told["widths"]), entry.statistic_us / 1e3))
        self._active = sorted(active)

    def _make_terms(self) -> list["_Term"]:
        plan, terms = self.plan, []
        for unit, mask in zip(plan.structure.units, plan.masks, strict=True):
            terms.append(_Term(mask.groups, self._unit_part(unit, mask)))
        for i in self._active:
            boundary, mask = plan.structure.boundaries[i], plan.boundary_masks[i]
            near = {g for u in (boundary.producer, *boundary.consumers) if u >= 0 for g in plan.masks[u].groups}
            terms.append(_Term(tuple(sorted(near.union(mask.groups))), self._boundary_part(boundary, mask)))
        return terms

    def _unit_part(self, unit: Unit, mask: Mask) -> Callable[[Shapes], Part]:
        def part(shapes: Shapes) -> Part:
            kind, sure = self._kind(unit, mask, shapes)
            return self._part(unit, mask, kind, shapes, sure)

        return part

    def _boundary_part(self, boundary: Boundary, mask: Mask) -> Callable[[Shapes], Part]:
        def part(shapes: Shapes) -> Part:
            units, masks = self.plan.structure.units, self.plan.masks
            near = [boundary.producer, *boundary.consumers]
            kinds = {i: self._kind(units[i], masks[i], shapes)[0] for i in near if i >= 0}
            kind, sure = self._layouts.predict(None, around(boundary, kinds))
            return self._part(boundary.unit, mask, kind, shapes, sure)

        return part

    def _kind(self, unit: Unit, mask: Mask, shapes: Shapes) -> tuple[str, bool]:
        places = self.plan.stairs(unit, shapes)
        own = self._kinds.predict(mask.skeleton, places)
        return own if own[1] else self._kinds.predict(unit.ops, places)

    def _part(self, unit: Unit, mask: Mask, kind: str, shapes: Shapes, sure: bool) -> Part:
        nodes = tuple(sorted(unit.nodes)) or unit.inputs
        if not kind:
            return Part(nodes, kind, 0.0, "measured" if sure else "unknown")
        known = self._times.get(key_of(unit, mask, kind, shapes))
        if known is not None:
            return Part(nodes, kind, known, "measured")
        fit = self._fit(family_of(kind, mask), digest_of([kind, unit.ops]))
        if fit is None:
            return Part(nodes, kind, 0.0, "unknown")
        point = self._point(kind, mask.skeleton, unit.dims(shapes))
        inside = "fitted" if fit.covers(point) else "extrapolated"
        return Part(nodes, kind, fit(point), inside if sure else "unknown")

    def _point(self, kind: str, skeleton: str, dims: Sequence[Dims]) -> Point:
        granularity = self.plan.granularity
        return Point(amounts(kind, skeleton, dims, granularity), off_step(skeleton, dims, granularity))

    def _fit(self, family: str, relatives: str) -> UnitFit | None:
        """The fit over a family; with few points of its own, along the trend of the same operators at other sizes."""
        if family not in self._fits and relatives in self._relatives:
            own, all_of_kind = self._families.get(family, []), self._relatives[relatives]
            few = len(own) < _ENOUGH
            trend = trend_of(*self._points_and_times(all_of_kind)) if few else None
            self._fits[family] = UnitFit.of(*self._points_and_times(own or all_of_kind), trend)
        return self._fits.get(family)

    def _points_and_times(self, entries: Sequence[Entry]) -> tuple[list[Point], list[float]]:
        told = [e.attributes for e in entries]
        points = [self._point(t["kind"], t["skeleton"], t["shapes"]) for t in told]
        return points, [e.statistic_us for e in entries]

    def _calibrate(self) -> None:
        known = [*self._networks, *self._observed]
        sums = [self.raw_ms(widths) for widths, _ in known]
        places = np.asarray([self._place(widths) for widths, _ in known]).reshape(len(known), -1)
        self._calibration = Calibration.of(sums, places, [ms for _, ms in known])

    def _place(self, widths: Widths) -> Floats:
        """Relative widths, scaled so that the distance of two places is the root mean square of their differences."""
        base = self.plan.base
        share = [widths.get(g, w) / w for g, w in base.items()]
        return np.asarray(share, dtype=np.float64) / float(np.sqrt(max(len(base), 1)))

    def raw_ms(self, widths: Widths) -> float:
        """The sum of all units and boundaries before calibration."""
        full = widths if len(widths) == len(self.plan.base) else {**self.plan.base, **widths}
        shapes: list[Shapes] = []  # worked out once, and only if something is asked for the first time

        def once() -> Shapes:
            if not shapes:
                shapes.append(self.plan.shapes(full))
            return shapes[0]

        return (sum(t.us(full, once) for t in self._terms) + self._loose_us) / 1e3

    def estimate(self, widths: Widths) -> float:
        """The expected latency in milliseconds; groups that are not named keep their base width."""
        return self._calibration(self.raw_ms(widths), self._place(widths))

    def explain(self, widths: Widths) -> Estimate:
        """The estimate with the time, kind and source of every part."""
        shapes = self.plan.shapes({**self.plan.base, **widths})
        return Estimate(self.estimate(widths), tuple(t.part(shapes) for t in self._terms))

    def observe(self, widths: Widths, measured_ms: float) -> None:
        """Takes a measured network into the calibration, which then is exact to some percent near it."""
        self._observed.append(({**self.plan.base, **widths}, measured_ms))
        self._calibrate()


class _Term:
    """One part of the sum, remembered by the widths of the groups that it depends on (rule 4)."""

    __slots__ = ("_get", "_known", "part")

    def __init__(self, groups: tuple[str, ...], part: Callable[[Shapes], Part]) -> None:
        self._get: Callable[[Widths], object] = itemgetter(*groups) if groups else _nothing
        self._known: dict[object, float] = {}
        self.part = part

    def us(self, widths: Widths, shapes: Callable[[], Shapes]) -> float:
        """Microseconds at `widths`; `shapes` gives the shapes there, if they must be looked at."""
        key = self._get(widths)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self.part(shapes()).us
        return known


def _nothing(_: Widths) -> object:
    return None
