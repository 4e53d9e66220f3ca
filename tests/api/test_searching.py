"""The confirmation of a search's result by longer measurements, and the step that a search is given."""

from dataclasses import replace

import pytest
from onnx_netadapt.models.demo import write_demo
from onnx_netadapt.options import Options
from onnx_netadapt.passes.search import SearchResult, Step, chamnet
from onnx_netadapt.passes.search.common import ListJournal, least_widths
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress
from onnx_netadapt.searching import LONG_STEP, Searcher, searcher_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Everything up to the search, with a budget of multiply-accumulates: nothing depends on a clock."""
    model, data = write_demo(tmp_path_factory.mktemp("demo"))
    return set_up(model, Options(("macs=0.6x",), data=str(data)), "demo", Progress(quiet=True), "")


def _searcher(bench, **options) -> Searcher:
    run = replace(bench.run, options=replace(bench.run.options, **options))
    limits = bench.limits(run.budgets)
    return searcher_of(run, bench.narrowing, bench.cost, bench.choices, bench.scorer, limits, bench.samples)


class Dearer:
    """The same costs, but one network turns out 2% over its limit when it is measured at length."""

    def __init__(self, cost, widths, limit):
        self.cost, self.widths, self.limit = cost, dict(widths), limit

    def __call__(self, widths):
        return self.cost(widths)

    def measure(self, widths):
        return self.cost.measure(widths)

    def at_length(self, widths, limits, *, relative):
        return {"macs": 1.02 * self.limit} if dict(widths) == self.widths else {}


@pytest.mark.parametrize("search", ["netadapt", "chamnet", "mcd"])
def test_what_measures_over_the_budget_by_a_hair_is_narrowed_from_there_on(bench, monkeypatch, search):
    searcher = _searcher(bench, search=search)
    limit = searcher.limits["macs"]
    widths = {name: max(1, 3 * width // 4) for name, width in bench.narrowing.full.items()}
    measured = bench.cost.measure(widths)
    assert measured["macs"] <= limit
    step = Step(0, {"macs": limit}, (), widths, measured, measured, bench.scorer(widths))
    result = SearchResult(widths, measured, (step,), {"predictor": {"kendall": 0.9}})
    monkeypatch.setattr(chamnet, "search", None)  # whoever looks for a network from the start again fails here
    found, met = replace(searcher, cost=Dearer(bench.cost, widths, limit)).confirm(result, 1.0)
    assert met
    assert found.measured["macs"] <= limit
    assert dict(found.steps[0].widths) == widths
    assert found.widths != widths
    assert found.facts == result.facts


def test_steps_are_long_where_finalists_follow_and_those_of_the_user_stay(bench):
    assert _searcher(bench).keywords["step"] == LONG_STEP
    assert _searcher(bench, step=0.02).keywords["step"] == 0.02
    for other in ({"search": "mcd"}, {"search": "chamnet"}, {"published": True}):
        assert _searcher(bench, **other).keywords["step"] is None
    elastic = replace(bench, narrowing=replace(bench.narrowing, amounts=None))
    assert _searcher(elastic).keywords["step"] is None


class NoisyForAMoment(Dearer):
    """Short measurements never fall below the budget; long ones are right."""

    def measure(self, widths):
        found = self.cost.measure(widths)
        return {name: max(value, 1.1 * self.limit) for name, value in found.items()}

    def at_length(self, widths, limits, *, relative):
        return self.cost.measure(widths)


def test_a_budget_is_out_of_reach_by_a_long_measurement_alone(bench):
    searcher = _searcher(bench)
    noisy = replace(searcher, cost=NoisyForAMoment(bench.cost, {}, searcher.limits["macs"]))
    found, met = noisy.run_to_budget(ListJournal(), confirmed=False)
    assert met
    assert found.widths == least_widths(bench.choices)
    assert found.measured["macs"] <= searcher.limits["macs"]
