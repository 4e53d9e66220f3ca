"""A network as the cost model sees it: units, the tensors between them, and how widths change their shapes.

1. The units are those of the base network: one per executed node that covers original nodes. In another variant the
   runtime may fuse differently (a convolution that leaves the blocked layout no longer takes in the Add behind it);
   what is executed there is given to the base unit with which it shares most original nodes, and summed.
2. A boundary is a tensor between units; layout and type changes that the runtime inserts there are its cost.
3. The kind of a unit in a variant names what ran for it, layouts included; "" is nothing.
4. A skeleton is everything about a unit but its widths: operators, attributes that do not follow from widths, and
   shapes with `*` where a width stands. Units of equal skeleton, kind and shapes cost the same: they share a key.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from .trace import node_id, tensors_read
from .units import Attribution

Widths = Mapping[str, int]
Shapes = Mapping[str, tuple[int, ...]]
ShapesOf = Callable[[Widths], Shapes]
Dims = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """Original nodes that run as one, with the tensors they read and write (a boundary: one tensor and no nodes)."""

    nodes: frozenset[str]
    ops: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]

    def dims(self, shapes: Shapes) -> tuple[Dims, Dims, Dims]:
        """The shapes of inputs, constants and outputs; a tensor of unknown shape counts as a scalar."""
        ins, constants, outs = (
            tuple(shapes.get(t, ()) for t in names) for names in (self.inputs, self.constants, self.outputs)
        )
        return ins, constants, outs


@dataclass(frozen=True, slots=True)
class Boundary:
    """A tensor between units: the index of the unit that writes it (-1: a graph input) and of those that read it."""

    unit: Unit
    producer: int
    consumers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Structure:
    """The units and boundaries of the base network."""

    units: tuple[Unit, ...]
    boundaries: tuple[Boundary, ...]
    digest: str


def executed(kind: str) -> int:
    """How many nodes ran for a unit or boundary of this kind."""
    return kind.count("+") + 1 if kind else 0


@dataclass(frozen=True, slots=True)
class Ran:
    """What one variant executed: kind and microseconds of every unit and of every boundary, in order.

    `reference_us`: what a reference network took beside it; nan where none was run.
    """

    units: tuple[tuple[str, float], ...]
    boundaries: tuple[tuple[str, float], ...]
    loose_us: float
    reference_us: float = float("nan")

    @property
    def total_us(self) -> float:
        """The sum of all."""
        return sum(us for _, us in (*self.units, *self.boundaries)) + self.loose_us

    @property
    def executed(self) -> int:
        """How many nodes ran in all."""
        return sum(executed(kind) for kind, _ in (*self.units, *self.boundaries))

    def borrowed(self, provider: str) -> "Ran":
        """The same, every kind marked with the provider that it ran on."""
        units, boundaries = (
            tuple((f"{kind}@{provider}" if kind else "", us) for kind, us in told)
            for told in (self.units, self.boundaries)
        )
        return replace(self, units=units, boundaries=boundaries)


def structure_of(base: onnx.GraphProto, other: onnx.GraphProto, attribution: Attribution, shapes: Shapes) -> Structure:
    """The Structure of the base network; attributes that differ in `other` (other widths) are no part of a skeleton."""
    moving = _moving_tensors(base)
    attributes = _static_attributes(base, other)
    units = tuple(_unit(base, e.covers, moving, attributes) for e in attribution.executed if e.covers)
    boundaries = _boundaries(units)
    told = [[u.ops, u.dims(shapes)] for u in units]
    return Structure(units, boundaries, digest_of(told))


def digest_of(value: Any) -> str:
    """A short text that is equal for equal JSON values, in any process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _moving_tensors(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on a graph input (initializers that are also listed as inputs are constants)."""
    constants = {t.name for t in graph.initializer}
    moving = {value.name for value in graph.input} - constants
    for node in graph.node:
        if any(t in moving for t in tensors_read(node)):
            moving.update(t for t in node.output if t)
    return moving


def _static_attributes(base: onnx.GraphProto, other: onnx.GraphProto) -> dict[str, dict[str, str]]:
    """Attributes as text, by node id, without those that follow from widths, tensors and subgraphs."""
    theirs = {node_id(node): _attributes(node) for node in other.node}
    return {
        node_id(node): {k: v for k, v in _attributes(node).items() if theirs.get(node_id(node), {}).get(k) == v}
        for node in base.node
    }


def _attributes(node: onnx.NodeProto) -> dict[str, str]:
    held = (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return {a.name: repr(onnx.helper.get_attribute_value(a)) for a in node.attribute if a.type not in held}


def _unit(
    graph: onnx.GraphProto, covers: Sequence[str], moving: set[str], attributes: Mapping[str, Mapping[str, str]]
) -> Unit:
    mine = frozenset(covers)
    inside = [node for node in graph.node if node_id(node) in mine]
    made = {t for node in inside for t in node.output if t}
    used_outside = {t for node in graph.node if node_id(node) not in mine for t in tensors_read(node)}
    used_outside |= {value.name for value in graph.output}
    running = [node for node in inside if any(t in moving for t in node.output)]
    read = dict.fromkeys(t for node in running for t in tensors_read(node) if t and t not in made)
    folded = dict.fromkeys(t for node in running for t in tensors_read(node) if t in made and t not in moving)
    ops = [[node.domain, node.op_type, sorted(attributes[node_id(node)].items())] for node in running]
    return Unit(
        mine,
        json.dumps(ops, separators=(",", ":")),
        tuple(t for t in read if t in moving),
        tuple(t for t in (*read, *folded) if t not in moving),
        tuple(t for node in running for t in node.output if t in used_outside),
    )


def _boundaries(units: Sequence[Unit]) -> tuple[Boundary, ...]:
    producer = {t: i for i, unit in enumerate(units) for t in unit.outputs}
    consumers: dict[str, list[int]] = defaultdict(list)
    for i, unit in enumerate(units):
        for t in unit.inputs:
            consumers[t].append(i)
    names = dict.fromkeys((*producer, *consumers))
    return tuple(Boundary(Unit(frozenset(), "", (t,), (), ()), producer.get(t, -1), tuple(consumers[t])) for t in names)


def what_ran(structure: Structure, graph: onnx.GraphProto, attribution: Attribution) -> Ran:
    """What a variant executed, told in the base network's units and boundaries (rules 1 to 3)."""
    owner = {name: i for i, unit in enumerate(structure.units) for name in unit.nodes}
    at_tensor = {b.unit.inputs[0]: i for i, b in enumerate(structure.boundaries)}
    writer = {t: node_id(node) for node in graph.node for t in node.output if t}
    units = [_Sum() for _ in structure.units]
    boundaries = [_Sum() for _ in structure.boundaries]
    loose = attribution.unattributed_us
    for done in attribution.executed:
        unit = _owner(done.covers or (writer.get(done.tensor or "", ""),), owner)
        if done.tensor in at_tensor:
            boundaries[at_tensor[done.tensor]].add(done.kind, done.us)
        elif unit is not None:
            units[unit].add(done.kind, done.us)
        else:
            loose += done.us
    return Ran(tuple(s.result() for s in units), tuple(s.result() for s in boundaries), loose)


class _Sum:
    """Kinds and times that are added up."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.us = 0.0

    def add(self, kind: str, us: float) -> None:
        self.kinds.append(kind)
        self.us += us

    def result(self) -> tuple[str, float]:
        return "+".join(self.kinds), self.us


def _owner(covers: Iterable[str], owner: Mapping[str, int]) -> int | None:
    votes = Counter(owner[name] for name in covers if name in owner)
    return max(votes, key=lambda i: (votes[i], -i)) if votes else None


@dataclass(frozen=True, slots=True)
class Mask:
    """Which axes of a unit's tensors follow widths, and the groups that move them."""

    skeleton: str
    axes: tuple[tuple[bool, ...], ...]
    groups: tuple[str, ...]


def masks_of(units: Sequence[Unit], base: Widths, other: Widths, shapes: ShapesOf) -> tuple[Mask, ...]:
    """The Mask of every unit, found by changing one group at a time from its width in `base` to that in `other`."""
    start, end = shapes(base), shapes({**base, **other})
    moved_by: dict[str, list[str]] = defaultdict(list)
    for group in sorted(base):
        one = shapes({**base, group: other[group]}) if other.get(group, base[group]) != base[group] else start
        for tensor, shape in one.items():
            if shape != start.get(tensor):
                moved_by[tensor].append(group)
    return tuple(_mask(unit, start, end, moved_by) for unit in units)


def _mask(unit: Unit, start: Shapes, end: Shapes, moved_by: Mapping[str, Sequence[str]]) -> Mask:
    tensors = (*unit.inputs, *unit.constants, *unit.outputs)
    groups = tuple(sorted({g for t in tensors for g in moved_by.get(t, ())}))
    pairs = zip(unit.dims(start), unit.dims(end), strict=True)
    axes = tuple(
        tuple(tuple(x != y for x, y in zip(s, e, strict=True)) for s, e in zip(a, b, strict=True)) for a, b in pairs
    )
    flat = [mask for part in axes for mask in part]
    dims = [shape for part in unit.dims(start) for shape in part]
    wild = [["*" if m else d for m, d in zip(mask, shape, strict=True)] for mask, shape in zip(flat, dims, strict=True)]
    counts = [len(unit.inputs), len(unit.constants), len(unit.outputs)]
    skeleton = json.dumps([unit.ops, counts, wild], separators=(",", ":"))
    return Mask(skeleton, tuple(flat), groups)
