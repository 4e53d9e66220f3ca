"""Fine-tuning on tiny networks: it learns the teacher, keeps the best, and says why it stopped."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from linear_cases import Net
from onnx import helper, numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.passes.consumers import has_depthwise
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.finetune import Check, Feature, FinetuneSettings, Hooks, Training, _between, finetune
from onnx_netadapt.passes.finetune_optimizer import RelativeAdam, Schedule
from onnx_netadapt.passes.finetune_task import _squares, features_of, with_outputs
from onnx_netadapt.passes.images import augmented
from onnx_netadapt.passes.to_torch import to_torch

torch = pytest.importorskip("torch")


def _net(
    width: int, *, batch: int | str = "n", softmax: bool = False, seed: int = 0, twice: bool = False
) -> onnx.ModelProto:
    """Conv, Relu, mean of pixels, Gemm: from 2 x 7 x 5 images to 3 numbers; `twice` adds a second output."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (width, 2, 3, 3), "b": (width,), "v": (3, width), "c": (3,)}
    tensors = [
        numpy_helper.from_array((rng.standard_normal(shape) / 2).astype(np.float32), n) for n, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["logits"], transB=1),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", 1, [batch, 3])]
    if twice:
        nodes.append(helper.make_node("ReduceMean", ["r"], ["m"], axes=[1, 2, 3], keepdims=0))
        outputs.append(helper.make_tensor_value_info("m", 1, [batch]))
    values = [helper.make_tensor_value_info("x", 1, [batch, 2, 7, 5])]
    graph = helper.make_graph(nodes, "tiny", values, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _batches(count: int = 6, size: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((size, 2, 7, 5)).astype(np.float32)} for _ in range(count)]


def _error(teacher: onnx.ModelProto, model: onnx.ModelProto, *, fixed: bool = False) -> float:
    """The mean squared error of all outputs on images that are not trained on."""
    feeds = _batches(1, 16, seed=99)
    if fixed:
        feeds = [{"x": feeds[0]["x"][k : k + 1]} for k in range(16)]
    runs = [run_plain(each, feeds, optimize=True) for each in (teacher, model)]
    pairs = [pair for want, have in zip(*runs, strict=True) for pair in zip(want, have, strict=True)]
    return float(np.mean([np.square(a - b).mean() for a, b in pairs]))


def _settings(**changes: Any) -> FinetuneSettings:
    base = {"steps": 120, "lr": 3e-2, "batch": 8, "check_every": 20, "threads": 1, "precision": "float32"}
    return FinetuneSettings(**(base | changes))


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize("softmax", [False, True])
def test_the_student_learns_its_teacher(loss: str, softmax: bool) -> None:
    teacher, student = _net(11, softmax=softmax), _net(5, softmax=softmax, seed=1)
    result = finetune(student, teacher, _batches(), _settings(loss=loss), lambda m: -_error(teacher, m))
    assert result.step > 0
    if loss == "mse" or softmax:  # KL of free logits leaves their level open
        assert -result.score < 0.3 * _error(teacher, student)
    assert result.score == pytest.approx(-_error(teacher, result.model))
    assert result.history[-1].loss < result.history[1].loss
    assert [t.name for t in result.model.graph.initializer] == [t.name for t in student.graph.initializer]


def test_labels_are_learnt() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    batches = _batches()
    labels = [run_plain(teacher, [batch], optimize=True)[0][0].argmax(1) for batch in batches]

    def accuracy(model: onnx.ModelProto) -> float:
        found = run_plain(model, batches, optimize=True)
        return float(np.mean([y[0].argmax(1) == want for y, want in zip(found, labels, strict=True)]))

    result = finetune(student, teacher, batches, _settings(loss="ce"), accuracy, labels=labels)
    assert result.score > max(0.8, accuracy(student))
    with pytest.raises(InputError, match="labels"):
        finetune(student, teacher, batches, _settings(loss="ce"), accuracy)


def test_training_that_harms_gives_back_the_start() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    result = finetune(student, teacher, _batches(), _settings(lr=50.0), lambda m: -_error(teacher, m))
    assert result.step == 0
    assert result.model.SerializeToString() == student.SerializeToString()
    assert len(result.history) > 1


