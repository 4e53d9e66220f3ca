"""The last choice of widths: better networks of the same cost replace the search's winner, dearer ones never."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from onnx_netadapt import finalists
from onnx_netadapt.finalists import MOST, _distinct, _Judge, _judged_on, _rivals, _uniform, refitted, settle
from onnx_netadapt.ir.errors import BudgetError
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


def test_finalists_are_judged_on_more_examples_than_the_search_has_and_all_on_the_same(bench, searcher, monkeypatch):
    short = bench.scorer.evaluator
    few = replace(searcher, score=SimpleNamespace(evaluator=short.on(short.indices[:20])))
    assert list(_judged_on(few)) == list(bench.run.selection)
    one = bench.narrowing.sizes.macs(bench.narrowing.full)
    monkeypatch.setattr(finalists, "JUDGED_MACS", 50 * one)
    assert list(_judged_on(few)) == list(bench.run.selection[:50])
    monkeypatch.setattr(finalists, "JUDGED_MACS", 1.0)
    assert list(_judged_on(few)) == list(bench.run.selection[:20])
    judge = _Judge(bench.at(bench.run), bench.run.selection[:7])
    judge(bench.narrowing.full)
    ((_, _, evaluator),) = judge._made.values()
    assert list(evaluator.indices) == list(bench.run.selection[:7])
    judge.close()


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

    def at_length(self, widths, limits, *, relative):
        return {}


def _settle(bench, searcher, result):
    found, met = settle(bench.at(bench.run), searcher, result)
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


class DearAtLength(Dear):
    """Whatever is measured for longer turns out to be over the budget."""

    def at_length(self, widths, limits, *, relative):
        return {name: 1.5 * value for name, value in self.bench.cost.measure(self.bench.narrowing.full).items()}


def test_what_no_long_measurement_finds_within_the_budget_is_an_error(bench, searcher):
    unwise = _unwise(bench, searcher)
    dear = replace(searcher, cost=DearAtLength(bench, unwise, 1.0))
    with pytest.raises(BudgetError, match="stay above the budget"):
        _settle(bench, dear, unwise)


def test_with_the_best_effort_it_is_told_as_not_met(bench, searcher):
    unwise = _unwise(bench, searcher)
    run = replace(bench.run, options=replace(bench.run.options, best_effort=True))
    dear = replace(searcher, run=run, cost=DearAtLength(bench, unwise, 1.0))
    found, met = settle(bench.at(run), dear, unwise)
    assert not met
    assert bench.cost.measure(found.widths)["macs"] <= searcher.limits["macs"]


def test_a_network_from_elsewhere_is_trimmed_to_the_budget_or_given_up(bench, searcher):
    full = bench.narrowing.full
    fitted = searcher.fitted(dict(full))
    assert fitted is not None
    assert 0.9 * searcher.limits["macs"] < bench.cost(fitted)["macs"] <= searcher.limits["macs"]
    assert searcher.fitted(fitted) == fitted
    out_of_reach = replace(searcher, cost=Dear(bench, _unwise(bench, searcher), 100.0))
    assert out_of_reach.fitted(dict(full)) is None
    without_curves = replace(searcher, keywords={**searcher.keywords, "curves": None})
    assert without_curves.fitted(dict(full)) is None
    published = replace(searcher, run=replace(bench.run, options=replace(bench.run.options, published=True)))
    assert published.fitted(dict(full)) is None


def test_a_group_that_only_its_branch_can_leave_is_in_the_uniform_network_too(bench, searcher):
    """A choice between all and nothing is no choice without depth; whoever goes on from the network needs its width."""
    first = searcher.choices[0]
    choices = [replace(first, widths=(0, first.widths[-1])), *searcher.choices[1:]]
    (found,) = _uniform(replace(searcher, choices=choices))
    assert found.keys() == {choice.id for choice in choices}
    assert found[first.id] == first.widths[-1]


def test_networks_from_curves_are_as_many_as_told_and_no_two_alike(bench, searcher):
    unwise = _unwise(bench, searcher)
    known = _uniform(searcher)
    rivals = list(_rivals(bench.narrowing, searcher, unwise, known))
    assert len(rivals) == MOST - len(known)
    assert len(_distinct([*known, *rivals, unwise.widths])) == len(rivals) + len(known) + 1
    assert all(bench.cost(widths)["macs"] <= searcher.limits["macs"] for widths in rivals)
