"""Whether the model itself should make its image smaller: `--downsample`.

What a classifier needs of an image is often there at a smaller size, and at three quarters of the side every
convolution costs half: a network of full width on smaller maps may keep far more than a narrow one on the whole image.
The input stays as it is; the model's first nodes make it smaller (`ir.downsample`).

1. Candidates are multiples of a power of two, which networks that halve their maps keep whole, from half the model's
   own side up, that the model can run at and that leave its outputs' shapes alone.
2. Each is judged by what it would be at the budget: as it is where it is within it, else narrowed by the error curves
   until it is, and refitted front to back. Latencies are measured whole, in alternation with the original's, and kept
   in the latency table, so that the same table gives the same choice.
3. From the largest size within the budget as it is the sizes are gone up, as long as they do better; one that even at
   all its widths does worse than the best so far is not tried. Score: that of finalists, on the selection set.
4. The search then starts from the size that won, and the networks that were judged there are among the finalists;
   budgets, scores and training refer to the original as it was.

With error curves a network is chosen at each size, and by score among sizes: DEVIATION from ChamNet, whose resolution
is a gene, searched with the others (`--search chamnet --resolution`), at many times the cost.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import onnx
from onnx_netadapt.costs import STEP
from onnx_netadapt.evaluate import Evaluator
from onnx_netadapt.finalists import EXAMPLES, ROWS, refitted, rescaler_of
from onnx_netadapt.inputs import Feeds
from onnx_netadapt.ir.errors import InputError, NetAdaptError
from onnx_netadapt.metrics import Metric, is_classifier
from onnx_netadapt.network import Narrowing, by_weight
from onnx_netadapt.ordering import coupled, ordered
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.search.common import Widths
from onnx_netadapt.passes.search.curves import pool_of
from onnx_netadapt.passes.sizes import Sizes
from onnx_netadapt.passes.targets import Targets
from onnx_netadapt.profiler import Entry, Lut, probe, runner
from onnx_netadapt.resolution import AUTO, InputSize, images_of, parse_downsample, sizes_inside, tried
from onnx_netadapt.run import Run, first_examples, one_blas_thread
from onnx_netadapt.searching import AIM

LEAST_SIDE = 64
"""The shorter side of images from which on a smaller size is tried. Smaller ones gain nothing: ResNet20 at half the
multiply-accumulates scored -0.27 at 24x24 and at 26x26, and -0.24 on the whole 32x32.
"""

TRIES = 5
"""Networks that are measured to find one of the budget's cost."""

CLOSE = 1.02
"""A network of so many times the budget is near enough to be judged by."""

SHARED = ("latency", "macs")
"""Budgets that a smaller image helps to meet."""


