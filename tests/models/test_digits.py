"""The embedded model is what its metadata says, and its demo data were not used for training it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_netadapt.models import demo
from onnx_netadapt.models.digits import DigitsData, digits, digits_model


@pytest.fixture(scope="module")
def made() -> DigitsData:
    return digits()


def _logits(x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(digits_model(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": x})[0])


def _metadata() -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load_from_string(digits_model()).metadata_props}


def test_the_split_is_whole_disjoint_and_balanced(made: DigitsData) -> None:
    assert made.x.shape == (1797, 1, 32, 32)
    assert (made.x.dtype, made.y.dtype) == (np.float32, np.int64)
    assert np.array_equal(np.sort(np.concatenate([made.train, made.test])), np.arange(1797))
    shares = np.bincount(made.y[made.train]) / np.bincount(made.y)
    assert np.all(np.abs(shares - 0.44) < 0.01)


def test_enlarging_keeps_the_picture(made: DigitsData) -> None:
    from sklearn.datasets import load_digits

    small = load_digits().images / 16
    assert made.x.min() == 0
    assert made.x.max() <= 1
    middles = made.x[:, 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(middles.ravel(), small.ravel())[0, 1] > 0.97
    assert np.corrcoef(middles.transpose(0, 2, 1).ravel(), small.ravel())[0, 1] < 0.5  # a swapped axis would show


def test_the_model_is_small_valid_and_takes_any_batch() -> None:
    content = digits_model()
    assert len(content) <= 2_000_000
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    for n in (1, 3):
        assert _logits(np.zeros((n, 1, 32, 32), np.float32)).shape == (n, 10)


def test_the_accuracy_in_the_metadata_is_the_accuracy_on_the_held_out_images(made: DigitsData) -> None:
    told = _metadata()
    right = _logits(made.x[made.test]).argmax(1) == made.y[made.test]
    assert int(told["test_images"]) == len(made.test)
    assert abs(float(told["test_accuracy"]) - right.mean()) < 2.5 / len(made.test)  # rounding may turn a close call
    assert right.mean() > 0.97
    mixed = np.roll(made.y[made.test], 1)
    assert np.mean(_logits(made.x[made.test]).argmax(1) == mixed) < 0.3


def test_the_demo_writes_only_images_that_training_did_not_see(tmp_path: Path, made: DigitsData) -> None:
    assert demo.main([str(tmp_path / "new" / "demo")]) == 0
    with np.load(tmp_path / "new" / "demo" / "digits.npz", allow_pickle=False) as stored:
        images, labels = stored["image"], stored["y"]
    assert (tmp_path / "new" / "demo" / "digits.onnx").read_bytes() == digits_model()
    assert np.array_equal(labels, made.y[made.test])
    trained = {image.tobytes() for image in made.x[made.train]}
    assert not any(image.tobytes() in trained for image in images)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_wrong_usage_of_the_demo(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.slow
def test_the_training_script_makes_such_a_model() -> None:
    from onnx_netadapt.models.train_digits import made_model

    model = made_model(epochs=3, seed=1)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert float(told["test_accuracy"]) > 0.5
    assert [(node.op_type, len(node.input)) for node in model.graph.node if node.op_type == "Conv"] == [
        (node.op_type, len(node.input))
        for node in onnx.load_from_string(digits_model()).graph.node
        if node.op_type == "Conv"
    ]
