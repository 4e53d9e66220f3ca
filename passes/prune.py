"""Pruning: the model with the units that are not kept removed, and the plan that says what went.

1. Every constant is sliced along every axis to the positions that are kept. A constant whose users keep different
   positions is sliced in place for the first and copied for the others.
2. Attributes and size inputs follow by the operators' own rules (`OpRule.patch`).
3. A branch whose group keeps no unit goes whole (`branches`), and what would be sliced in it with it. So do plain
   layers (`plain_layers`); the groups on both sides of one that has gone keep the same units (`Coupling.settled`).
4. A size that the model computes while it runs follows by itself. Where it would not come out right, the constant that
   enters the computation is replaced; failing that, the whole vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.errors import PruneError
from ..ir.external import Lazy, Weights
from ..ir.graph import Constant, Graph, Node, Shape
from ..ir.load import parts
from ..ir.ops import known_nodes, rule_for
from ..ir.ops.sizes import constant_behind
from ..ir.relate import relations_of
from ..ir.relations import Axis
from ..ir.scope import Edit, View
from ..ir.shapes import evaluate
from ..ir.write import Array, Changes, apply, weights_after
from .branches import freed_constants, take_out, touched
from .coupling import Branch, Coupling, Group, Kept, constant_tensors

Plan = dict[str, Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned model and its plan (CONTRACTS section 2); `weights` are the values of the model's placeholders.

    There are placeholders only where the original was loaded with its weights left on the disk.
    """

    model: onnx.ModelProto
    plan: Plan
    weights: Weights = field(default_factory=dict)


def prune(coupling: Coupling, kept: Kept) -> Pruned:
    """The model with only the `kept` units of each group (sorted unit numbers; groups not named stay whole).

    Raises PruneError when a group that no branch goes with would lose all its units, or a unit number does not exist.
    """
    _check(coupling, kept)
    kept = coupling.settled(kept, coupling.gone(kept))
    masks = _Masks(coupling, _sliced_groups(coupling, kept))
    changes = Changes(shapes=masks.shapes)
    _slice_constants(coupling.graph, masks, changes)
    _patch_nodes(coupling, masks, changes)
    model, weights = apply(coupling.graph, changes), weights_after(coupling.graph, changes)
    gone = coupling.gone(kept)
    if gone:
        take_out(model, coupling.graph, gone)
        freed = freed_constants(coupling.graph, touched(gone))
        weights = {name: weight for name, weight in weights.items() if name not in freed}
    return Pruned(model, plan_of(coupling, kept), weights)


def _sliced_groups(coupling: Coupling, kept: Kept) -> Kept:
    """`kept` without the groups that go with a branch (rule 3)."""
    inside = frozenset[str]().union(*(branch.inside for branch in coupling.gone(kept)))
    return {name: units for name, units in kept.items() if len(units) and name not in inside}


def _check(coupling: Coupling, kept: Kept) -> None:
    may_go = {branch.id for branch in coupling.branches}
    for name, units in kept.items():
        if name not in coupling.by_id:
            raise PruneError(f"there is no group '{name}'; `inspect` lists the groups")
        total = coupling.by_id[name].units
        array = np.asarray(units)
        if len(array) == 0 and name in may_go:
            continue
        if len(array) == 0 or len(np.unique(array)) != len(array) or array.min() < 0 or array.max() >= total:
            raise PruneError(
                f"group {name} has units 0 to {total - 1}; the {len(array)} units to keep must be distinct, "
                "within that range, and at least one"
            )


