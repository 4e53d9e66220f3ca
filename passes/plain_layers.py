"""Plain layers that can go whole: y = f(x) with y of x's shape becomes y = x.

1. A layer ends in a product with constant weights (and the bias and batch normalization right behind it), or in a
   normalization. Walking back from its end y, what serves nothing else belongs to it, up to the nearest single tensor x
   of the same shape that another layer or a sum ends in: x -> activation -> layer -> y. So x and y both stand before
   their activations, and what writes x can be fitted to y. Where somebody else reads the activation, x is behind it.
   A depthwise convolution cannot be fitted: the walk goes on past it, so that MobileNet's depthwise and pointwise
   convolutions are one layer, with the depthwise one as a layer inside.
2. A batch normalization is no layer of its own: runtimes fold it into its neighbours, so that nothing would be gained.
3. y = x needs the same channels on both sides: either they are one group already (depthwise convolutions), or each side
   is a group of its own and the two are tied while the layer is gone: both keep what the last one keeps (`Coupling`).
   Groups that share an axis in a more intricate way (`atoms`, rule 4) are not tied: their sizes would not follow from
   widths alone.
4. Layers and residual branches may lie within each other, but do not overlap otherwise. Within a branch, only layers
   without ties are offered, which would reach the stream; nor the last layer: the branch can go in its place.
5. A layer that must give zeros for a consumer without weights (`cuts`) stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph, Node
from ..ir.ops.maps import added_constant, added_stream, is_normalization, linear_map, subtracted_mean
from .branches import groups_within, joining
from .coupling import Branch, Coupling


@dataclass(frozen=True, slots=True)
class _End:
    """Where a layer ends: the last node, the product or normalization in it, its channel axis, if it can be fitted."""

    total: Node
    product: int
    axis: int
    fitted: bool

    @property
    def output(self) -> str:
        """What the layer makes."""
        return self.total.outputs[0]


def with_layers(coupling: Coupling) -> Coupling:
    """The coupling with the plain layers that can go beside its residual branches, and a group of one unit for each."""
    return joining(coupling, [(layer, None) for layer in _layers(coupling)])


def _layers(coupling: Coupling) -> list[Branch]:
    """The layers, as branches without an id."""
    graph, branches, found = coupling.graph, coupling.branches, list[Branch]()
    ends = sorted(_ends(graph), key=lambda end: end.total.index)
    names = frozenset(end.output for end in ends if end.fitted)
    last = {max((e.total.index for e in ends if e.total.index in branch.nodes), default=-1) for branch in branches}
    for end in ends:
        total, start = end.total.index, _start(graph, end, names)
        if start is None or total in last or not _is_free(coupling, start[1], end.total):
            continue
        source, nodes = start
        tied = _ties(coupling, source, end.output)
        if tied is None or (tied and any(total in branch.nodes for branch in branches)):
            continue
        inside = groups_within(coupling, nodes | {total}, end.output)
        first = min(other.product for other in ends if other.product in nodes | {total})
        lead = frozenset(index for index in nodes if index < first)
        plain = Branch("", nodes, total, source, end.output, end.axis, (), inside, plain=True, tied=tied, lead=lead)
        if all(_apart(plain, other) for other in (*branches, *found)):
            found.append(plain)
    return found


def _apart(a: Branch, b: Branch) -> bool:
    """Whether two branches have no node in common, or one lies within the other."""
    all_a, all_b = a.nodes | {a.total}, b.nodes | {b.total}
    return not all_a & all_b or all_a <= b.nodes or all_b <= a.nodes


def _ends(graph: Graph) -> Iterator[_End]:
    """The ends of all layers (rule 1)."""
    for node in graph.nodes:
        output = node.outputs[0] if node.outputs else ""
        map_ = linear_map(graph, node) if output in graph.shapes else None
        if map_ is not None:
            depthwise = map_.window.groups == graph.shapes[node.inputs[map_.data]][map_.window.axis] > 1
            yield _End(_last(graph, node), node.index, map_.out_axis, not depthwise)
        elif output in graph.shapes and is_normalization(node):
            rank, scale = len(graph.shapes[output]), graph.constants.get(node.inputs[1])
            places = [place for place in (1, rank - 1) if scale and graph.shapes[output][place] == scale.size]
            if places:
                yield _End(node, node.index, places[0], fitted=True)


def _last(graph: Graph, node: Node) -> Node:
    """The bias or batch normalization behind a product, the later one, or the product itself."""
    fixed = {port.name for port in graph.outputs} | graph.captured()
    while node.outputs[0] not in fixed and len(users := graph.users.get(node.outputs[0], ())) == 1:
        user = users[0][0]
        added = added_constant(graph, user, node.outputs[0])
        if not (added and graph.constants[added].size > 1) and not subtracted_mean(graph, user, node.outputs[0]):
            break
        node = user
    return node


def _start(graph: Graph, end: _End, ends: frozenset[str]) -> tuple[str, frozenset[int]] | None:
    """Where a layer starts, and the nodes before its last one (rule 1)."""
    total = end.total
    fixed = {port.name for port in graph.outputs} | graph.captured()
    nodes: set[int] = set()
    front = _moving(graph, total)
    found: tuple[str, frozenset[int]] | None = None
    while front and all(name in graph.producer for name in front):
        name = max(front, key=lambda name: graph.producer[name].index)
        node = graph.producer[name]
        if front == {name} and end.product in nodes | {total.index} and _alike(graph, name, end.output):
            found = name, frozenset(nodes)
            if name in ends or added_stream(graph, node, node.inputs[0]):
                return found
        users = {user.index for made in node.outputs for user, _ in graph.users.get(made, ())}
        if node.captures or fixed.intersection(node.outputs) or not users <= nodes | {total.index}:
            return found
        nodes.add(node.index)
        front = front - set(node.outputs) | _moving(graph, node)
    return found


def _moving(graph: Graph, node: Node) -> set[str]:
    """What a node reads that depends on the model's input."""
    return {name for name in node.inputs if name and name not in graph.constants and name not in graph.known}


