"""Sharing: many masked networks in as few runs as they have things in common (see `masks`).

1. A network starts at its first mask that is not all ones: up to there it is the base, which is run once for all. What
   crosses to the rest of the model (the live tensors in front of that node) is handed to the network's own part.
2. Networks of one start are a part: one model, with the masks that any of them needs, and a row of them for each. Parts
   come in the order of their starts, and the base is run from one to the next: one start's tensors are held at a time.
3. Every part costs the opening of a session. Which starts are worth one is found exactly, by dynamic programming over
   the starts in the order of the nodes, in multiply-accumulates.

Proposals that narrow one group each share half of the work on average, and nearly all of it where the group lies at the
end; proposals that narrow all groups share next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.cut import cut
from ..ir.graph import Graph
from .coupling import Coupling, Kept
from .masks import FLOATS, Mask, Places, counts_examples, with_masks

OPENING_MACS = 10e6
"""What a part costs for each node of the model, in multiply-accumulates (ResNet20 on one core: 0.13 ms a node for
cutting and opening what stands before and behind a start, and 80 million multiply-accumulates a millisecond).
"""

HELD_BYTES = 256_000_000
"""The models of all parts are held at once: of a large model there are no more than this holds (at least one)."""


@dataclass(frozen=True, slots=True)
class Base:
    """The network in which masks switch units off: its model, the units that it has, and multiply-accumulates by node
    (at the input shapes of the graph).

    Node indices are those of the coupled graph; the model must have the same nodes.
    """

    model: onnx.ModelProto
    kept: Kept
    macs: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """Networks of one start: `rows` are their numbers, `masks` has a row for each that needs any.

    `fed` are the tensors that `model` reads besides the masks; `lead` makes those that the part before (the first: the
    model's inputs) was not fed, and reads what it was fed. None: there are none to make.
    """

    lead: onnx.ModelProto | None
    fed: tuple[str, ...]
    model: onnx.ModelProto
    rows: tuple[int, ...]
    masks: Mapping[str, Mask]


def shared(coupling: Coupling, places: Places, base: Base, networks: Sequence[Kept], examples: int) -> tuple[Part, ...]:
    """The parts that make all networks on so many examples; every unit that a network keeps must be in the base."""
    graph, ones = coupling.graph, _all_ones(coupling, places, base, networks)  # (networks, places)
    readers = np.array([min(node.index for node, _ in nodes) for nodes in places.values()])
    first = np.where(ones, len(graph.nodes), readers).min(axis=1)
    live = _live(graph)
    usable = [0, *(at for at in np.unique(readers).tolist() if at and _can_start(coupling, live[at]))]
    most = max(1, HELD_BYTES // max(base.model.ByteSize(), 1))
    starts = _starts(graph, base.macs, usable[:: -(-len(usable) // most)], first, examples)
    parts: list[Part] = []
    fed = tuple(port.name for port in graph.inputs)
    for start in np.unique(starts).tolist():
        rows = np.flatnonzero(starts == start).tolist()
        needed = {axis: nodes for place, (axis, nodes) in enumerate(places.items()) if not ones[rows, place].all()}
        masked = with_masks(coupling, needed, base.kept, base.model)
        before, fed = fed, tuple(live[start]) if start else fed
        lead, model = None, masked.model
        if start:
            lead = _between(graph, base.model, before, fed)
            model = cut(model, [port.name for port in graph.outputs], {name: graph.dtypes[name] for name in fed})
        parts.append(Part(lead, fed, model, tuple(rows), masked.feeds([networks[row] for row in rows])))
    return tuple(parts)


def _between(
    graph: Graph, model: onnx.ModelProto, before: Sequence[str], after: Sequence[str]
) -> onnx.ModelProto | None:
    """The model that makes tensors from earlier ones; None when they are among these."""
    new = [name for name in after if name not in before]
    return cut(model, new, {name: graph.dtypes[name] for name in before}) if new else None


def _all_ones(coupling: Coupling, places: Places, base: Base, networks: Sequence[Kept]) -> NDArray[np.bool_]:
    """For every network and place whether nothing that the base has is masked there."""
    absent = coupling.removed_units(base.kept)
    here = [coupling.positions(axis, absent) for axis in places]
    removed = [coupling.removed_units(kept) for kept in networks]
    return np.array(
        [
            [bool(coupling.positions(axis, mask)[own].all()) for axis, own in zip(places, here, strict=True)]
            for mask in removed
        ]
    )


def _live(graph: Graph) -> list[list[str]]:
    """For every node the tensors made before it from the inputs that it, or a later node or an output, reads."""
    fixed = set(graph.constants)
    born: dict[str, int] = {port.name: 0 for port in graph.inputs if port.name not in fixed}
    dies = {port.name: len(graph.nodes) for port in graph.outputs}
    for node in graph.nodes:
        read = [name for name in (*node.inputs, *node.captures) if name]
        for name in read:
            dies[name] = max(dies.get(name, -1), node.index)
        if read and fixed.issuperset(read):
            fixed.update(node.outputs)
        else:
            born.update({name: node.index + 1 for name in node.outputs if name and name not in fixed})
    return [[name for name, at in born.items() if at <= node.index <= dies.get(name, -1)] for node in graph.nodes]


def _can_start(coupling: Coupling, live: Sequence[str]) -> bool:
    """Whether these tensors can be handed on, one example beside the other."""
    graph = coupling.graph
    given = {port.name for port in graph.outputs}
    return all(
        name not in given and graph.dtypes.get(name) in FLOATS and counts_examples(coupling, name) for name in live
    )


def _starts(
    graph: Graph, macs: Mapping[int, int], usable: Sequence[int], first: NDArray[np.int64], examples: int
) -> NDArray[np.int64]:
    """For every network its start (rule 3): one of the nodes `usable` (rising, from 0), not behind its `first`."""
    nodes, batch = len(graph.nodes), max((graph.shapes[port.name] or (1,))[0] for port in graph.inputs)
    behind = np.cumsum([macs.get(at, 0) for at in range(nodes)][::-1])[::-1]
    latest = np.searchsorted(usable, first, side="right") - 1
    count = np.bincount(latest, minlength=len(usable))
    # best[i]: the least cost of the networks that may start at i or later, when i is a start, and the next start
    best: list[tuple[float, int]] = [(0.0, 0)] * (len(usable) + 1)
    for i in range(len(usable) - 1, -1, -1):
        each, opening = examples / batch * float(behind[usable[i]]), OPENING_MACS * nodes
        best[i] = min(
            (best[k][0] + (opening + each * int(count[i:k].sum()) if count[i:k].any() else 0.0), k)
            for k in range(i + 1, len(usable) + 1)
        )
    chosen, at = np.zeros(len(usable), dtype=np.int64), 0
    while at < len(usable):
        chosen[at : best[at][1]] = usable[at]
        at = best[at][1]
    return np.asarray(chosen[latest], dtype=np.int64)