class _Masks:
    """Kept positions of axes, and the shapes that follow, for one choice of units."""

    def __init__(self, coupling: Coupling, kept: Kept) -> None:
        self.coupling = coupling
        self.removed = coupling.removed_units(kept)
        self.pruned: dict[Axis, Mask] = {}
        groups = {name for name, units in kept.items() if len(units) < coupling.by_id[name].units}
        for axis in dict.fromkeys(axis for name in sorted(groups) for axis in coupling.by_id[name].axes):
            self.pruned[axis] = coupling.positions(axis, self.removed)
        self.shapes = self._shapes()

    def of(self, axis: Axis) -> Mask:
        """The kept positions of an axis."""
        found = self.pruned.get(axis)
        return np.ones(self.coupling.relations.length(axis), dtype=np.bool_) if found is None else found

    def _shapes(self) -> dict[str, Shape]:
        graph = self.coupling.graph
        shapes = dict(graph.shapes)
        for name in graph.constants:
            for _, _, use in graph.constant_uses(name):
                shapes[use] = graph.constants[name].shape
        changed: dict[str, list[int]] = {}
        for (name, number), mask in self.pruned.items():
            changed.setdefault(name, list(shapes[name]))[number] = int(mask.sum())
        return shapes | {name: tuple(shape) for name, shape in changed.items()}

    def tensors(self) -> frozenset[str]:
        """Analysis names of tensors that shrink."""
        return frozenset(name for name, _ in self.pruned)


def _slice_constants(graph: Graph, masks: _Masks, changes: Changes) -> None:
    shrinking = masks.tensors()
    for name, constant in graph.constants.items():
        uses = list(graph.constant_uses(name))
        if not any(use in shrinking for _, _, use in uses):
            continue
        variants: dict[tuple[bytes, ...], list[tuple[Node, int]]] = {}
        for node, slot, use in uses:
            key = tuple(masks.of((use, axis)).tobytes() for axis in range(len(constant.shape)))
            variants.setdefault(key, []).append((node, slot))
        for number, (key, places) in enumerate(variants.items()):
            keep = [np.frombuffer(mask, dtype=np.bool_) for mask in key]
            if number == 0 and name not in graph.captured():
                changes.tensors[name] = _sliced(constant, keep)
            else:
                sliced = _slice(constant.array(), keep)
                changes.inputs.update({(node.index, slot): sliced for node, slot in places})


def _sliced(constant: Constant, keep: list[Mask]) -> Array | Lazy:
    """The slice of a constant, or where its value is on the disk, how to make it."""
    if constant.lazy is None:
        return _slice(constant.array(), keep)
    shape = tuple(int(mask.sum()) for mask in keep)
    return Lazy(shape, constant.lazy.dtype, lambda: _slice(constant.array(), keep))


def _slice(array: Array, keep: list[Mask]) -> Array:
    for axis, mask in enumerate(keep):
        if not mask.all():
            array = np.compress(mask, array, axis=axis)
    return array


def _patch_nodes(coupling: Coupling, masks: _Masks, changes: Changes) -> None:
    """Rules 2 and 4."""
    graph = coupling.graph
    shrinking, skipped = masks.tensors(), known_nodes(graph)
    wanted: list[tuple[Node, int, Array]] = []
    for node in graph.nodes:
        if node.index in skipped:
            continue
        values: dict[int, Array] = {}
        if any(name in shrinking for name in _analysis_names(graph, node)):
            edit = Edit(graph, node, masks.of, masks.shapes)
            rule = rule_for(graph, node)
            if rule is not None:
                rule.patch(edit)
            if edit.attrs:
                changes.attrs[node.index] = dict(edit.attrs)
            values = edit.values
        for slot, name in enumerate(node.inputs):
            if name in graph.known:
                values.setdefault(slot, graph.known[name])
        wanted += [(node, slot, value) for slot, value in values.items()]
    _settle_values(coupling, masks, wanted, changes)


def _analysis_names(graph: Graph, node: Node) -> Iterator[str]:
    yield from (graph.use(node, slot) for slot, name in enumerate(node.inputs) if name)
    yield from node.outputs


def _settle_values(coupling: Coupling, masks: _Masks, wanted: list[tuple[Node, int, Array]], changes: Changes) -> None:
    """Makes the inputs that hold sizes come out as wanted: constants first, then what is computed (rule 4)."""
    graph, computed = coupling.graph, []
    for node, slot, value in wanted:
        name = node.inputs[slot] if slot < len(node.inputs) else ""
        if name in graph.known:
            computed.append((node, slot, value))
        elif name not in graph.constants or not np.array_equal(graph.constants[name].array(), value):
            changes.inputs[node.index, slot] = value
    if not computed:
        return
    known = evaluate(graph.model, graph.nodes, graph.constants, masks.shapes, graph.dtypes)
    if [_set_elements(graph, known, *item, changes) for item in computed if not _comes_out(known, *item)]:
        # a changed constant may serve others as well: what comes out wrong now is replaced where it is used
        changed = apply(graph, changes)
        known = evaluate(changed, *parts(changed), masks.shapes, graph.dtypes)
        for node, slot, value in computed:
            if (node.index, slot) not in changes.inputs and not _comes_out(known, node, slot, value):
                changes.inputs[node.index, slot] = _keep_open(coupling, node, slot, value)


