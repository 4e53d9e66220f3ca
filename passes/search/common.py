"""What all searches share: plain data about choices, costs and steps, and the arithmetic of budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from ...ir.errors import BudgetError
from ...ir.graph import Graph

Widths = dict[str, int]
Costs = Mapping[str, float]
Score = Callable[[Mapping[str, int]], float]
T = TypeVar("T")


def all_of(told: Callable[[Widths], T], networks: Sequence[Widths]) -> list[T]:
    """What a score or a cost says of several networks: all at once where it can (it has `many`), else one by one."""
    many = getattr(told, "many", None)
    return [told(widths) for widths in networks] if many is None else list(many(networks))


@dataclass(frozen=True, slots=True)
class Choice:
    """A group that may be narrowed: `widths` are the widths worth proposing, ascending, the full width last.

    Width 0 stands for the branch or layer that the group lies in, which then goes whole. `apart` marks what is no group
    of channels (the size of the input, whose values are lengths of a side): it costs and scores like any other choice,
    and no gene is shared with it.
    """

    id: str
    widths: tuple[int, ...]
    apart: bool = False


class Cost(Protocol):
    """The cost of a network by its widths: a call estimates, `measure` measures the real network whole."""

    def __call__(self, widths: Mapping[str, int], /) -> Costs:
        """Estimated costs by resource name."""

    def measure(self, widths: Mapping[str, int], /) -> Costs:
        """Measured costs by resource name; later estimates may be corrected by it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One accepted step: the limits it had to meet, what was proposed (group, width, estimate, score), the widths that
    won, their estimated and measured costs and their score.
    """

    number: int
    limits: Mapping[str, float]
    proposals: tuple[Mapping[str, Any], ...]
    widths: Mapping[str, int]
    estimate: Costs
    measured: Costs
    score: float


class Journal(Protocol):
    """Where steps are kept: `past` are those of an interrupted run, `add` keeps another one at once."""

    @property
    def past(self) -> Sequence[Step]:
        """The steps so far."""

    def add(self, step: Step, /) -> None:
        """Keeps a step."""


@dataclass(slots=True)
class ListJournal:
    """A journal in memory."""

    past: list[Step] = field(default_factory=list)

    def add(self, step: Step, /) -> None:
        """Keeps a step."""
        self.past.append(step)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The widths that meet the budget by measurement, what was measured, and every step on the way.

    `facts` is what a search has to say about itself, for the report.
    """

    widths: Mapping[str, int]
    measured: Costs
    steps: tuple[Step, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Search(Protocol):
    """The signature of every search."""

    def __call__(
        self,
        graph: Graph,
        groups: Sequence[Choice],
        cost: Cost,
        score: Score,
        budget: Mapping[str, float],
        *,
        rng: np.random.Generator,
        journal: Journal,
        **options: Any,
    ) -> SearchResult:
        """The best network within the budget; BudgetError when there is none."""


def without_depth(groups: Sequence[Choice]) -> list[Choice]:
    """The groups that may be narrowed, without width 0, which takes a whole branch away."""
    found = [replace(group, widths=tuple(width for width in group.widths if width)) for group in groups]
    return [group for group in found if len(group.widths) > 1 or group.apart]


def full_widths(groups: Sequence[Choice]) -> Widths:
    """Every group at its original width."""
    return {group.id: group.widths[-1] for group in groups}


def least_widths(groups: Sequence[Choice]) -> Widths:
    """Every group at its smallest width."""
    return {group.id: group.widths[0] for group in groups}


Key = tuple[tuple[str, int], ...]
"""Widths in a form that can be looked up."""


def key_of(widths: Mapping[str, int]) -> Key:
    """Widths in a form that can be looked up."""
    return tuple(sorted(widths.items()))


def over(costs: Costs, budget: Mapping[str, float]) -> dict[str, float]:
    """The resources that are over their budget, with that budget."""
    return {name: limit for name, limit in budget.items() if costs[name] > limit}


def in_estimates(limits: Mapping[str, float], estimate: Costs, measured: Costs) -> dict[str, float]:
    """Limits for estimates of networks near one whose estimate errs as it does here: common errors cancel."""
    return {name: limit * estimate[name] / max(measured[name], 1e-12) for name, limit in limits.items()}


def require_reachable(groups: Sequence[Choice], cost: Cost, budget: Mapping[str, float]) -> None:
    """Raises BudgetError when even the smallest widths, measured, are over the budget."""
    if not over(cost(least_widths(groups)), budget):
        return
    reachable = cost.measure(least_widths(groups))
    missed = over(reachable, budget)
    if missed:
        parts = ", ".join(f"{name} {reachable[name]:.6g} (budget {limit:.6g})" for name, limit in missed.items())
        deep = "" if any(group.widths[0] == 0 for group in groups) else "add --allow-depth, "
        raise BudgetError(
            f"the budget cannot be met: with every group at its smallest width the model still costs {parts}; "
            f"raise the budget, lower --min-keep, {deep}or see `inspect` for what cannot be pruned"
        )


def frontier(steps: Sequence[Step], resources: Sequence[str]) -> tuple[Step, ...]:
    """The steps that no other one dominates (cheaper in no resource, or of a lower score), the dearest first."""

    def point(step: Step) -> tuple[float, ...]:
        return (-step.score, *(step.measured[name] for name in resources))

    points = [point(step) for step in steps]
    best = [
        step
        for step, own in zip(steps, points, strict=True)
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in points)
    ]
    distinct = {tuple(step.widths.items()): step for step in best}
    return tuple(sorted(distinct.values(), key=lambda step: [-step.measured[name] for name in resources]))
