"""A network on one target: from widths to the kinds, keys and table entries of its units.

The kind of a unit (which kernel in which layout) follows from where its channels stand on the target's stairs; the rule
is learnt from variants that were profiled. What runs at a boundary follows from the kinds of the units around it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .amounts import Form, Ints
from .capability import Capability
from .lut import Entry
from .staircase import STAIRS, Granularity
from .structure import Boundary, Mask, Ran, Shapes, ShapesOf, Structure, Unit, Widths, digest_of, masks_of

Places = tuple[str, ...]
_COUNTED = 8  # numbers up to so many times their count are counted rather than sorted
_TESTS = 4  # networks on which it is tested that sizes follow widths linearly


@dataclass(frozen=True, slots=True)
class Term:
    """A unit or a boundary as a term of the sum: its form, and how its moving axes follow the widths.

    `slopes` (1 + groups, axes): sizes = [1, widths] @ slopes; None where they follow in another way.
    """

    unit: Unit
    mask: Mask
    form: Form
    slopes: Ints | None


class Plan:
    """A network's structure on one target with the stairs of its units: turns widths into kinds, keys and amounts."""

    def __init__(
        self,
        structure: Structure,
        base: Widths,
        other: Widths,
        shapes: ShapesOf,
        granularity: Granularity,
        capability: Capability = Capability.PER_NODE,
        removable: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        self.structure = structure
        self.capability = capability
        self.base = dict(base)
        self.other = {g: other.get(g, w) for g, w in base.items()}
        self.shapes = shapes
        self.granularity = granularity
        self.groups = tuple(sorted(base))
        self.masks = masks_of(structure.units, base, other, shapes)
        self.boundary_masks = masks_of([b.unit for b in structure.boundaries], base, other, shapes)
        self.digest = digest_of([structure.digest, sorted(base.items()), capability])
        self.removable = dict(removable or {})

    @cached_property
    def ends(self) -> tuple[tuple[int, ...], ...]:
        """For every unit, then for every boundary, the groups (as places in `groups`) at whose width 0 it is not there.

        That a unit has lost some of its nodes is enough: what is left of a convolution with its sum does nothing.
        """
        names = [
            *(u.nodes for u in self.structure.units),
            *(frozenset(b.unit.inputs) for b in self.structure.boundaries),
        ]
        return tuple(
            tuple(i for i, g in enumerate(self.groups) if own & self.removable.get(g, frozenset())) for own in names
        )

    def absent(self, index: int, widths: Ints) -> NDArray[np.bool_]:
        """At which of the widths (n, groups) a term is not there."""
        return np.asarray((widths[:, list(self.ends[index])] == 0).any(axis=1), dtype=np.bool_)

    @cached_property
    def writers(self) -> tuple[tuple[int, ...], ...]:
        """For every unit without weights, the units that write what it reads: it may run within one of them."""
        producer = {b.unit.inputs[0]: b.producer for b in self.structure.boundaries}
        return tuple(
            tuple(sorted({producer[t] for t in unit.inputs} - {-1})) if not unit.constants else ()
            for unit in self.structure.units
        )

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """A Term for every unit, then for every boundary."""
        pairs = [
            *zip(self.structure.units, self.masks, strict=True),
            *((b.unit, mask) for b, mask in zip(self.structure.boundaries, self.boundary_masks, strict=True)),
        ]
        between = [self._between(k) for k in range(_TESTS)]
        ways = [self.base, *({**self.base, g: self.other[g]} for g in self.groups), *between, self.other]
        shapes = [self.shapes(widths) for widths in ways]
        return tuple(self._term(unit, mask, ways, shapes) for unit, mask in pairs)

    def _between(self, turn: int) -> dict[str, int]:
        """Widths between those of base and other, at unlike shares, to test what was concluded from those."""
        share = {g: ((i + 3 * turn) % 7 + 1) / 8.3 for i, g in enumerate(self.groups)}
        return {g: round(w + (self.other[g] - w) * share[g]) for g, w in self.base.items()}

    def _term(self, unit: Unit, mask: Mask, ways: Sequence[Widths], shapes: Sequence[Shapes]) -> Term:
        form = Form.of(mask.skeleton)
        sizes = np.asarray([form.sizes(unit.dims(s)) for s in shapes], dtype=np.int64).reshape(len(ways), form.count)
        widths = self.matrix(ways)
        moved = widths[0] - self.matrix([self.other])[0]
        slopes = (
            (sizes[0] - sizes[1 : 1 + len(self.groups)]) / np.where(moved, moved, 1)[:, None] * (moved != 0)[:, None]
        )
        linear = np.vstack([sizes[0] - widths[0] @ slopes, slopes]).round().astype(np.int64)
        fits = np.array_equal(_sizes(linear, widths), sizes)
        return Term(unit, mask, form, linear if fits else None)

    def matrix(self, networks: Sequence[Widths]) -> Ints:
        """Widths as an array (networks, groups), groups in the order of `groups`; those not named are whole."""
        rows = [[widths.get(g, self.base[g]) for g in self.groups] for widths in networks]
        return np.asarray(rows, dtype=np.int64).reshape(len(networks), len(self.groups))

    def sizes(self, term: Term, widths: Ints) -> Ints:
        """The sizes (n, axes) of a term's moving axes at widths (n, groups); those of a group at 0 tell nothing."""
        widths = np.where(widths == 0, self.matrix([self.base]), widths)
        if term.slopes is not None:
            return _sizes(term.slopes, widths)
        shapes = [self.shapes(dict(zip(self.groups, map(int, row), strict=True))) for row in widths]
        return np.asarray([term.form.sizes(term.unit.dims(s)) for s in shapes], dtype=np.int64)

    def stairs(self, term: Term, sizes: Ints) -> tuple[list[Places], Ints]:
        """Where the channels of each tensor read or written stand on the stairs: distinct answers, and which (n,)."""
        codes, which = distinct(self.granularity.codes(term.form.channels(sizes)))
        return [tuple(STAIRS[c] for c in row) for row in codes], which

    def keys(self, kind: str, widths: Widths) -> list[str]:
        """The key of every unit at `widths`, if it runs as `kind`."""
        shapes = self.shapes(widths)
        return [key_of(u, m, kind, shapes) for u, m in zip(self.structure.units, self.masks, strict=True)]

    def entry(self, unit: Unit, mask: Mask, kind: str, shapes: Shapes, us: float) -> Entry:
        """The table's entry for a unit that ran as `kind` in `us`."""
        attributes = {
            "type": "unit",
            "family": family_of(kind, mask),
            "relatives": digest_of([kind, unit.ops]),
            "kind": kind,
            "skeleton": mask.skeleton,
            "shapes": unit.dims(shapes),
        }
        return Entry(key_of(unit, mask, kind, shapes), attributes, (us,))


def _sizes(slopes: Ints, widths: Ints) -> Ints:
    moving = np.flatnonzero(slopes[1:].any(axis=1))  # few of many groups, and products of whole numbers are slow
    return np.asarray(slopes[0] + widths[:, moving] @ slopes[1:][moving])


def distinct(codes: Ints) -> tuple[Ints, Ints]:
    """The distinct rows of small whole numbers `codes` (n, columns), and which of them each row is (n,).

    np.unique sorts; where numbers are small this counts, several times as fast for many rows of which few differ.
    """
    which = np.zeros(len(codes), dtype=np.int64)
    for k, column in enumerate(codes.T):
        if any(np.array_equal(column, codes[:, earlier]) for earlier in range(k)):
            continue  # shapes name one width several times
        mixed = which * (int(column.max(initial=0)) + 1) + column
        if mixed.max(initial=0) > _COUNTED * len(codes):
            which = np.unique(mixed, return_inverse=True)[1].astype(np.int64)
            continue
        present = np.flatnonzero(np.bincount(mixed))
        number = np.zeros(int(mixed.max(initial=0)) + 1, dtype=np.int64)
        number[present] = np.arange(len(present))
        which = number[mixed]
    first = np.zeros(int(which.max(initial=-1)) + 1, dtype=np.int64)
    first[which[::-1]] = np.arange(len(codes))[::-1]
    return codes[first], which


def family_of(kind: str, mask: Mask) -> str:
    """What units have in common that differ in widths only."""
    return digest_of([kind, mask.skeleton])


def key_of(unit: Unit, mask: Mask, kind: str, shapes: Shapes) -> str:
    """The key of a unit: kind, operators and static attributes, and all its shapes."""
    return digest_of([kind, mask.skeleton, unit.dims(shapes)])


@dataclass(slots=True)
class Kinds:
    """Learnt: what runs for a skeleton whose channels stand on given stairs."""

    seen: dict[Any, dict[Any, Counter[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))
    nearest: dict[Any, str] = field(default_factory=dict)

    def learn(self, what: object, places: Sequence[str], kind: str) -> None:
        """Counts one observation."""
        self.seen[what][tuple(places)][kind] += 1
        self.nearest.clear()

    def predict(self, what: object, places: Sequence[str]) -> tuple[str, bool]:
        """The kind seen most often there, or at the nearest places (then the second value is False)."""
        known = self.seen.get(what)
        if not known:
            return "", False
        here = tuple(places)
        if here in known:
            return known[here].most_common(1)[0][0], True
        if (what, here) not in self.nearest:
            near = min(known, key=lambda p: (_apart(p, here), p))
            self.nearest[what, here] = known[near].most_common(1)[0][0]
        return self.nearest[what, here], False


def _apart(a: Places, b: Places) -> int:
    """How unlike two lists of places are: below one step or not, and aligned or not, decide which kernel runs.

    What is read first decides most, then what else is read, then what is written (the last place).
    """
    if len(a) != len(b):
        return 99
    weights = [4, *[2] * (len(a) - 2), 1][-len(a) :]
    return sum(_unlike(x, y) * weight for x, y, weight in zip(a, b, weights, strict=True))


def _unlike(x: str, y: str) -> int:
    return (x != y) + 4 * (x.isupper() != y.isupper()) + 3 * ((x in "uU") != (y in "uU"))


def around(boundary: Boundary, kinds: Sequence[str] | Mapping[int, str]) -> tuple[str, ...]:
    """The kinds of the units around a boundary: who writes it, then all that read it."""
    writer = kinds[boundary.producer] if boundary.producer >= 0 else "input"
    return (writer, *sorted({kinds[i] for i in boundary.consumers}))


def network_entry(plan: Plan, widths: Widths, ran: Ran, whole_ms: float, speed: float) -> Entry:
    """The table's entry for a whole network: what ran at these widths, and its measured latency.

    `speed` is the factor by which the times of its units were scaled before they were stored.
    """
    attributes = {
        "type": "network",
        "digest": plan.digest,
        "widths": dict(sorted(widths.items())),
        "kinds": [kind for kind, _ in ran.units],
        "layouts": [kind for kind, _ in ran.boundaries],
        "loose_us": ran.loose_us,
        "sum_us": ran.total_us * speed,
        "executed": ran.executed,
    }
    return Entry(digest_of([plan.digest, attributes["widths"]]), attributes, (whole_ms * 1e3,))
