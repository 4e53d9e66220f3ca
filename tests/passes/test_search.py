"""Searches against costs and scores whose best answer is known."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from onnx_netadapt.ir.errors import BudgetError, InputError
from onnx_netadapt.passes.search import SEARCHES, Choice, load_search
from onnx_netadapt.passes.search.common import ListJournal, over
from onnx_netadapt.passes.search.descent import Schedule, reach

GROUPS = (Choice("a", (3, 7, 11, 13)), Choice("b", (2, 5, 17)), Choice("c", (1, 2, 3, 4, 5, 6, 7)))
PRICE = {"a": 2.0, "b": 1.0, "c": 5.0}
WORTH = {"a": 1.0, "b": 3.0, "c": 0.1}
NO_GRAPH = None


class FakeCost:
    """Linear in the widths, plus a product of neighbours; measured times are off by a constant factor."""

    def __init__(self, bias: float = 1.0) -> None:
        self.bias = bias
        self.measured: list[dict[str, int]] = []

    def __call__(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        latency = sum(PRICE[name] * width for name, width in widths.items()) + 0.1 * widths["a"] * widths["b"]
        return {"latency": latency, "params": float(sum(widths.values()))}

    def measure(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
        self.measured.append(dict(widths))
        found = dict(self(widths))
        return found | {"latency": found["latency"] * self.bias}


def score(widths: Mapping[str, int]) -> float:
    return sum(WORTH[name] * math.log(width) for name, width in widths.items())


def run(name, budget, *, bias=1.0, journal=None, **options):
    cost = FakeCost(bias)
    result = load_search(name)(
        NO_GRAPH, GROUPS, cost, score, budget, rng=np.random.default_rng(0),
        journal=ListJournal() if journal is None else journal, **options,
    )  # fmt: skip
    return result, cost


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("bias", [0.8, 1.0, 1.3])
def test_the_result_is_within_the_budget_by_measurement(name, bias):
    full = FakeCost(bias).measure({"a": 13, "b": 17, "c": 7})["latency"]
    result, cost = run(name, {"latency": 0.6 * full}, bias=bias)
    assert result.measured["latency"] <= 0.6 * full
    assert dict(result.widths) in cost.measured
    assert all(result.widths[group.id] in group.widths for group in GROUPS)


def test_netadapt_takes_what_is_dear_and_worth_little_first():
    result, _ = run("netadapt", {"latency": 65.0}, widen=False)
    assert result.widths["c"] < 7
    assert result.widths["b"] == 17


def test_every_proposal_is_the_widest_that_meets_the_limit_and_the_best_score_wins():
    result, cost = run("netadapt", {"latency": 50.0}, widen=False)
    before = {"a": 13, "b": 17, "c": 7}
    for step in result.steps:
        for proposal in step.proposals:
            name, width = proposal["group"], proposal["width"]
            assert cost(before | {name: width})["latency"] <= step.limits["latency"] + 1e-9
            choices = next(group.widths for group in GROUPS if group.id == name)
            wider = [w for w in choices if width < w < before[name]]
            assert all(cost(before | {name: w})["latency"] > step.limits["latency"] for w in wider)
        assert step.score == max(proposal["score"] for proposal in step.proposals)
        changed = [name for name in before if step.widths[name] != before[name]]
        assert len(changed) == 1
        before = dict(step.widths)


def test_the_last_limit_is_the_budget_and_no_step_is_taken_within_it():
    result, _ = run("netadapt", {"latency": 60.0}, widen=False)
    assert result.steps[-1].measured["latency"] <= 60.0
    assert all(step.measured["latency"] > 60.0 for step in result.steps[:-1])
    assert all(step.limits["latency"] >= 60.0 - 1e-9 for step in result.steps)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("budget", [{"latency": 60.0, "params": 25.0}, {"latency": 100.0, "params": 14.0}])
def test_two_budgets_hold_together(name, budget):
    result, _ = run(name, budget)
    assert not over(result.measured, budget)


@pytest.mark.parametrize("name", SEARCHES)
def test_each_of_two_budgets_must_be_in_reach_before_anything_is_scored(name):
    def never(_):
        raise AssertionError("a network was scored")

    least = FakeCost()({"a": 3, "b": 2, "c": 1})
    cost, rng = FakeCost(), np.random.default_rng(0)
    budget = {"latency": 2 * least["latency"], "params": least["params"] - 1}
    with pytest.raises(BudgetError, match=f"params {least['params']:.6g}"):
        load_search(name)(NO_GRAPH, GROUPS, cost, never, budget, rng=rng, journal=ListJournal())


@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_run_twice_gives_the_same_steps(name):
    assert run(name, {"latency": 45.0})[0] == run(name, {"latency": 45.0})[0]


@pytest.mark.parametrize("name", ["netadapt", "mcd"])
def test_an_interrupted_run_goes_on_to_the_same_end(name):
    whole, _ = run(name, {"latency": 45.0})
    journal = ListJournal(list(whole.steps[:2]))
    again, _ = run(name, {"latency": 45.0}, journal=journal)
    assert again.widths == whole.widths
    assert again.steps == whole.steps


@pytest.mark.parametrize("name", SEARCHES)
def test_a_budget_out_of_reach_says_what_is_reachable(name):
    least = FakeCost()({"a": 3, "b": 2, "c": 1})["latency"]
    with pytest.raises(BudgetError, match=f"{least:.6g}"):
        run(name, {"latency": least - 0.5})


def test_measurements_that_never_fall_end_in_an_error():
    """Even if the pool goes on to promise more: its estimates are no more right than the others."""

    class Stubborn(FakeCost):
        def __call__(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
            return {"latency": 1.0 if widths["a"] == 7 else float(sum(widths.values()))}

        def measure(self, widths: Mapping[str, int], /) -> Mapping[str, float]:
            return {"latency": 100.0}

    netadapt = load_search("netadapt")
    with pytest.raises(BudgetError, match="smallest width and the measured cost is still over"):
        netadapt(
            NO_GRAPH, GROUPS, Stubborn(), score, {"latency": 20.0}, rng=np.random.default_rng(0),
            journal=ListJournal(), pool=lambda limits: [{"a": 7, "b": 17, "c": 7}],
        )  # fmt: skip


def test_a_model_within_the_budget_stays_whole():
    result, _ = run("netadapt", {"latency": 1e6})
    assert dict(result.widths) == {"a": 13, "b": 17, "c": 7}
    assert result.steps == ()


def test_unused_budget_is_given_back():
    tight, _ = run("netadapt", {"latency": 70.0}, widen=False, step=0.4)
    wide, _ = run("netadapt", {"latency": 70.0}, step=0.4)
    assert wide.measured["latency"] <= 70.0
    assert score(wide.widths) >= score(tight.widths)


def test_the_reach_of_a_schedule_is_the_geometric_series():
    assert reach(0.025, 0.96, 10) == pytest.approx(0.025 * (1 - 0.96**10) / 0.04)
    assert reach(0.025, 0.96, None) == pytest.approx(0.625)
    assert reach(0.1, 1.0, None) == math.inf


def test_a_schedule_that_falls_short_is_scaled_up():
    start, budget = {"latency": 100.0}, {"latency": 25.0}
    assert reach(Schedule(0.025, 0.96, 16).first(start, budget), 0.96, None) >= 0.75
    assert Schedule(0.1, 0.96, 16).first(start, budget) == 0.1
    assert Schedule(None, 0.96, 16).first(start, {"latency": 200.0}) == 0.0


def test_an_unknown_search_is_refused():
    with pytest.raises(InputError, match="multiplier, netadapt, mcd, chamnet"):
        load_search("annealing")
