"""The score predictor, the genetic algorithm and the search that they make, against answers that are known."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.passes.search import Choice, chamnet, load_search, surrogate
from onnx_netadapt.passes.search.chamnet import Samples
from onnx_netadapt.passes.search.common import ListJournal, over
from onnx_netadapt.passes.search.genes import MOST_GENES, Genes, tied
from onnx_netadapt.passes.search.genetic import evolve
from onnx_netadapt.passes.search.surrogate import by_loss, fit, refit
from onnx_netadapt.predictor import PredictorFile

GROUPS = tuple(Choice(name, tuple(range(2, 21, 2))) for name in "abcde")
WORTH = {"a": 3.0, "b": 1.0, "c": 0.3, "d": 2.0, "e": 0.1}


class Chain:
    def __call__(self, widths):
        values = [5, *(widths[group.id] for group in GROUPS)]
        return {"latency": float(sum(a * b for a, b in pairwise(values)))}

    measure = __call__


class Known:
    """Smooth, with a cliff towards small widths; counts what was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, widths):
        self.calls += 1
        return -sum(worth * (20 / widths[name] - 1) for name, worth in WORTH.items())


def run(budget, score=None, journal=None, seed=0, **options):
    rng = np.random.default_rng(seed)
    kept = journal or ListJournal()
    options = {"samples": 70, "widen": False, **options}
    return load_search("chamnet")(None, GROUPS, Chain(), score or Known(), budget, rng=rng, journal=kept, **options)


def test_the_best_of_the_predictor_is_near_the_best_there_is():
    found = run({"latency": 500.0})
    assert found.measured["latency"] <= 500.0
    assert found.facts["predictor"]["kendall"] > 0.7
    assert "fell_back" not in found.facts["predictor"]
    rng, best = np.random.default_rng(1), -np.inf
    for _ in range(20_000):
        widths = {group.id: int(rng.choice(group.widths)) for group in GROUPS}
        if Chain()(widths)["latency"] <= 500.0:
            best = max(best, Known()(widths))
    assert Known()(found.widths) >= best - 0.5


def test_costs_of_many_networks_at_once_change_nothing(monkeypatch):
    wanted = run({"latency": 500.0})
    asked = []

    def many(self, networks):
        asked.append(len(networks))
        return [self(widths) for widths in networks]

    monkeypatch.setattr(Chain, "many", many, raising=False)
    assert run({"latency": 500.0}) == wanted
    assert max(asked) > 1000  # the pool of points


@pytest.mark.slow
def test_a_second_budget_costs_a_few_rounds_of_ten_and_no_sampling(monkeypatch):
    kept, score = Samples(), Known()
    run({"latency": 500.0}, score, samples_kept=kept, goal={"latency": 300.0})
    first = score.calls
    monkeypatch.setattr(chamnet, "ROUNDS", 2)
    found = run({"latency": 300.0}, score, samples_kept=kept, samples=len(kept.scores))
    assert found.measured["latency"] <= 300.0
    assert score.calls - first <= 20 < first


def test_the_next_budget_takes_the_predictor_s_constants_from_the_one_before(monkeypatch):
    kept = Samples()
    run({"latency": 900.0}, samples_kept=kept)
    constants, before = kept.surrogate.process.kernel_, len(kept.scores)
    monkeypatch.setattr(chamnet, "fit", "no constants are looked for")
    assert not over(run({"latency": 500.0}, samples_kept=kept).measured, {"latency": 500.0})
    assert kept.surrogate.process.kernel_ == constants
    assert len(kept.surrogate.known) == len(kept.scores) > before  # and all samples count
    with pytest.raises(TypeError):  # negative control
        run({"latency": 500.0}, samples_kept=Samples(kept.widths, kept.scores))


