"""Data from .npz files, from functions, and made up; bad data gets one clear message."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_netadapt.data import Data, Inputs, load_data
from onnx_netadapt.ir.errors import InputError

RNG = np.random.default_rng(0)
IMAGE: Inputs = {"image": (("N", 3, 5, 7), np.dtype("float32"))}
TWO: Inputs = {
    "ids": (("N", "T"), np.dtype("int64")),
    "mask": (("N", "T"), np.dtype("bool")),
    "heat": ((), np.dtype("float32")),
}


def _npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "d.npz", **arrays)
    return str(folder / "d.npz")


def _floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (folder / "mine.py").write_text("import numpy as np\n" + body)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.parametrize("name", ["image", "x"])
def test_npz_gives_arrays_and_labels_in_the_asked_order(tmp_path: Path, name: str) -> None:
    x, y = _floats(11, 3, 5, 7), np.arange(11)
    found = load_data(_npz(tmp_path, **{name: x, "y": y}), IMAGE)
    at = np.array([10, 2, 7, 0, 5])
    got = list(found.batches(at, 2))
    assert [len(feeds["image"]) for feeds, _ in got] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([feeds["image"] for feeds, _ in got]), x[at])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in got if labels is not None]), at)


def test_no_labels_is_none(tmp_path: Path) -> None:
    found = load_data(_npz(tmp_path, x=_floats(3, 3, 5, 7)), IMAGE)
    assert found.labels is None
    assert [labels for _, labels in found.batches(np.arange(3), 2)] == [None, None]


def test_several_inputs_are_fed_by_name_and_a_scalar_to_every_batch(tmp_path: Path) -> None:
    ids, mask = RNG.integers(0, 9, (5, 11)), RNG.random((5, 11)) < 0.5
    found = load_data(_npz(tmp_path, ids=ids.astype(np.int32), mask=mask, heat=np.float32(0.5)), TWO)
    (feeds, _), *_ = found.batches(np.array([4, 1]), 7)
    assert {name: value.dtype.name for name, value in feeds.items()} == {
        "ids": "int64",
        "mask": "bool",
        "heat": "float32",
    }
    np.testing.assert_array_equal(feeds["ids"], ids[[4, 1]])
    assert feeds["heat"] == 0.5


@pytest.mark.parametrize(("stored", "wanted"), [("float64", "float32"), ("float32", "float16"), ("float16", "float32")])
def test_floats_are_cast_to_what_the_network_takes(tmp_path: Path, stored: str, wanted: str) -> None:
    spec = _npz(tmp_path, x=_floats(3, 5).astype(stored))
    found = load_data(spec, {"a": ((1, 5), np.dtype(wanted))})
    assert found.read(np.arange(3))["a"].dtype == wanted


def test_bytes_of_images_are_preprocessed(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    got = load_data(_npz(tmp_path, x=pixels), IMAGE, "scale=1/255,mean=.5,std=.25").read(np.array([3, 1]))["image"]
    np.testing.assert_allclose(got, (pixels[[3, 1]].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    grey = load_data(_npz(tmp_path, x=pixels[..., 0]), {"g": ((1, 1, 5, 7), np.dtype("float32"))}, "scale=1")
    np.testing.assert_array_equal(grey.read(np.arange(4))["g"][:, 0], pixels[..., 0])


def test_labels_in_a_column_or_as_whole_floats_are_classes(tmp_path: Path) -> None:
    found = load_data(_npz(tmp_path, x=_floats(3, 3, 5, 7), y=np.array([[2.0], [0.0], [1.0]])), IMAGE)
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [2, 0, 1]


def test_an_input_called_y_is_an_input(tmp_path: Path) -> None:
    found = load_data(_npz(tmp_path, y=_floats(3, 5)), {"y": (("N", 5), np.dtype("float32"))})
    assert (found.n, found.labels) == (3, None)


def test_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    found = load_data(_npz(tmp_path, x=_floats(3, 3, 5, 7), labels=np.arange(3)), IMAGE)
    assert any("labels" in warning for warning in found.warnings)


X = _floats(4, 3, 5, 7)
BROKEN = X.copy()
BROKEN[2, 1, 1, 1] = np.nan
HUGE = np.full((4, 3, 5, 7), 1e30, np.float64)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": X}, "images"),
        ({}, "image"),
        ({"x": X[:, :2]}, r"\(4, 2, 5, 7\)"),
        ({"x": X[0]}, "rank"),
        ({"x": X[:0]}, "no examples"),
        ({"x": BROKEN}, "example 2"),
        ({"x": X.astype(np.uint8)}, "--preprocess"),
        ({"x": X.astype(np.int64)}, "int64"),
        ({"x": X.astype(np.complex64)}, "complex64"),
        ({"x": X.astype(str)}, "str|<U"),
        ({"x": np.array([None] * 4)}, "pickle"),
        ({"x": X, "y": np.arange(3)}, "3"),
        ({"x": X, "y": np.array(list("abcd"))}, "class"),
        ({"x": X, "y": np.array([0, 1, np.nan, 1])}, "label"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_data(_npz(tmp_path, **arrays), IMAGE)


def test_numbers_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float16"):
        load_data(_npz(tmp_path, x=HUGE), {"a": (("N", 3, 5, 7), np.dtype("float16"))})
    with pytest.raises(InputError, match="int8"):
        load_data(_npz(tmp_path, x=np.array([[300]])), {"a": (("N", 1), np.dtype("int8"))})


def test_inputs_of_different_length_are_refused(tmp_path: Path) -> None:
    spec = _npz(tmp_path, ids=np.zeros((5, 3), int), mask=np.zeros((7, 3), bool), heat=np.float32(1))
    with pytest.raises(InputError, match=r"5.*7|7.*5"):
        load_data(spec, TWO)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    whole = Path(_npz(tmp_path, x=X))
    for name, content in {
        "text": b"hello",
        "empty": b"",
        "cut": whole.read_bytes()[:-50],
        "bent": whole.read_bytes().replace(b"\x93NUMPY", b"\x93NAMPY"),
    }.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_data(str(tmp_path / f"{name}.npz"), IMAGE)
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(InputError, match="single"):
        load_data(str(tmp_path / "single.npz"), IMAGE)


@pytest.mark.parametrize("spec", ["missing.npz", "missing", "missing_module:function", "json:missing", "notes.txt"])
def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    with pytest.raises(InputError, match=spec.split(":")[0]):
        load_data(spec, IMAGE)


def test_preprocess_without_bytes_or_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uint8"):
        load_data(_npz(tmp_path, x=X), IMAGE, "imagenet")
    with pytest.raises(InputError, match="--data"):
        load_data(None, IMAGE, "imagenet")


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n  for i in range(3): yield np.full((2, 3, 5, 7), i, 'f4'), np.full(2, i)",
        "def f():\n  return [[np.full((2, 3, 5, 7), i, 'f4'), np.full(2, i)] for i in range(3)]",
        "def f():\n  for i in range(3): yield {'image': np.full((2, 3, 5, 7), i, 'f4'), 'y': np.full(2, i)}",
    ],
)
def test_functions_yield_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    _module(tmp_path, monkeypatch, body)
    found = load_data("mine:f", IMAGE)
    assert found.n == 6
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(found.read(np.array([5, 0]))["image"][:, 0, 0, 0], [2, 0])


def test_functions_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, monkeypatch, "def f():\n  for i in range(3): yield np.zeros((2, 3, 5, 7), 'f4')")
    assert load_data("mine:f", IMAGE).labels is None


def test_an_endless_function_is_stopped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, monkeypatch, "def f():\n  while True: yield np.zeros((101, 3, 5, 7), 'f4')")
    found = load_data("mine:f", IMAGE)
    assert 4000 <= found.n < 4200
    assert any("endless" in warning or "stopped" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def f(): raise RuntimeError('no disk')", "no disk"),
        ("def f():\n  yield np.zeros((2, 3, 5, 7), 'f4')\n  raise RuntimeError('no disk')", "no disk"),
        ("def f(): return []", "no batches"),
        ("def f(): return 5", "int"),
        ("f = 5", "function"),
        ("def f(): yield 1, 2, 3", "3"),
        ("def f():\n  yield np.zeros((2, 3, 5, 7), 'f4'), [1, 2]\n  yield np.zeros((2, 3, 5, 7), 'f4')", "label"),
        ("def f():\n  yield np.zeros((2, 3, 5, 7), 'f4')\n  yield np.zeros((2, 3, 5, 9), 'f4')", "batch 1"),
        ("def f(): yield {'other': np.zeros((2, 3, 5, 7), 'f4')}", "other"),
        ("def f(): yield np.zeros((2, 3, 5, 9), 'f4')", "9"),
        ("def f(:", "mine"),
    ],
)
def test_functions_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str) -> None:
    _module(tmp_path, monkeypatch, body)
    with pytest.raises(InputError, match=words):
        load_data("mine:f", IMAGE)


def test_labels_beside_an_input_called_y_do_not_replace_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, monkeypatch, "def f(): yield np.full((2, 3), 7, 'f4'), np.arange(2)")
    found = load_data("mine:f", {"y": (("N", 3), np.dtype("float32"))})
    assert found.labels is None
    assert found.read(np.arange(2))["y"].tolist() == [[7, 7, 7]] * 2


def test_functions_for_several_inputs_yield_dicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, monkeypatch, "def f(): yield np.zeros((2, 3)), np.zeros(2)")
    with pytest.raises(InputError, match="dict"):
        load_data("mine:f", TWO)


def _synthetic(inputs: Inputs, seed: int = 0) -> Data:
    return load_data(None, inputs, seed=seed)


def test_made_up_inputs_are_seeded_and_said() -> None:
    first, again, other = _synthetic(IMAGE), _synthetic(IMAGE), _synthetic(IMAGE, seed=1)
    at = np.array([13, 2])
    assert first.synthetic
    assert any("--data" in warning for warning in first.warnings)
    np.testing.assert_array_equal(first.read(at)["image"], again.read(at)["image"])
    np.testing.assert_array_equal(first.read(at)["image"][1], first.read(at[1:])["image"][0])
    assert not np.array_equal(first.read(at)["image"], other.read(at)["image"])


def test_made_up_images_are_smooth_like_photographs() -> None:
    image = _synthetic({"a": (("N", 3, 37, 41), np.dtype("float16"))}).read(np.arange(5))["a"]
    assert image.dtype == np.float16
    wide = image.astype(float)
    assert abs(wide.std() - 1) < 0.2
    assert np.corrcoef(wide[..., 1:].ravel(), wide[..., :-1].ravel())[0, 1] > 0.5
    assert abs(np.corrcoef(wide[0].ravel(), wide[1].ravel())[0, 1]) < 0.5
    channels_last = _synthetic({"a": ((1, 37, 41, 3), np.dtype("float32"))}).read(np.arange(5))["a"]
    assert np.corrcoef(channels_last[:, 1:].ravel(), channels_last[:, :-1].ravel())[0, 1] > 0.5


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "float64"])
def test_made_up_inputs_of_every_type(dtype: str) -> None:
    feeds = _synthetic({"a": (("N", 11), np.dtype(dtype)), "b": ((), np.dtype(dtype))}).read(np.arange(7))
    assert (feeds["a"].shape, feeds["a"].dtype, feeds["b"].shape) == ((7, 11), dtype, ())
    assert len(np.unique(feeds["a"])) > 1
    if dtype in ("int64", "int32"):
        assert set(np.unique(feeds["a"])) == {0, 1}  # valid as token ids, positions or a mask


def test_made_up_inputs_need_sizes() -> None:
    with pytest.raises(InputError, match="--shape"):
        _synthetic({"a": (("N", 3, None, "w"), np.dtype("float32"))})


def test_batches_are_lazy() -> None:
    asked: list[list[int]] = []

    def read(at: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(at.tolist())
        return {"x": at}

    batches: Iterator[Any] = Data(n=9, labels=None, read=read, origin="test").batches(np.arange(7), 3)
    assert asked == []
    next(batches)
    assert asked == [[0, 1, 2]]
    with pytest.raises(ValueError, match="batch_size"):
        next(Data(n=9, labels=None, read=read, origin="test").batches(np.arange(7), 0))
