"""Folders of images and --preprocess, against arithmetic written out by hand."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx_netadapt.data import Inputs, load_data
from onnx_netadapt.ir.errors import InputError
from PIL import Image

RNG = np.random.default_rng(0)


def _inputs(*shape: int | str | None, dtype: str = "float32") -> Inputs:
    return {"image": (shape, np.dtype(dtype))}


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _bytes(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def _one(folder: Path, inputs: Inputs, preprocess: str | None) -> np.ndarray:
    return load_data(str(folder), inputs, preprocess).read(np.array([0]))["image"][0]


def test_imagenet_of_an_image_that_already_fits_is_plain_arithmetic(tmp_path: Path) -> None:
    pixels = _bytes(224, 224, 3)
    _save(tmp_path / "a.png", pixels)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    got = _one(tmp_path, _inputs("N", 3, 224, 224), "imagenet")
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_imagenet_takes_the_middle_of_a_larger_image(tmp_path: Path) -> None:
    pixels = np.zeros((512, 768, 3), np.uint8)  # the shorter side goes to 256: the crop is 448x448 source pixels
    pixels[32:480, 160:608] = 255
    _save(tmp_path / "a.png", pixels)
    got = _one(tmp_path, _inputs(1, 3, 224, 224), "imagenet,mean=0,std=1")
    assert got.shape == (3, 224, 224)
    assert got[:, 2:-2, 2:-2].min() == 1
    assert _one(tmp_path, _inputs(1, 3, 224, 224), "size=224")[:, 0, 0].max() == 0  # stretched: the border is in it


def test_size_scale_mean_std_order_and_layout(tmp_path: Path) -> None:
    pixels = _bytes(7, 11, 3)
    _save(tmp_path / "a.png", pixels)
    spec = "size=7x11,scale=1/2,mean=1,2,3,std=4,5,8,layout=NHWC,order=BGR"
    got = _one(tmp_path, _inputs(None, 7, 11, 3), spec)
    np.testing.assert_allclose(got, (pixels[..., ::-1] * 0.5 - [1, 2, 3]) / [4, 5, 8], rtol=1e-6)


def test_layout_and_size_come_from_the_model_when_not_said(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _bytes(20, 20, 3))
    assert _one(tmp_path, _inputs("N", 5, 7, 3), "scale=1").shape == (5, 7, 3)
    assert _one(tmp_path, _inputs("N", 3, 5, 7), "scale=1").shape == (3, 5, 7)


def test_a_network_for_grey_images_gets_grey_images(tmp_path: Path) -> None:
    pixels = _bytes(5, 7)
    _save(tmp_path / "a.png", np.stack([pixels] * 3, axis=2))
    np.testing.assert_array_equal(_one(tmp_path, _inputs(1, 1, 5, 7), "scale=1")[0], pixels)


def test_float16_and_uint8_networks(tmp_path: Path) -> None:
    pixels = _bytes(5, 7, 3)
    _save(tmp_path / "a.png", pixels)
    assert _one(tmp_path, _inputs(1, 3, 5, 7, dtype="float16"), "imagenet").dtype == np.float16
    np.testing.assert_array_equal(_one(tmp_path, _inputs(1, 5, 7, 3, dtype="uint8"), None), pixels)
    with pytest.raises(InputError, match="scale=1"):
        load_data(str(tmp_path), _inputs(1, 5, 7, 3, dtype="uint8"), "imagenet")


@pytest.mark.parametrize(
    ("shape", "inputs", "spec"),
    [
        ((5, 9, 9, 3), _inputs("N", 3, 9, 9), "imagenet"),
        ((5, 9, 9, 3), _inputs("N", 9, 9, 3), "order=BGR,mean=0.1,0.2,0.3,std=2"),
        ((5, 9, 9), _inputs("N", 1, 9, 9), "mean=0.5"),
        ((5, 9, 9, 1), _inputs("N", 1, None, None), "scale=1"),
        ((5, 9, 9), _inputs("N", 3, 9, 9), "mean=0.5"),
        ((5, 9, 9, 3), _inputs("N", 1, 9, 9), "mean=0.5"),
        ((5, 9, 9, 3), _inputs("N", 3, 7, 5), "imagenet"),
        ((5, 9, 9, 3), _inputs("N", 9, 9, 3, dtype="uint8"), None),
    ],
)
def test_an_array_of_images_is_what_a_folder_of_them_is(tmp_path: Path, shape, inputs: Inputs, spec) -> None:
    pixels = _bytes(*shape)
    for place, image in enumerate(pixels):
        _save(tmp_path / "folder" / f"{place}.png", image[..., 0] if image.shape[2:] == (1,) else image)
    np.savez(tmp_path / "data.npz", x=pixels)
    spec = spec if inputs["image"][1].kind == "f" else "scale=1"
    indices = np.array([3, 0, 3])
    found = [load_data(str(tmp_path / name), inputs, spec).read(indices)["image"] for name in ("data.npz", "folder")]
    np.testing.assert_array_equal(*found)
    assert found[0].dtype == inputs["image"][1]


def test_sub_folders_are_classes_by_name(tmp_path: Path) -> None:
    for name, count in (("pear", 2), ("apple", 3), ("zebra", 1)):
        for i in range(count):
            _save(tmp_path / name / f"{i}.png", _bytes(5, 7, 3))
    found = load_data(str(tmp_path), _inputs(1, 3, 5, 7), "scale=1")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_numeric_sub_folders_are_the_class_index(tmp_path: Path) -> None:
    for name in ("7", "010", "2"):
        _save(tmp_path / name / "a.png", _bytes(5, 7, 3))
    found = load_data(str(tmp_path), _inputs(1, 3, 5, 7), "scale=1")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 7, 10]


def test_flat_folders_have_no_labels_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden.png"):
        _save(tmp_path / name, _bytes(5, 7, 3))
    (tmp_path / "notes.txt").write_text("not an image")
    found = load_data(str(tmp_path), _inputs(1, 3, 5, 7), "scale=1")
    assert (found.n, found.labels) == (2, None)


def test_images_come_in_the_asked_order_with_their_labels(tmp_path: Path) -> None:
    for label in range(5):
        _save(tmp_path / str(label) / "a.png", np.full((5, 7, 3), label, np.uint8))
    found = load_data(str(tmp_path), _inputs("N", 3, 5, 7), "scale=1")
    got = list(found.batches(np.array([4, 0, 3]), 2))
    assert [feeds["image"][:, 0, 0, 0].tolist() for feeds, _ in got] == [[4, 0], [3]]
    assert [labels.tolist() for _, labels in got if labels is not None] == [[4, 0], [3]]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_netadapt.images.KEPT_BYTES", 3 * 101 * 103 * 3)
    for i in range(40):
        _save(tmp_path / f"{i:02}.png", np.full((101, 103, 3), i, np.uint8))

    def peak(count: int) -> int:
        found = load_data(str(tmp_path), _inputs("N", 3, 101, 103), "scale=1")
        tracemalloc.start()
        total = sum(float(feeds["image"].sum()) for feeds, _ in found.batches(np.arange(count), 4))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == sum(range(count)) * 101 * 103 * 3
        return highest

    assert peak(40) < 1.2 * peak(8)


def test_no_preprocess_is_said(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", np.full((5, 7, 3), 255, np.uint8))
    found = load_data(str(tmp_path), _inputs(1, 3, 5, 7), None)
    assert any("--preprocess" in warning for warning in found.warnings)
    assert found.read(np.array([0]))["image"].max() == 1


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        _save(tmp_path / name, _bytes(50, 70, 3))
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:400])
    found = load_data(str(tmp_path), _inputs(1, 3, 50, 70), "scale=1")
    with pytest.raises(InputError, match=r"b\.png"):
        list(found.batches(np.arange(2), 1))


def test_images_of_16_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", np.full((5, 7), 40_000, np.uint16))
    with pytest.raises(InputError, match="8 bit"):
        load_data(str(tmp_path), _inputs(1, 1, 5, 7), "scale=1")


def test_images_of_different_sizes_need_a_size_when_the_network_has_none(tmp_path: Path) -> None:
    for i, side in enumerate((5, 7)):
        _save(tmp_path / f"{i}.png", _bytes(side, side, 3))
    found = load_data(str(tmp_path), _inputs(None, 3, None, None), "scale=1")
    with pytest.raises(InputError, match="size="):
        found.read(np.arange(2))
    sized = load_data(str(tmp_path), _inputs(None, 3, None, None), "size=6")
    assert sized.read(np.arange(2))["image"].shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("inputs", "spec", "words"),
    [
        (_inputs(1, 3, 5, 7), "size=224", "224"),
        (_inputs(1, 3, 5, 7), "colour=RGB", "colour"),
        (_inputs(1, 3, 5, 7), "cifar", "cifar"),
        (_inputs(1, 3, 5, 7), "std=0", "std"),
        (_inputs(1, 3, 5, 7), "mean=1,2", "mean"),
        (_inputs(1, 1, 5, 7), "mean=1,2,3", "mean"),
        (_inputs(1, 3, 5, 7), "scale=1/0", "scale"),
        (_inputs(1, 3, 5, 7), "scale=nan", "scale"),
        (_inputs(1, 3, 5, 7), "size=5x", "size"),
        (_inputs(1, 3, 5, 7), "size=-5", "size"),
        (_inputs(1, 3, 5, 7), "layout=NHWC", "NHWC"),
        (_inputs(1, 3, 5, 7), "layout=CHWN", "layout"),
        (_inputs(1, 3, 5, 7), "order=GBR", "order"),
        (_inputs(1, 3, 5, 7), "crop=2", "crop"),
        (_inputs(1, 13, 5, 7), "scale=1", "13"),
        (_inputs(1, 3, 5), "scale=1", "rank"),
        ({"a": ((1, 3, 5, 7), np.dtype("float32")), "b": ((1, 3), np.dtype("float32"))}, None, ".npz"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, inputs: Inputs, spec: str, words: str) -> None:
    _save(tmp_path / "a.png", _bytes(5, 7, 3))
    with pytest.raises(InputError, match=words):
        load_data(str(tmp_path), inputs, spec)


def test_folders_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        load_data(str(tmp_path), _inputs(1, 3, 5, 7), "scale=1")
    _save(tmp_path / "a.png", _bytes(5, 7, 3))
    _save(tmp_path / "cat" / "a.png", _bytes(5, 7, 3))
    with pytest.raises(InputError, match="beside"):
        load_data(str(tmp_path), _inputs(1, 3, 5, 7), "scale=1")
    (tmp_path / "a.png").unlink()
    for name in ("1", "01"):
        _save(tmp_path / name / "a.png", _bytes(5, 7, 3))
    (tmp_path / "cat" / "a.png").unlink()
    (tmp_path / "cat").rmdir()
    with pytest.raises(InputError, match="same class"):
        load_data(str(tmp_path), _inputs(1, 3, 5, 7), "scale=1")


@pytest.mark.parametrize("room", [10**9, 2 * 6 * 6 * 3, 0])
def test_an_image_is_decoded_once_as_long_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    images = [_bytes(6, 6, 3) for _ in range(4)]
    for name, image in zip("abcd", images, strict=True):
        _save(tmp_path / f"{name}.png", image)
    opened, open_image = [], Image.open
    monkeypatch.setattr("onnx_netadapt.images.KEPT_BYTES", room)
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path.name) or open_image(path))
    data = load_data(str(tmp_path), _inputs("N", 6, 6, 3), "scale=1")
    for order in ([0, 1, 2, 3], [3, 1, 1, 0]):
        got = data.read(np.array(order))["image"]
        np.testing.assert_array_equal(got, [images[place] for place in order])
    # the first one is looked at when the folder is opened
    wanted = {10**9: "abcd", 2 * 6 * 6 * 3: "abcdd", 0: "aabcddbba"}[room]
    assert "".join(name[0] for name in opened) == wanted


def test_images_at_another_size_are_not_those_that_were_kept(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _bytes(8, 8, 3))
    data = load_data(str(tmp_path), _inputs("N", 8, 8, 3), "scale=1")
    assert data.resized is not None
    whole, small, again = (
        data.read(np.array([0]))["image"],
        data.resized(np.array([0]), (4, 4))["image"],
        data.resized(np.array([0]), (4, 4))["image"],
    )
    assert (whole.shape, small.shape) == ((1, 8, 8, 3), (1, 4, 4, 3))
    np.testing.assert_array_equal(small, again)
    np.testing.assert_array_equal(whole, data.read(np.array([0]))["image"])
