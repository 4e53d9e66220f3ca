"""What a target can tell is found by trying; here the CPU is made to tell less than it can."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
from mobile_net import MobileNet
from onnx_netadapt.ir.errors import ProfileError, TargetError
from onnx_netadapt.profiler import Attribution, Granularity, LatencyModel, Lut, Target, fill, trace
from onnx_netadapt.profiler import capability as capability_module
from onnx_netadapt.profiler.capability import Capability, survey
from onnx_netadapt.profiler.isolated import Extractor, random_feeds
from onnx_netadapt.profiler.trace import share_inside

STAIR = Granularity(16, 4, True, 1.4)
NET = MobileNet(side=48)


def surveyed(target: Target | None = None) -> Capability:
    network = NET.network(STAIR)
    base, other = NET.build({}), NET.build({g: 16 for g in NET.base()})
    return survey(target or Target(), base, other, NET.feeds(base), network.shapes, network.base).capability


@pytest.fixture
def lut() -> Iterator[Lut]:
    with Lut.open(":memory:", {"made up": True}) as table:
        yield table


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs look compiled on all targets but the plain CPU, which lends its units."""
    monkeypatch.setattr(
        capability_module,
        "_try_per_node",
        lambda target, base, feeds: (trace(base, target, feeds, runs=1), Attribution((), 5.0)),
    )


def test_the_cpu_tells_times_of_nodes() -> None:
    assert surveyed() is Capability.PER_NODE


def test_a_profile_without_nodes_leaves_units_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def no_nodes(model: onnx.ModelProto, target: Target, feeds: object, **options: object) -> object:
        calls.append(target)
        if len(calls) == 1:
            raise ProfileError("no node events")
        return trace(model, target, feeds, **options)

    monkeypatch.setattr(capability_module, "trace", no_nodes)
    assert surveyed(Target(session_options=(("session.x.y", "1"),))) is Capability.ISOLATED
    assert calls[1] == Target()


def test_times_of_launching_nodes_are_no_times_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA tells them: nodes are launched in little time, and the run waits for them at its end."""

    def launched(*arguments: object, **options: object) -> object:
        return replace(trace(*arguments, **options), inside=0.1)

    monkeypatch.setattr(capability_module, "trace", launched)
    assert surveyed() is Capability.PER_NODE  # the CPU launches nothing: the processor was taken away between nodes
    monkeypatch.setattr(Target, "synchronous", property(lambda self: False))
    assert surveyed() is Capability.ISOLATED


def test_units_that_do_not_run_alone_leave_whole_networks(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert surveyed() is Capability.ISOLATED
    monkeypatch.setattr(capability_module, "alone_us", lambda *_: 0.0)
    assert surveyed() is Capability.WHOLE


def test_a_target_that_cannot_run_the_network_is_not_surveyed() -> None:
    with pytest.raises(TargetError, match="CUDAExecutionProvider"):
        surveyed(Target.parse("cuda"))


@pytest.mark.parametrize("alone", [True, False])
def test_networks_are_estimated_without_times_of_nodes(
    compiled: None, monkeypatch: pytest.MonkeyPatch, lut: Lut, alone: bool
) -> None:
    if not alone:
        monkeypatch.setattr(capability_module, "_runs_alone", lambda *_: False)
    network = NET.network(STAIR)
    model = fill(lut, Target(), network, np.random.default_rng(0), variants=4, off_edges=0)
    kinds = {e.attributes["kind"] for e in lut.entries("unit")}
    assert kinds == {"isolated"} if alone else all(k.endswith("@CPUExecutionProvider") for k in kinds)
    assert model.plan.capability is (Capability.ISOLATED if alone else Capability.WHOLE)
    small, whole = {g: 16 for g in network.base}, model.estimate({})
    assert model.estimate(small) < whole
    assert model.estimates([small, {}]) == pytest.approx([model.estimate(small), whole])


def test_a_second_run_measures_no_unit_again(compiled: None, monkeypatch: pytest.MonkeyPatch, lut: Lut) -> None:
    from onnx_netadapt.profiler import isolated

    counted: list[str] = []
    keep = isolated.alone_us
    monkeypatch.setattr(isolated, "alone_us", lambda t, e, u: counted.append(u.ops) or keep(t, e, u))
    network = NET.network(STAIR)

    def filled(variants: int) -> LatencyModel:
        counted.clear()
        return fill(lut, Target(), network, np.random.default_rng(0), variants=variants, off_edges=0)

    model = filled(2)
    assert len(counted) == len(lut.entries("unit"))
    assert len(counted) < 2 * len(model.plan.structure.units)  # the classifier's Flatten is the same in both, and more
    filled(2)
    assert counted == []


def test_a_unit_alone_computes_what_it_computes_in_place() -> None:
    model = NET.build({})
    network = NET.network(STAIR)
    structure = survey(
        Target(), model, NET.build({"head": 16}), NET.feeds(model), network.shapes, network.base
    ).structure
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = {t for unit in structure.units for t in (*unit.inputs, *unit.outputs)} - {"image", "logits"}
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(names))
    feeds = NET.feeds(model)
    session = Target().session(probe)
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True)) | feeds
    extractor = Extractor(model, NET.shapes({}))
    for unit in structure.units:
        alone = extractor.model_of(unit)
        onnx.checker.check_model(alone)
        assert set(random_feeds(alone)) == set(unit.inputs)
        given = Target().session(alone).run(list(unit.outputs), {t: values[t] for t in unit.inputs})
        for name, value in zip(unit.outputs, given, strict=True):
            np.testing.assert_allclose(value, values[name], rtol=1e-4, atol=1e-5)


def test_open_dimensions_get_the_sizes_that_are_measured() -> None:
    model = NET.build({})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    network = NET.network(STAIR)
    found = survey(Target(), model, model, NET.feeds(model), network.shapes, network.base)
    for unit in found.structure.units:
        feeds = random_feeds(Extractor(model, NET.shapes({})).model_of(unit))
        assert {name: x.shape for name, x in feeds.items()} == {t: NET.shapes({})[t] for t in unit.inputs}


def events(*runs: tuple[float, float]) -> list[dict[str, object]]:
    """Profile events of runs, each with its length and the time of its one node, in microseconds."""
    told, at = [], 0.0
    for whole, node in runs:
        told.append({"cat": "Session", "name": "model_run", "ts": at, "dur": whole})
        told.append({"cat": "Node", "name": "conv_kernel_time", "ts": at + 1, "dur": node})
        told.append({"cat": "Node", "name": "inner:conv_kernel_time", "ts": at + 2, "dur": node})
        at += whole + 1
    return told


def test_a_processor_that_is_taken_away_does_not_look_like_launched_nodes() -> None:
    """Runs lose five milliseconds to others, within a node or between two."""
    assert share_inside(events((100, 90), (101, 90))) == pytest.approx(0.9)
    assert share_inside(events((5100, 90), (5100, 5090), (100, 90))) == pytest.approx(0.9)
    assert share_inside(events((100, 9), (5100, 5009), (101, 9))) == pytest.approx(0.09)
