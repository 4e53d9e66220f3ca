"""How good a latency model is: estimates against measurements of networks that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cost import LatencyModel
from .fill import Network, Progress, run_whole, whole_runner
from .target import Target

_MAPE_LIMIT, _WORST_LIMIT = 0.05, 0.10


@dataclass(frozen=True, slots=True)
class Check:
    """One network: what was estimated, what was measured, and the share of the estimate that was extrapolated."""

    estimate_ms: float
    measured_ms: float
    doubtful_share: float

    @property
    def error(self) -> float:
        """Relative error of the estimate."""
        return self.estimate_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors over all checked networks, as shares (0.01 is one percent)."""

    checks: tuple[Check, ...]

    @property
    def errors(self) -> npt.NDArray[np.float64]:
        """The relative error of each check."""
        return np.asarray([c.error for c in self.checks])

    @property
    def bias(self) -> float:
        """The mean error."""
        return float(self.errors.mean())

    @property
    def mape(self) -> float:
        """The mean absolute error."""
        return float(np.abs(self.errors).mean())

    @property
    def worst(self) -> float:
        """The largest absolute error."""
        return float(np.abs(self.errors).max())

    def within(self, limit: float) -> float:
        """The share of networks whose error is at most `limit`."""
        return float((np.abs(self.errors) <= limit).mean())

    @property
    def spearman(self) -> float:
        """Rank correlation of estimates and measurements (ties get their mean rank); nan below two networks."""
        a, b = (_ranks([getattr(c, name) for c in self.checks]) for name in ("estimate_ms", "measured_ms"))
        if len(self.checks) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
            return float("nan")
        return float(np.corrcoef(a, b)[0, 1])

    @property
    def good(self) -> bool:
        """Whether searches may rely on the estimates; where not, they should measure whole networks."""
        return self.mape <= _MAPE_LIMIT and self.worst <= _WORST_LIMIT

    def __str__(self) -> str:
        lines = [f"{'estimate':>10} {'measured':>10} {'error':>8}  extrapolated"]
        lines += [
            f"{c.estimate_ms:8.3f}ms {c.measured_ms:8.3f}ms {c.error:+8.1%}  {c.doubtful_share:.0%}"
            for c in self.checks
        ]
        lines.append(
            f"{len(self.checks)} unseen networks: bias {self.bias:+.1%}, mean error {self.mape:.1%}, worst "
            f"{self.worst:.1%}, within 5%: {self.within(0.05):.0%}, within 10%: {self.within(0.1):.0%}, "
            f"Spearman {self.spearman:.3f}"
        )
        if not self.good:
            lines.append("The table is not good enough to rank candidates: measure whole networks.")
        return "\n".join(lines)


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    order = np.asarray(values, dtype=np.float64)
    return np.asarray([(order < v).sum() + ((order == v).sum() - 1) / 2 for v in order])


def accuracy(
    model: LatencyModel,
    target: Target,
    network: Network,
    rng: np.random.Generator,
    *,
    count: int = 12,
    on_edges: bool = True,
    progress: Progress | None = None,
) -> Accuracy:
    """The Accuracy over `count` random-width networks, none of which is in the model's table.

    Each is measured in alternation with the base network; the speed of the machine at that moment, as the base network
    shows it against all moments of the check, is taken out, since it says nothing about the table.
    """
    held = model.lut.networks(model.plan.digest)
    reference = whole_runner(target, network, network.base)
    measured: list[tuple[dict[str, int], float, float]] = []
    for i in range(count):
        if progress is not None:
            progress(i, count, "checking estimates")
        widths = _unseen(network, rng, on_edges, held)
        measured.append((widths, *run_whole(target, network, widths, reference)))
    base_ms = float(np.median([ms for _, _, ms in measured]))
    return Accuracy(tuple(_check(model, widths, ratio * base_ms) for widths, ratio, _ in measured))


def _check(model: LatencyModel, widths: dict[str, int], measured_ms: float) -> Check:
    told = model.explain(widths)
    return Check(told.ms, measured_ms, told.doubtful_share)


def _unseen(
    network: Network, rng: np.random.Generator, on_edges: bool, held: Sequence[dict[str, int]]
) -> dict[str, int]:
    for _ in range(100):
        widths = {}
        for group, base in network.base.items():
            edges = network.edges.get(group) or (base,)
            widths[group] = int(rng.choice(edges) if on_edges else rng.integers(min(edges), base + 1))
        if widths not in held:
            break
    return widths
