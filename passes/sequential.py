"""The final refit, front to back: inputs from the pruned network as it has become, targets from the original.

1. Every consumer behind a removed unit is fitted, also those that keep all their inputs: these have changed too.
2. A consumer whose output is added to a stream of the same shape makes good what the stream lost as well: its target is
   the original sum less the pruned stream ("residual-corrected", RECOVERY.md A). When both sides of a sum are fitted,
   the later one does that.
3. Consumers that do not depend on each other are fitted in one pass (a level). The tensors on the border between what
   is settled and what is not are put aside on disk, so that each part of the network runs once; when they would need
   more than DISK_BYTES, the next level runs from the last border that was put aside.
4. The ridge is chosen on examples held out of the fit, and a fit that does worse there than the weights it started
   from is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..ir.graph import Graph, Node
from ..ir.ops.maps import Floats, Window, added_stream, spatial_sizes
from .consumers import Consumer, Mask, consumers_of
from .coupling import Coupling, Kept
from .gram import Moments, Statistics
from .recover import Slots, Weights, apply_weights, constants_of, refit_symmetric, slots_of, solve, write_weights
from .importance import RIDGE, damping
from .rows import Batches, Feeds, Progress, Runner, columns_of, outputs_of, pieces, positions, sample
from .spill import Spill

DISK_BYTES = 8_000_000_000
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT = 5  # every fifth example
Source = Callable[[], Iterator[Feeds]]


@dataclass(slots=True)
class Sums:
    """Moments of the inputs x, and of the targets t with them: cross (groups, O, K), total (groups, O), squares."""

    inputs: Moments
    cross: Floats
    total: Floats
    squares: float = 0.0

    def add(self, x: Floats, t: Floats) -> None:
        """Adds rows x (groups, rows, K) and t (groups, rows, O)."""
        self.inputs.add(x)
        self.cross += np.matmul(t.transpose(0, 2, 1), x)
        self.total += t.sum(axis=1)
        self.squares += float(np.vdot(t, t))

    def plus(self, other: Sums) -> Sums:
        """The sums over the rows of both."""
        a, b = self.inputs, other.inputs
        both = Moments(a.count + b.count, a.total + b.total, a.gram + b.gram)
        return Sums(both, self.cross + other.cross, self.total + other.total, self.squares + other.squares)

    def loss(self, matrix: Floats, bias: Floats) -> float:
        """The mean square of t - W x - b."""
        n = max(self.inputs.count, 1)
        quadratic = np.vdot(matrix @ self.inputs.gram, matrix) - 2 * np.vdot(matrix, self.cross)
        mean = np.matmul(matrix, self.inputs.total[:, :, None])[:, :, 0] - self.total
        return float((quadratic + self.squares + 2 * np.vdot(bias, mean) + n * np.vdot(bias, bias)) / n)


@dataclass(slots=True)
class Fit:
    """One consumer to be fitted: tensors to read (target from the original, data and stream from the pruned network)."""

    number: int
    item: Consumer
    slots: Slots
    target: str
    stream: str
    fixed: Floats
    level: int = 0
    fitted: Sums | None = None
    held: Sums | None = None

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
        return self.slots.columns.shape[1]

    @property
    def target_axis(self) -> int:
        """The channel axis of the target."""
        return self.item.window.axis if self.item.by_channel else self.item.map.out_axis


def refit_sequential(
    coupling: Coupling,
    kept: Kept,
    pruned_model: onnx.ModelProto,
    batches: Batches,
    statistics: Statistics | None = None,
    *,
    progress: Progress | None = None,
    seed: int = 0,
) -> Weights:
    """New values, by tensor name, for the weights and biases of the pruned model; `apply_weights` writes them.

    `kept` is what made `pruned_model`; `batches` must give the same examples each time it is called. With `statistics`
    the fits are drawn to the symmetric refit instead of the weights in the model. Raises TargetError when ONNX Runtime
    cannot run one of the models.
    """
    start = {} if statistics is None else refit_symmetric(coupling, statistics, kept)
    model = apply_weights(pruned_model, start)
    consumers = (consumers_of(coupling) if statistics is None else statistics.consumers).all
    fits, network = _plan(coupling, coupling.removed_units(kept), consumers)
    if not fits:
        return start
    targets = Spill()
    try:
        count, examples = _read_targets(coupling.graph, fits, batches, targets, seed)
        return start | _front_to_back(coupling, fits, network, model, batches, targets, (count, examples, seed), progress)
    finally:
        targets.close()


@dataclass(slots=True)
class Network:
    """How fits depend on each other: for every tensor and node the set of fits before it (bits by fit number)."""

    graph: Graph
    before: dict[str, int]
    fixed: frozenset[str]
    levels: list[int] = field(default_factory=list)

    def level(self, name: str) -> int:
        """The level after which a tensor is settled; 0 for what no fit touches."""
        return self._level(self.before.get(name, 0))

    def node_level(self, node: Node) -> int:
        """The level of what a node makes."""
        return max((self.level(name) for name in node.outputs if name), default=0)

    def _level(self, bits: int) -> int:
        return max((level for number, level in enumerate(self.levels) if bits >> number & 1), default=0)

    def border(self, level: int, later: list[str]) -> list[str]:
        """Tensors settled before `level` that the way from there to the tensors `later` reads."""
        wanted, found = set(later), {}
        for name in later:
            if self.level(name) < level:
                found[name] = None
        for node in reversed(self.graph.nodes):
            if not wanted.intersection(node.outputs) or self.node_level(node) < level:
                continue
            for name in (*node.inputs, *node.captures):
                if name and name not in self.fixed:
                    wanted.add(name)
                    if self.level(name) < level:
                        found[name] = None
        return list(found)


def _plan(coupling: Coupling, removed: Mask, consumers: tuple[Consumer, ...]) -> tuple[list[Fit], Network]:
    """Rules 1 to 3: what is fitted, to what, and on which level."""
    graph = coupling.graph
    origins = {c.node for c in coupling.relations.contracts if not coupling.positions(c.axis, removed).all()}
    by_node = {item.node.index: item for item in consumers}
    network = Network(graph, {}, _from_constants(graph))
    changed: set[str] = set()
    fits: list[Fit] = []
    for node in graph.nodes:
        reads = [name for name in (*node.inputs, *node.captures) if name]
        bits = 0
        for name in reads:
            bits |= network.before.get(name, 0)
        if node.index in origins or changed.intersection(reads):
            changed.update(node.outputs)
            item = by_node.get(node.index)
            fixed = None if item is None else _fixed_bias(graph, item)
            if item is not None and fixed is not None:
                slots = slots_of(coupling, item, removed)
                target = item.data if item.by_channel else item.output
                fits.append(Fit(len(fits), item, slots, target, "", _fixed_rows(item, slots, fixed)))
                bits |= 1 << (len(fits) - 1)
        network.before.update(dict.fromkeys(node.outputs, bits))
    for fit in fits:
        _correct(graph, network, changed, fit)
        bits = network.before.get(fit.item.data, 0) | network.before.get(fit.stream, 0)
        fit.level = network._level(bits) + 1
        network.levels.append(fit.level)
    return fits, network


def _from_constants(graph: Graph) -> frozenset[str]:
    """Tensors that the model computes from constants alone; what follows from an input's shape is none of them."""
    found = set(graph.constants)
    for node in graph.nodes:
        if not node.captures and all(name in found for name in node.inputs if name):
            found.update(node.outputs)
    return frozenset(found)


