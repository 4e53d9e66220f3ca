"""The cost model against a made-up machine whose law is known: nothing here depends on how fast this machine is."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from mobile_net import MobileNet
from onnx_netadapt.ir.errors import ProfileError
from onnx_netadapt.profiler import (
    Entry,
    Granularity,
    Latency,
    LatencyModel,
    Lut,
    Network,
    Target,
    accuracy,
    appraise,
    extend,
    fill,
    measure,
)
from onnx_netadapt.profiler import accuracy as accuracy_function
from onnx_netadapt.profiler import cost as cost_module
from onnx_netadapt.profiler import fill as fill_function
from onnx_netadapt.profiler.capability import Capability, Survey
from onnx_netadapt.profiler.plan import Plan
from onnx_netadapt.profiler.structure import Ran, Shapes, Structure, Unit, Widths
from onnx_netadapt.profiler.timing import Comparison

STAIR = Granularity(16, 4, True, 1.4)
NET = MobileNet(stages=((1, 32, 1, 1), (3, 48, 3, 2), (3, 64, 2, 2)), side=32, stem=64, head=128)
fill_module = __import__(fill_function.__module__, fromlist=["fill"])
accuracy_module = __import__(accuracy_function.__module__, fromlist=["accuracy"])


class Machine:
    """Blocks of 16 channels; a unit with an unaligned channel count takes a kernel three times as slow, unpadded."""

    def __init__(self) -> None:
        self.profiled: list[dict[str, int]] = []
        self.speed = 1.0
        self.error = 0.0

    def unit_us(self, unit: Unit, shapes: Shapes) -> tuple[str, float]:
        ins, constants, outs = unit.dims(shapes)
        aligned = all(shape[1] % 4 == 0 or shape[1] == 3 for shape in (*ins, *outs))
        pad = (lambda d: -(-d // 16) * 16 if d > 3 else d) if aligned else (lambda d: d)
        amounts = [
            sum(math.prod((pad(d) if i < 2 else d) for i, d in enumerate(shape)) for shape in part)
            for part in (ins, constants, outs)
        ]
        positions = math.prod(outs[0][2:])
        us = 2.0 + 2e-4 * amounts[0] + 1e-5 * amounts[1] * positions + 3e-4 * amounts[2]
        return ("nchwc.Conv(b)<float>", us) if aligned else ("FusedConv(p)<float>", 3 * us)

    def run_variant(
        self, _: Target, network: Network, plan: Plan, widths: Widths, known: object, reference: object = None
    ) -> Ran:
        self.profiled.append(dict(widths))
        structure, shapes = plan.structure, NET.shapes(widths)
        units = tuple((k, us * self.speed) for k, us in (self.unit_us(unit, shapes) for unit in structure.units))
        reference_us = 1e3 * self.speed * self.whole_ms(structure, network.base)
        return Ran(units, tuple(("", 0.0) for _ in structure.boundaries), 0.0, reference_us)

    def whole_ms(self, structure: Structure, widths: Widths) -> float:
        shapes = NET.shapes(widths)
        return 0.8e-3 * sum(self.unit_us(unit, shapes)[1] for unit in structure.units) + 0.05


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    structure: list[Structure] = []
    keep = fill_module.survey

    def survey(*arguments: object) -> Survey:
        found = keep(*arguments)
        structure.append(found.structure)
        return Survey(Capability.PER_NODE, found.structure)

    monkeypatch.setattr(fill_module, "survey", survey)

    def run_whole(_: Target, network: Network, widths: Widths, *_beside: object) -> Comparison:
        base, here = made.whole_ms(structure[-1], network.base), made.whole_ms(structure[-1], widths)
        told = [Latency(ms, ms, ms, 9, "cpu", ms) for ms in (here, base)]
        return Comparison(told[0], here / base, made.error, told[1])

    for module in (fill_module, accuracy_module):
        monkeypatch.setattr(module, "run_whole", run_whole)
    monkeypatch.setattr(fill_module, "whole_runner", lambda *_: None)
    monkeypatch.setattr(fill_module, "run_variant", made.run_variant)
    return made


@pytest.fixture
def lut() -> Lut:
    table = Lut.open(":memory:", {"made up": True})
    told = {"step": 16, "align": 4, "blocked": True, "cliff": 1.4}
    table.add([Entry("granularity", {"type": "granularity", "granularity": told}, (1.4,))])
    yield table
    table.close()


def filled(lut: Lut, seed: int = 0, **options: int) -> LatencyModel:
    return fill(lut, Target(), NET.network(STAIR), np.random.default_rng(seed), **options)


def truth(machine: Machine, model: LatencyModel, widths: Widths) -> float:
    return machine.whole_ms(model.plan.structure, {**NET.base(), **widths})


def random_widths(seed: int, choose: Callable[[np.random.Generator, str, int], int]) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return {g: choose(rng, g, w) for g, w in NET.base().items()}


def on_edges(seed: int) -> dict[str, int]:
    edges = NET.network(STAIR).edges
    return random_widths(seed, lambda rng, g, _: int(rng.choice(edges[g])))


def test_unseen_networks_on_edges_are_estimated_closely(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    errors = [model.estimate(w) / truth(machine, model, w) - 1 for w in map(on_edges, range(100, 150))]
    assert np.abs(errors).max() < 0.02
    spread = [truth(machine, model, on_edges(seed)) for seed in range(100, 150)]
    assert max(spread) > 1.25 * min(spread)  # negative control: the networks do differ


def test_the_base_is_told_as_it_was_measured_for_the_table(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    assert model.base_ms == pytest.approx(truth(machine, model, {}))
    model.observe(NET.base(), 2 * model.base_ms)  # what a run measures at another speed
    assert model.base_ms == pytest.approx(truth(machine, model, {}))


def test_a_base_that_the_table_does_not_hold_is_estimated(machine: Machine, lut: Lut) -> None:
    filled(lut)
    small = {group: (width + 1) // 2 for group, width in NET.base().items()}
    model = appraise(lut, Target(), replace(NET.network(STAIR), base=small))
    assert not model.lut.networks(model.plan.digest)
    assert model.base_ms == model.estimate(small) > 0


def test_unaligned_networks_are_seen_as_slow(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    for seed in range(200, 220):
        widths = random_widths(seed, lambda rng, _, w: int(rng.integers(max(20, w // 3), w + 1)))
        assert model.estimate(widths) == pytest.approx(truth(machine, model, widths), rel=0.1)
    narrow = {g: w - 1 for g, w in NET.base().items()}
    assert model.estimate(narrow) > 1.8 * model.estimate(NET.base())


def test_a_second_run_measures_nothing_and_says_the_same(machine: Machine, lut: Lut) -> None:
    first = filled(lut)
    count, size = len(machine.profiled), len(lut)
    assert count > 10
    again = filled(lut)
    other_seed = filled(lut, seed=9)
    assert (len(machine.profiled), len(lut)) == (count, size)
    for seed in range(5):
        assert first.estimate(on_edges(seed)) == again.estimate(on_edges(seed)) == other_seed.estimate(on_edges(seed))


def test_equal_units_share_an_entry(machine: Machine, lut: Lut) -> None:
    model = filled(lut, variants=2, off_edges=0)
    entries = lut.entries("unit")
    assert len(entries) < 2 * len(model.plan.structure.units)
    assert max(len(e.samples_us) for e in entries) > 1


def test_a_machine_that_slows_down_while_profiling_does_not_spoil_the_table(machine: Machine, lut: Lut) -> None:
    keep = machine.run_variant

    def drifting(*args: object) -> Ran:
        machine.speed = 1.3 if len(machine.profiled) % 3 == 1 else 1.0
        return keep(*args)

    fill_module.run_variant = drifting
    model = filled(lut)
    errors = [model.estimate(w) / truth(machine, model, w) - 1 for w in map(on_edges, range(100, 130))]
    assert np.abs(errors).max() < 0.06


def test_parts_say_where_they_come_from(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    base = model.explain(NET.base())
    assert {p.source for p in base.parts} == {"measured"}
    assert base.doubtful_share == 0.0
    assert base.ms == model.estimate({})
    assert {p.source for p in model.explain(on_edges(3)).parts} <= {"measured", "fitted"}
    far = model.explain({g: 4 for g in NET.base()})
    assert far.doubtful_share > 0.3


def test_extending_measures_what_was_doubtful(machine: Machine, lut: Lut) -> None:
    model, network = filled(lut, off_edges=0), NET.network(STAIR)
    odd = {g: 5 for g in NET.base()}
    before = len(machine.profiled)
    assert model.explain(odd).doubtful_share > 0
    extend(model, Target(), network, [odd, odd, NET.base()])
    assert machine.profiled[before:] == [odd]
    assert model.explain(odd).doubtful_share == 0
    assert model.estimate(odd) == pytest.approx(truth(machine, model, odd), rel=0.02)


def test_an_observed_network_corrects_estimates_near_it(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    here, near, far = on_edges(7), {**on_edges(7), "head": 64}, {g: 16 for g in NET.base()}
    before = [model.estimate(w) for w in (here, near, far)]
    model.observe(here, before[0] * 1.06)
    after = [model.estimate(w) for w in (here, near, far)]
    assert after[0] / before[0] == pytest.approx(1.06, abs=0.02)
    assert after[1] / before[1] > 1.03
    assert after[2] / before[2] == pytest.approx(1.0, abs=0.02)


def test_accuracy_tells_a_good_table_from_a_bad_one(machine: Machine, lut: Lut) -> None:
    network = NET.network(STAIR)
    model = filled(lut)
    good = accuracy(model, Target(), network, np.random.default_rng(4), count=12)
    assert good.good
    assert good.mape < 0.02
    assert good.within(0.05) == 1.0
    assert good.spearman > 0.99
    assert all(c.measured_ms > 0 for c in good.checks)
    rng = np.random.default_rng(1)
    for entry in lut.entries("unit"):  # a table full of nonsense
        lut.add([replace(entry, samples_us=(entry.statistic_us * float(rng.uniform(1, 9)),) * 9)])
    model.reload()
    bad = accuracy(model, Target(), network, np.random.default_rng(4), count=12)
    assert not bad.good
    assert "measure whole networks" in str(bad)
    assert "measure whole networks" not in str(good)


def test_progress_is_told(machine: Machine, lut: Lut) -> None:
    told: list[tuple[int, int, str]] = []
    fill(lut, Target(), NET.network(STAIR), np.random.default_rng(0), variants=4, off_edges=0,
         progress=lambda *a: told.append(a))  # fmt: skip
    assert [done for done, _, _ in told] == list(range(len(machine.profiled) + 1))
    assert {total for _, total, _ in told} == {len(machine.profiled)}


def test_a_noisy_machine_is_told_and_a_hopeless_one_refused(machine: Machine, lut: Lut) -> None:
    machine.error = 0.06
    model = filled(lut)
    assert "too noisy" in model.notes[0]
    assert "6.0%" in model.notes[0]
    assert "too noisy" in str(accuracy(model, Target(), NET.network(STAIR), np.random.default_rng(0), count=2))
    machine.error, size = 0.3, len(lut)
    with pytest.raises(ProfileError, match="too noisy"):
        extend(model, Target(), NET.network(STAIR), [{"stem": 21}])
    assert len(lut) == size  # nothing wrong was kept
    machine.error = 0.01
    with Lut.open(":memory:", {"made up": True}) as fresh:
        fresh.add(lut.entries("granularity"))
        assert filled(fresh).notes == ()


def test_a_network_that_was_never_measured_is_appraised_from_the_units_of_another(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    widths = on_edges(31)
    small = replace(
        NET.network(STAIR), base=widths, build=lambda w: NET.build({**widths, **w}),
        shapes=lambda w: NET.shapes({**widths, **w}),
    )  # fmt: skip
    count, size = len(machine.profiled), len(lut)
    appraised = appraise(lut, Target(), small)
    assert (len(machine.profiled), len(lut)) == (count + 1, size)  # one profile for its kernels, nothing stored
    assert appraised.estimate({}) == pytest.approx(truth(machine, model, widths), rel=0.06)
    assert appraise(lut, Target(), NET.network(STAIR)).estimate(widths) == pytest.approx(model.estimate(widths))
    assert len(machine.profiled) == count + 1


def test_many_networks_at_once_cost_what_they_cost_one_by_one(machine: Machine, lut: Lut) -> None:
    model = filled(lut)
    networks = [on_edges(seed) for seed in range(20)]
    networks += [random_widths(seed, lambda rng, _, w: int(rng.integers(5, w + 1))) for seed in range(20)]
    apart = [filled(lut).estimate(w) for w in networks[::4]]  # models that have seen no other network
    together = model.estimates(networks)
    assert together[::4] == pytest.approx(apart)
    assert model.estimates(networks[::-1]) == pytest.approx(together[::-1])  # now remembered
    assert model.estimates([{}])[0] == model.estimate(NET.base())
    assert len(model.estimates([])) == 0


def test_estimates_do_not_depend_on_how_many_times_are_remembered(
    machine: Machine, lut: Lut, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [on_edges(seed) for seed in range(20)]
    expected = filled(lut).estimates(networks).tolist()
    for room in (3, len(networks)):  # fewer than are asked for, and as many
        monkeypatch.setattr(cost_module, "_REMEMBERED", 0)
        monkeypatch.setattr(cost_module, "_LEAST_REMEMBERED", room)
        model = filled(lut)
        for some in (networks, networks[:2], networks[5:9], networks):
            model.estimates(some)
            assert max(len(known) for _, known in model._memory) <= room
        assert model.estimates(networks).tolist() == pytest.approx(expected)


def test_shapes_that_do_not_follow_widths_linearly_are_asked_for(machine: Machine, lut: Lut) -> None:
    """The stem keeps an even number of channels, whatever its width: sizes cannot be concluded from two networks."""

    def even(widths: Widths) -> dict[str, int]:
        return {**widths, "stem": widths.get("stem", 64) // 2 * 2}

    net = NET.network(STAIR)
    network = replace(net, shapes=lambda w: net.shapes(even(w)), build=lambda w: net.build(even(w)))
    model = fill(lut, Target(), network, np.random.default_rng(0))
    asked = [term for term in model.plan.terms if term.slopes is None]
    assert 0 < len(asked) < len(model.plan.terms)
    for stem in (33, 47, 50):
        sizes = model.plan.sizes(asked[0], model.plan.matrix([{"stem": stem}]))
        assert stem // 2 * 2 in sizes
        assert model.estimate({"stem": stem}) == pytest.approx(model.estimate(even({"stem": stem})), rel=0.02)


def test_a_real_machine_gives_estimates_of_the_right_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill_module, "_HOPELESS", math.inf)  # the order is right however noisy the machine
    net = MobileNet(side=96)
    with Lut.open(":memory:", Target().fingerprint()) as table:
        network = net.network(STAIR)
        model = fill(table, Target(), network, np.random.default_rng(0), variants=3, off_edges=1)
        widths = {g: max(16, w // 2) for g, w in network.base.items()}
        built = net.build(widths)
        measured = measure(built, Target(), net.feeds(built), min_runs=20, min_seconds=0.05)
        assert 1 / 3 < model.estimate(widths) / measured.median_ms < 3
        assert model.estimate({}) > model.estimate(widths) * 0.9