def test_a_loss_that_is_not_finite_ends_training() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    result = finetune(student, teacher, _batches(), _settings(lr=1e30), lambda m: -_error(teacher, m))
    assert result.step == 0
    assert "not finite" in result.reason


def test_the_time_limit_is_kept() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    ticks = itertools.count()
    result = finetune(
        *(student, teacher, _batches(), _settings(seconds=7.5, steps=10_000), lambda m: 0.0),
        clock=lambda: float(next(ticks)),
    )
    assert "fitted into 7.5 s" in result.reason
    assert result.history[-1].step < 10


@pytest.mark.parametrize(
    ("scores", "last", "best", "reason"),
    [
        ([0.0] * 9, 10, 0, "no gain over the start up to step 10"),
        ([0.0, 1.0] + [0.5] * 9, 30, 5, "no gain in 5 checks up to step 30"),
        ([0.0, -1.0, 1.0] + [0.5] * 9, 35, 10, "no gain in 5 checks up to step 35"),
    ],
)
def test_no_gain_ends_training_early(scores: list[float], last: int, best: int, reason: str) -> None:
    """After `patience` checks without one, and after half as many that were all no better than the start."""
    teacher, student, found = _net(11), _net(5, seed=1), iter(scores)
    settings = _settings(steps=10_000, patience=4, check_every=5)
    result = finetune(student, teacher, _batches(), settings, lambda m: next(found))
    assert (result.reason, result.history[-1].step, result.step) == (reason, last, best)


@pytest.mark.parametrize("twice", [False, True])
def test_a_frozen_batch_of_one(twice: bool) -> None:
    teacher, student = _net(11, batch=1, twice=twice), _net(5, batch=1, seed=1, twice=twice)
    result = finetune(student, teacher, _batches(), _settings(), lambda m: -_error(teacher, m, fixed=True))
    assert -result.score < 0.3 * _error(teacher, student, fixed=True)


def test_a_batch_that_a_reshape_fixes_is_trained_piece_by_piece() -> None:
    models = []
    for width, seed in ((11, 0), (5, 1)):
        model = _net(width, batch=2, seed=seed)
        model.graph.node[3].CopyFrom(helper.make_node("Reshape", ["p", "shape"], ["f"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, width], np.int64), "shape"))
        models.append(model)
    teacher, student = models
    feeds = [{"x": _batches(1, 16, seed=9)[0]["x"][k : k + 2]} for k in range(0, 16, 2)]

    def score(model: onnx.ModelProto) -> float:
        runs = [run_plain(each, feeds, optimize=True) for each in (teacher, model)]
        return -float(np.mean([np.square(a[0] - b[0]).mean() for a, b in zip(*runs, strict=True)]))

    result = finetune(student, teacher, _batches(), _settings(batch=7), score)
    assert result.score > 0.3 * score(student)


def test_given_teacher_outputs_do_as_well_as_the_teacher() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    batches = _batches()
    outputs = [run_plain(teacher, [batch], optimize=True)[0] for batch in batches]
    one, other = (
        finetune(student, source, batches, _settings(steps=40), lambda m: -_error(teacher, m))
        for source in (teacher, outputs)
    )
    assert one.score == pytest.approx(other.score, rel=1e-3)


def test_the_same_seed_gives_the_same_bytes() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    runs = [
        finetune(student, teacher, _batches(), _settings(steps=20, augment=True), lambda m: -_error(teacher, m))
        for _ in range(2)
    ]
    assert runs[0].model.SerializeToString() == runs[1].model.SerializeToString()


def test_what_torch_cannot_run_is_left_alone_with_a_reason() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    student.graph.node[5].CopyFrom(helper.make_node("Mystery", ["logits"], ["y"], domain="my.own", name="odd"))
    student.opset_import.append(helper.make_opsetid("my.own", 1))
    result = finetune(load(student), teacher, _batches(), _settings(), lambda m: 0.5)
    assert result.step == 0
    assert "Mystery" in result.reason