def _correct(graph: Graph, network: Network, changed: set[str], fit: Fit) -> None:
    """Rule 2."""
    users = graph.users.get(fit.item.output, ())
    if fit.item.by_channel or len(users) != 1 or fit.item.output in {port.name for port in graph.outputs}:
        return
    node = users[0][0]
    stream = added_stream(graph, node, fit.item.output)
    if stream in changed and not network.before[stream] >> fit.number:
        fit.target, fit.stream = node.outputs[0], stream


def _fixed_bias(graph: Graph, item: Consumer) -> Floats | None:
    """Per output the bias that is part of the output but not ours to change (0 where there is none); None when it is not known."""
    if item.bias or item.map.bias < 0:
        return np.zeros(1)
    constant = graph.constants.get(item.node.inputs[item.map.bias])
    outputs = graph.shapes[item.output][item.map.out_axis]
    if constant is None or constant.size != outputs:
        return None
    return constant.array().reshape(-1).astype(np.float64) * item.map.offset


def _fixed_rows(item: Consumer, slots: Slots, fixed: Floats) -> Floats:
    """A fixed bias for the rows of a fit: (groups, outputs) of what remains."""
    if item.by_channel:
        return np.zeros((int(slots.blocks.sum()), slots.columns.shape[1]))
    full = np.broadcast_to(fixed.reshape(-1), slots.outputs.size).reshape(slots.outputs.shape)
    return np.stack([row[keep] for row, keep, there in zip(full, slots.outputs, slots.blocks, strict=True) if there])


