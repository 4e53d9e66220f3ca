"""What a network costs at given widths: estimates for the search, and measurements that decide."""

from collections.abc import Mapping, Sequence

import onnx
from onnx_netadapt.network import Narrowing
from onnx_netadapt.profiler import (
    Feeds,
    Latency,
    LatencyModel,
    Memory,
    Target,
    measure_against,
    measure_many,
    memory,
    runner,
)

STEP_SECONDS = 0.3
FINAL_SECONDS = 1.5


class NetworkCost:
    """Costs by resource (`latency` in ms, `macs`, `params`, `size` and `memory` in bytes) of one narrowed network.

    A latency is measured in alternation with the original and told as its multiple, so that a change of the machine's
    speed does not count (LATENCY 2).
    """

    def __init__(
        self, narrowing: Narrowing, target: Target, feeds: Feeds, resources: Sequence[str], start: Latency
    ) -> None:
        self.narrowing, self.target, self.feeds = narrowing, target, feeds
        self.resources = tuple(resources)
        self.start = start
        self.latency: LatencyModel | None = None
        self._original = runner(narrowing.graph.model, target, feeds)
        self._overhead = narrowing.graph.model.ByteSize() - narrowing.sizes.weight_bytes(narrowing.full)
        self._known: dict[tuple[tuple[str, int], ...], dict[str, float]] = {}

    def __call__(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        """Estimated costs."""
        return {name: self._estimate(name, widths) for name in self.resources}

    def _estimate(self, resource: str, widths: Mapping[str, int]) -> float:
        sizes = self.narrowing.sizes
        if resource == "latency":
            assert self.latency is not None
            return self.latency.estimate(widths)
        if resource == "macs":
            return float(sizes.macs(widths))
        if resource == "params":
            return float(sizes.params(widths))
        if resource == "size":
            return float(sizes.weight_bytes(widths) + self._overhead)
        return float(self.memory_of(widths).total_bytes)

    def memory_of(self, widths: Mapping[str, int]) -> Memory:
        """Parameter bytes and the peak of activations alive at once."""
        return memory(self.narrowing.build(widths), self.narrowing.shapes(widths))

    def measure(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        """Measured costs; what is not a time is counted exactly on the built network."""
        key = tuple(sorted(widths.items()))
        if key not in self._known:
            model = self.narrowing.build(widths)
            found = {name: self._estimate(name, widths) for name in self.resources if name != "latency"}
            if "size" in found:
                found["size"] = float(model.ByteSize())
            if "latency" in self.resources:
                found["latency"] = self._measured_ms(model)
                if self.latency is not None:
                    self.latency.observe(widths, found["latency"])
            self._known[key] = found
        return self._known[key]

    def _measured_ms(self, model: onnx.ModelProto) -> float:
        run = runner(model, self.target, self.feeds)
        _, ratio = measure_against(self._original, run, self.target, min_seconds=STEP_SECONDS)
        return ratio * self.start.median_ms

    def final(self, model: onnx.ModelProto) -> tuple[Latency, Latency]:
        """The latencies of the original and of a model, measured in alternation and at length."""
        before, after = measure_many(
            [self.narrowing.graph.model, model], self.target, [self.feeds, self.feeds], min_seconds=FINAL_SECONDS
        )
        return before, after
