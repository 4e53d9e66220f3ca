"""What the sequential refit fits: each consumer behind a removed unit, its target, and what must be settled before it.

1. Every consumer behind a removed unit is fitted, also those that keep all their inputs: these have changed too.
2. A consumer whose output is added to a stream of the same shape makes good what the stream lost as well: its target is
   the original sum less the pruned stream ("residual-corrected", RECOVERY.md A). When both sides of a sum are fitted,
   the later one does that.
3. Where a branch or a plain layer has gone, y is the target of what writes x, if nobody else reads x
   (`branches.absorbed`).
4. Fits that do not depend on each other are of one level. The border of a level is what is settled before it and read
   on the way to what comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import numpy as np

from ..ir.graph import Graph, Node
from ..ir.ops.maps import Floats, Window, added_stream
from .branches import Absorbed, absorbed, nodes_of
from .consumers import Consumer, Mask
from .coupling import Branch, Coupling, Kept
from .moments import Sums
from .recover import Slots, slots_of


@dataclass(slots=True)
class Fit:
    """One consumer to be fitted to `target`, a tensor of the original, less `stream`, one of the pruned network.

    `fixed` is the bias (groups, outputs) that it cannot change, `last` tells that no fit comes behind it; `sums` are
    those over the rows for fitting and held out, by lane, there while its level is run. `absorbs`: it is fitted to what
    branches gave that have gone (rule 3).
    """

    number: int
    item: Consumer
    slots: Slots
    target: str
    fixed: Floats
    stream: str = ""
    level: int = 0
    last: bool = True
    absorbs: bool = False
    sums: dict[int, tuple[Sums, ...]] = field(default_factory=dict)

    @property
    def taps(self) -> list[str]:
        """What it reads from the pruned network."""
        return [self.item.data, *([self.stream] if self.stream else [])]

    @property
    def window(self) -> Window:
        """How it reads the pruned tensor, which may have fewer blocks."""
        return replace(self.item.window, groups=int(self.slots.blocks.sum()))

    @property
    def columns(self) -> int:
        """Columns of a block, before pruning."""
        return int(self.slots.columns.shape[1])

    @property
    def target_axis(self) -> int:
        """The channel axis of the target."""
        return self.item.window.axis if self.item.by_channel else self.item.map.out_axis

    @property
    def sums_bytes(self) -> float:
        """About what the sums of one lane take: the products of all columns that are kept, twice."""
        return float(2 * 8 * (self.slots.columns.sum(axis=1) ** 2).sum())

    def take_sums(self) -> tuple[Sums, Sums] | None:
        """The sums of all lanes for fitting and held out, which are not kept any longer; None when no row was read."""
        lanes = [self.sums[lane] for lane in sorted(self.sums)]
        self.sums.clear()
        if not lanes:
            return None
        fitted, held = (reduce(Sums.plus, parts) for parts in zip(*lanes, strict=True))
        return fitted, held


@dataclass
class Network:
    """How fits depend on each other: for every tensor the fits before it, as bits by their number.

    `fixed` are the tensors that depend on constants alone, `levels` the level of each fit. `branches` are those that
    have gone.
    """

    graph: Graph
    before: dict[str, int]
    fixed: frozenset[str]
    levels: list[int] = field(default_factory=list)
    branches: tuple[Branch, ...] = ()

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are left."""
        gone = nodes_of(self.branches)
        return tuple(node for node in self.graph.nodes if node.index not in gone)

    @cached_property
    def totals(self) -> dict[int, str]:
        """The shortcuts of the branches that have gone, by their sums."""
        return {branch.total: branch.shortcut for branch in self.branches}

    def reads(self, node: Node) -> list[str]:
        """What a node that is left reads."""
        if node.index in self.totals:
            return [self.totals[node.index]]
        return [name for name in (*node.inputs, *node.captures) if name]

    def bits(self, fit: Fit) -> int:
        """The fits that must be settled before a fit."""
        return self.before.get(fit.item.data, 0) | self.before.get(fit.stream, 0)

    def level_of(self, bits: int) -> int:
        """The highest level of a set of fits, 0 for none."""
        return max((level for number, level in enumerate(self.levels) if bits >> number & 1), default=0)

    def level(self, name: str) -> int:
        """The level after which a tensor is settled; 0 for what no fit touches."""
        return self.level_of(self.before.get(name, 0))

    def border(self, level: int, later: list[str]) -> list[str]:
        """Tensors settled before `level` that are read on the way from there to the tensors `later`."""
        wanted = set(later)
        found = {name: None for name in later if self.level(name) < level}
        for node in reversed(self.nodes):
            settled = max((self.level(name) for name in node.outputs if name), default=0) < level
            if settled or not wanted.intersection(node.outputs):
                continue
            reads = [name for name in self.reads(node) if name not in self.fixed]
            wanted.update(reads)
            found.update({name: None for name in reads if self.level(name) < level})
        return list(found)


