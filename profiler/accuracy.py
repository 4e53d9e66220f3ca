"""How good a latency model is: estimates against measurements of networks that it has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from .cost import LatencyModel
from .fill import Network, Progress, check_noise, reference_of, run_whole
from .target import Target
from .timing import Comparison, Reference

_MAPE_LIMIT, _WORST_LIMIT = 0.05, 0.10
_DRIFT_TOLD = 0.02


@dataclass(frozen=True, slots=True)
class Check:
    """One network: what was estimated, what was measured, and the share of the estimate that was extrapolated.

    `widths` are its own; `reference_ms` is what the base network took meanwhile.
    """

    estimate_ms: float
    measured_ms: float
    doubtful_share: float
    widths: Mapping[str, int] = field(default_factory=dict)
    reference_ms: float = float("nan")

    @property
    def error(self) -> float:
        """Relative error of the estimate."""
        return self.estimate_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors over all checked networks, as shares (0.01 is one percent).

    `drift`: how many times as slow as the table says the base network was while this was measured. It is the machine's
    speed then and now, and no property of the table, which only has to be right about how networks compare.
    """

    checks: tuple[Check, ...]
    drift: float = 1.0
    notes: tuple[str, ...] = ()

    def without_drift(self) -> "Accuracy":
        """The same with all measurements brought to the speed at which the table was filled."""
        return Accuracy(tuple(replace(c, measured_ms=c.measured_ms / self.drift) for c in self.checks), 1.0, self.notes)

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
        told = self.without_drift()
        return told.mape <= _MAPE_LIMIT and told.worst <= _WORST_LIMIT

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
        if abs(self.drift - 1) > _DRIFT_TOLD:
            told = self.without_drift()
            lines.append(
                f"The machine is now {self.drift:.2f} times as slow as when the table was filled; with that taken out: "
                f"bias {told.bias:+.1%}, mean error {told.mape:.1%}, worst {told.worst:.1%}"
            )
        lines += [f"Warning: {note}" for note in self.notes]
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
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """The Accuracy over `count` random-width networks, none of which is in the model's table.

    Each is measured in alternation with the base network; the speed of the machine at that moment, as the base network
    shows it against all moments of the check, is taken out, since it says nothing about the table. `reference` is the
    base network where its pace is known already.
    """
    held = model.lut.networks(model.plan.digest)
    reference = reference or reference_of(target, network)
    measured: list[tuple[dict[str, int], Comparison]] = []
    for i in range(count):
        if progress is not None:
            progress(i, count, "checking estimates")
        widths = _unseen(network, rng, on_edges, held)
        measured.append((widths, run_whole(target, network, widths, reference)))
    base_ms = float(np.median([whole.reference.median_ms for _, whole in measured]))
    checks = []
    for widths, whole in measured:
        told = model.explain(widths)
        checks.append(Check(told.ms, whole.ratio * base_ms, told.doubtful_share, widths, base_ms))
    note = check_noise(target, [whole for _, whole in measured])
    notes = tuple(dict.fromkeys([*model.notes, note] if note else model.notes))
    return Accuracy(tuple(checks), base_ms / model.estimate(network.base), notes)


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
