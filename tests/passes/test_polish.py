"""What is left of a budget is spent: by widening, then by exchanges, never over the budget by measurement."""

import sys
from collections.abc import Mapping

import numpy as np
import pytest
from onnx_netadapt.passes.search import Choice, Step
from onnx_netadapt.passes.search.polish import SCORED, SPENT, TRIES, polish

GROUPS = (Choice("a", (16, 32, 48, 64)), Choice("b", (10, 20, 30, 40)))
CURVES = {"a": np.linspace(1.0, 0.0, 65), "b": np.linspace(1.0, 0.0, 41)}


class Priced:
    """A unit of cost per channel; measured times are off by a factor that may depend on the widths."""

    def __init__(self, factor=lambda widths: 1.0) -> None:
        self.factor, self.asked = factor, []

    def __call__(self, widths: Mapping[str, int], /) -> dict[str, float]:
        return {"latency": float(sum(widths.values()))}

    def measure(self, widths: Mapping[str, int], /) -> dict[str, float]:
        self.asked.append(dict(widths))
        return {"latency": sum(widths.values()) * self.factor(widths)}


def score(widths: Mapping[str, int]) -> float:
    return widths["a"] / 64 + widths["b"] / 40


def taken(cost: Priced, widths: dict[str, int], value: float | None = None) -> Step:
    found = cost.measure(widths)
    return Step(3, {}, (), widths, cost(widths), found, score(widths) if value is None else value)


def test_a_group_is_widened_as_far_as_the_budget_lets_it():
    cost = Priced()
    steps = polish(GROUPS, cost, score, {"latency": 60.0}, taken(cost, {"a": 16, "b": 10}))
    assert [dict(step.widths) for step in steps] == [{"a": 16, "b": 40}]
    assert steps[0].number == 4
    assert steps[0].measured == {"latency": 56.0}


def test_of_many_groups_those_that_lower_the_error_most_are_widened_and_scored():
    groups = [Choice(f"g{number}", (10, 20)) for number in range(3 * SCORED)]
    curves = {group.id: np.linspace(1.0 + number, 0.0, 21) for number, group in enumerate(groups)}
    asked = []

    def count(widths: Mapping[str, int]) -> float:
        asked.append({name for name, width in widths.items() if width == 20})
        return float(sum(widths.values()))

    cost = Priced()
    narrow = {group.id: 10 for group in groups}
    start = Step(0, {}, (), narrow, cost(narrow), cost.measure(narrow), 0.0)
    budget = {"latency": sum(narrow.values()) + 10.0}
    (step,) = polish(groups, cost, count, budget, start, curves)
    assert len(asked) == SCORED
    assert set().union(*asked) == {group.id for group in groups[-SCORED:]}
    assert step.measured == budget
    asked.clear()
    polish(groups, cost, count, budget, start)
    assert len(asked) == len(groups)  # without curves nobody can tell


def test_widths_are_exchanged_when_no_group_can_be_widened_alone():
    cost = Priced()
    start = taken(cost, {"a": 16, "b": 30})  # 46 of 53: neither 32 + 30 nor 16 + 40 fits, 32 + 20 does
    steps = polish(GROUPS, cost, score, {"latency": 53.0}, start, CURVES)
    assert [dict(step.widths) for step in steps] == [{"a": 32, "b": 20}]


class Batched(Priced):
    """Estimates many networks at once, and remembers how many each time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = []

    def many(self, networks):
        self.sizes.append(len(networks))
        return [self(widths) for widths in networks]


def test_exchanges_come_by_their_error_and_few_are_estimated(monkeypatch):
    groups = [Choice(f"g{number}", (4, 7, 12)) for number in range(6)]
    curves = {group.id: np.linspace(1.0 + number, 0.0, 13) for number, group in enumerate(groups)}
    middle = {group.id: 7 for group in groups}

    def steps(cost):
        value = lambda widths: -sum(float(curves[g][w]) for g, w in widths.items())  # noqa: E731
        start = Step(0, {}, (), middle, cost(middle), cost.measure(middle), value(middle))
        return [dict(step.widths) for step in polish(groups, cost, value, {"latency": 44.0}, start, curves)]

    one_by_one, together = Priced(), Batched()
    wanted = steps(one_by_one)
    assert len(wanted) == 1
    assert steps(together) == wanted
    monkeypatch.setattr(sys.modules[polish.__module__], "AT_ONCE", 4)
    in_chunks = Batched()
    assert steps(in_chunks) == wanted
    assert max(in_chunks.sizes) == 4
    assert sum(in_chunks.sizes) < sum(together.sizes)  # those of much error are not asked about


def test_an_exchange_that_scores_less_is_left():
    cost = Priced()
    start = taken(cost, {"a": 16, "b": 30}, value=9.0)
    assert polish(GROUPS, cost, score, {"latency": 53.0}, start, CURVES) == []


def test_what_measures_over_the_budget_is_not_taken():
    cost = Priced(lambda widths: 2.0 if widths["b"] > 20 else 1.0)
    start = taken(cost, {"a": 16, "b": 10})
    steps = polish(GROUPS, cost, score, {"latency": 60.0}, start)
    assert all(step.measured["latency"] <= 60.0 for step in steps)
    assert dict(steps[-1].widths) == {"a": 48, "b": 10}


class Crossed(Priced):
    """Two resources: each group costs mostly one of them."""

    def __call__(self, widths: Mapping[str, int], /) -> dict[str, float]:
        a, b = widths["a"], widths["b"]
        return {"latency": 2.0 * a + b, "size": a + 2.0 * b}

    def measure(self, widths: Mapping[str, int], /) -> dict[str, float]:
        return self(widths)


def test_exchanges_of_equal_score_lead_to_no_network_twice():
    groups, cost = (Choice("a", (3, 4)), Choice("b", (3, 4))), Crossed()
    start = taken(cost, {"a": 3, "b": 4}, value=0.0)  # 4, 3 takes more of the latency, and 3, 4 of the size
    steps = polish(groups, cost, lambda widths: 0.0, {"latency": 11.9, "size": 11.9}, start)
    assert [dict(step.widths) for step in steps] == [{"a": 4, "b": 3}]


def test_it_ends_when_all_measures_over_the_budget():
    start = {"a": 16, "b": 10}
    cost = Priced(lambda widths: 1.0 if widths == start else 9.0)
    assert polish(GROUPS, cost, score, {"latency": 110.0}, taken(cost, start)) == []
    assert len(cost.asked) == 1 + TRIES


@pytest.mark.parametrize("bias", [0.7, 1.3])
def test_estimates_count_relative_to_the_present_network(bias):
    cost = Priced(lambda _: bias)
    steps = polish(GROUPS, cost, score, {"latency": 60.0 * bias}, taken(cost, {"a": 16, "b": 10}))
    assert [dict(step.widths) for step in steps] == [{"a": 16, "b": 40}]


def test_a_budget_that_is_spent_is_left_alone():
    cost = Priced()
    assert polish(GROUPS, cost, score, {"latency": 26.0 / SPENT}, taken(cost, {"a": 16, "b": 10})) == []
