"""The channel step of a target, found by trying, and the widths that are worth proposing on it.

Costs are stairs: a runtime computes channels in blocks and pads the last one, so only the right edges of steps are
worth having, and some widths fall off a cliff because a fast kernel does not take them. The target is asked:

1. Does it have a blocked layout (the nchwc domain of ONNX Runtime)? A convolution with one output channel shows the
   block: its weight is padded to it. Which input and depthwise widths stay in that layout shows the alignment. This
   reads optimized graphs and times nothing.
2. If not, small convolutions of many widths are timed, and the largest step that explains the times is taken: the
   step over outputs, since those are what is computed in blocks; the alignment over outputs and over inputs.
"""

import contextlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from ..ir.errors import TargetError
from .lut import Entry, Lut
from .target import Target
from .timing import measure_many

_BLOCKED_DOMAIN = "com.microsoft.nchwc"
_KEY = "granularity"
_LEVEL = 0.3  # slope under an edge over the slope of all times, below which the stair counts as level
_STEPS = (64, 32, 16, 8, 4, 2)

STAIRS = "sauAU-"
"""Where a channel count stands: on a step, else aligned or unaligned, in capitals below one step; "-": it is none."""


@dataclass(frozen=True, slots=True)
class Granularity:
    """`step`: channels per stair; `align`: widths off its multiples fall off a cliff; `blocked`: see rule 1.

    `cliff` is the measured time just off the alignment over the time on it (1.0: no cliff).
    """

    step: int
    align: int
    blocked: bool
    cliff: float

    def right_edges(self, original: int, minimum: int = 1, *, channels_per_unit: int = 1) -> tuple[int, ...]:
        """Widths worth proposing from `minimum` to `original`, ascending; the original is always the last.

        Multiples of the step; below one step, multiples of the alignment. Where a unit is several channels, the
        largest width whose channels fit under each edge.
        """
        channels = original * channels_per_unit
        edges = [*range(self.align, self.step, self.align), *range(self.step, channels, self.step)]
        widths = {edge // channels_per_unit for edge in edges}
        return (*sorted(w for w in widths if max(minimum, 1) <= w < original), original)

    def round_up(self, size: int) -> int:
        """`size` rounded up to the step: what the runtime computes for it."""
        return -(-size // self.step) * self.step

    def codes(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where sizes stand, as indices into `STAIRS`; a negative size is none."""
        unaligned, below = sizes % self.align != 0, sizes < self.step
        codes = np.where(sizes % self.step == 0, 0, 1 + unaligned + 2 * below)
        return np.asarray(np.where(sizes < 0, 5, codes))

    def __str__(self) -> str:
        how = "blocked layout" if self.blocked else "timed"
        return f"step {self.step}, alignment {self.align} ({how}), cliff {self.cliff:.2f}x"


def probe(target: Target, lut: Lut) -> Granularity:
    """The target's Granularity, from the table if it is there, else probed (about two seconds) and stored there."""
    known = lut.get(_KEY)
    if known is not None:
        told = known.attributes["granularity"]
        return Granularity(int(told["step"]), int(told["align"]), bool(told["blocked"]), float(told["cliff"]))
    found = _probe(target)
    attributes = {"type": "granularity", "granularity": asdict(found)}
    lut.add([Entry(_KEY, attributes, (found.cliff,))])
    return found


def _probe(target: Target) -> Granularity:
    block = blocked_channels(target, 1, 1)
    if not block:
        widths = tuple(range(33, 81))
        written = infer(widths, _times(target, [(64, c, False) for c in widths]))
        read = infer(widths, _times(target, [(c, 64, False) for c in widths]))
        align = math.lcm(written.align, read.align)
        return Granularity(max(written.step, align), align, False, max(written.cliff, read.cliff))
    align = math.lcm(_taken(target, block, depthwise=False), _taken(target, block, depthwise=True))
    wide = 4 * block
    times = _times(target, [(c, wide, False) for c in (wide - 1, wide + 1, wide)])
    return Granularity(block, align, True, max(1.0, (times[0] + times[1]) / 2 / times[2]))


def _taken(target: Target, block: int, *, depthwise: bool) -> int:
    """The greatest common divisor of the input widths from one to two blocks that stay in the blocked layout."""
    sizes = range(block, 2 * block + 1)
    return math.gcd(*(c for c in sizes if blocked_channels(target, c, c if depthwise else 1, depthwise=depthwise)))


def blocked_channels(target: Target, inputs: int, outputs: int, *, depthwise: bool = False) -> int:
    """Output channels, padded, of a small convolution in the target's blocked layout; 0 where it has or takes none."""
    model = convolution(inputs, outputs, depthwise=depthwise, side=6)
    with tempfile.TemporaryDirectory(prefix="netadapt-") as folder:
        path = Path(folder, "optimized.onnx")
        with contextlib.suppress(TargetError):  # a provider that compiles the graph cannot save it, and has no layout
            target.session(model, optimized_path=str(path))
        if not path.is_file():
            return 0
        graph = onnx.load(path, load_external_data=False).graph
    weights = {t.name: t for t in graph.initializer}
    blocked = (n for n in graph.node if n.domain == _BLOCKED_DOMAIN and len(n.input) > 1 and n.input[1] in weights)
    return next((weights[n.input[1]].dims[0] for n in blocked), 0)


def convolution(inputs: int, outputs: int, *, depthwise: bool = False, side: int = 28) -> onnx.ModelProto:
    """A network of one 3x3 convolution on a (1, inputs, side, side) input."""
    rng = np.random.default_rng(0)
    shape = (outputs, 1 if depthwise else inputs, 3, 3)
    weight = onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=inputs if depthwise else 1)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, inputs, side, side))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, outputs, side, side))
    graph = helper.make_graph([node], "convolution", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _times(target: Target, sizes: Sequence[tuple[int, int, bool]]) -> list[float]:
    models = [convolution(a, b, depthwise=d) for a, b, d in sizes]
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, a, 28, 28)).astype(np.float32)} for a, _, _ in sizes]
    return [t.p10_ms for t in measure_many(models, target, feeds, min_runs=20, min_seconds=0.01)]


