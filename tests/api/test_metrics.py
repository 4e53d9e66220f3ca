"""Metrics by hand-worked examples."""

import numpy as np
import pytest
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.metrics import is_classifier, metric_of, report_metric, search_metric

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
OTHER = np.array([[0.0, 2.0, -1.0], [0.0, 1.0, 3.0]])


def values(name, outputs, original, labels=None):
    return metric_of(name).per_example(outputs, original, labels)


def test_top1_counts_hits_by_labels():
    assert values("top1", [LOGITS], [OTHER], np.array([0, 1])).tolist() == [1.0, 0.0]


def test_top1_without_labels_is_refused():
    with pytest.raises(InputError, match="labels"):
        values("top1", [LOGITS], [LOGITS])


def test_agreement_counts_equal_classes():
    assert values("agreement", [LOGITS], [OTHER]).tolist() == [0.0, 1.0]


def test_cosine_is_the_mean_over_outputs_and_ignores_scale():
    a, b = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
    assert values("cosine", [a, b], [3 * a, b])[0] == pytest.approx(1.0)
    assert values("cosine", [a, b], [b, b])[0] == pytest.approx(0.5)


def test_kl_is_zero_for_equal_outputs_and_worked_by_hand_otherwise():
    assert values("kl", [LOGITS], [LOGITS]) == pytest.approx([0.0, 0.0])
    p, q = (np.exp(x[0]) / np.exp(x[0]).sum() for x in (OTHER, LOGITS))
    assert values("kl", [LOGITS], [OTHER])[0] == pytest.approx(-(p * np.log(p / q)).sum())


def test_kl_takes_probabilities_as_they_are():
    p = np.array([[0.7, 0.2, 0.1]])
    q = np.array([[0.5, 0.3, 0.2]])
    assert values("kl", [q], [p])[0] == pytest.approx(-(p * np.log(p / q)).sum())
    assert values("kl", [np.log(q)], [np.log(p)])[0] == pytest.approx(-(p * np.log(p / q)).sum())


def test_fidelity_is_one_minus_the_relative_squared_error():
    original = np.array([[1.0, 3.0]])
    assert values("fidelity", [original], [original])[0] == 1.0
    assert values("fidelity", [np.array([[2.0, 3.0]])], [original])[0] == pytest.approx(1 - 1 / 2)


def test_a_classifier_is_one_row_of_scores_for_each_example():
    assert is_classifier([LOGITS])
    assert is_classifier([LOGITS[:, :, None, None]])
    assert not is_classifier([LOGITS, LOGITS])
    assert not is_classifier([np.zeros((2, 3, 4))])


def test_defaults_follow_the_outputs():
    assert search_metric([LOGITS]).name == "kl"
    assert search_metric([LOGITS, LOGITS]).name == "fidelity"
    assert report_metric([LOGITS], True).name == "top1"
    assert report_metric([LOGITS], False).name == "agreement"
    assert report_metric([LOGITS, LOGITS], True).name == "cosine"


def test_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match="top1"):
        metric_of("beauty")


def test_a_metric_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mine_metric.py").write_text("def score(outputs, labels):\n    return float(outputs[0].sum())\n")
    monkeypatch.chdir(tmp_path)
    assert metric_of("mine_metric:score").whole([LOGITS], None) == pytest.approx(LOGITS.sum())
    with pytest.raises(InputError, match="cannot be imported"):
        metric_of("mine_metric:absent")
