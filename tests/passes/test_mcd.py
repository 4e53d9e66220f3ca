"""Multi-layer coordinate descent against costs and scores whose best answer is known."""

from itertools import pairwise

import numpy as np
import pytest
from onnx_netadapt.passes.search import Choice, load_search
from onnx_netadapt.passes.search.common import ListJournal, over
from onnx_netadapt.passes.search.mcd import RANDOM

GROUPS = tuple(Choice(name, tuple(range(1, 14))) for name in "abcdefg")
FULL = {group.id: 13 for group in GROUPS}


class Chain:
    """Costs of a chain of layers: each is the product of its own width and its neighbour's; parameters add up."""

    def __call__(self, widths):
        values = [3, *(widths[group.id] for group in GROUPS)]
        return {
            "latency": float(sum(a * b for a, b in pairwise(values))),
            "params": float(sum(values)),
        }

    measure = __call__


class Pairs:
    """A score that rewards equal widths of two groups: single groups that move alone lose."""

    def __init__(self):
        self.calls = 0

    def __call__(self, widths):
        self.calls += 1
        values = np.array([widths[group.id] for group in GROUPS], dtype=float)
        return float(np.log(values).sum() - 4 * abs(np.log(widths["a"] / widths["b"])))


def run(name, budget, *, seed=0, score=None, **options):
    rng = np.random.default_rng(seed)
    judge = score or Pairs()
    return load_search(name)(None, GROUPS, Chain(), judge, budget, rng=rng, journal=ListJournal(), **options)


BUDGETS = [{"latency": 500.0}, {"latency": 300.0, "params": 60.0}]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_group_per_proposal_and_one_proposal_per_group_is_netadapt(budget, widen, seed):
    options = {"widen": widen, "iterations": 16}
    one = run("mcd", budget, seed=seed, layers=1, proposals=len(GROUPS), **options)
    assert one == run("netadapt", budget, **options)


@pytest.mark.parametrize("budget", BUDGETS)
def test_random_proposals_narrow_several_groups_and_meet_the_limits_of_the_whole_network(budget):
    cost, before, seen = Chain(), FULL, 0
    for step in run("mcd", budget, layers=3, widen=False).steps:
        for proposal in step.proposals:
            if proposal["group"] == RANDOM:
                widths = before | proposal["changes"]
                assert not over(cost(widths), {name: limit + 1e-9 for name, limit in step.limits.items()})
                assert 1 <= len(proposal["changes"]) <= 3
                # nothing that was changed may be given back
                for name, width in proposal["changes"].items():
                    assert width < before[name]
                seen += len(proposal["changes"]) > 1
        before = dict(step.widths)
    assert seen > 10


def test_what_is_saved_too_much_is_given_back():
    before = FULL
    step = run("mcd", {"latency": 500.0}, layers=3, widen=False).steps[0]
    for proposal in step.proposals:
        if proposal["group"] == RANDOM:
            for name, width in proposal["changes"].items():
                wider = before | proposal["changes"] | {name: width + 1}
                assert over(Chain()(wider), step.limits)


def test_groups_that_must_move_together_do_and_half_the_steps_are_enough():
    budget = {"latency": 400.0}
    single = run("netadapt", budget, widen=False)
    several = [run("mcd", budget, seed=seed, widen=False) for seed in range(3)]
    assert max(len(found.steps) for found in several) <= len(single.steps) / 2
    assert np.mean([found.steps[-1].score for found in several]) >= single.steps[-1].score


def test_the_seed_decides_and_nothing_else():
    assert run("mcd", {"latency": 500.0}, seed=3) == run("mcd", {"latency": 500.0}, seed=3)
    assert run("mcd", {"latency": 500.0}, seed=3) != run("mcd", {"latency": 500.0}, seed=4)


@pytest.mark.parametrize("name", ["mcd", "netadapt"])
def test_coarse_scores_thin_out_what_the_last_one_judges(name):
    coarse, fine = Pairs(), Pairs()
    found = run(name, {"latency": 500.0}, score=fine, coarse=(coarse,), widen=False)
    count = sum(len(step.proposals) for step in found.steps)
    assert coarse.calls == count
    assert fine.calls <= count / 2
    for step in found.steps:
        last = [p for p in step.proposals if "rung" not in p]
        dropped = [p for p in step.proposals if p.get("rung") == 0]
        assert len(last) == max(3, -(-len(step.proposals) // 3))
        assert min(p["score"] for p in last) >= max(p["score"] for p in dropped)
        assert step.score == max(p["score"] for p in last)


def test_curves_draw_what_saves_most_for_its_error():
    flat, steep = np.zeros(14), np.linspace(5.0, 0.0, 14)
    curves = {group.id: (flat if group.id in "de" else steep) for group in GROUPS}

    def share(**options):
        step = run("mcd", {"latency": 500.0}, layers=2, proposals=100, widen=False, **options).steps[0]
        drawn = [name for p in step.proposals if p["group"] == RANDOM for name in p["changes"]]
        return sum(name in "de" for name in drawn) / len(drawn)

    assert share(curves=curves) > 1.3 * share()
