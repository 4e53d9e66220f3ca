"""What a network costs at given widths: estimates for the search, and measurements that decide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import onnx
from onnx_netadapt.energy import EnergyModel
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.search.common import Key, key_of
from onnx_netadapt.profiler import (
    LOWER_HALF,
    MEDIAN,
    PATIENCE_SECONDS,
    Comparison,
    Feeds,
    Latency,
    LatencyModel,
    Liveness,
    Memory,
    Reference,
    Share,
    Target,
    measure_against,
    memory,
    runner,
)

MEASURED = ("latency", "energy")
"""Resources that are measured on the target; the others are counted on the built network."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How long a model is measured beside the original: in at most `most` rounds of so many seconds and runs, until the
    ratio of the statistic `share` is `sure` (an error with 95%). It waits `patience` seconds for undisturbed moments.
    """

    seconds: float
    most: int
    sure: float
    runs: int = 20
    patience: float = PATIENCE_SECONDS
    share: Share = MEDIAN

    def against(
        self, reference: Reference, run: Callable[[], object], target: Target, limit: float | None = None
    ) -> Comparison:
        """The latency of `run`, and how many times that of `reference` it is, or on which side of a limit that is."""
        return measure_against(
            reference, run, target,
            min_runs=self.runs, min_seconds=self.seconds, rounds=self.most, sure=self.sure, patience=self.patience,
            share=self.share, limit=limit,
        )  # fmt: skip


STEP = Rounds(0.04, 12, 0.03, runs=10, share=LOWER_HALF)
"""Networks of a search: measuring was half of the time of MobileNetV2 at 1%, which was seldom reached; the winner is
measured at length anyway. Rounds of 0.1, 0.05 and 0.03 s took 0.70, 0.42 and 0.28 s on a busy machine (ResNet20 and
narrower forms, waits included), with errors of 2.0, 2.1 and 1.4% (one standard deviation of 111), 96, 95 and 99% of
them within what was told (of medians; decision 0034 has the lower half). Slow models have so many runs in a round.
"""

LONG = Rounds(0.05, 24, 0.01, patience=6.0)
"""The winner, and the finished model: they decide what the budget buys and if it was met. Rounds of 0.2, 0.1 and 0.05 s
took 2.5, 1.8 and 1.8 s (medians of 30 in a busy hour, ResNet20 at 0.35 and 0.68 of its latency), with errors of 0.5,
0.4 and 0.5% where nothing disturbed them, and of 2.5, 1.9 and 2.0% in all.
"""

AGAIN = Rounds(0.5, 6, 0.005, runs=40, patience=6.0)
"""A finished model once more, where its budget lies within the measurement's error or below it: one that counts as over
the budget makes way for another that is trained anew.
"""

ONCE = Rounds(0.25, 1, 0.01)
"""A finished model that no budget waits for."""

SLOW_MS = 50.0
"""The last measurement of slower models has one round: of its runs there are as many, whatever they take."""

COUNTED = 1 << 16
"""Counts that are kept: the error curves of one search ask for those of the same networks many times."""


class NetworkCost:
    """Costs by resource of one narrowed network: `latency` in ms, `energy` in mJ, `macs`, `params`, `size` and `memory`
    in bytes.

    A latency is measured in alternation with the original and told as its multiple, so that a change of the machine's
    speed does not count (LATENCY 2); estimates are told at the speed of the start. `reference` runs the original at
    its own input size; `own_size` is whether that is the narrowed network's too; `start` is its latency.
    """

    def __init__(
        self,
        narrowing: Narrowing,
        target: Target,
        feeds: Feeds,
        resources: Sequence[str],
        reference: Reference,
        start: Latency,
        *,
        own_size: bool = True,
    ) -> None:
        self.narrowing, self.target, self.feeds = narrowing, target, feeds
        self.resources = tuple(resources)
        self.reference, self.start, self.own_size = reference, start, own_size
        self.latency: LatencyModel | None = None
        self._speed: float | None = None
        self.energy: EnergyModel | None = None
        self._overhead = narrowing.graph.model.ByteSize() - narrowing.sizes.weight_bytes(narrowing.full)
        self._liveness = Liveness.of(narrowing.graph.model)
        self._known: dict[Key, dict[str, float]] = {}
        self._counted = lru_cache(maxsize=COUNTED)(self._count)

    def __call__(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        """Estimated costs."""
        return {name: self._estimate(name, widths) for name in self.resources}

    def many(self, networks: Sequence[Mapping[str, int]]) -> list[dict[str, float]]:
        """Estimated costs of several networks: latencies of many take little longer than that of one."""
        found = [
            {name: self._estimate(name, widths) for name in self.resources if name != "latency"} for widths in networks
        ]
        if "latency" in self.resources and found:  # of a stage without a table none are asked for
            assert self.latency is not None
            for own, ms in zip(found, self.speed * self.latency.estimates(networks), strict=True):
                own["latency"] = float(ms)
        return found

    def arithmetic(self, widths: Mapping[str, int]) -> Mapping[str, float]:
        """The multiply-accumulates, whatever the resources are."""
        return {"macs": self._counted("macs", key_of(self.narrowing.full | dict(widths)))}

    def _estimate(self, resource: str, widths: Mapping[str, int]) -> float:
        if resource == "latency":
            assert self.latency is not None
            return self.speed * self.latency.estimate(widths)
        if resource == "energy":
            assert self.energy is not None
            return self.energy(widths)
        return self._counted(resource, key_of(self.narrowing.full | dict(widths)))

    @property
    def speed(self) -> float:
        """How many of the run's milliseconds one of the table's is: it may have been filled at another speed of the
        machine than the start was measured at.
        """
        if self._speed is None:
            assert self.latency is not None
            self._speed = self.measure(self.narrowing.full)["latency"] / self.latency.base_ms
        return self._speed

    def _count(self, resource: str, key: Key) -> float:
        """What follows from the widths alone."""
        sizes, widths = self.narrowing.sizes, dict(key)
        if resource == "macs":
            return float(sizes.macs(widths))
        if resource == "params":
            return float(sizes.params(widths))
        if resource == "size":
            return float(sizes.weight_bytes(widths) + self._overhead)
        return float(self.memory_of(widths).total_bytes)

    def memory_of(self, widths: Mapping[str, int]) -> Memory:
        """Parameter bytes and the peak of activations alive at once."""
        return self._liveness(self.narrowing.shapes(widths))

    def measure(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        """Measured costs; what is not a time is counted exactly on the built network."""
        key = key_of(self.narrowing.full | dict(widths))
        if key not in self._known:
            model = self.narrowing.build(widths)
            found = {name: self._estimate(name, widths) for name in self.resources if name not in MEASURED}
            if "size" in found:
                found["size"] = float(model.ByteSize())
            if "memory" in found:
                found["memory"] = float(memory(model, self.narrowing.shapes(widths)).total_bytes)
            if self.energy is not None:
                found["energy"] = self.energy.measure(widths)
            if "latency" in self.resources:
                found["latency"] = self._measured_ms(widths, model)
            self._known[key] = found
        return self._known[key]

    def _measured_ms(self, widths: Mapping[str, int], model: onnx.ModelProto) -> float:
        """By a short measurement, which corrects the estimates unless it was disturbed."""
        if self.narrowing.full | dict(widths) == self.narrowing.full:
            return self._whole_ms(model)
        told = self._against_original(model, STEP)
        found = told.ratio * self.start.median_ms
        if self.latency is not None and not told.disturbed:
            self.latency.observe(widths, found / self.speed)
        return found

    def _whole_ms(self, model: onnx.ModelProto) -> float:
        """At full width, which limits and all estimates refer to: the start, or at another input size a long one."""
        if self.own_size:
            return self.start.median_ms
        told = self._against_original(model, replace(LONG, share=STEP.share))  # as what is compared with it
        return told.ratio * self.start.median_ms

    def _against_original(self, model: onnx.ModelProto, rounds: Rounds, limit: float | None = None) -> Comparison:
        return rounds.against(self.reference, runner(model, self.target, self.feeds), self.target, limit)

    def final(self, model: onnx.ModelProto, rounds: Rounds = LONG) -> Comparison:
        """The latency of a finished model beside the original's, in alternation."""
        rounds = rounds if "latency" in self.resources else ONCE
        return self._against_original(model, replace(rounds, most=1) if self.start.median_ms > SLOW_MS else rounds)

    def at_length(self, widths: Mapping[str, int], limits: Mapping[str, float], *, relative: bool) -> dict[str, float]:
        """What is noisy of the costs, measured once more and for longer.

        A latency whose budget is `relative` to the original's is told at the speed that the start was measured at, and
        measured until it is known on which side of its limit it is.
        """
        model, found = self.narrowing.build(widths), {}
        if "latency" in self.resources:
            limit = limits["latency"] / self.start.median_ms if relative else None
            told = self._against_original(model, LONG, limit)
            found["latency"] = told.ratio * self.start.median_ms if relative else told.latency.median_ms
        if self.energy is not None:
            found["energy"] = self.energy.of(model).median_mj
        return found