def test_the_schedule_warms_up_and_falls_to_nothing() -> None:
    schedule = Schedule(steps=100, seconds=math.inf)
    rates = [schedule.rate(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert rates[-1] < 0.001
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    schedule.made(50, 1e6)
    assert schedule.steps == 100  # without a limit the clock says nothing


def test_the_schedule_is_cut_to_the_steps_that_fit() -> None:
    schedule = Schedule(steps=1000, seconds=100.0)
    schedule.made(1, 30.0)  # the first one also sets everything up
    schedule.made(2, 31.0)
    assert schedule.steps == 1000
    schedule.made(11, 40.0)
    assert schedule.steps == 71
    schedule.made(41, 60.0)  # faster now: what was cut stays cut
    assert schedule.steps == 71
    schedule.made(51, 99.5)
    assert schedule.steps == 51


def test_steps_are_those_of_adam_times_the_size_of_the_weights() -> None:
    weight = torch.nn.Parameter(torch.full((3, 2), 0.5))
    plain = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer, reference = RelativeAdam([weight]), torch.optim.Adam([plain])
    random = torch.Generator().manual_seed(0)
    for step in range(20):
        gradient, lr = torch.randn(3, 2, generator=random) * 10.0 ** (step % 4), 1e-3 * (step + 1)
        weight.grad, plain.grad = (None, None) if step in (0, 7) else (gradient, gradient.clone())
        optimizer.step(lr)
        reference.param_groups[0]["lr"] = lr
        reference.step()
    torch.testing.assert_close(weight.detach(), 0.5 + 0.5 * plain.detach())


@pytest.mark.parametrize(
    ("steps", "looked"),
    [
        (100, [13, 25, 75, 100]),
        (400, [50, 100, 300, 400]),
        (12, [10, 12]),
        (10_000, [1250, 2500, 7500, 10_000]),
    ],
)
def test_a_student_is_judged_at_shares_of_the_steps(steps: int, looked: list[int]) -> None:
    found = [0]
    while found[-1] < steps:
        found.append(min(found[-1] + _between(found[-1], steps), steps))
    assert found == [0, *looked]


def test_the_end_is_judged_too() -> None:
    settings = _settings(steps=12, check_every=0)
    result = finetune(_net(5, seed=1), _net(11), _batches(), settings, lambda m: 0.0)
    assert [check.step for check in result.history] == [0, 10, 12]


def test_when_time_is_short_the_end_is_judged_once() -> None:
    """After three seconds a step where all of a hundred were to take a hundred seconds."""
    seconds = itertools.count(0, 3)
    settings = _settings(steps=100, check_every=0, seconds=100.0, patience=99)
    result = finetune(
        _net(5, seed=1), _net(11), _batches(), settings, lambda m: 0.0, clock=lambda: float(next(seconds)) / 2
    )
    steps = [check.step for check in result.history]
    assert steps == sorted(set(steps))
    assert 10 < steps[-1] < 100
    assert "fitted into 100 s" in result.reason


def test_a_start_that_was_judged_is_not_judged_again() -> None:
    student, calls = _net(5, seed=1), []
    settings = _settings(steps=4, check_every=2)
    result = finetune(student, _net(11), _batches(), settings, lambda m: calls.append(m) or -1.0, judged=(student, 7.0))
    assert (len(calls), result.score, result.step) == (2, 7.0, 0)
    assert result.model is student


def test_steps_are_shares_of_a_channels_size() -> None:
    big, small = torch.full((1, 2, 3, 3), 100.0), torch.full((1, 2, 3, 3), 0.01)
    weight = torch.nn.Parameter(torch.cat([big, small]))
    bias = torch.nn.Parameter(torch.zeros(2))
    optimizer = RelativeAdam([weight, bias])
    for _ in range(3):
        optimizer.zero_grad()
        ((weight * torch.randn(2, 2, 3, 3)).sum() + bias.sum()).backward()
        before = weight.detach().clone()
        optimizer.step(1e-2)
        moved = (weight.detach() - before).abs().amax(dim=(1, 2, 3))
        assert moved[0] <= 1e-2 * 100 * 1.5
        assert moved[1] <= 1e-2 * 0.01 * 1.5
        assert moved[0] > 100 * moved[1]
    assert bias.detach().abs().max() > 0  # zeros can be left


def test_scaled_channels_train_alike() -> None:
    """Folding a factor into one layer and out of the next changes nothing: plain Adam does not have this."""
    teacher, student = _net(11), _net(5, seed=1)
    other = onnx.ModelProto()
    other.CopyFrom(student)
    values = {t.name: numpy_helper.to_array(t) for t in other.graph.initializer}
    factor = np.array([1e-2, 1e2, 1.0, 30.0, 0.1], np.float32)
    for model, scale in ((student, 1.0), (other, factor)):
        for tensor in model.graph.initializer:
            if tensor.name == "w":
                value = values["w"] * np.reshape(scale * np.ones(5, np.float32), (5, 1, 1, 1))
            elif tensor.name == "b":
                value = values["b"] * 0
            elif tensor.name == "v":
                value = values["v"] / scale
            else:
                continue
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    calls = itertools.count()  # the later a student, the better: the last one is returned
    found = [
        finetune(each, teacher, _batches(), _settings(steps=1), lambda m: float(next(calls)))
        for each in (student, other)
    ]
    one, two = ({t.name: numpy_helper.to_array(t) for t in each.model.graph.initializer}["w"] for each in found)
    assert not np.array_equal(one, values["w"])
    assert np.allclose(two / factor[:, None, None, None], one, rtol=1e-3, atol=1e-5)


def _pruned_pair() -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[Feature, ...]]:
    """A teacher of 11 channels, the student that keeps 5 of them, and the feature map that both have."""
    teacher = _net(11)
    kept = np.zeros(11, bool)
    kept[[0, 2, 3, 7, 10]] = True
    student = onnx.ModelProto()
    student.CopyFrom(_net(5))
    cut = {"w": lambda a: a[kept], "b": lambda a: a[kept], "v": lambda a: a[:, kept], "c": lambda a: a}
    for tensor, own in zip(student.graph.initializer, teacher.graph.initializer, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(cut[own.name](numpy_helper.to_array(own)), own.name))
    return teacher, student, (Feature("r", 1, kept),)


def test_feature_maps_are_learnt_at_the_kept_channels() -> None:
    teacher, student, features = _pruned_pair()
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(student)
    weight = numpy_helper.to_array(spoilt.graph.initializer[0])
    noise = np.random.default_rng(5).standard_normal(weight.shape).astype(np.float32) / 4
    spoilt.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight + noise, "w"))

    def distance(model: onnx.ModelProto) -> float:
        return float(np.abs(numpy_helper.to_array(model.graph.initializer[0]) - weight).mean())

    found = {
        share: finetune(
            *(spoilt, teacher, _batches(), _settings(features=share, steps=200), lambda m: -distance(m)),
            features=features,
        )
        for share in (0.0, 30.0)
    }
    assert -found[30.0].score < 0.5 * distance(spoilt)  # the filters themselves come back,
    assert found[30.0].score > found[0.0].score  # which the outputs alone do not ask for