def _read_targets(
    graph: Graph, fits: list[Fit], batches: Batches, targets: Spill, seed: int
) -> tuple[int, int]:
    """Puts the targets' rows aside, piece by piece; the numbers of pieces and of examples read."""
    taps = tuple(dict.fromkeys(fit.target for fit in fits))
    runner = Runner(graph.model, taps)
    count = examples = 0
    for feeds in pieces(graph, batches, taps):
        values = runner(feeds)
        for fit in fits:
            tensor = values[fit.target]
            places = _places(fit, int(np.prod(spatial_sizes(tensor.shape, fit.target_axis))), seed, count)
            rows = outputs_of(tensor, fit.target_axis, fit.item.window.groups, places)
            targets.put((fit.number, count), _kept_rows(fit, rows).astype(np.float32))
        count += 1
        examples += max((len(value) for value in feeds.values() if np.ndim(value)), default=1)
        if targets.size > DISK_BYTES / 2:
            break
    return count, examples


def _places(fit: Fit, count: int, seed: int, piece: int) -> NDArray[np.int64]:
    return sample(count, fit.columns, np.random.default_rng((seed, fit.number, piece)))


def _kept_rows(fit: Fit, rows: Floats) -> Floats:
    """The rows of the blocks and outputs that remain, (groups, rows, outputs)."""
    blocks = [
        block if fit.item.by_channel else block[:, keep]
        for block, keep, there in zip(rows, fit.slots.outputs, fit.slots.blocks, strict=True)
        if there
    ]
    return np.stack(blocks)


def _front_to_back(
    coupling: Coupling,
    fits: list[Fit],
    network: Network,
    model: onnx.ModelProto,
    batches: Batches,
    targets: Spill,
    sizes: tuple[int, int, int],
    progress: Progress | None,
) -> Weights:
    """Rule 3."""
    graph = coupling.graph
    count, examples, seed = sizes
    found: Weights = {}
    aside: Spill | None = None
    dtypes: dict[str, int] = {}
    taps = tuple(dict.fromkeys(fit.target for fit in fits))

    def source() -> Iterator[Feeds]:
        if aside is None:
            return islice(pieces(graph, batches, taps), count)
        held = aside
        return ({name: held.get((name, piece)) for name in dtypes} for piece in range(count))

    for level in range(1, max(network.levels) + 1):
        now = [fit for fit in fits if fit.level == level]
        border = network.border(level, [name for fit in fits if fit.level > level for name in fit.taps])
        fresh = Spill() if _disk(graph, border) * examples < DISK_BYTES / 4 and border else None
        runner = Runner(model, tuple(dict.fromkeys([*(t for fit in now for t in fit.taps), *(border if fresh else ())])), dtypes)
        for piece, feeds in enumerate(source()):
            values = runner(feeds)
            for fit in now:
                _gather(graph, fit, values, targets.get((fit.number, piece)), piece, seed)
            if fresh:
                for name in border:
                    fresh.put((name, piece), values[name])
        for fit in now:
            new = _solve(coupling, fit, model)
            write_weights(model, new)
            found |= new
        if fresh:
            if aside:
                aside.close()
            aside, dtypes = fresh, {name: graph.dtypes[name] for name in border}
        if progress is not None:
            progress(level, max(network.levels), "refitting")
    if aside:
        aside.close()
    return found


def _disk(graph: Graph, names: list[str]) -> float:
    """Bytes of an example's tensors."""
    examples = max([1, *(graph.shapes[port.name][0] for port in graph.inputs if graph.shapes.get(port.name))])
    return sum(4.0 * float(np.prod(graph.shapes.get(name, ()), dtype=np.float64)) for name in names) / examples


