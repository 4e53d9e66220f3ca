"""Budgets as users write them."""

import pytest
from onnx_netadapt.budgets import parse_budget, parse_budgets, show_amount
from onnx_netadapt.ir.errors import InputError


@pytest.mark.parametrize(
    ("text", "resource", "amount", "relative"),
    [
        ("40ms", "latency", 40.0, False),
        ("900us", "latency", 0.9, False),
        ("0.5x", "latency", 0.5, True),
        ("latency=2s", "latency", 2000.0, False),
        ("macs=150M", "macs", 150e6, False),
        ("params=2M", "params", 2e6, False),
        ("params=12345", "params", 12345.0, False),
        ("size=4MB", "size", 4e6, False),
        ("size=4MiB", "size", 4 * 2**20, False),
        ("memory=.3GB", "memory", 0.3e9, False),
        ("macs=0.7x", "macs", 0.7, True),
    ],
)
def test_amounts(text, resource, amount, relative):
    budget = parse_budget(text)
    assert (budget.resource, budget.relative) == (resource, relative)
    assert budget.amount == pytest.approx(amount)


def test_a_relative_budget_is_a_share_of_the_start():
    assert parse_budget("0.25x").limit(8.0) == 2.0
    assert parse_budget("3ms").limit(8.0) == 3.0


@pytest.mark.parametrize("text", ["5bananas", "", "ms", "-3ms", "0ms", "macs=4ms", "4", "1e400xx", "nan"])
def test_what_is_no_budget_is_refused_with_examples(text):
    with pytest.raises(InputError, match="write for example"):
        parse_budgets([text] if text else [])


def test_an_unknown_resource_is_refused():
    with pytest.raises(InputError, match="latency, macs"):
        parse_budget("speed=4")


def test_one_budget_for_each_resource():
    with pytest.raises(InputError, match="already"):
        parse_budgets(["40ms", "latency=30ms"])
    assert set(parse_budgets(["40ms", "size=3MB"])) == {"latency", "size"}


def test_energy_is_counted_in_millijoules():
    assert parse_budget("energy=15mJ").amount == parse_budget("energy=0.015J").amount == 15
    assert show_amount("energy", 15.26) == "15.3 mJ"


def test_amounts_are_shown_with_a_unit_that_suits():
    assert show_amount("latency", 0.18) == "0.18 ms"
    assert show_amount("size", 4.2e6) == "4.2 MB"
    assert show_amount("macs", 150e6) == "150 M"