def _comes_out(known: Mapping[str, Array], node: Node, slot: int, value: Array) -> bool:
    found = known.get(node.inputs[slot])
    return found is not None and np.array_equal(found, value)


def _set_elements(
    graph: Graph, known: Mapping[str, Array], node: Node, slot: int, value: Array, changes: Changes
) -> bool:
    """Replaces the constants behind the elements that come out wrong; False when there is none behind one."""
    current = known.get(node.inputs[slot])
    if current is None or current.shape != value.shape:
        return False
    entries = []
    for element in np.flatnonzero(current.reshape(-1) != value.reshape(-1)).tolist():
        entry = constant_behind(graph, known, node, slot, element, int(value.reshape(-1)[element]))
        if entry is None:
            return False
        entries.append(entry)
    for entry in entries:
        key = (entry.node.index, entry.slot)
        old = graph.constants[entry.node.inputs[entry.slot]].array()
        new = changes.inputs.get(key, old).copy()
        new.reshape(-1)[entry.element] = entry.value
        changes.inputs[key] = new
    return True


def _keep_open(coupling: Coupling, node: Node, slot: int, value: Array) -> Array:
    """The value to write in place of a computed one: what depends on open dimensions is left to the operator's data."""
    name, graph = node.inputs[slot], coupling.graph
    after = coupling.opened.known.get(name)
    if after is None:
        return value
    moving = (graph.known[name] != after).reshape(-1)
    rule = rule_for(graph, node)
    new = rule.leave_open(View(graph, node), value.reshape(-1), moving) if moving.any() and rule is not None else value
    if new is None:
        raise PruneError(
            f"the sizes '{name}' depend on {moving.sum()} open dimensions and on pruned channels; "
            "fix the input shape with --shape and export the model with that shape"
        )
    return np.asarray(new.reshape(value.shape))


def plan_of(coupling: Coupling, kept: Kept) -> Plan:
    """The plan of a choice of units: for every group its kept units and the constant slices that went, and branches."""
    kept = coupling.settled(kept, coupling.gone(kept))
    graph, sliced = coupling.graph, _sliced_groups(coupling, kept)
    uses: dict[str, list[tuple[str, Node, bool]]] = {}
    for name in graph.constants:
        entries = list(graph.constant_uses(name))
        for node, _, use in entries:
            uses.setdefault(use, []).append((name, node, len({other for *_, other in entries}) > 1))
    consumers = consumer_axes(coupling)
    weights = {graph.nodes[item.node].index for item in coupling.relations.contracts}
    groups = []
    for group in coupling.groups:
        units = sliced.get(group.id)
        if units is None or len(units) == group.units:
            continue
        removed = coupling.removed_units({group.id: units})
        members = []
        for axis in group.axes:
            if axis[0] not in uses:
                continue
            name, node, shared = uses[axis[0]][0]
            gone = np.flatnonzero(~coupling.positions(axis, removed))
            role = "consumer" if axis in consumers else "producer" if node.index in weights else "carrier"
            members.append(_member(graph, (name, axis[1]), node, role, gone, shared=shared))
        entry = {"id": group.id, "units": group.units, "kept": [int(unit) for unit in units], "members": members}
        means = list(_means(coupling, group, removed))
        groups.append(entry | ({"means": means} if means else {}))
    branches = [_branch(graph, branch) for branch in coupling.gone(kept)]
    return {"schema_version": 1, "groups": groups, **({"branches": branches} if branches else {})}