def test_constants_that_no_longer_order_the_samples_are_looked_for_anew():
    kept = Samples()
    run({"latency": 900.0}, samples_kept=kept)
    process = kept.surrogate.process
    far = process.kernel_.clone_with_theta(np.full_like(process.kernel_.theta, -9.0))  # no sample tells of another one
    kept.surrogate = replace(
        kept.surrogate, process=type(process)(far, optimizer=None).fit(process.X_train_, process.y_train_)
    )
    assert refit(kept.surrogate, process.X_train_, np.array(kept.scores)).kendall < 0.7
    found = run({"latency": 500.0}, samples_kept=kept)
    assert found.facts["predictor"]["kendall"] > 0.7
    assert "fell_back" not in found.facts["predictor"]


def test_samples_that_are_there_need_no_pool(monkeypatch):
    kept = Samples()
    run({"latency": 900.0}, samples_kept=kept)
    monkeypatch.setattr(chamnet, "POOL", "no pool is drawn")
    assert not over(run({"latency": 500.0}, samples_kept=kept).measured, {"latency": 500.0})
    with pytest.raises(TypeError):  # negative control
        run({"latency": 500.0})


@pytest.mark.slow
def test_unused_budget_is_given_back():
    tight, wide = run({"latency": 530.0}), run({"latency": 530.0}, widen=True)
    assert tight.steps[0] == wide.steps[0]
    assert wide.measured["latency"] <= 530.0
    assert Known()(wide.widths) >= Known()(tight.widths)


def test_scores_without_any_order_make_it_fall_back_and_say_so():
    class Noise:
        def __call__(self, widths):
            return float(np.random.default_rng(sorted(widths.values())).random())

    found = run({"latency": 500.0}, Noise())
    assert not over(found.measured, {"latency": 500.0})
    assert "mcd went on" in found.facts["predictor"]["fell_back"]
    assert found.facts["predictor"]["kendall"] < 0.7


@pytest.mark.slow
def test_measurements_above_the_estimates_are_allowed_for():
    class Slower(Chain):
        def measure(self, widths):
            return {"latency": 1.2 * self(widths)["latency"]}

    rng = np.random.default_rng(0)
    found = load_search("chamnet")(
        None, GROUPS, Slower(), Known(), {"latency": 500.0}, rng=rng, journal=ListJournal(), samples=60
    )
    assert found.measured["latency"] <= 500.0
    assert "fell_back" not in found.facts["predictor"]


def test_a_run_that_goes_on_takes_what_is_there():
    whole = run({"latency": 500.0})
    score = Known()
    again = run({"latency": 500.0}, score, ListJournal(list(whole.steps)))
    assert again.widths == whole.widths
    assert score.calls == 0


def test_left_out_predictions_are_those_of_a_process_without_the_sample():
    rng = np.random.default_rng(0)
    x = rng.random((25, 3))
    y = np.sin(3 * x[:, 0]) + x[:, 1] ** 2
    found = fit(x, y)
    from sklearn.gaussian_process import GaussianProcessRegressor

    for place in (0, 7, 24):
        rest = np.arange(25) != place
        process = GaussianProcessRegressor(found.process.kernel_, optimizer=None).fit(x[rest], found.known[rest])
        assert process.predict(x[[place]])[0] == pytest.approx(found.loo[place], abs=1e-6)
    assert found.kendall > 0.75


def test_constants_found_before_serve_other_samples():
    rng = np.random.default_rng(0)
    x = rng.random((200, 3))
    scores = np.sin(3 * x[:, 0]) + x[:, 1] ** 2
    found = fit(x[:40], scores[:40])
    more = refit(found, x, scores)
    assert more.process.kernel_ == found.process.kernel_
    assert len(more.loo) == 200
    assert more.kendall > found.kendall
    same = refit(found, x[:40], scores[:40])
    assert np.allclose(same(x)[0], found(x)[0])
    assert np.allclose(same.loo, found.loo)


