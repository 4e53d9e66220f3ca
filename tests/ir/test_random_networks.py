"""Networks drawn at random from the rules, pruned at random: zeroing equals removing, whatever is combined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from net import Net
from onnx_netadapt.ir import load
from oracle import assert_exact, feeds_for, prune_randomly

Draw = Callable[[st.SearchStrategy[int]], int]


@dataclass
class Growing:
    """A network under construction: maps of (2, channels, rows, columns) by name, of which the next step picks some."""

    net: Net
    draw: Draw
    maps: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self) -> tuple[str, tuple[int, int, int]]:
        """One of the last four maps."""
        recent = self.maps[-4:]
        return recent[self.number(0, len(recent) - 1)]

    def add(self, name: str, channels: int, rows: int, columns: int) -> None:
        self.maps.append((name, (channels, rows, columns)))


def conv(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    o = g.number(1, 9)
    g.add(g.net.conv(x, c, o, kernel=(3, 3), pads=[1, 1, 1, 1]), o, h, w)


def grouped(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    groups = g.number(2, 4)
    per_group, outputs = g.number(1, 3), g.number(1, 3)
    wide = g.net.conv(x, c, groups * per_group)
    g.add(g.net.conv(wide, groups * per_group, groups * outputs, group=groups), groups * outputs, h, w)


def depthwise(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    times = g.number(1, 2)
    g.add(g.net.conv(x, c, c * times, kernel=(3, 3), pads=[1, 1, 1, 1], group=c), c * times, h, w)


def activation(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    op = ("Relu", "Sigmoid", "HardSwish", "Tanh", "Exp", "Softplus")[g.number(0, 5)]
    g.add(g.net.op(op, g.net.op("Tanh", x)), c, h, w)


def normalisation(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    net = g.net
    if g.number(0, 1):
        y = net.op("BatchNormalization", x, net.positive(c), net.weight(c), net.weight(c), net.positive(c))
    else:
        y = net.op("InstanceNormalization", net.conv("x0", 3, c), net.positive(c), net.weight(c))
        y = net.op("Add", y, net.op("GlobalAveragePool", x))
        h, w = 8, 8
    g.add(y, c, h, w)


def residual(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    y = g.net.conv(x, c, c, kernel=(3, 3), pads=[1, 1, 1, 1])
    g.add(g.net.op(("Add", "Mul", "Max", "Sub")[g.number(0, 3)], x, y), c, h, w)


def meet(g: Growing) -> None:
    """Two maps of different channels: the second is brought to the first's channels and size."""
    (x, (c, h, w)), (y, (d, _, _)) = g.pick(), g.pick()
    y = g.net.op("Resize", g.net.conv(y, d, c), "", "", g.net.ints(2, c, h, w))
    g.add(g.net.op("Add", x, y), c, h, w)


