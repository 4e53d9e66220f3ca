"""Executed nodes attributed to the nodes of the original graph.

An executed node is found again by its name, which is, or starts with, the name of an original node or tensor (see
`trace`); layout optimizations append suffixes such as `_nchwc`, `_token_7` or `/QuickGeluFusion/`. What it covers:

1. After fusion, before layout changes, tensors keep their names: a fused node covers the original nodes met when
   walking back from its outputs until a tensor that also exists after fusion, a constant, or a graph input.
2. A node of the final graph covers what its fused node covers.
3. A fused node that has vanished from the final graph (an Add taken into the convolution before it) belongs to the
   node before it, and if there is none, to the node after it; of several before it, to the latest one that feeds
   nothing else.
4. A node of the final graph without a fused counterpart moves data between layouts or types: a unit of its own, at
   the original tensor that it reads or writes.
5. Time of executed nodes that are none of these is reported as unattributed.

Layout: a tensor is blocked if a node of the nchwc domain wrote it, or a node that read blocked tensors, until a
ReorderOutput. The layouts that a node reads belong to its kind, because its cost depends on them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from .trace import NodeTime, Trace, node_id, tensors_read

_BLOCKED_DOMAIN = "com.microsoft.nchwc"
_LAST_SUFFIX = re.compile(r"(_nchwc|_nhwc|_token_\d+|_new_reshape|_Cast|_quant|/[^/]*/|_[^_/]*)$")


@dataclass(frozen=True, slots=True)
class Executed:
    """One executed node: `covers` are ids of original nodes; a layout change has `tensor` instead (None: unknown)."""

    name: str
    kind: str
    us: float
    covers: tuple[str, ...] = ()
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """All executed nodes of a network, in order, and the time of what could not be attributed."""

    executed: tuple[Executed, ...]
    unattributed_us: float

    @property
    def total_us(self) -> float:
        """The sum over all executed nodes."""
        return sum(e.us for e in self.executed) + self.unattributed_us

    @property
    def unattributed_share(self) -> float:
        """The share of the time that belongs to no original node or tensor (0 to 1)."""
        return self.unattributed_us / self.total_us if self.total_us else 0.0


def attribute(trace: Trace) -> Attribution:
    """The Attribution of a trace; where the provider compiles the graph, everything is unattributed."""
    if trace.fused is None or trace.final is None:
        return Attribution((), sum(t.us for t in trace.times.values()))
    covers = _fused_covers(trace.original, trace.fused)
    anchors = _anchors(trace.fused, trace.final)
    owned = _with_vanished(trace.fused, trace.final, anchors, covers)
    kinds = _kinds(trace.final, trace.times)
    tensors = _tensor_names(trace.original)
    writer = {t: node for node in trace.final.node for t in node.output}
    executed = []
    for node in trace.final.node:
        time = trace.times.get(node.name)
        if time is None:
            continue
        mine = tuple(owned.get(node.name, ()))
        tensor = None if mine else _moved_tensor(node, tensors) or _tensor_before(node, writer, owned)
        if mine or tensor is not None:
            executed.append(Executed(node.name, kinds[node.name], time.us, mine, tensor))
    return Attribution(tuple(executed), _rest(trace.times, executed))


def _rest(times: Mapping[str, NodeTime], executed: Iterable[Executed]) -> float:
    known = {e.name for e in executed}
    return sum(t.us for name, t in times.items() if name not in known)


def _fused_covers(original: onnx.GraphProto, fused: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    """Ids of the original nodes that each node after fusion covers, by its name (rule 1)."""
    producer = {name: node for node in original.node for name in node.output if name}
    alive = {name for node in fused.node for name in node.output}
    order = {node_id(node): i for i, node in enumerate(original.node)}
    claimed: set[str] = set()
    covers = {}
    for node in fused.node:
        ends = [t for t in node.output if t in producer] or _known(node.name, producer)
        found: set[str] = set()
        stack = [producer[t] for t in ends]
        while stack:
            at = stack.pop()
            if node_id(at) in found or node_id(at) in claimed:
                continue
            found.add(node_id(at))
            stack += [producer[t] for t in tensors_read(at) if t in producer and t not in alive]
        claimed |= found
        covers[node.name] = tuple(sorted(found, key=order.__getitem__))
    return covers


def _known(name: str, known: Iterable[str]) -> list[str]:
    """The longest name in `known` that `name` is, or that becomes by taking suffixes off its end; as a list."""
    have = known if isinstance(known, (dict, set)) else set(known)
    while name:
        if name in have:
            return [name]
        shorter = _LAST_SUFFIX.sub("", name)
        if shorter == name:
            return []
        name = shorter
    return []


def _anchors(fused: onnx.GraphProto, final: onnx.GraphProto) -> dict[str, str]:
    """The fused node (value) that each node of the final graph (key) stands for (rule 2)."""
    names = {node.name for node in fused.node}
    writer = {t: node.name for node in fused.node for t in node.output if t}
    targets = {**writer, **{name: name for name in names}}
    anchors: dict[str, str] = {}
    taken: set[str] = set()
    for by_name in (True, False):
        for node in final.node:
            if node.name in anchors or _is_reorder(node):
                continue
            hits = _known(node.name, targets) if by_name else [t for t in node.output if t in writer]
            if hits and (by_name or writer[hits[0]] not in taken):
                anchors[node.name] = targets[hits[0]]
                taken.add(targets[hits[0]])
    return anchors


def _is_reorder(node: onnx.NodeProto) -> bool:
    return node.domain == _BLOCKED_DOMAIN and node.op_type.startswith("Reorder")


def _with_vanished(
    fused: onnx.GraphProto,
    final: onnx.GraphProto,
    anchors: Mapping[str, str],
    covers: Mapping[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    """Original node ids by final node name, with those of vanished fused nodes given to a neighbour (rule 3)."""
    holder = {anchors[node.name]: node.name for node in reversed(final.node) if node.name in anchors}
    users: dict[str, int] = defaultdict(int)
    for node in fused.node:
        for t in node.input:
            users[t] += 1
    writer = {t: node.name for node in fused.node for t in node.output}
    order = {node.name: i for i, node in enumerate(fused.node)}
    for node in fused.node:
        before = [t for t in node.input if writer.get(t) in holder]
        if node.name not in holder and before:
            best = max(before, key=lambda t: (users[t] == 1, order[writer[t]]))
            holder[node.name] = holder[writer[best]]
    for node in reversed(fused.node):
        for t in node.input:
            if node.name in holder and t in writer:
                holder.setdefault(writer[t], holder[node.name])
    owned: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for node in fused.node:
        if node.name in holder:
            owned[holder[node.name]] += covers[node.name]
    return owned


def _moved_tensor(node: onnx.NodeProto, tensors: set[str]) -> str | None:
    """The original tensor that a layout change (rule 4) reads or writes, if its name shows it."""
    for name in (*node.output, *node.input, node.name):
        found = _known(name, tensors)
        if found:
            return found[0]
    return None


def _tensor_before(
    node: onnx.NodeProto, writer: Mapping[str, onnx.NodeProto], owned: Mapping[str, tuple[str, ...]]
) -> str | None:
    """The tensor that the nearest attributed node before a layout change ends in (a node's id is its output)."""
    while True:
        before = [writer[t] for t in node.input if t in writer]
        if not before:
            return None
        node = before[0]
        if owned.get(node.name):
            return owned[node.name][-1]


def _tensor_names(graph: onnx.GraphProto) -> set[str]:
    names = {t for node in graph.node for t in node.output if t}
    constants = {tensor.name for tensor in graph.initializer}
    return (names | {value.name for value in graph.input}) - constants


def _kinds(final: onnx.GraphProto, times: Mapping[str, NodeTime]) -> dict[str, str]:
    """`op(layouts read)<types>` of each final node: b for a blocked tensor, p for a plain one."""
    constants = {tensor.name for tensor in final.initializer}
    blocked: set[str] = set()
    kinds = {}
    for node in final.node:
        reads = [t for t in node.input if t and t not in constants]
        layouts = "".join("b" if t in blocked else "p" for t in reads)
        nchwc = node.domain == _BLOCKED_DOMAIN
        back_to_plain = _is_reorder(node) and node.op_type.endswith("Output")
        if (nchwc or "b" in layouts) and not back_to_plain:
            blocked.update(node.output)
        types = ",".join(times[node.name].types) if node.name in times else ""
        kinds[node.name] = f"{'nchwc.' if nchwc else ''}{node.op_type}({layouts})<{types}>"
    return kinds