def test_a_part_of_many_samples_gives_the_constants_and_all_of_them_the_predictions(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.random((100, 2))
    scores = np.sin(3 * x[:, 0]) + x[:, 1] ** 2
    whole = fit(x, scores)
    monkeypatch.setattr(surrogate, "MOST_FITTED", 40)
    found = fit(x, scores)
    assert found.process.kernel_ != whole.process.kernel_
    assert len(found.loo) == 100
    assert found.kendall > 0.95 * whole.kendall


def test_genes_that_change_nothing_get_a_length_scale_of_their_own():
    rng = np.random.default_rng(0)
    x = rng.random((60, 6))
    found = fit(x, np.sin(6 * x[:, 2]))
    assert found.many_scales
    assert np.argmin(found.process.kernel_.k1.k2.length_scale) == 2


def test_the_scale_keeps_the_order_and_takes_what_is_not_finite():
    scores = np.array([-1.0, -0.5, -np.inf, -3000.0, -0.4])
    assert list(np.argsort(by_loss(scores)[[0, 1, 3, 4]])) == [2, 0, 1, 3]
    assert by_loss(scores)[2] == by_loss(scores)[3]


def test_the_genetic_algorithm_finds_the_top_of_a_hill_with_a_wall():
    top = np.array([0.3, 0.8, 0.5, 0.1])

    def fitness(points):
        wall = np.maximum(0, points.sum(axis=1) - 1.5)  # the top lies at 1.7
        return -((points - top) ** 2).sum(axis=1) - (100 * wall) ** 2

    rng = np.random.default_rng(0)
    best, value = evolve(fitness, rng.random((96, 4)), rng)
    assert value > -0.012  # 0.2^2 / 4 = 0.01 is the best there is
    assert best.sum() <= 1.51


def test_many_groups_share_genes_by_stage():
    few = [Choice(f"g{i}", (1, 16)) for i in range(MOST_GENES)]
    assert [len(members) for members in tied(few)] == [1] * MOST_GENES
    many = [Choice(f"g{i}", (1, 16 if i < 20 else 32)) for i in range(30)]
    assert [len(members) for members in tied(many)] == [20, 10]


STAGES = tuple(Choice(f"g{i}", (*((0,) if i % 2 else ()), 4, 8, 12, 16)) for i in range(MOST_GENES + 6))
"""One stage whose groups share a width gene; every other one lies in a branch of its own."""

SIZE = Choice("size", (8, 12, 16), apart=True)


def test_a_branch_bit_is_a_gene_of_its_own_beside_a_shared_width():
    genes = Genes(STAGES)
    assert (len(genes.shared), len(genes.branches), len(genes)) == (1, 15, 16)
    point = np.full(len(genes), 0.75)
    point[0] = 0.0  # the least width is a width, not a branch that is gone
    assert set(genes.decode(point).values()) == {4}
    point[3] = 0.25
    found = genes.decode(point)
    assert [name for name, width in found.items() if width == 0] == ["g5"]
    assert genes.decode(np.array(genes.point(found))) == found
    assert list(found) == [choice.id for choice in STAGES]


def test_a_branch_without_widths_between_has_its_bit_alone():
    genes = Genes([Choice("a", (0, 1)), Choice("b", (0, 4, 8))])
    assert (len(genes.shared), len(genes.branches)) == (1, 2)
    assert genes.decode(np.array([1.0, 0.75, 0.25])) == {"a": 1, "b": 0}


def test_drawn_networks_lose_every_number_of_branches_about_as_often():
    from scipy.stats import qmc

    genes = Genes(STAGES)
    points = genes.spread(qmc.Sobol(genes.draws, rng=np.random.default_rng(0)).random(2048))
    networks = [genes.decode(point) for point in points]
    gone = np.array([[widths[group.id] == 0 for group in genes.branches] for widths in networks])
    assert np.abs(gone.mean(axis=0) - 0.5).max() < 0.05
    counts = np.bincount(gone.sum(axis=1), minlength=len(genes.branches) + 1)
    assert counts.min() > 0.6 * 2048 / len(counts)
    kept = np.array([widths["g0"] for widths in networks])
    assert abs(np.corrcoef(kept, gone.sum(axis=1))[0, 1]) < 0.1  # depth is drawn apart from width


def test_the_search_takes_a_branch_out_that_is_worth_nothing():
    groups = [Choice("a", (4, 8, 12, 16, 20)), *(Choice(name, (0, 12, 16, 20)) for name in "bcd")]

    class Sum:
        def __call__(self, widths):
            return {"macs": float(sum(widths.values()))}

        measure = __call__

    def score(widths):
        return -sum(
            worth * (1 - widths[name] / 20) for name, worth in {"a": 4.0, "b": 1.0, "c": 0.01, "d": 2.0}.items()
        )

    rng = np.random.default_rng(0)
    found = load_search("chamnet")(
        None, groups, Sum(), score, {"macs": 60.0}, rng=rng, journal=ListJournal(), samples=60
    )
    assert found.widths == {"a": 20, "b": 20, "c": 0, "d": 20}


def test_a_gene_apart_is_shared_with_none_and_drawn_evenly():
    genes = Genes([*(Choice(f"g{i}", (4, 8, 16)) for i in range(MOST_GENES + 1)), SIZE])
    assert (len(genes.shared), len(genes)) == (1, 2)
    points = genes.spread(np.random.default_rng(0).random((3000, genes.draws)))
    networks = [genes.decode(point) for point in points]
    sizes, counts = np.unique([widths["size"] for widths in networks], return_counts=True)
    assert sizes.tolist() == [8, 12, 16]
    assert counts.min() > 900
    assert abs(np.corrcoef([widths["size"] for widths in networks], [w["g0"] for w in networks])[0, 1]) < 0.1
    assert all(genes.decode(np.array(genes.point(widths))) == widths for widths in networks[:50])


def test_the_predictor_file_keeps_samples_and_refuses_another_model(tmp_path):
    path, header = tmp_path / "p.json", {"model_sha256": "1", "metric": "kl"}
    kept = PredictorFile(path, header, {"a": 20})
    kept.add([{"a": 3}, {"a": 5}], [-0.25, -1.5])
    again = PredictorFile(path, header, {"a": 20})
    assert again.widths == [{"a": 3}, {"a": 5}]
    assert again.scores == [-0.25, -1.5]
    with pytest.raises(InputError, match="model_sha256 was '1' and is '2'"):
        PredictorFile(path, header | {"model_sha256": "2"}, {"a": 20})
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema_version"):
        PredictorFile(path, header, {"a": 20})
    path.write_text("[]")
    with pytest.raises(InputError, match="cannot be read"):
        PredictorFile(path, header, {"a": 20})


def test_a_predictor_sees_of_many_networks_what_it_sees_of_each():
    depth = [Choice("a", (0, 4, 8)), Choice("b", (4, 8)), *(Choice(f"c{n}", (4, 16)) for n in range(MOST_GENES))]
    genes = Genes([*depth, Choice("size", (96, 128), apart=True)])
    rng = np.random.default_rng(0)
    networks = [{choice.id: int(rng.choice(choice.widths)) for choice in genes.choices} for _ in range(30)]
    networks += [{name: 0 if name == "a" else width for name, width in own.items()} for own in networks[:2]]

    def features(own):
        full = {choice.id: choice.widths[-1] for choice in genes.choices}
        share = {name: own[name] / full[name] for name in own}
        there = [[share[group.id] for group in members if own[group.id]] for members in genes.shared]
        bits = [float(own[group.id] > 0) for group in genes.branches]
        return [*(sum(some) / len(some) if some else 0.0 for some in there), *bits, share["size"]]

    assert len(genes.shared) < len(depth)
    assert len(genes.branches) == 1
    widths = {choice.id: np.array([own[choice.id] for own in networks]) for choice in genes.choices}
    found = genes.features(widths)
    assert found.shape == (len(networks), len(genes))
    np.testing.assert_allclose(found, [features(own) for own in networks], rtol=1e-12)
