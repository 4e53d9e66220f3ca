"""Costs of networks by their widths."""

from types import SimpleNamespace

import numpy as np
from onnx_netadapt.costs import AT_ONCE
from onnx_netadapt.options import Options
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress


def test_costs_of_several_networks_at_once_are_those_of_each(little):
    model, data = little
    bench = set_up(model, Options(("macs=0.5x", "params=0.5x"), data=data), "demo", Progress(quiet=True), "")
    cost = bench.cost
    ms = lambda widths: sum(widths.values()) / 7  # noqa: E731
    cost.latency = SimpleNamespace(estimate=ms, estimates=lambda networks: np.array([ms(w) for w in networks]))
    cost.resources = ("macs", "latency", "params")
    rng = np.random.default_rng(0)
    networks = [{c.id: int(rng.choice(c.widths)) for c in bench.choices} for _ in range(AT_ONCE)]
    for some in (networks, networks[1:], []):
        assert cost.many(some) == [cost(widths) for widths in some]
    assert len({found["latency"] for found in cost.many(networks)}) > AT_ONCE // 2
