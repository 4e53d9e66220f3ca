"""When a finished model counts as over its budget, with measurements that are known."""

from types import SimpleNamespace

import pytest
from onnx_netadapt.budgets import parse_budgets
from onnx_netadapt.pipeline import AGAIN_SECONDS, _measured, _within
from onnx_netadapt.profiler import Comparison, Latency


def told(before_ms, after_ms, ratio=None):
    before, after = (Latency(ms, ms, ms, 20, "cpu", ms) for ms in (before_ms, after_ms))
    return Comparison(after, after_ms / before_ms if ratio is None else ratio, 0.01, before)


class Cost:
    def __init__(self, *found):
        self.found, self.seconds = list(found), []

    def final(self, model, seconds=1.5):
        self.seconds.append(seconds)
        return self.found.pop(0)


def run(budget):
    return SimpleNamespace(budgets=parse_budgets([budget]))


@pytest.mark.parametrize("budget", ["0.5x", "5ms", "macs=0.5x"])
def test_a_model_within_its_budget_is_measured_once(budget):
    cost = Cost(told(10.0, 4.9))
    assert _within(run(budget), _measured(run(budget), cost, None))
    assert len(cost.seconds) == 1


@pytest.mark.parametrize("budget", ["0.5x", "5ms"])
def test_one_above_it_is_measured_once_more_at_length_and_that_decides(budget):
    for second, met in ((told(10.0, 4.9), True), (told(10.0, 5.2), False)):
        cost = Cost(told(10.0, 5.1), second)
        found = _measured(run(budget), cost, None)
        assert found is second
        assert _within(run(budget), found) is met
        assert cost.seconds == [1.5, AGAIN_SECONDS]


def test_medians_of_different_moments_are_not_believed_against_pairs():
    cost = Cost(told(10.0, 5.1), told(10.0, 5.2, ratio=0.48), told(10.0, 4.9))
    assert _within(run("0.5x"), _measured(run("0.5x"), cost, None))
    # it ends all the same, with what was measured
    cost = Cost(*[told(10.0, 5.2, ratio=0.48)] * 9)
    assert not _within(run("0.5x"), _measured(run("0.5x"), cost, None))
    assert len(cost.seconds) == 3