def infer(widths: Sequence[int], times: Sequence[float], *, tolerance: float = 0.04) -> Granularity:
    """The Granularity that explains times over consecutive widths.

    A step explains them if widths under one edge cost the same (within `tolerance`, relative, 90th percentile, and with
    no slope to speak of); the largest such step is taken, 1 if there is none. The alignment is the smallest number
    whose multiples are cheaper than their neighbours by (nearly) as much as any, if that is more than twice the
    tolerance, else 1.
    """
    w, t = np.asarray(widths), np.asarray(times, dtype=np.float64)
    step = next((g for g in _STEPS if _is_stair(w, t, g, tolerance)), 1)
    cliffs = {g: _cliff(w, t, g) for g in _STEPS}
    highest = max(cliffs.values())
    sharp = [g for g in _STEPS[::-1] if cliffs[g] - 1 > 0.8 * (highest - 1)]
    align = sharp[0] if highest > 1 + 2 * tolerance else 1
    return Granularity(max(step, align), align, False, cliffs.get(align, 1.0))


def _is_stair(w: np.ndarray, t: np.ndarray, step: int, tolerance: float) -> bool:
    """Whether times are level under each edge, and rise from edge to edge."""
    level = np.empty_like(t)
    middle = np.empty_like(t)
    edges = -(-w // step)
    for edge in np.unique(edges):
        level[edges == edge] = np.median(t[edges == edge])
        middle[edges == edge] = w[edges == edge].mean()
    overall = np.polyfit(w, t, 1)[0]
    across = w - middle
    within = float(across @ (t - level) / max(float(across @ across), 1e-9))
    flat = np.percentile(np.abs(t / level - 1), 90) <= tolerance
    return bool(flat and within < _LEVEL * overall and np.ptp(level) > 3 * tolerance * t.min())


def _cliff(w: np.ndarray, t: np.ndarray, align: int) -> float:
    """Median time off the multiples of `align` over the mean of the multiples on both sides (1.0: nothing to see)."""
    on = w % align == 0
    if on.sum() < 3 or on.all():
        return 1.0
    expected = np.interp(w, w[on], t[on])
    bound = np.maximum(expected, np.interp(w, w[on][:-1], t[on][1:]))  # a plain stair also costs the next edge
    return float(np.median(t[~on] / bound[~on]))