@pytest.mark.parametrize(("groups", "depthwise"), [(1, False), (3, False), (6, True)])
def test_depthwise_convolutions_are_seen(groups: int, depthwise: bool) -> None:
    net = Net((6, 5, 5))
    net.add("Conv", "x", net.weight("w", 6, 6 // groups, 3, 3), out="y", group=groups)
    assert has_depthwise(load(net.model("y", 4))) == depthwise


def test_feature_maps_are_the_sums_that_keep_all_channels() -> None:
    net = Net((3, 7, 5))
    net.add("Conv", "x", net.weight("w0", 5, 3, 1, 1), out="s0")
    for block in range(1, 14):
        net.add("Conv", f"s{block - 1}", net.weight(f"wa{block}", 7, 5, 1, 1), out=f"a{block}")
        net.add("Relu", f"a{block}", out=f"h{block}")
        net.add("Conv", f"h{block}", net.weight(f"wb{block}", 5, 7, 1, 1), out=f"b{block}")
        net.add("Add", f"b{block}", f"s{block - 1}", out=f"s{block}")
    net.add("GlobalAveragePool", "s13", out="p")
    net.add("Flatten", "p", out="f")
    net.add("Gemm", "f", net.weight("v", 5, 3), out="y")
    coupling = couple(load(net.model("y", 2)))
    kept = {group.id: np.arange(4) for group in coupling.groups if any(axis[0].startswith("h") for axis in group.axes)}
    assert len(kept) == 13
    found = features_of(coupling, kept)
    assert len(found) == 8
    assert [feature.name for feature in found] == sorted({f.name for f in found}, key=lambda name: int(name[1:]))
    assert {feature.name[0] for feature in found} == {"b", "s"}  # of the first block the branch: its stream is whole
    assert all(feature.kept.all() for feature in found)
    assert features_of(coupling, {}) == ()


def test_gradients_of_maps_keep_the_layout_of_training() -> None:
    import torch

    rng = torch.Generator().manual_seed(0)
    have, want = (torch.randn((2, 5, 4, 3), generator=rng).to(memory_format=torch.channels_last) for _ in range(2))
    have.requires_grad_()
    ours, plain = _squares(have, want), torch.nn.functional.mse_loss(have, want)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    (found,), (expected,) = torch.autograd.grad(ours, have), torch.autograd.grad(plain, have)
    assert torch.allclose(found, expected, atol=1e-7)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not expected.is_contiguous(memory_format=torch.channels_last)  # negative control
    rows = torch.randn((2, 5), generator=rng)
    assert float(_squares(rows, rows + 1)) == pytest.approx(1.0, rel=1e-6)


def test_what_is_finished_is_judged_and_returned() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    seen: list[bytes] = []

    def finish(model: onnx.ModelProto) -> onnx.ModelProto:
        found = onnx.ModelProto()
        found.CopyFrom(model)
        found.doc_string = "finished"
        return found

    def validate(model: onnx.ModelProto) -> float:
        seen.append(model.doc_string)
        return -_error(teacher, model)

    result = finetune(student, teacher, _batches(), _settings(), validate, finish=finish)
    assert set(seen) == {"finished"}
    assert result.model.doc_string == "finished"
    assert result.images == 120 * 8


def test_a_loss_of_the_users_own_is_what_is_minimised() -> None:
    teacher, student = _net(11, softmax=True), _net(5, seed=1, softmax=True)
    shapes: list[Any] = []

    def first_number_up(outputs: Any, targets: Any, labels: Any) -> Any:
        shapes.append((len(outputs), len(targets), labels))
        assert torch.allclose(outputs[0].sum(1), torch.ones(len(outputs[0])), atol=1e-3)  # shares, not logits
        return -outputs[0][:, 0].mean()

    def score(model: onnx.ModelProto) -> float:
        return float(run_plain(model, _batches(1), optimize=True)[0][0][:, 0].mean())

    result = finetune(student, teacher, _batches(), _settings(), score, hooks=Hooks(loss=first_number_up))
    assert result.score > 0.75 > 0.6 > score(student)
    assert shapes[0] == (1, 1, None)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda o, t, y: 3.0, "float"),
        (lambda o, t, y: o[0], "shape"),
        (lambda o, t, y: t[0].mean(), "without a gradient"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        finetune(_net(5), _net(11), _batches(), _settings(), lambda m: 0.0, hooks=Hooks(loss=loss))


def test_the_callback_sees_every_check_and_can_stop() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    seen: list[Check] = []

    def callback(check: Check) -> bool:
        seen.append(check)
        return len(seen) == 2

    result = finetune(student, teacher, _batches(), _settings(), lambda m: 0.0, hooks=Hooks(callback=callback))
    assert [check.step for check in seen] == [20, 40]
    assert tuple(seen) == result.history[1:]
    assert "callback" in result.reason


def test_a_loop_of_the_users_own_trains_and_its_best_is_kept() -> None:
    teacher, student = _net(11), _net(5, seed=1)

    def loop(training: Training) -> None:
        optimizer = torch.optim.SGD(training.module.parameters(), lr=0.02)
        for example in itertools.islice(training.batches(), 150):
            optimizer.zero_grad()
            outputs = training.module(example.inputs)
            torch.nn.functional.mse_loss(outputs, example.targets[0]).backward()
            optimizer.step()
        training.check(150)
        with torch.no_grad():
            for parameter in training.module.parameters():
                parameter.zero_()

    result = finetune(student, teacher, _batches(), _settings(), lambda m: -_error(teacher, m), hooks=Hooks(train=loop))
    assert -result.score < 0.6 * _error(teacher, student)
    assert result.step == 150
    assert len(result.history) == 3  # the start, the loop's own check, and what it left


def test_a_loop_that_fails_is_told_as_such() -> None:
    def loop(training: Training) -> None:
        raise KeyError("mine")

    with pytest.raises(InputError, match="mine"):
        finetune(_net(5), _net(11), _batches(), _settings(), lambda m: 0.0, hooks=Hooks(train=loop))


def test_none_switches_it_off() -> None:
    student = _net(5)
    result = finetune(student, _net(11), _batches(), FinetuneSettings.parse("none"), lambda m: 0.5)
    assert (result.step, result.score, "off" in result.reason) == (0, 0.5, True)


def test_settings_are_read() -> None:
    found = FinetuneSettings.parse("steps=500, lr=1e-4,loss=kl,batch=16,seconds=120,augment=yes")
    assert (found.steps, found.lr, found.loss) == (500, 1e-4, "kl")
    assert (found.batch, found.seconds, found.augment) == (16, 120, True)
    assert FinetuneSettings.parse("").steps == FinetuneSettings().steps
    assert math.isinf(FinetuneSettings().seconds)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps", "steps"), ("speed=3", "speed"), ("steps=many", "steps=many"), ("loss=l1", "mse"), ("lr=0", "lr"),
        ("lr=nan", "lr"), ("batch=0", "batch"), ("augment=perhaps", "augment"), ("steps=-1", "steps"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        FinetuneSettings.parse(text)


def test_views_of_images_keep_shape_and_range() -> None:
    images = np.random.default_rng(0).uniform(2, 3, (5, 3, 13, 17)).astype(np.float32)
    views = augmented(images, np.random.default_rng(1))
    assert views.shape == images.shape
    assert views.dtype == images.dtype
    assert views.min() >= 2
    assert views.max() <= 3
    assert not np.array_equal(views, images)
    table = np.ones((5, 3), np.float32)
    assert augmented(table, np.random.default_rng(1)) is table


def test_a_view_shows_a_part_of_the_image_at_one_scale() -> None:
    """On an image of its own coordinates a view tells where it was taken."""
    rows, columns = np.meshgrid(np.arange(40.0), np.arange(24.0), indexing="ij")
    image = np.stack([rows, columns]).astype(np.float32)
    views = augmented(np.stack([image] * 200), np.random.default_rng(0))
    inner = views[:, :, 2:-2, 2:-2]  # the border is clamped
    down, right = np.diff(inner[:, 0], axis=1), np.diff(inner[:, 1], axis=2)
    assert np.ptp(down, axis=(1, 2)).max() < 1e-3
    assert np.ptp(right, axis=(1, 2)).max() < 1e-3
    height, width = down.mean(axis=(1, 2)), right.mean(axis=(1, 2))  # negative where flipped
    assert 0.3 < (width < 0).mean() < 0.7
    assert (height > 0).all()
    assert (np.abs(width) <= 1 + 1e-4).all()
    assert (height * np.abs(width)).min() > 0.39 * 3 / 4
    assert views[:, 0].min() >= 0
    assert views[:, 0].max() <= 39


@pytest.mark.parametrize("batch", [1, 2])
def test_feature_maps_come_at_another_batch_than_the_models_own(batch: int) -> None:
    weight = numpy_helper.from_array(np.ones((7, 3, 1, 1), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["inner"]), helper.make_node("Relu", ["inner"], ["y"])]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, count, 5, 5))
        for name, count in (("x", 3), ("y", 7))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "net", ports[:1], ports[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    outputs = to_torch(with_outputs(load(model), ["y", "inner"]))(-torch.ones(batch, 3, 5, 5))
    assert [value.max().item() for value in outputs] == [0, -3]
    assert {tuple(value.shape) for value in outputs} == {(batch, 7, 5, 5)}
