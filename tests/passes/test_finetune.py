"""Fine-tuning on tiny networks: it learns the teacher, keeps the best, and says why it stopped."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.finetune import FinetuneSettings, finetune
from onnx_netadapt.passes.images import augmented

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
    base = {"steps": 120, "lr": 1e-2, "batch": 8, "check_every": 20, "threads": 1, "precision": "float32"}
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
    assert "time limit" in result.reason
    assert result.history[-1].step < 10


def test_no_gain_ends_training_early() -> None:
    teacher, student = _net(11), _net(5, seed=1)
    result = finetune(student, teacher, _batches(), _settings(steps=10_000, patience=2, check_every=5), lambda m: 0.0)
    assert "no gain" in result.reason
    assert result.history[-1].step == 15
    assert result.step == 0


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


def test_a_flip_of_the_whole_image_is_exact() -> None:
    image = np.random.default_rng(0).standard_normal((1, 2, 9, 11)).astype(np.float32)
    views = [augmented(image, np.random.default_rng(seed), smallest=1.0) for seed in range(200)]
    whole = [v for v in views if np.allclose(np.sort(v.ravel()), np.sort(image.ravel()), atol=1e-6)]
    assert any(np.allclose(v, image[..., ::-1]) for v in whole) or not whole