def _gather(graph: Graph, fit: Fit, values: Mapping[str, Floats], rows: Floats, piece: int, seed: int) -> None:
    """Adds the rows of a piece to the sums of a fit; a part of the examples is held out."""
    tensor = values[fit.item.data]
    places = _places(fit, positions(fit.window, tensor.shape), seed, piece)
    x = columns_of(tensor, fit.window, places)
    t = rows.astype(np.float64)
    if fit.stream:
        t -= outputs_of(values[fit.stream], fit.target_axis, len(t), places)
    if fit.fitted is None or fit.held is None:
        shape = len(x), t.shape[2], x.shape[2]
        fit.fitted, fit.held = (
            Sums(Moments.empty(shape[0], shape[2]), np.zeros(shape), np.zeros(shape[:2])) for _ in range(2)
        )
    examples = x.shape[1] // max(len(places), 1)
    inside = (examples - examples // HELD_OUT if examples >= HELD_OUT else examples * (piece % HELD_OUT > 0)) * len(places)
    fit.fitted.add(x[:, :inside], t[:, :inside])
    fit.held.add(x[:, inside:], t[:, inside:])


def _solve(coupling: Coupling, fit: Fit, model: onnx.ModelProto) -> Weights:
    """Rule 4: the new weight and bias of a fit, nothing when they would be worse."""
    fitted, held, item = fit.fitted, fit.held, fit.item
    fit.fitted = fit.held = None
    if fitted is None or held is None or not np.isfinite(fitted.squares + fitted.inputs.total.sum()):
        return {}
    tensors = constants_of(model)
    old = numpy_helper.to_array(tensors[item.weight])
    bias = numpy_helper.to_array(tensors[item.bias]) if item.bias else None
    start = _selection(fit) if item.by_channel else item.matrix(old, int(fit.slots.blocks.sum()))
    own = fit.fixed if bias is None or item.by_channel else _as_rows(fit, bias) * item.map.offset
    ridge = RIDGE
    if held.inputs.count and fitted.inputs.count:
        losses = {ridge: held.loss(*_least_squares(fitted, start, ridge, bias is not None, fit.fixed)) for ridge in RIDGES}
        ridge = min(losses, key=lambda item: losses[item])
        if not losses[ridge] < held.loss(start, own):
            return {}
    matrix, shift = _least_squares(fitted.plus(held), start, ridge, bias is not None, fit.fixed)
    if item.by_channel:
        return _by_channel(coupling.graph, fit, matrix, shift, old, bias)
    found = {item.weight: item.weight_of(matrix, old.shape)}
    if bias is not None:
        found[item.bias] = (shift / item.map.offset).reshape(bias.shape)
    return found


def _least_squares(sums: Sums, start: Floats, ridge: float, centred: bool, fixed: Floats) -> tuple[Floats, Floats]:
    """W (groups, O, K) and b (groups, O) with the least mean square of t - W x - b, W drawn to `start`."""
    n = max(sums.inputs.count, 1)
    grams, means, goals = sums.inputs.second(centred=centred), sums.inputs.mean(), sums.total / n
    aim = goals if centred else fixed
    solved = []
    for number, (gram, mean, w) in enumerate(zip(grams, means, start, strict=True)):
        cross = sums.cross[number] / n - np.outer(aim[number], mean)
        solved.append(w + solve(gram, cross - w @ gram, damping(gram, ridge)))
    matrix = np.stack(solved)
    return matrix, goals - np.einsum("gok,gk->go", matrix, means) if centred else fixed


def _selection(fit: Fit) -> Floats:
    """The matrix (groups, channels, kept channels) that copies what is kept: where a fit by channel starts from."""
    kept = [np.eye(len(keep))[:, keep] for keep, there in zip(fit.slots.columns, fit.slots.blocks, strict=True) if there]
    return np.stack(kept)


def _as_rows(fit: Fit, vector: Floats) -> Floats:
    return np.asarray(vector, dtype=np.float64).reshape(fit.fixed.shape)


def _by_channel(
    graph: Graph, fit: Fit, mix: Floats, shift: Floats, old: Floats, bias: Floats | None
) -> Weights:
    """The original weight applied to x = mix x_kept + shift (rule 4 of `consumers`)."""
    item, slots = fit.item, fit.slots
    full = item.matrix(graph.constants[item.weight].array(), item.window.groups)
    taps = item.map.window.taps
    rows = [w[np.repeat(keep, taps)] for w, keep, there in zip(full, slots.outputs, slots.blocks, strict=True) if there]
    found = {item.weight: item.weight_of(np.stack([w @ m for w, m in zip(rows, mix, strict=True)]), old.shape)}
    if bias is not None:
        moved = [(w @ s).reshape(-1, taps).sum(axis=1) for w, s in zip(rows, shift, strict=True)]
        original = graph.constants[item.bias].array().reshape(-1)[slots.outputs.reshape(-1)]
        found[item.bias] = (original + np.concatenate(moved) / item.map.offset).reshape(bias.shape)
    return found