def plan_fits(coupling: Coupling, kept: Kept, consumers: tuple[Consumer, ...]) -> tuple[list[Fit], Network]:
    """The fits in the order of the graph, and how they depend on each other, when only the `kept` units are left."""
    graph, removed = coupling.graph, coupling.removed_units(kept)
    origins = {c.node for c in coupling.relations.contracts if not coupling.positions(c.axis, removed).all()}
    by_node = {item.node.index: item for item in consumers}
    network = Network(graph, {}, _from_constants(graph), branches=coupling.gone(kept))
    absorbing = absorbed(graph, consumers, network.branches)
    origins |= absorbing.keys()
    changed: set[str] = set()
    fits: list[Fit] = []
    for node in network.nodes:
        reads = network.reads(node)
        if node.index in network.totals:
            changed.update(node.outputs)
        bits = 0
        for name in reads:
            bits |= network.before.get(name, 0)
        if node.index in origins or changed.intersection(reads):
            changed.update(node.outputs)
            item = None if node.index in network.totals else by_node.get(node.index)
            fit = None if item is None else _fit(coupling, item, removed, len(fits))
            if fit is not None:
                fits.append(fit)
                bits |= 1 << fit.number
        network.before.update(dict.fromkeys(node.outputs, bits))
    for fit in fits:
        _correct(graph, network, changed, fit, absorbing.get(fit.item.node.index))
        bits = network.bits(fit)
        fit.level = network.level_of(bits) + 1
        network.levels.append(fit.level)
        for number, other in enumerate(fits):
            other.last &= not bits >> number & 1
    return fits, network


def _fit(coupling: Coupling, item: Consumer, removed: Mask, number: int) -> Fit | None:
    """The fit of a consumer; None when its output holds a bias that is not known."""
    slots = slots_of(coupling, item, removed)
    if item.by_channel:
        fixed = np.zeros((int(slots.blocks.sum()), slots.columns.shape[1]))
        return Fit(number, item, slots, item.data, fixed)
    bias = _fixed_bias(coupling.graph, item)
    if bias is None:
        return None
    full = np.broadcast_to(bias, slots.outputs.size).reshape(slots.outputs.shape)
    rows = [row[keep] for row, keep, there in zip(full, slots.outputs, slots.blocks, strict=True) if there]
    return Fit(number, item, slots, item.output, np.stack(rows))


def _fixed_bias(graph: Graph, item: Consumer) -> Floats | None:
    """The bias of each output that is not ours to change, 0 where there is none; None when it is not known."""
    if item.map.bias < 0 or item.bias.name:
        return np.zeros(1)
    constant = graph.constants.get(item.node.inputs[item.map.bias])
    if constant is None or constant.size != graph.shapes[item.output][item.map.out_axis]:
        return None
    return constant.array().reshape(-1).astype(np.float64) * item.map.offset


def _from_constants(graph: Graph) -> frozenset[str]:
    """Tensors that the model computes from constants alone; what follows from an input's shape is none of them."""
    found = set(graph.constants)
    for node in graph.nodes:
        if not node.captures and all(name in found for name in node.inputs if name):
            found.update(node.outputs)
    return frozenset(found)


def _correct(graph: Graph, network: Network, changed: set[str], fit: Fit, goal: Absorbed | None) -> None:
    """Rules 2 and 3."""
    if goal is not None and not network.before.get(goal.stream, 0) >> fit.number:
        fit.target, fit.stream, fit.absorbs = goal.target, goal.stream, True
        return
    users = graph.users.get(fit.item.output, ())
    if fit.item.by_channel or len(users) != 1 or fit.item.output in {port.name for port in graph.outputs}:
        return
    node = users[0][0]
    stream = added_stream(graph, node, fit.item.output)
    if stream in changed and not network.before[stream] >> fit.number:
        fit.target, fit.stream = node.outputs[0], stream
