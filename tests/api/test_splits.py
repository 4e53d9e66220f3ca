import numpy as np
import pytest
from onnx_netadapt.data import Data
from onnx_netadapt.splits import Splits, split


def _data(n: int, labels: np.ndarray | None = None) -> Data:
    return Data(n=n, labels=labels, read=lambda at: {"x": at}, origin="test")


def _all(parts: Splits) -> np.ndarray:
    return np.concatenate([parts.calibration, parts.selection, parts.report])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 101, 700, 5003, 20011])
@pytest.mark.parametrize("labelled", [False, True])
def test_sets_are_disjoint_and_within_range(n: int, labelled: bool) -> None:
    labels = np.arange(n) % 7 if labelled else None
    used = _all(split(_data(n, labels), seed=3))
    assert len(np.unique(used)) == len(used)
    assert used.min() >= 0
    assert used.max() < n


def test_sizes_for_700_and_for_many_images() -> None:
    small, large = split(_data(700), 0), split(_data(100_003), 0)
    assert [len(p) for p in (small.calibration, small.selection, small.report)] == [490, 105, 105]
    assert [len(p) for p in (large.calibration, large.selection, large.report)] == [2000, 1000, 10_000]


def test_every_class_is_spread_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [101, 211, 17])
    labels = np.random.default_rng(1).permutation(labels)
    parts = split(_data(len(labels), labels), seed=5)
    for part in (parts.calibration, parts.selection, parts.report):
        got = np.bincount(labels[part], minlength=3)
        assert np.all(np.abs(got - np.bincount(labels) * len(part) / len(labels)) <= 2)


def test_classes_of_one_image_each_fill_all_sets() -> None:
    parts = split(_data(700, np.random.default_rng(0).permutation(700)), seed=0)
    assert [len(p) for p in (parts.calibration, parts.selection, parts.report)] == [490, 105, 105]


def test_half_of_a_thousand_and_most_of_a_hundred_calibrate() -> None:
    found = {n: len(split(_data(n), 0).calibration) for n in (100, 500, 720, 1000, 3000)}
    assert found == {100: 70, 500: 350, 720: 500, 1000: 500, 3000: 1500}


def test_with_examples_apart_for_the_report_none_are_kept_back() -> None:
    parts = split(_data(500), 0, reporting_apart=True)
    assert [len(p) for p in (parts.calibration, parts.selection, parts.report)] == [425, 75, 0]
    assert not any("empty" in warning or "report" in warning for warning in parts.warnings)
    assert len(np.unique(_all(parts))) == 500


def test_labels_that_are_no_classes_do_not_stop_it() -> None:
    parts = split(_data(41, np.random.default_rng(0).random((41, 5))), seed=0)
    assert len(_all(parts)) == 41


def test_one_seed_one_split_another_seed_another_split() -> None:
    labels = np.arange(210) % 5
    first, again, other = (split(_data(210, labels), seed) for seed in (1, 1, 2))
    assert np.array_equal(_all(first), _all(again))
    assert not np.array_equal(_all(first), _all(other))


def test_any_prefix_of_a_set_mixes_the_classes() -> None:
    labels = np.repeat(np.arange(10), 100)
    prefix = split(_data(1000, labels), seed=0).calibration[:100]
    assert len(np.unique(labels[prefix])) == 10


@pytest.mark.parametrize(("n", "words"), [(1, "empty"), (2, "empty"), (120, "below 200"), (700, "500")])
def test_too_little_data_is_said(n: int, words: str) -> None:
    assert any(words in warning for warning in split(_data(n), 0).warnings)


def test_enough_data_gives_no_warning() -> None:
    assert split(_data(1200), 0).warnings == ()
