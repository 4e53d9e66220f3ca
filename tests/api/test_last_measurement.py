"""When a finished model counts as over its budget, with measurements that are known."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from onnx_netadapt import costs, pipeline
from onnx_netadapt.budgets import parse_budgets
from onnx_netadapt.costs import AGAIN, LONG, ONCE, SLOW_MS, NetworkCost
from onnx_netadapt.ir.errors import BudgetError
from onnx_netadapt.passes.search import SearchResult
from onnx_netadapt.pipeline import LOWER, _measured, _measured_warnings, _within
from onnx_netadapt.profiler import LOWER_HALF, MEDIAN, Comparison, Latency


def told(before_ms, after_ms, ratio=None):
    before, after = (Latency(ms, ms, ms, 20, "cpu", ms) for ms in (before_ms, after_ms))
    return Comparison(after, after_ms / before_ms if ratio is None else ratio, 0.01, before)


class Cost:
    def __init__(self, *found):
        self.found, self.asked = list(found), []

    def final(self, model, rounds=LONG):
        self.asked.append(rounds)
        return self.found.pop(0)


def run(budget):
    return SimpleNamespace(budgets=parse_budgets([budget]))


@pytest.mark.parametrize("budget", ["0.5x", "5ms", "macs=0.5x"])
def test_a_model_within_its_budget_is_measured_once(budget):
    cost = Cost(told(10.0, 4.9))
    assert _within(run(budget), _measured(run(budget), cost, None))
    assert len(cost.asked) == 1


@pytest.mark.parametrize("budget", ["0.5x", "5ms"])
def test_one_above_it_is_measured_once_more_at_length_and_that_decides(budget):
    for second, met in ((told(10.0, 4.9), True), (told(10.0, 5.2), False)):
        cost = Cost(told(10.0, 5.1), second)
        found = _measured(run(budget), cost, None)
        assert found is second
        assert _within(run(budget), found) is met
        assert cost.asked == [LONG, AGAIN]


def test_one_that_was_disturbed_is_measured_once_more_only_above_it():
    """Its error of 10% would have it measured again always, and no sooner find an undisturbed moment."""
    within, above = (replace(told(10.0, ms), error=0.1, disturbed=True) for ms in (4.9, 5.1))
    assert _measured(run("0.5x"), Cost(within), None) is within
    second = told(10.0, 4.9)
    assert _measured(run("0.5x"), Cost(above, second), None) is second


def test_one_nearer_to_it_than_its_error_is_measured_once_more():
    second = told(10.0, 4.96)
    cost = Cost(told(10.0, 4.96), second)  # one percent of error
    assert _measured(run("0.5x"), cost, None) is second
    assert _within(run("0.5x"), second)


@pytest.mark.parametrize(
    ("resource", "start", "rounds"),
    [
        ("latency", 1.0, AGAIN),
        ("latency", SLOW_MS, AGAIN),
        ("latency", 2 * SLOW_MS, replace(AGAIN, most=1)),
        ("macs", 1.0, ONCE),
    ],
)
def test_the_last_measurement_has_rounds_and_one_of_a_slow_model(monkeypatch, resource, start, rounds):
    asked = {}
    monkeypatch.setattr(costs, "runner", lambda *_: None)
    monkeypatch.setattr(costs, "measure_against", lambda *_, **given: asked.update(given))
    cost = object.__new__(NetworkCost)
    cost.start, cost.target, cost.feeds = told(start, start).reference, None, None
    cost.reference, cost.resources = None, (resource,)
    cost.final(None, AGAIN)
    assert (asked["rounds"], asked["min_seconds"], asked["sure"]) == (rounds.most, rounds.seconds, rounds.sure)
    assert (asked["min_runs"], asked["patience"]) == (rounds.runs, rounds.patience)


def test_a_winner_is_measured_until_it_is_clear_of_its_limit_and_a_network_by_its_faster_half(monkeypatch):
    asked = []
    monkeypatch.setattr(costs, "runner", lambda *_: None)
    monkeypatch.setattr(costs, "measure_against", lambda *_, **given: asked.append(given) or told(10.0, 4.9))
    cost = object.__new__(NetworkCost)
    cost.start, cost.target, cost.feeds, cost.energy, cost.latency = told(10.0, 10.0).reference, None, None, None, None
    cost.reference, cost.resources, cost._known = None, ("latency",), {}
    cost.narrowing = SimpleNamespace(full={"a": 9}, build=lambda widths: None)
    assert cost.at_length({"a": 4}, {"latency": 4.9}, relative=True) == {"latency": pytest.approx(4.9)}
    cost.at_length({"a": 4}, {"latency": 4.9}, relative=False)
    cost.measure({"a": 4})
    cost.final(None)
    assert [given["limit"] for given in asked] == [pytest.approx(0.49), None, None, None]
    assert [given["share"] for given in asked] == [MEDIAN, MEDIAN, LOWER_HALF, MEDIAN]


class Found:
    """What a search hands over, with the ceilings under which it was asked for less."""

    def __init__(self, monkeypatch, budget, *measured, best_effort=False):
        options = SimpleNamespace(best_effort=best_effort)
        self.run = SimpleNamespace(budgets=parse_budgets([budget]), options=options, timed=lambda _: nullcontext())
        self.ceilings, self.measured = [], list(measured)
        stage = SimpleNamespace(
            run=SimpleNamespace(original=None), size=None, narrowing=None, statistics=None, evaluator=None, cost=None
        )
        self.at = lambda widths: stage
        monkeypatch.setattr(pipeline, "finish", lambda *given: (f"model of {given[3]['a']}", {"plan": {}}))
        monkeypatch.setattr(pipeline, "_measured", lambda *_: self.measured.pop(0))

    def confirm(self, result, ceiling):
        self.ceilings.append(ceiling)
        return SearchResult({"a": result.widths["a"] - 1}, {}, ()), True

    def finished(self):
        return pipeline._finished(self.run, self, self.at, SearchResult({"a": 9}, {}, ()), True)


def test_a_finished_model_over_the_budget_makes_way_for_a_narrower_one(monkeypatch):
    found = Found(monkeypatch, "0.5x", told(10.0, 5.1), told(10.0, 5.2), told(10.0, 4.9))
    done = found.finished()
    assert (done.model, done.result.widths, done.met) == ("model of 7", {"a": 7}, True)
    assert found.ceilings == list(LOWER[:2])
    assert done.told == told(10.0, 4.9)


@pytest.mark.parametrize("budget", ["0.5x", "5ms"])
def test_what_stays_over_the_budget_is_never_said_to_meet_it(monkeypatch, budget):
    over = [told(10.0, 5.1)] * (len(LOWER) + 1)
    with pytest.raises(BudgetError, match=r"stay above the budget by a hair \(5.1 ms of 5 ms\)"):
        Found(monkeypatch, budget, *over).finished()
    done = Found(monkeypatch, budget, *over, best_effort=True).finished()
    assert not done.met
    assert (done.model, done.result.widths) == ("model of 6", {"a": 6})  # the report tells of the model that is written


def test_a_model_that_meets_its_budget_slower_than_before_is_warned_of():
    slow = told(0.3, 0.44, ratio=1.46)
    (said,) = _measured_warnings(run("macs=0.5x"), slow)
    assert "1.46 times as slow as the original (0.440 ms against 0.300 ms)" in said
    assert "--budget latency=1x" in said
    assert not _measured_warnings(run("1.5x"), slow)  # a budget bounds the time
    assert not _measured_warnings(run("macs=0.5x"), told(0.3, 0.302))  # within its error of one percent
    assert not _measured_warnings(run("macs=0.5x"), told(0.3, 0.15))