def _member(
    graph: Graph, axis: Axis, node: Node, role: str, removed: NDArray[np.int64], *, shared: bool
) -> dict[str, Any]:
    """Positions of a constant's axis that are gone for a node, or for all that read it."""
    member = {"tensor": axis[0], "axis": axis[1], "role": role, "removed": removed.tolist()}
    if role == "consumer" and (zero := _zero_point(graph, axis[0], node)) is not None:
        member["zero"] = {"tensor": zero[0], "axis": zero[1]}
    return member | ({"node": node.label} if shared else {})


def _branch(graph: Graph, branch: Branch) -> dict[str, Any]:
    """A branch that went: what it was, and the constants that are zero, throughout, where it gives nothing.

    Of a plain layer there are none: its `output` is its `shortcut`.
    """
    members = []
    for index in sorted(branch.nodes):
        node = graph.nodes[index]
        for slot, name in enumerate(node.inputs):
            axes = [axis for axis in branch.zeros if name in graph.constants and axis[0] == graph.use(node, slot)]
            shared = len(graph.users.get(name, ())) > 1
            for axis in axes:
                everything = np.arange(graph.constants[name].shape[axis[1]])
                members.append(_member(graph, (name, axis[1]), node, "consumer", everything, shared=shared))
    labels = [graph.nodes[index].label for index in sorted(branch.nodes)]
    total = graph.nodes[branch.total]
    return {
        "id": branch.id,
        "layer" if branch.plain else "sum": total.label,
        "output": total.outputs[0],
        "shortcut": branch.shortcut,
        "nodes": labels,
        "members": members,
    }


def _means(coupling: Coupling, group: Group, removed: Mask) -> Iterator[dict[str, Any]]:
    """The nodes whose means are over fewer channels now (axes counted from the end)."""
    graph, axes = coupling.graph, set(group.axes)
    for item in coupling.relations.means:
        if item.axis not in axes:
            continue
        rank = len(graph.shapes[item.axis[0]])
        gone = np.flatnonzero(~coupling.positions(item.axis, removed))
        yield {
            "node": graph.nodes[item.node].label,
            "axis": item.axis[1] - rank,
            "length": coupling.relations.length(item.axis),
            "over": [axis - rank for _, axis in item.over],
            "type": int(graph.dtypes.get(item.axis[0], onnx.TensorProto.FLOAT)),
            "removed": gone.tolist(),
        }


def _zero_point(graph: Graph, name: str, node: Node) -> tuple[str, int] | None:
    """The constant that holds the number which stands for zero in a quantized constant, and the axis it lies along."""
    rule = rule_for(graph, node)
    if rule is None:
        return None
    slot = node.inputs.index(name)
    found = rule.zero_points(View(graph, node)).get(slot)
    if found is None or found[0] >= len(node.inputs) or node.inputs[found[0]] not in graph.constants:
        return None
    return node.inputs[found[0]], found[1]


def consumer_axes(coupling: Coupling) -> frozenset[Axis]:
    """Axes of constants that are summed over, directly or behind nodes that only carry constants along."""
    graph, found = coupling.graph, set(coupling.contracted() | coupling.cut)
    constant = constant_tensors(graph)
    cone = [node for node in graph.nodes if node.inputs and all(name in constant for name in node.outputs if name)]
    skipped = known_nodes(graph)
    cone = [node for node in cone if node.index not in skipped]
    if cone:
        relations = relations_of(graph, cone)
        edges = [(same.a, same.b) for same in relations.same] + [(take.whole, take.part) for take in relations.takes]
        edges += [(fold.whole, part) for fold in relations.folds for part in fold.parts]
        import networkx as nx

        tied: Any = nx.Graph(edges)
        for axis in list(found):
            if axis in tied:
                found |= set(nx.node_connected_component(tied, axis))
    return frozenset(found)


def keep_share(coupling: Coupling, share: float, scores: Mapping[str, Array], minimum: int = 1) -> dict[str, Array]:
    """The units to keep when every group keeps `share` of its own: those of the highest scores, at least `minimum`."""
    kept = {}
    for group in coupling.groups:
        count = min(group.units, max(minimum, round(group.units * share)))
        best = np.argsort(-scores[group.id], kind="stable")[:count]
        kept[group.id] = np.sort(best)
    return kept