def _alike(graph: Graph, name: str, output: str) -> bool:
    """Whether a tensor has the shape and type of another one."""
    return graph.shapes.get(name) == graph.shapes[output] and graph.dtypes.get(name) == graph.dtypes.get(output)


def _ties(coupling: Coupling, source: str, output: str) -> tuple[tuple[str, str], ...] | None:
    """Rule 3: the groups to tie, none where the channels are the same already; None where that cannot be."""
    if coupling.opened.shapes.get(source) != coupling.opened.shapes.get(output):
        return None
    found = []
    for number in range(len(coupling.graph.shapes[output])):
        a, b = coupling.layers.get((source, number)), coupling.layers.get((output, number))
        if a is b is None or (a is not None and b is not None and np.array_equal(a, b)):
            continue
        pair = tuple(_whole_group(coupling, (name, number)) for name in (source, output))
        if None in pair:
            return None
        found.append((str(pair[0]), str(pair[1])))
    return tuple(found)


def _whole_group(coupling: Coupling, axis: tuple[str, int]) -> str | None:
    """The group whose units are the positions of an axis, in their order, if its widths tell all sizes; or None."""
    layers = coupling.layers.get(axis)
    if layers is None or len(layers) != 1 or (layers < 0).any():
        return None
    group = coupling.groups[int(coupling.unit_group[layers[0, 0]])]
    own = coupling.first_unit[group.id] + np.arange(group.units)
    simple = all(len(coupling.layers[other]) == 1 for other in group.axes)
    return group.id if simple and np.array_equal(layers[0], own) else None


def _is_free(coupling: Coupling, nodes: frozenset[int], total: Node) -> bool:
    """Rule 5; and that nobody else reads the constants of the node that becomes an Identity."""
    graph = coupling.graph
    own = {name for name in total.inputs if name in graph.constants}
    if own & graph.captured() or any(user is not total for name in own for user, _ in graph.users[name]):
        return False
    inside = [graph.nodes[index] for index in sorted(nodes)] + [total]
    uses = {graph.use(node, slot) for node in inside for slot, name in enumerate(node.inputs) if name}
    return not any(axis[0] in uses for axis in coupling.cut)
