"""Networks over their budget made narrower: within it, where least is lost, and nowhere else."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_netadapt.passes.search.common import Choice
from onnx_netadapt.passes.search.trim import trim

GROUPS = (Choice("a", (1, 2, 3, 4)), Choice("b", (2, 4, 6)), Choice("c", (1, 5)))
FULL = {"a": 4, "b": 6, "c": 5}
CURVES = {
    "a": np.array([1.0, 0.5, 0.2, 0.05, 0.0]),
    "b": np.array([1.0, 0.9, 0.6, 0.4, 0.1, 0.05, 0.0]),
    "c": np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.0]),
}


def cost(widths):
    return {"latency": 3.0 * widths["a"] + widths["b"] + 2.0 * widths["c"], "size": float(sum(widths.values()))}


def error(widths):
    return sum(CURVES[name][width] for name, width in widths.items())


def test_a_network_within_its_limits_stays_as_it_is():
    assert trim(GROUPS, CURVES, cost, FULL, {"latency": 28.0}) == FULL


def test_what_lacks_little_is_taken_where_it_costs_least():
    assert trim(GROUPS, CURVES, cost, FULL, {"latency": 26.0}) == FULL | {"a": 3}
    assert trim(GROUPS, CURVES, cost, FULL, {"latency": 23.0}) == FULL | {"a": 3, "b": 4}


def test_savings_beyond_what_is_missing_do_not_count():
    """`c` saves most for its error, but 8 ms where 1 is asked for."""
    curves = CURVES | {"a": np.array([1.0, 0.7, 0.6, 0.2, 0.0]), "c": np.array([1.0, 0.3, 0.3, 0.3, 0.3, 0.0])}
    assert trim(GROUPS, curves, cost, FULL, {"latency": 27.0}) == FULL | {"b": 4}


def test_every_resource_is_brought_to_its_limit():
    found = trim(GROUPS, CURVES, cost, FULL, {"latency": 25.0, "size": 11.0})
    assert cost(found)["latency"] <= 25.0
    assert cost(found)["size"] <= 11.0


def test_what_no_widths_reach_is_not_promised():
    assert trim(GROUPS, CURVES, cost, FULL, {"latency": 6.9}) is None
    assert trim(GROUPS, CURVES, cost, FULL, {"latency": 7.0}) == {"a": 1, "b": 2, "c": 1}


def test_the_size_of_the_input_stays():
    groups, curves = (*GROUPS, Choice("size", (2, 3), apart=True)), CURVES | {"size": np.zeros(4)}
    sized = lambda widths: {"latency": widths["size"] * cost(widths)["latency"]}  # noqa: E731
    found = trim(groups, curves, sized, FULL | {"size": 3}, {"latency": 60.0})
    assert found["size"] == 3
    assert sized(found)["latency"] <= 60.0


@given(st.floats(7.0, 30.0), st.sampled_from(list(itertools.product(*(group.widths for group in GROUPS)))))
def test_no_group_is_widened_and_the_limit_is_kept(limit, widths):
    start = dict(zip(FULL, widths, strict=True))
    found = trim(GROUPS, CURVES, cost, start, {"latency": limit})
    assert cost(found)["latency"] <= max(limit, 7.0)
    assert all(found[name] <= width for name, width in start.items())
    if cost(start)["latency"] > limit:
        reached = [w for w in _below(start) if cost(w)["latency"] <= limit]
        assert error(found) <= 2 * min(error(w) for w in reached) + 1e-9  # greedy, and near the best


def _below(start):
    """Every network no wider than `start`."""
    allowed = ([w for w in group.widths if w <= start[group.id]] for group in GROUPS)
    return [dict(zip(FULL, widths, strict=True)) for widths in itertools.product(*allowed)]


def test_errors_that_fall_with_the_width_are_no_reward():
    """Measured curves are not always monotone; a negative slope must not drown all others."""
    curves = CURVES | {"c": np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.5])}
    found = trim(GROUPS, curves, cost, FULL, {"latency": 26.0})
    assert found == pytest.approx(FULL | {"c": 1})


def test_where_nothing_is_lost_no_more_is_taken_than_is_asked_for():
    flat = {name: np.zeros(len(curve)) for name, curve in CURVES.items()}
    assert trim(GROUPS, flat, cost, FULL, {"latency": 26.0}) == FULL | {"a": 3}


def test_a_branch_goes_whole_where_its_width_0_is_what_is_left():
    groups = (Choice("a", (0, 4)), Choice("b", (2, 4, 6)))
    curves = {"a": np.array([0.1, 0.0, 0.0, 0.0, 0.0]), "b": CURVES["b"]}
    assert trim(groups, curves, cost, FULL, {"latency": 20.0}) == FULL | {"a": 0}


def test_a_resource_that_falls_while_another_rises_is_not_enough():
    """Narrowing `a` saves latency and costs size; what is within its limit already must end within it."""
    odd = lambda widths: {"latency": float(sum(widths.values())), "size": 12.0 - widths["a"]}  # noqa: E731
    found = trim(GROUPS, CURVES, odd, FULL, {"latency": 13.0, "size": 8.0})
    assert found is None or (odd(found)["latency"] <= 13.0 and odd(found)["size"] <= 8.0)