def concat(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    y, (d, h2, w2) = g.pick()
    new = g.number(1, 3)
    parts = [(x, c), (g.net.conv(x, c, new), new)]
    if (h2, w2) == (h, w):
        parts.append((y, d))
    parts = parts[::-1] if g.number(0, 1) else parts
    g.add(g.net.op("Concat", *(name for name, _ in parts), axis=1), sum(size for _, size in parts), h, w)


def split(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    if c < 2:
        return
    first = g.number(1, c - 1)
    a, b = g.net.ops("Split", x, g.net.ints(first, c - first), count=2, axis=1)
    g.add(g.net.op("Concat", b, g.net.op("Tanh", a), axis=1), c, h, w)
    g.add(b, c - first, h, w)


def slices(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    if c < 4:
        return
    start = g.number(0, c - 3)
    end = g.number(start + 1, c)
    g.add(g.net.op("Slice", x, g.net.ints(start), g.net.ints(end), g.net.ints(1)), end - start, h, w)


def gather(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    index = [g.number(0, c - 1) for _ in range(g.number(1, 6))]
    g.add(g.net.op("Gather", x, g.net.ints(*index), axis=1), len(index), h, w)


def pad(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    before, after = g.number(0, 2), g.number(1, 3)
    g.add(g.net.op("Pad", x, g.net.ints(0, before, 0, 0, 0, after, 0, 0)), before + c + after, h, w)


def shuffle(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    groups = next((n for n in (2, 3, 4) if c % n == 0 and c > n), 0)
    if groups:
        y = g.net.op("Reshape", x, g.net.ints(0, groups, c // groups, h, w))
        y = g.net.op("Reshape", g.net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), g.net.ints(0, c, h, w))
        g.add(y, c, h, w)


def squeeze_and_excitation(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    y = g.net.conv(g.net.op("Relu", g.net.conv(g.net.op("GlobalAveragePool", x), c, 3)), 3, c)
    g.add(g.net.op("Mul", g.net.op("Sigmoid", y), x), c, h, w)


def pixel_shuffle(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    o = g.number(2, 4)
    if h <= 8:
        y = g.net.op("DepthToSpace", g.net.conv(x, c, 4 * o), blocksize=2, mode=("DCR", "CRD")[g.number(0, 1)])
        g.add(y, o, 2 * h, 2 * w)


def pool(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    if h >= 4:
        op = ("MaxPool", "AveragePool")[g.number(0, 1)]
        g.add(g.net.op(op, x, kernel_shape=[2, 2], strides=[2, 2]), c, h // 2, w // 2)


def deconv(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    o = g.number(1, 7)
    if h <= 8:
        y = g.net.op("ConvTranspose", x, g.net.weight(c, o, 2, 2), g.net.weight(o), strides=[2, 2])
        g.add(y, o, 2 * h, 2 * w)


def channels_last(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    o = g.number(2, 9)
    y = g.net.dense(g.net.op("Transpose", x, perm=[0, 2, 3, 1]), c, o)
    g.add(g.net.op("Transpose", y, perm=[0, 3, 1, 2]), o, h, w)


def attention(g: Growing) -> None:
    """Pixels attend to each other, two or three heads wide."""
    x, (c, h, w) = g.pick()
    heads, width, values = g.number(2, 3), g.number(2, 4), g.number(2, 4)
    net = g.net
    flat = net.op("Transpose", net.op("Reshape", net.op("Tanh", x), net.ints(0, c, h * w)), perm=[0, 2, 1])
    q, k, v = (
        net.op(
            "Transpose",
            net.op("Reshape", net.dense(flat, c, heads * size), net.ints(0, 0, heads, size)),
            perm=[0, 2, 1, 3],
        )
        for size in (width, width, values)
    )
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.dense(net.op("Reshape", y, net.ints(0, 0, heads * values)), heads * values, c)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1]), net.ints(0, c, h, w))
    g.add(net.op("Add", x, y), c, h, w)


def unit_length(g: Growing) -> None:
    x, (c, h, w) = g.pick()
    y = g.net.op("LpNormalization", g.net.conv(x, c, 5), axis=1, p=2)
    g.add(y, 5, h, w)


def spatial_attention(g: Growing) -> None:
    """Each pixel's largest value and the sum over its channels, one channel each, weigh all channels."""
    x, (c, h, w) = g.pick()
    most, total = g.net.op("ReduceMax", x, axes=[1]), g.net.op("ReduceSum", x, g.net.ints(1))
    one = g.net.conv(g.net.op("Concat", most, total, axis=1), 2, 1)
    g.add(g.net.op("Mul", x, g.net.op("Sigmoid", one)), c, h, w)


def singles(g: Growing) -> None:
    """A map in parts of one channel each, which are weighed and put together again."""
    x, (c, h, w) = g.pick()
    y = g.net.op("Tanh", g.net.conv(x, c, 3))
    parts = g.net.ops("Split", y, g.net.ints(1, 1, 1), count=3, axis=1)
    g.add(g.net.op("Concat", parts[2], parts[0], axis=1), 2, h, w)
    g.add(g.net.op("Mul", x, parts[1]), c, h, w)


def held(g: Growing) -> None:
    """A softmax over channels, or a mean: barriers in the middle of everything."""
    x, (c, h, w) = g.pick()
    y = g.net.op("Softmax", x, axis=1) if g.number(0, 1) else g.net.op("Sub", x, g.net.op("ReduceMean", x, axes=[1]))
    g.add(y, c, h, w)


STEPS = [
    conv, conv, grouped, depthwise, activation, normalisation, residual, meet, concat, split, slices, gather, pad,
    shuffle, squeeze_and_excitation, pixel_shuffle, pool, deconv, channels_last, attention, unit_length,
    spatial_attention, singles, held,
]  # fmt: skip


def network(draw: Draw, steps: int, names: list[str]) -> Net:
    """A stem, random steps (`names` collects them), and a classifier and a map as outputs of what was made last."""
    net = Net(17, seed=draw(st.integers(0, 99)), open_batch=False)
    g = Growing(net, draw)
    c = g.number(4, 9)
    g.add(net.conv(net.input(2, 3, 8, 8), 3, c), c, 8, 8)
    for _ in range(steps):
        step = STEPS[g.number(0, len(STEPS) - 1)]
        names.append(step.__name__)
        step(g)
    (x, (c, h, w)), (y, (d, _, _)) = g.maps[-1], g.pick()
    logits = net.dense(net.op("Flatten", net.op("Tanh", x)), c * h * w, 11)
    return net.output(logits, net.conv(net.op("Tanh", y), d, 5))


def check_one(data: st.DataObject, steps: int) -> None:
    names: list[str] = []
    net = network(data.draw, steps, names)
    note(f"steps {names}")
    graph = load(net.model(), shapes=net.shapes)
    seed = data.draw(st.integers(0, 999), label="pruning seed")
    keep = data.draw(st.sampled_from((0.75, 0.5, 0.25)), label="keep")
    coupling, _, pruned = prune_randomly(graph, keep, seed)
    note(f"groups {[group.units for group in coupling.groups]}")
    assert_exact(graph, pruned, feeds_for(graph, 1), optimize=bool(seed % 2))


RULES = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True, "database": None}


@settings(max_examples=60, derandomize=True, **RULES)
@given(st.data())
def test_random_networks_are_pruned_exactly(data: st.DataObject) -> None:
    check_one(data, data.draw(st.integers(2, 9), label="steps"))


@pytest.mark.slow
@settings(max_examples=600, **RULES)
@given(st.data())
def test_many_random_networks_are_pruned_exactly(data: st.DataObject) -> None:
    check_one(data, data.draw(st.integers(2, 16), label="steps"))


def test_random_networks_leave_something_to_prune() -> None:
    """The generator must not make networks in which everything is held."""
    rng = np.random.default_rng(7)
    shares = []
    for _ in range(12):
        net = network(lambda strategy: _integer(strategy, rng), 6, [])
        graph = load(net.model(), shapes=net.shapes)
        _, _, pruned = prune_randomly(graph, 0.5, 0)
        shares.append(pruned.model.ByteSize() / graph.model.ByteSize())
    assert np.mean(shares) < 0.8, shares


def _integer(strategy: st.SearchStrategy[int], rng: np.random.Generator) -> int:
    """A number from an integer strategy, drawn by numpy."""
    wrapped = getattr(strategy, "wrapped_strategy", strategy)
    return int(rng.integers(wrapped.start, wrapped.end + 1))