@dataclass(frozen=True, slots=True)
class Sized:
    """The model making its image smaller: the size, the run at it, the units by the norms of their weights, and, where
    it was narrowed to be judged, in nested order with the statistics, and the `networks` that were judged.
    """

    size: InputSize
    run: Run
    whole: Narrowing
    ready: tuple[Narrowing, Statistics] | None = None
    networks: tuple[Widths, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates at full width."""
        return self.whole.sizes.macs(self.whole.full)


@dataclass(frozen=True, slots=True)
class Downsampled:
    """What was chosen: `own` is the model as it is, which `chosen` may be too."""

    own: Sized
    chosen: Sized


def downsampled(run: Run, metric: Metric, lut: Lut | None) -> Downsampled | None:
    """The size that the model should reduce its image to, by a metric on the selection set; None where none was tried.

    Raises InputError where a size that the user asks for cannot be.
    """
    side = parse_downsample(run.options.downsample)
    if side is None and not _worth_trying(run):
        return None
    size = _image(run)
    if size is None:
        if side is None:
            return None
        raise InputError(f"--downsample {side}: the model has no input that is one image of fixed size; leave it out")
    own = Sized(size, run, by_weight(coupled(run)))
    return _automatic(own, metric, lut) if side is None else _asked(own, side)


def _worth_trying(run: Run) -> bool:
    """Whether sizes are tried without being asked for: for classifiers that are judged on real images, in the default
    search, where a budget counts time or arithmetic.
    """
    options = run.options
    default = options.search == "netadapt" and options.scoring == "refit" and not options.published
    judged = not run.data.synthetic and len(run.selection) > 0 and is_classifier(run.outputs)
    counted = bool(set(SHARED) & set(run.budgets)) and "energy" not in run.budgets
    return options.downsample == AUTO and not options.resolution and default and judged and counted


def _image(run: Run) -> InputSize | None:
    """The model's one image input of fixed size; None where it has none, or several."""
    images = images_of(run.graph)
    if len(images) != 1:
        return None
    port, (height, width) = images[0]
    if None in (port.dims[height], port.dims[width]):
        return None
    return InputSize(port.name, run.graph.shapes[port.name], (height, width), inside=True)


def _asked(own: Sized, side: int) -> Downsampled:
    """The size that the user asks for."""
    if side >= own.size.resolution:
        raise InputError(f"--downsample {side}: must be below the model's own size, {own.size}")
    size = own.size.at(side, 1)
    found = _at(own, size)
    if isinstance(found, str):
        raise InputError(f"--downsample {side}: the model cannot make its image {size}: {found}")
    return Downsampled(own, found)


def _at(own: Sized, size: InputSize) -> Sized | str:
    """The model at a size, or why it cannot be."""
    graph = tried(own.run.graph, size, own.run.data, own.run.outputs)
    if isinstance(graph, str):
        return graph
    run = replace(own.run, graph=graph, original=own.run)
    try:
        whole = by_weight(coupled(run))
    except NetAdaptError as error:
        return str(error)
    if whole.full != own.whole.full:
        return "other channels belong together there"
    return Sized(size, run, whole)


def _automatic(own: Sized, metric: Metric, lut: Lut | None) -> Downsampled | None:
    """The size that does best at the budget (rules 1 to 3)."""
    if own.size.resolution < LEAST_SIDE:
        return None
    excess = _Excess(own, lut)
    if excess(own, own.whole.full) <= 1:
        return None
    own.run.look_at_start_again()
    smaller = [found for size in sizes_inside(own.size) if not isinstance(found := _at(own, size), str)]
    if not smaller:
        return None
    evaluator = Evaluator(own.run.graph, own.run.data, own.run.selection, metric)
    first = max(0, bisect_right(smaller, 1.0, key=lambda sized: excess(sized, sized.whole.full)) - 1)
    best, most = own, float("-inf")
    for sized in [*smaller[first:], own]:
        judge = _Judge(sized, evaluator, excess)
        if judge.bound < most:
            continue
        score, found = judge.at_budget()
        own.run.progress.say(f"  image of {sized.size}: score {score:.4f} at the budget")
        if score < most:
            break
        best, most = found, score
    return Downsampled(own, best)


class _Excess:
    """How many times its budget a network costs, by the budget that it misses most (rule 2)."""

    def __init__(self, own: Sized, lut: Lut | None) -> None:
        self._run, self._macs, self._lut = own.run, own.macs, lut
        self.granularity = None if lut is None else probe(own.run.target, lut)

    def __call__(self, sized: Sized, widths: Mapping[str, int], narrowing: Narrowing | None = None) -> float:
        """Above 1 is over the budget; `narrowing` has the order of the units where they are in order."""
        found = narrowing or sized.whole
        costs = {"macs": found.sizes.macs(widths) / self._macs}
        if "latency" in self._run.budgets:
            costs["latency"] = self._ratio(found.build(widths), sized.run.feeds) / AIM
        start = {"latency": self._run.start.median_ms, "macs": float(self._macs)}
        limits = {name: self._run.budgets[name].limit(start[name]) for name in costs if name in self._run.budgets}
        return max(costs[name] * start[name] / limit for name, limit in limits.items())

    def _ratio(self, model: onnx.ModelProto, feeds: Feeds) -> float:
        """A model's latency as a multiple of the original's."""
        key = hashlib.sha256(b"ratio" + model.SerializeToString(deterministic=True)).hexdigest()
        known = None if self._lut is None else self._lut.get(key)
        if known is not None:
            return known.statistic_us
        run = runner(model, self._run.target, feeds)
        found = STEP.against(self._run.reference, run, self._run.target).ratio
        if self._lut is not None:
            self._lut.add([Entry(key, {"type": "ratio"}, (found,))])
        return found


@dataclass(frozen=True, slots=True)
class _Macs:
    """Multiply-accumulates by widths."""

    sizes: Sizes

    def __call__(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        """Counted."""
        return {"macs": float(self.sizes.macs(widths))}

    def measure(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        """Counted as well."""
        return self(widths)


class _Judge:
    """The score that the model at one size would have at the budget; `bound` is its score at full width."""

    def __init__(self, sized: Sized, evaluator: Evaluator, excess: _Excess) -> None:
        self.sized, self.evaluator, self.excess = sized, evaluator, excess
        self._rescaler = rescaler_of(sized.whole, sized.run)
        self.bound = evaluator.score(self._rescaler.applied(sized.run.graph.model))

    def at_budget(self) -> tuple[float, Sized]:
        """The best score within the budget, and the size with what was worked out for it."""
        if self.excess(self.sized, self.sized.whole.full) <= 1:
            return self.bound, self.sized
        ready = ordered(self.sized.run)
        networks = tuple(self._at_budget(ready[0]))
        scores = self._scores(*ready, networks)
        return max(scores, default=float("-inf")), replace(self.sized, ready=ready, networks=networks)

    def _scores(self, narrowing: Narrowing, statistics: Statistics, networks: Sequence[Widths]) -> list[float]:
        batches = first_examples(self.sized.run, EXAMPLES)
        with (
            self.sized.run.timed("downsampling"),
            one_blas_thread(),
            closing(Targets(narrowing.graph, statistics.consumers.all, batches, share=ROWS)) as targets,
        ):
            models = (refitted(narrowing, statistics, widths, targets, self._rescaler) for widths in networks)
            return [self.evaluator.score(model) for model in models]

    def _at_budget(self, narrowing: Narrowing) -> Iterator[Widths]:
        """Networks of the error curves that cost about the budget, one for each kind of curve."""
        options, sizes, full = self.sized.run.options, narrowing.sizes, narrowing.full
        choices = narrowing.choices(self.excess.granularity, options.min_keep, options.exclude, options.only)
        for curves in (narrowing.curves, narrowing.amounts):
            assert curves is not None  # of `ordered`
            propose = pool_of(choices, curves, _Macs(sizes), (1.0,))
            limit = sizes.macs(full) / self.excess(self.sized, full)
            for _ in range(TRIES):
                found = [full | widths for widths in propose({"macs": limit})]
                if not found:
                    break
                excess = self.excess(self.sized, found[0], narrowing)
                if excess <= CLOSE:
                    yield found[0]
                    break
                limit /= excess
