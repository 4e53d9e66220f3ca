"""The last choice of widths: better networks of the same cost replace the search's winner, dearer ones never."""

from dataclasses import replace

import pytest
from onnx_netadapt.finalists import _uniform, refitted, settle
from onnx_netadapt.models.demo import write_demo
from onnx_netadapt.options import Options
from onnx_netadapt.passes.rescale import Rescaler
from onnx_netadapt.passes.search import SearchResult, multiplier
from onnx_netadapt.passes.search.common import ListJournal
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress
from onnx_netadapt.searching import searcher_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Everything up to the search, with a budget of multiply-accumulates: nothing depends on a clock."""
    model, data = write_demo(tmp_path_factory.mktemp("demo"))
    options = Options(budgets=("macs=0.5x",), data=str(data), min_keep=0.1)
    return set_up(model, options, "demo", Progress(quiet=True), "")


@pytest.fixture(scope="module")
def searcher(bench):
    limits = bench.limits(bench.run.budgets)
    return searcher_of(bench.run, bench.narrowing, bench.cost, bench.choices, bench.scorer, limits, bench.samples)


def _unwise(bench, searcher):
    """A network within the budget that has lost most of a few groups, and nothing elsewhere."""
    widths = dict(bench.narrowing.full)
    for choice in sorted(bench.choices, key=lambda choice: choice.widths[-1]):
        widths[choice.id] = choice.widths[0]
        if bench.cost(widths)["macs"] <= searcher.limits["macs"]:
            break
    return SearchResult(widths, bench.cost.measure(widths), ())


def _score(bench, widths):
    rescaler = Rescaler(bench.narrowing.coupling, bench.run.batches)
    model = refitted(bench.narrowing, bench.statistics, widths, bench.run.batches, rescaler)
    return bench.scorer.evaluator.score(model)


class Dear:
    """The same costs, but whatever is measured besides the winner turns out dearer by a factor."""

    def __init__(self, bench, winner, factor):
        self.bench, self.winner, self.factor = bench, dict(winner.widths), factor

    def __call__(self, widths):
        return self.bench.cost(widths)

    def measure(self, widths):
        factor = 1.0 if dict(widths) == self.winner else self.factor
        return {name: factor * value for name, value in self.bench.cost.measure(widths).items()}

    def arithmetic(self, widths):
        return self.bench.cost.arithmetic(widths)

    def at_length(self, widths, *, relative):
        return {}


def _settle(bench, searcher, result):
    found, met = settle(bench.at(bench.run), bench.statistics, searcher, result)
    assert met
    return found


def test_an_unwise_network_is_replaced_by_a_better_one_within_the_budget(bench, searcher):
    unwise = _unwise(bench, searcher)
    found = _settle(bench, searcher, unwise)
    assert found.widths != unwise.widths
    assert found.measured["macs"] <= searcher.limits["macs"]
    assert _score(bench, found.widths) > _score(bench, unwise.widths)
    assert dict(found.steps[-1].widths) == dict(found.widths)
    last = [step for step in found.steps if step.proposals][-1]  # what is left of the budget may be spent after it
    assert last.score == max(proposal["score"] for proposal in last.proposals)


def test_no_result_is_worse_than_what_a_width_multiplier_gives(bench, searcher):
    limits, journal = searcher.limits, ListJournal()
    scored = bench.scorer
    given = multiplier.search(bench.run.graph, bench.choices, bench.cost, scored, limits, rng=None, journal=journal)
    assert _uniform(searcher) == [given.widths]
    found = _settle(bench, searcher, _unwise(bench, searcher))
    assert _score(bench, found.widths) >= _score(bench, given.widths)


def test_the_best_network_stays(bench, searcher):
    best = replace(_settle(bench, searcher, _unwise(bench, searcher)), steps=())
    again = _settle(bench, searcher, best)
    assert _score(bench, again.widths) >= _score(bench, best.widths)
    if again.widths == best.widths:
        assert again.steps == ()


def test_what_is_over_the_budget_by_measurement_is_passed_over(bench, searcher):
    unwise = _unwise(bench, searcher)
    dear = replace(searcher, cost=Dear(bench, unwise, 3.0))
    found = _settle(bench, dear, unwise)
    assert dear.cost.measure(found.widths)["macs"] <= searcher.limits["macs"]


def test_what_is_over_the_budget_by_a_little_is_narrowed_and_judged_again(bench, searcher):
    """As estimated latencies do: the best network measures 3% above its estimate, and would be lost for that."""
    unwise = _unwise(bench, searcher)
    found = _settle(bench, replace(searcher, cost=Dear(bench, unwise, 1.03)), unwise)
    assert found.widths != unwise.widths
    assert 1.03 * bench.cost(found.widths)["macs"] <= searcher.limits["macs"]
    assert _score(bench, found.widths) > _score(bench, unwise.widths)
