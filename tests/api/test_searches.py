"""Every search through the main job, on the network and data that come with the package."""

import json

import onnx_netadapt as na
import pytest
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.passes.search import SEARCHES, chamnet

OPTIONS = {"finetune": "none", "min_keep": 0.25, "only": ("g1", "g3", "g5"), "published": True}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_meets_two_budgets_by_measurement_and_tells_its_frontier(little, name):
    found = na.adapt(little[0], ["macs=0.8x", "params=0.9x"], data=little[1], search=name, **OPTIONS)
    report = found.report
    assert report.met
    assert report.after.macs <= 0.8 * report.before.macs
    assert report.after.params <= 0.9 * report.before.params
    assert report.search["name"] == name
    assert report.search["frontier"]
    assert report.search["scored"] > 0


def test_a_metric_without_a_gradient_serves_the_search(little):
    found = na.adapt(little[0], "macs=0.8x", data=little[1], search="mcd", metric="top1", **OPTIONS)
    assert found.report.met
    assert found.report.search["metric"] == "top1"


def test_masked_scoring_finds_a_network_too(little):
    found = na.adapt(little[0], "macs=0.8x", data=little[1], search="mcd", scoring="masked", **OPTIONS)
    assert found.report.met
    assert found.report.search["scoring"] == "masked"


@pytest.mark.slow
def test_a_predictor_serves_the_next_budget(little, tmp_path, monkeypatch):
    monkeypatch.setattr(chamnet, "START", 16)
    path = tmp_path / "p.json"
    first = na.adapt(little[0], "macs=0.6x", data=little[1], search="chamnet", predictor=path, **OPTIONS)
    count = len(json.loads(path.read_text())["samples"])
    second = na.adapt(little[0], "macs=0.8x", data=little[1], search="chamnet", predictor=path, **OPTIONS)
    told = json.loads(path.read_text())
    assert first.report.met
    assert second.report.met
    assert count >= 16
    assert len(told["samples"]) <= count + 4 * 10
    assert told["schema_version"] == 1
    with pytest.raises(InputError, match="seed was 0 and is 1"):
        na.adapt(little[0], "macs=0.8x", data=little[1], search="chamnet", predictor=path, seed=1, **OPTIONS)


def test_options_that_do_not_fit_are_refused(little, tmp_path):
    with pytest.raises(InputError, match="use --search chamnet"):
        na.adapt(little[0], "0.8x", predictor=tmp_path / "p.json")
    with pytest.raises(InputError, match="--scoring sliced"):
        na.adapt(little[0], "0.8x", scoring="sliced")
