"""A network on one target: from widths to the kinds, keys and table entries of its units.

The kind of a unit (which kernel in which layout) follows from where its channels stand on the target's stairs; the rule
is learnt from variants that were profiled. What runs at a boundary follows from the kinds of the units around it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .lut import Entry
from .staircase import Granularity
from .structure import Boundary, Mask, Ran, Shapes, ShapesOf, Structure, Unit, Widths, digest_of, masks_of

Places = tuple[str, ...]


class Plan:
    """A network's structure on one target with the stairs of its units: turns widths into kinds, keys and amounts."""

    def __init__(
        self, structure: Structure, base: Widths, other: Widths, shapes: ShapesOf, granularity: Granularity
    ) -> None:
        self.structure = structure
        self.base = dict(base)
        self.shapes = shapes
        self.granularity = granularity
        self.masks = masks_of(structure.units, base, other, shapes)
        self.boundary_masks = masks_of([b.unit for b in structure.boundaries], base, other, shapes)
        self.digest = digest_of([structure.digest, sorted(base.items())])

    def stairs(self, unit: Unit, shapes: Shapes) -> Places:
        """Where the channel count (axis 1) of each tensor that the unit reads or writes stands on the stairs."""
        ins, _, outs = unit.dims(shapes)
        return tuple(self.granularity.stair(shape[1]) if len(shape) > 1 else "-" for shape in (*ins, *outs))

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

    def learn(self, what: object, places: Sequence[str], kind: str) -> None:
        """Counts one observation."""
        self.seen[what][tuple(places)][kind] += 1

    def predict(self, what: object, places: Sequence[str]) -> tuple[str, bool]:
        """The kind seen most often there, or at the nearest places (then the second value is False)."""
        known = self.seen.get(what)
        if not known:
            return "", False
        here = tuple(places)
        if here in known:
            return known[here].most_common(1)[0][0], True
        near = min(known, key=lambda p: (_apart(p, here), p))
        return known[near].most_common(1)[0][0], False


def _apart(a: Places, b: Places) -> int:
    """How unlike two lists of places are: below one step or not, and aligned or not, decide which kernel runs.

    What is read (all but the last place) decides more than what is written.
    """
    if len(a) != len(b):
        return 99
    return sum(_unlike(x, y) * (1 if i == len(a) - 1 else 2) for i, (x, y) in enumerate(zip(a, b, strict=True)))


def _unlike(x: str, y: str) -> int:
    return (x != y) + 4 * (x.isupper() != y.isupper()) + 3 * ((x in "uU") != (y in "uU"))


def around(boundary: Boundary, kinds: Sequence[str] | Mapping[int, str]) -> tuple[str, ...]:
    """The kinds of the units around a boundary: who writes it, then all that read it."""
    writer = kinds[boundary.producer] if boundary.producer >= 0 else "input"
    return (writer, *sorted({kinds[i] for i in boundary.consumers}))


def network_entry(plan: Plan, widths: Widths, ran: Ran, whole_ms: float) -> Entry:
    """The table's entry for a whole network: what ran at these widths, and its measured latency."""
    attributes = {
        "type": "network",
        "digest": plan.digest,
        "widths": dict(sorted(widths.items())),
        "kinds": [kind for kind, _ in ran.units],
        "layouts": [kind for kind, _ in ran.boundaries],
        "loose_us": ran.loose_us,
    }
    return Entry(digest_of([plan.digest, attributes["widths"]]), attributes, (whole_ms * 1e3,))
