"""Energy as a budget, end to end, with a meter of the user's own, which does not depend on how busy the machine is."""

import numpy as np
import onnx_netadapt as na
import pytest
from onnx_netadapt import cli, energy
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.load import load
from onnx_netadapt.models.digits import digits_model
from onnx_netadapt.network import by_weight
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.profiler import Target
from onnx_netadapt.profiler import energy as profiled

drawn = [0.0]


def joules():
    """What a meter counts of the runs (`metered`)."""
    return drawn[0]


@pytest.fixture
def metered(monkeypatch):
    """Every run draws a microjoule for each weight of its model."""
    real = energy.runner

    def counted(model, target, feeds):
        run = real(model, target, feeds)
        cost = 1e-6 * sum(float(np.prod(tensor.dims)) for tensor in model.graph.initializer)

        def drawing():
            drawn[0] += cost
            return run()

        return drawing

    monkeypatch.setattr(energy, "runner", counted)


def broken():
    raise OSError("the cable is out")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(profiled, "LOOP_SECONDS", 0.02)
    monkeypatch.setattr(profiled, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(energy, "EXPLORED", 10)


@pytest.mark.usefixtures("short", "metered")
def test_an_energy_budget_is_met_by_measurement(little):
    options = {"finetune": "none", "min_keep": 0.25, "only": ("g1", "g3", "g5"), "meter": f"{__name__}:joules"}
    found = na.adapt(little[0], ["energy=0.8x", "macs=0.9x"], data=little[1], **options)
    budgets = {budget["resource"]: budget for budget in found.report.budgets}
    assert found.report.met
    assert 0 < budgets["energy"]["measured"] <= budgets["energy"]["limit"]
    assert budgets["macs"]["share"] <= 1


def test_the_predictor_learns_what_it_explores():
    """Ten networks of known energy, of which only twelve are measured: the rest are predicted."""

    narrowing = by_weight(couple(load(digits_model())))
    choices = narrowing.choices(None, 0.25)
    feeds = {}
    model = energy.EnergyModel(narrowing, Target(), feeds, None)

    def true(widths):
        macs = narrowing.sizes.macs(widths) / narrowing.sizes.macs(narrowing.full)
        return 5.0 * macs**0.8 * (1 + 0.3 * widths["g1"] / narrowing.full["g1"])

    known = []

    def measure(widths):
        known.append(widths)
        model._known[tuple(model._features(widths))] = true(widths)
        model._fitted = None

    rng = np.random.default_rng(0)
    for widths in energy._drawn(choices, rng)[:24]:
        measure(narrowing.full | widths)
    fresh = [narrowing.full | widths for widths in energy._drawn(choices, rng)[:40]]
    errors = [abs(model(widths) / true(widths) - 1) for widths in fresh]
    assert np.mean(errors) < 0.05


def test_without_a_meter_the_exit_code_is_4(little, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profiled, "POWERCAP", tmp_path)
    monkeypatch.setattr(profiled, "rapl", lambda: "RAPL: no counter")
    monkeypatch.setattr(profiled, "zeus", lambda: "zeus: not installed")
    assert cli._run(["adapt", little[0], "--budget", "energy=15mJ", "-o", str(tmp_path / "o.onnx"), "--quiet"]) == 4
    told = capsys.readouterr().err
    assert "no energy meter" in told
    assert "--meter package.module:function" in told
    assert not (tmp_path / "o.onnx").exists()


def test_a_meter_that_fails_says_so(little):
    with pytest.raises(InputError, match="the cable is out"):
        na.adapt(little[0], "energy=0.8x", data=little[1], meter=f"{__name__}:broken")
