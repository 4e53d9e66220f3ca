"""The latency of a network at any widths, from the table, without building it.

    latency = calibration( sum over units of t(kind, shapes) + sum over boundaries of t(kind, shapes) )

1. The kind of a unit (which kernel in which layout) follows from where its channels stand on the target's stairs, and
   from the kinds of the units that it reads from (an Add runs alone or within a convolution before it); the rule is
   learnt from the variants that were profiled, for each skeleton. A boundary's kind follows from the kinds of the units
   around it.
2. A time is the entry of the exact key, or a fit (`fit.UnitFit`) over the entries of the same kind and skeleton, with
   channel counts rounded up to the step where the layout is blocked.
3. Sums are calibrated against whole networks that were measured (`fit.Calibration`): profiling inflates the time of
   every node.
4. A unit of a branch that was taken out (a group at width 0) is not there: its kind is "" and its time 0.
5. Networks are estimated together, term by term, on arrays; what was looked up is remembered by the widths that the
   term depends on, so that the networks of a search, which have most of those in common, take little but dictionary
   reads.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from .amounts import Dims, Form, Ints
from .fit import Calibration, Floats, Points, Sums, UnitFit
from .lut import Entry, Lut
from .plan import Kinds, Places, Plan, Term, around, distinct, family_of
from .structure import Widths, digest_of, executed

_ENOUGH = 8  # points from which a family's own trend is used
_SOURCES = ("measured", "fitted", "extrapolated", "unknown")
_MEASURED, _FITTED, _EXTRAPOLATED, _UNKNOWN = range(len(_SOURCES))

_REMEMBERED, _LEAST_REMEMBERED = 400_000, 64
"""Times that are remembered over all terms (about 70 MB), and of one term at least, where there are thousands."""


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
    """Estimates of one network on one target. Built by `fill` (module `fill`), which also stores what it needs.

    `notes`: what is to be said about the measurements behind it. `seen`: networks whose kinds are known though the
    table does not hold them.
    """

    def __init__(self, plan: Plan, lut: Lut, notes: tuple[str, ...] = (), seen: tuple[Entry, ...] = ()) -> None:
        self.plan = plan
        self.lut = lut
        self.notes = notes
        self._seen = seen
        self._observed: list[tuple[dict[str, int], float]] = []
        self.reload()

    def reload(self) -> None:
        """Takes over what the table holds now."""
        self._families: dict[str, _Family] = {}
        self._relatives: dict[str, list[str]] = defaultdict(list)
        networks: list[Entry] = []
        self._others: list[Entry] = []
        for entry in self.lut.entries():
            told = entry.attributes
            if told["type"] == "unit":
                if told["family"] not in self._families:
                    self._families[told["family"]] = _Family(told["kind"], Form.of(told["skeleton"]))
                    self._relatives[told["relatives"]].append(told["family"])
                self._families[told["family"]].add(told["shapes"], entry.statistic_us)
            elif told["type"] == "network":
                (networks if told["digest"] == self.plan.digest else self._others).append(entry)
        self._fits: dict[str, UnitFit] = {}
        self._networks = [(dict(e.attributes["widths"]), e.statistic_us / 1e3) for e in networks]
        self._learn([*networks, *self._seen])
        self._forget()
        self._calibrate()

    def _forget(self) -> None:
        """Forgets looked-up times (rule 5)."""
        groups = [self._groups_of(i) for i in range(len(self.plan.terms))]
        getters = [itemgetter(*names) if names else _nothing for names in groups]
        self._memory: list[tuple[Callable[[Widths], object], dict[object, tuple[float, int]]]]
        self._memory = [(get, {}) for get in getters]
        self._room = max(_REMEMBERED // max(len(getters), 1), _LEAST_REMEMBERED)

    def _groups_of(self, index: int) -> tuple[str, ...]:
        """The groups that a term's time depends on: for a boundary, also those of the units around it."""
        groups, near = set(self.plan.terms[index].mask.groups), self._around(index)
        ends = set(self.plan.ends[index])
        while near:
            unit = near.pop()
            groups.update(self.plan.masks[unit].groups)
            ends.update(self.plan.ends[unit])
            near += self.plan.writers[unit]
        return tuple(sorted(groups | {self.plan.groups[place] for place in ends}))

    def _around(self, index: int) -> list[int]:
        """The units at a boundary, and those whose kinds decide that of a unit."""
        at = index - len(self.plan.structure.units)
        if at < 0:
            return list(self.plan.writers[index])
        boundary = self.plan.structure.boundaries[at]
        return [u for u in (boundary.producer, *boundary.consumers) if u >= 0]

    def _learn(self, networks: Sequence[Entry]) -> None:
        self._kinds, self._layouts = Kinds(), Kinds()
        self._loose_us = float(np.mean([e.attributes["loose_us"] for e in networks])) if networks else 0.0
        widths = self.plan.matrix([e.attributes["widths"] for e in networks])
        for i, (unit, mask) in enumerate(zip(self.plan.structure.units, self.plan.masks, strict=True)):
            term = self.plan.terms[i]
            places, which = self.plan.stairs(term, self.plan.sizes(term, widths))
            for entry, at in zip(networks, which, strict=True):
                kinds = entry.attributes["kinds"]
                read = [kinds[u] for u in self.plan.writers[i]]
                for there in {places[at], (*places[at], *read)}:
                    for what in (mask.skeleton, unit.ops):
                        self._kinds.learn(what, there, kinds[i])
        for entry in networks:
            told = entry.attributes
            for i, (boundary, kind) in enumerate(zip(self.plan.structure.boundaries, told["layouts"], strict=True)):
                for where in (i, None):
                    self._layouts.learn(where, around(boundary, told["kinds"]), kind)

    def _guess(self, index: int, widths: Ints, known: "_Guesses") -> "_Guess":
        """The kind of a term at n widths; `known` holds what was guessed for these widths before."""
        found = known.get(index)
        if found is None:
            boundary = index - len(self.plan.structure.units)
            found = self._layout(boundary, widths, known) if boundary >= 0 else self._kind(index, widths, known)
            absent = self.plan.absent(index, widths)
            found = known[index] = found.without(absent) if absent.any() else found
        return found

    def _kind(self, index: int, widths: Ints, known: "_Guesses") -> "_Guess":
        """What runs for a unit, from where its channels stand and the kinds of those that it reads from."""
        term = self.plan.terms[index]
        places, which = self.plan.stairs(term, self.plan.sizes(term, widths))
        writers = [self._guess(u, widths, known) for u in self.plan.writers[index]]
        rows, which = distinct(np.stack([which, *(g.which for g in writers)], axis=1))
        kinds = []
        for here, *codes in rows:
            read = [guess.kinds[c][0] for guess, c in zip(writers, codes, strict=True)]
            kinds.append(self._predicted(index, places[here], read))
        return _Guess.of(kinds, which)

    def _predicted(self, index: int, here: Places, read: Sequence[str]) -> tuple[str, bool]:
        """The kind of a unit at one place on the stairs that reads from units of these kinds, and whether it was seen.

        Units of its skeleton count before others of its operators, and what is known of both there before places alone.
        """
        skeleton, ops = self.plan.terms[index].mask.skeleton, self.plan.terms[index].unit.ops
        for what, there in ((skeleton, (*here, *read)), (ops, (*here, *read)), (skeleton, here)):
            found = self._kinds.predict(what, there)
            if found[1]:
                return found
        return self._kinds.predict(ops, here)

    def _layout(self, index: int, widths: Ints, known: "_Guesses") -> "_Guess":
        """What runs at a boundary, from the kinds of the units around it."""
        boundary = self.plan.structure.boundaries[index]
        near = sorted({u for u in (boundary.producer, *boundary.consumers) if u >= 0})
        guesses = [self._guess(u, widths, known) for u in near]
        rows, which = distinct(np.stack([g.which for g in guesses], axis=1))
        kinds = []
        for row in rows:
            told = {u: guess.kinds[c][0] for u, guess, c in zip(near, guesses, row, strict=True)}
            here = around(boundary, told)
            own = self._layouts.predict(index, here)
            kinds.append(own if own[1] else self._layouts.predict(None, here))
        return _Guess.of(kinds, which)

    def _times(self, index: int, widths: Ints, known: "_Guesses") -> "_Times":
        """The time of one term at n widths, and where it comes from."""
        term, guess = self.plan.terms[index], self._guess(index, widths, known)
        us, sources = np.zeros(len(widths)), np.full(len(widths), _MEASURED, dtype=np.int64)
        if any(kind for kind, _ in guess.kinds):
            sizes = self.plan.sizes(term, widths)
        for code, (kind, sure) in enumerate(guess.kinds):
            rows = np.flatnonzero(guess.which == code)
            if kind:
                us[rows], sources[rows] = self._look_up(term, kind, sizes[rows])
            if not sure:
                sources[rows] = np.where((sources[rows] == _MEASURED) & bool(kind), _MEASURED, _UNKNOWN)
        return _Times(guess, us, sources)

    def _look_up(self, term: Term, kind: str, sizes: Ints) -> tuple[Floats, Ints]:
        """Times of a term that runs as `kind` at n sizes, and their sources: entries, else the fit."""
        family = family_of(kind, term.mask)
        fit = self._fit(family, digest_of([kind, term.unit.ops]))
        if fit is None:
            return np.zeros(len(sizes)), np.full(len(sizes), _UNKNOWN)
        rows, which = distinct(sizes)
        points = term.form.points(kind, self.plan.granularity, rows)
        us, sources = fit(points), np.where(fit.covers(points), _FITTED, _EXTRAPOLATED)
        if family in self._families:
            known = self._families[family].known
            told = [known.get(row.tobytes()) for row in rows]
            held = [i for i, measured in enumerate(told) if measured is not None]
            us[held], sources[held] = [told[i] for i in held], _MEASURED
        return us[which], sources[which]

    def _fit(self, family: str, relatives: str) -> UnitFit | None:
        """The fit over a family; with few points of its own, along the same operators at other fixed sizes."""
        if family not in self._fits and relatives in self._relatives:
            own = [family] if family in self._families else []
            few = not own or len(self._families[family].us) < _ENOUGH
            names = [*own, *(f for f in self._relatives[relatives] if f != family)] if few else own
            told = [self._families[name] for name in names]
            points = [f.form.points(f.kind, self.plan.granularity, f.sizes) for f in told]
            first = 0 if own else 1
            numbers = [first + i for i, f in enumerate(told) for _ in f.us]
            self._fits[family] = UnitFit.of(Points.joined(points), [us for f in told for us in f.us], numbers)
        return self._fits.get(family)

    def _calibrate(self) -> None:
        """Calibrates on this network's variants; where the table holds none, on all networks that it holds."""
        known = [*self._networks, *self._observed]
        if not known and self._others:
            told = np.asarray([[e.attributes["sum_us"] / 1e3, e.attributes["executed"]] for e in self._others])
            here = np.zeros((len(told), len(self.plan.base)))
            measured = [e.statistic_us / 1e3 for e in self._others]
            self._calibration = Calibration.of(Sums(told[:, 0], told[:, 1]), here, measured).alone()
            return
        networks = [widths for widths, _ in known]
        places = self._places(self.plan.matrix(networks))
        self._calibration = Calibration.of(self._sums(networks), places, [ms for _, ms in known])

    def _places(self, widths: Ints) -> Floats:
        """Relative widths, scaled so that the distance of two places is the root mean square of their differences."""
        base = self.plan.matrix([self.plan.base])
        return np.asarray(widths / base / np.sqrt(max(len(self.plan.base), 1)), dtype=np.float64)

    def _sums(self, networks: Sequence[Widths]) -> Sums:
        """The sums of networks: of every term what is remembered, or else its times in all of them (rule 5)."""
        full = [widths if len(widths) == len(self.plan.base) else {**self.plan.base, **widths} for widths in networks]
        total, rows, guesses, remembered = np.zeros((2, len(networks))), None, _Guesses(), []
        for i, (get, known) in enumerate(self._memory):
            keys = [get(widths) for widths in full]
            if all(key in known for key in keys):
                remembered.append([known[key] for key in keys])
                continue
            rows = self.plan.matrix(full) if rows is None else rows
            found = self._times(i, rows, guesses)
            total += np.array([found.us, found.executed])
            fresh = dict(zip(keys, zip(found.us.tolist(), found.executed.tolist(), strict=True), strict=True))
            if len(known) + len(fresh) > self._room:
                known.clear()
            if len(fresh) <= self._room:
                known.update(fresh)
        if remembered:
            total += np.array(remembered).reshape(len(remembered), len(networks), 2).sum(axis=0).T
        return Sums((total[0] + self._loose_us) / 1e3, total[1])

    def estimate(self, widths: Widths) -> float:
        """The expected latency in milliseconds; groups that are not named keep their base width."""
        return float(self.estimates([widths])[0])

    def estimates(self, networks: Sequence[Widths]) -> Floats:
        """The expected latencies (n,) of many networks at once, in milliseconds: far faster than one by one."""
        return self._calibration(self._sums(networks), self._places(self.plan.matrix(networks)))

    def explain(self, widths: Widths) -> Estimate:
        """The estimate with the time, kind and source of every part."""
        row, known = self.plan.matrix([widths]), _Guesses()
        parts = []
        for i, term in enumerate(self.plan.terms):
            found = self._times(i, row, known)
            kind = found.guess.kinds[int(found.guess.which[0])][0]
            if kind or i < len(self.plan.structure.units):
                nodes = tuple(sorted(term.unit.nodes)) or term.unit.inputs
                parts.append(Part(nodes, kind, float(found.us[0]), _SOURCES[int(found.sources[0])]))
        return Estimate(self.estimate(widths), tuple(parts))

    @property
    def base_ms(self) -> float:
        """Milliseconds at the base widths when the table was filled; where it does not hold them, estimated."""
        held = (ms for widths, ms in self._networks if widths == self.plan.base)
        return next(held, None) or self.estimate(self.plan.base)

    def observe(self, widths: Widths, measured_ms: float) -> None:
        """Takes a measured network into the calibration, which then is exact to some percent near it."""
        self._observed.append(({**self.plan.base, **widths}, measured_ms))
        self._calibrate()


