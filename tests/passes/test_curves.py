"""Networks from error curves, where the best answer is known."""

import itertools

import numpy as np
from onnx_netadapt.passes.search.common import Choice, full_widths
from onnx_netadapt.passes.search.curves import pool_of, summed_error, summed_errors

GROUPS = (Choice("a", (1, 2, 3, 4)), Choice("b", (2, 4, 6)), Choice("c", (1, 5)))


class Separable:
    """Costs that add up: the greedy hull is then optimal at its own steps."""

    def __call__(self, widths):
        return {"latency": 3.0 * widths["a"] + 1.0 * widths["b"] + 2.0 * widths["c"]}


CURVES = {
    "a": np.array([1.0, 0.5, 0.2, 0.05, 0.0]),
    "b": np.array([1.0, 0.9, 0.6, 0.4, 0.1, 0.05, 0.0]),
    "c": np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.0]),
}


def error(widths):
    return sum(CURVES[name][width] for name, width in widths.items())


def test_every_proposal_is_within_the_limit_and_on_the_grid():
    propose = pool_of(GROUPS, CURVES, Separable())
    for limit in (9.0, 12.0, 17.0, 21.0):
        for widths in propose({"latency": limit}):
            assert Separable()(widths)["latency"] <= limit
            assert all(widths[group.id] in group.widths for group in GROUPS)


def test_on_the_hull_no_network_of_that_cost_has_less_error():
    propose = pool_of(GROUPS, CURVES, Separable())
    for limit in (14.0, 16.0, 19.0, 22.0):
        best = min(propose({"latency": limit}), key=error)
        cost = Separable()(best)["latency"]
        rivals = [
            dict(zip("abc", widths, strict=True)) for widths in itertools.product(*(group.widths for group in GROUPS))
        ]
        assert error(best) <= min(error(w) for w in rivals if Separable()(w)["latency"] <= cost) + 1e-9


def test_a_limit_that_is_met_already_changes_nothing():
    assert pool_of(GROUPS, CURVES, Separable())({"latency": 100.0}) == [full_widths(GROUPS)]


def test_a_limit_out_of_reach_gives_nothing():
    assert pool_of(GROUPS, CURVES, Separable())({"latency": 1.0}) == []


def test_savings_may_be_counted_in_what_is_not_limited():
    """By size `c` saves as much as `a` does; by latency it saves less."""
    by_size = pool_of(GROUPS, CURVES, Separable(), (1.0,), by=lambda widths: {"size": float(widths["c"])})
    (found,) = by_size({"latency": 22.0})
    assert found == {"a": 4, "b": 6, "c": 1}
    assert Separable()(found)["latency"] <= 22.0


def test_costs_are_asked_for_at_once_where_the_cost_can():
    class AtOnce(Separable):
        asked = ()

        def many(self, networks):
            self.asked = (*self.asked, len(networks))
            return [self(widths) for widths in networks]

    cost = AtOnce()
    found, wanted = pool_of(GROUPS, CURVES, cost), pool_of(GROUPS, CURVES, Separable())
    for limit in (14.0, 16.0, 22.0):
        assert found({"latency": limit}) == wanted({"latency": limit})
    assert cost.asked == (1 + sum(len(group.widths) for group in GROUPS),)  # and once for all limits and powers


def test_errors_of_many_networks_are_those_of_each():
    rng = np.random.default_rng(0)
    curves = {name: np.sort(rng.random(9))[::-1] for name in "abc"}
    widths = {name: rng.integers(0, 9, 20) for name in "abc"}
    each = [summed_error(curves, {name: int(own[n]) for name, own in widths.items()}) for n in range(20)]
    np.testing.assert_allclose(summed_errors(curves, widths), each, rtol=1e-12)
