"""Costs of networks by their widths."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from onnx_netadapt import costs, run
from onnx_netadapt.options import Options
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress


def _with_table(cost, ms, *, base_ms, start_ms):
    """Gives estimates of a table by a formula; the original takes `base_ms` in it, and `start_ms` in the run."""
    seen = []
    cost.latency = SimpleNamespace(
        estimate=ms,
        estimates=lambda networks: np.array([ms(w) for w in networks]),
        base_ms=base_ms,
        observe=lambda widths, measured: seen.append((widths, measured)),
    )
    cost._known[tuple(sorted(cost.narrowing.full.items()))] = {"latency": start_ms}
    return seen


def test_costs_of_several_networks_at_once_are_those_of_each(little):
    model, data = little
    bench = set_up(model, Options(("macs=0.5x", "params=0.5x"), data=data), "demo", Progress(quiet=True), "")
    cost = bench.cost
    _with_table(cost, lambda widths: sum(widths.values()) / 7, base_ms=3.0, start_ms=6.0)
    cost.resources = ("macs", "latency", "params")
    rng = np.random.default_rng(0)
    networks = [{c.id: int(rng.choice(c.widths)) for c in bench.choices} for _ in range(16)]
    assert cost.many(networks) == [cost(widths) for widths in networks]
    assert len({found["latency"] for found in cost.many(networks)}) > 8
    cost.latency = None  # as of the stage of a model as it is, where a smaller one of its input is searched
    assert cost.many([]) == []


def test_a_table_that_was_filled_at_another_speed_is_told_at_the_run_s(little, monkeypatch):
    model, data = little
    bench = set_up(model, Options(("macs=0.5x",), data=data), "demo", Progress(quiet=True), "")
    cost, full = bench.cost, bench.narrowing.full
    units = sum(full.values())
    seen = _with_table(
        cost, lambda widths: 3.0 * sum((full | dict(widths)).values()) / units, base_ms=3.0, start_ms=4.5
    )
    cost.resources = ("latency",)
    half = {name: width // 2 for name, width in full.items()}
    assert cost(full)["latency"] == 4.5
    assert np.isclose(cost(half)["latency"], 4.5 * sum(half.values()) / units)
    told = SimpleNamespace(ratio=0.6, disturbed=False)
    monkeypatch.setattr(costs, "measure_against", lambda *_, **__: told)
    assert cost.measure(half)["latency"] == 0.6 * cost.start.median_ms
    assert seen == [(half, 0.6 * cost.start.median_ms / 1.5)]  # what the table takes over is at its own speed
    told.disturbed = True
    cost.measure({name: width // 3 for name, width in full.items()})
    assert len(seen) == 1


@pytest.mark.parametrize(("own_size", "ratio"), [(True, 1.0), (False, 0.4)])
def test_the_full_width_is_the_start_or_measured_at_another_size(little, monkeypatch, own_size, ratio):
    model, data = little
    bench = set_up(model, Options(("macs=0.5x",), data=data), "demo", Progress(quiet=True), "")
    cost, asked = bench.cost, []
    seen = _with_table(cost, lambda _: 3.0, base_ms=3.0, start_ms=4.5)
    cost.resources, cost.own_size = ("latency",), own_size
    cost._known.clear()
    told = SimpleNamespace(ratio=0.4, disturbed=False)
    monkeypatch.setattr(costs, "measure_against", lambda *_, **given: asked.append(given["sure"]) or told)
    assert cost.measure(bench.narrowing.full)["latency"] == ratio * cost.start.median_ms
    assert asked == ([] if own_size else [costs.LONG.sure])
    assert seen == []  # it corrects no estimate: all of them are told by it
    assert np.isclose(cost.speed, ratio * cost.start.median_ms / 3.0)


def test_a_start_that_was_disturbed_is_measured_again(little, monkeypatch):
    model, data = little
    bench = set_up(model, Options(("macs=0.5x",), data=data), "demo", Progress(quiet=True), "")
    own = bench.run
    told = iter([replace(own.start, median_ms=5.0), replace(own.start, median_ms=12.0)])
    monkeypatch.setattr(run, "measure_reference", lambda *_, **__: next(told))
    own.start = replace(own.start, median_ms=10.0)
    own.reference.pace.slow_down(9.5e6)
    own.look_at_start_again(table_ms=9.5)  # no faster than it was
    assert own.start.median_ms == 10.0
    own.reference.pace.slow_down(5e6)
    own.look_at_start_again()
    assert own.start.median_ms == 5.0
    own.look_at_start_again(table_ms=2.0)  # the machine is slower than it was for the table: the start stays
    assert own.start.median_ms == 5.0
    assert next(told, None) is None