@dataclass
class _Family:
    """All measured units that differ in widths only: the sizes of their moving axes, and microseconds."""

    kind: str
    form: Form
    rows: list[list[int]] = field(default_factory=list)
    us: list[float] = field(default_factory=list)

    def add(self, shapes: Sequence[Dims], us: float) -> None:
        """Takes one entry."""
        self.rows.append(self.form.sizes(shapes))
        self.us.append(us)

    @property
    def sizes(self) -> Ints:
        """(entries, axes)."""
        return np.asarray(self.rows, dtype=np.int64).reshape(len(self.rows), self.form.count)

    @cached_property
    def known(self) -> dict[bytes, float]:
        """Microseconds by sizes."""
        return {row.tobytes(): us for row, us in zip(self.sizes, self.us, strict=True)}


@dataclass(frozen=True, slots=True)
class _Guess:
    """Kinds with whether each was seen there, and the number (n,) of the kind at each of n widths."""

    kinds: tuple[tuple[str, bool], ...]
    which: Ints

    @staticmethod
    def of(kinds: Sequence[tuple[str, bool]], which: Ints) -> "_Guess":
        """The guess with equal kinds put together: times are looked up once for each."""
        distinct_kinds = tuple(dict.fromkeys(kinds))
        number = {kind: i for i, kind in enumerate(distinct_kinds)}
        return _Guess(distinct_kinds, np.asarray([number[kind] for kind in kinds], dtype=np.int64)[which])

    def without(self, absent: NDArray[np.bool_]) -> "_Guess":
        """The guess where nothing runs at some of the widths (n,)."""
        kinds = [*self.kinds, ("", True)]
        return _Guess.of(kinds, np.where(absent, len(kinds) - 1, self.which))


_Guesses = dict[int, _Guess]


@dataclass(frozen=True, slots=True)
class _Times:
    """Kinds, microseconds (n,) and sources (n,) of one term at n widths."""

    guess: _Guess
    us: Floats
    sources: Ints

    @property
    def executed(self) -> Ints:
        """How many nodes run for the term (n,)."""
        return np.asarray([executed(kind) for kind, _ in self.guess.kinds], dtype=np.int64)[self.guess.which]


def _nothing(_: Widths) -> object:
    return None
