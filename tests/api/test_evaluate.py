"""Scores from batches that are judged beside each other, against the same worked out in one piece."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_netadapt import evaluate
from onnx_netadapt.evaluate import BATCH, FIRST, LANES, Evaluator, Standing, race
from onnx_netadapt.inputs import Data
from onnx_netadapt.ir import load
from onnx_netadapt.metrics import Metric, metric_of
from onnx_netadapt.models.digits import digits, digits_model

COUNT = 3 * BATCH + 5


@pytest.fixture(scope="module")
def original():
    return onnx.load_from_string(digits_model())


@pytest.fixture(scope="module")
def judged(original):
    """The original with its weights disturbed, so that scores are neither perfect nor chance."""
    rng = np.random.default_rng(0)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.ndim > 1:
            noisy = (value + rng.normal(0, 0.15 * value.std(), value.shape)).astype(value.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    return model


def data_of(graph, count=COUNT):
    made = digits()
    port = graph.inputs[0].name
    x, y = made.x[made.test[:count]], made.y[made.test[:count]]
    return Data(count, y, lambda at: {port: x[at]}, "digits")


def whole(model, data):
    """All outputs at once, in a session of one thread."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, data.read(np.arange(COUNT)))
    return outputs


def test_lanes_give_the_score_of_all_examples_at_once(original, judged):
    graph = load(original)
    data = data_of(graph)
    evaluator = Evaluator(graph, data, np.arange(COUNT), metric_of("top1"))
    wanted = np.mean(whole(judged, data).argmax(axis=1) == data.labels)
    assert 0.2 < wanted < 0.99
    assert evaluator.score(judged) == pytest.approx(wanted)


@pytest.mark.parametrize("room", [evaluate.REFERENCE_BYTES, 0])
def test_the_original_s_own_score_needs_no_other_session(judged, monkeypatch, room):
    """`judged` stands in for the original: it does not get all examples right."""
    monkeypatch.setattr(evaluate, "REFERENCE_BYTES", room)
    graph = load(judged)
    evaluator = Evaluator(graph, data_of(graph), np.arange(COUNT), metric_of("top1"))
    wanted = evaluator.score(judged)
    assert 0.2 < wanted < 0.99
    monkeypatch.setattr(evaluator, "runner", "no model is opened for it")
    assert evaluator.original_score == pytest.approx(wanted)


@pytest.mark.parametrize("room", [evaluate.REFERENCE_BYTES, 0])
def test_outputs_of_the_original_that_are_not_kept_are_made_again(original, judged, monkeypatch, room):
    graph = load(original)
    data = data_of(graph)
    monkeypatch.setattr(evaluate, "REFERENCE_BYTES", room)
    evaluator = Evaluator(graph, data, np.arange(COUNT), metric_of("agreement"))
    assert (evaluator._kept is None) == (room == 0)
    wanted = np.mean(whole(judged, data).argmax(axis=1) == whole(original, data).argmax(axis=1))
    assert evaluator.score(judged) == pytest.approx(wanted)
    assert evaluator.score(original) == 1.0


def test_a_metric_of_the_whole_set_gets_outputs_and_labels_in_their_order(original, judged):
    graph = load(original)
    data, seen = data_of(graph), []
    metric = Metric("seen", False, whole=lambda outputs, labels: seen.append((outputs[0], labels)) or 0.25)
    order = np.arange(COUNT)[::-1].copy()
    assert Evaluator(graph, data, order, metric).score(judged) == 0.25
    ((outputs, labels),) = seen
    np.testing.assert_allclose(outputs, whole(judged, data)[order], atol=1e-4)
    np.testing.assert_array_equal(labels, data.labels[order])


def test_a_model_of_a_fixed_batch_has_one_lane_and_counts_no_example_twice(original, judged):
    fixed = []
    for model in (original, judged):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for port in (*copy.graph.input, *copy.graph.output):
            port.type.tensor_type.shape.dim[0].dim_value = 16
        fixed.append(copy)
    graph = load(fixed[0])
    data = data_of(graph)
    evaluator = Evaluator(graph, data, np.arange(COUNT), metric_of("top1"))
    assert evaluator.lanes == 1
    assert COUNT % 16  # the last batch is filled up
    assert evaluator.score(fixed[1]) == pytest.approx(np.mean(whole(judged, data).argmax(axis=1) == data.labels))


def test_an_evaluator_of_the_same_examples_is_made_once(original):
    graph = load(original)
    evaluator = Evaluator(graph, data_of(graph), np.arange(COUNT), metric_of("top1"))
    assert evaluator.on(np.arange(COUNT)) is evaluator.on() is evaluator
    few = evaluator.on(np.arange(9))
    assert few is evaluator.on(np.arange(9)) is not evaluator
    assert few is not evaluator.on(np.arange(9), metric_of("agreement"))
    assert list(few.indices) == list(range(9))
    assert 1 <= evaluator.lanes <= LANES


def test_rows_share_no_batch_where_an_input_does_not_count_examples():
    """y = x * scale * mask with a scalar input `scale`: nothing of it can stand beside another row's."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("Mul", ["scaled", "mask"], ["y"])]
    ports = [("x", ["n", 4]), ("scale", []), ("mask", ["m", 4])]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "scaled",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in ports],
            [helper.make_tensor_value_info("y", kind, ["n", 4])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.node[1], plain.graph.input[2]
    plain.graph.node[0].output[0] = "y"
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    data = Data(20, None, lambda at: {"x": x[at], "scale": np.array(2.0, np.float32)}, "made up")
    evaluator = Evaluator(load(plain), data, np.arange(20), metric_of("fidelity"))
    masks = {"mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 0]], np.float32)}
    scores = evaluator.score_rows(evaluator.runner(model), masks)
    assert scores[0] == pytest.approx(max(scores))
    assert scores[0] > scores[1] > scores[2]


def worse(model, times):
    """The model with its last weights times a factor: what it says is the same, and how sure it is of it is not."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    matrices = [tensor for tensor in found.graph.initializer if len(tensor.dims) == 2]
    value = onnx.numpy_helper.to_array(matrices[-1]) * np.float32(times)
    matrices[-1].CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), matrices[-1].name))
    return found


@pytest.mark.parametrize("room", [evaluate.REFERENCE_BYTES, 0])
def test_what_is_clearly_behind_in_a_race_is_judged_on_the_first_examples_alone(original, judged, monkeypatch, room):
    graph = load(original)
    data = data_of(graph, len(digits().test))
    monkeypatch.setattr(evaluate, "REFERENCE_BYTES", room)
    evaluator = Evaluator(graph, data, np.arange(data.n), metric_of("kl"))
    models = [judged, worse(original, 0.97), original]
    found = race([(evaluator, model) for model in models])
    alone = [evaluator.score(model) for model in models]
    assert alone[0] < alone[1] < alone[2]
    assert found[2] == Standing(alone[2], data.n)
    assert found[0].examples == int(FIRST * data.n) // (BATCH // LANES) * (BATCH // LANES)
    assert found[0].score < found[1].score < found[2].score
    first = evaluator.on(np.arange(found[0].examples))
    behind = first.score(original) - first.score(judged)
    assert found[0].score == pytest.approx(alone[2] - behind)


def test_what_is_not_clearly_behind_is_judged_on_all(original, judged):
    graph = load(original)
    data = data_of(graph, len(digits().test))
    evaluator = Evaluator(graph, data, np.arange(data.n), metric_of("top1"))
    models = [judged, worse(judged, 1.01), worse(judged, 0.99)]  # they say the same of all images, nearly
    found = race([(evaluator, model) for model in models])
    assert found == [Standing(evaluator.score(model), data.n) for model in models]


@pytest.mark.parametrize("case", ["few", "whole"])
def test_there_is_no_race_on_few_examples_nor_by_a_metric_of_the_whole_set(original, judged, case):
    graph = load(original)
    data = data_of(graph)
    metric = metric_of("kl") if case == "few" else Metric("whole", False, whole=lambda outputs, _: outputs[0].mean())
    evaluator = Evaluator(graph, data, np.arange(COUNT), metric)
    found = race([(evaluator, original), (evaluator, judged)])
    assert found == [Standing(evaluator.score(model), COUNT) for model in (original, judged)]


def test_an_entrant_that_gives_no_numbers_comes_last(original, judged):
    graph = load(original)
    data = data_of(graph, len(digits().test))
    evaluator = Evaluator(graph, data, np.arange(data.n), metric_of("kl"))
    broken = worse(original, np.nan)
    found = race([(evaluator, broken), (evaluator, judged)])
    assert found[0].score == -np.inf
    assert found[1] == Standing(evaluator.score(judged), data.n)
    assert [own.score for own in race([(evaluator, broken), (evaluator, broken)])] == [-np.inf, -np.inf]


class Known:
    """An entrant whose sums of each batch are known."""

    def __init__(self, graph, sums):
        self.graph, self.sums, self.asked = graph, [float(value) for value in sums], []
        self.metric, self.indices = metric_of("kl"), np.arange(len(sums) * (BATCH // LANES))

    def runner(self, model):
        return None

    def judged(self, run, start=0, stop=None):
        self.asked.append((start, stop))
        return self.sums[start:stop]

    def mean(self, found):
        assert found == self.sums  # each batch once, in order
        mean = sum(found) / len(self.indices)
        return mean if np.isfinite(mean) else -np.inf


def test_where_the_leader_of_a_race_breaks_down_the_next_one_is_judged_after_all(original):
    graph, batches = load(original), 40
    broken = Known(graph, [0.0] * (batches - 1) + [np.nan])
    behind, last = Known(graph, [-1.0] * batches), Known(graph, [-2.0] * batches)
    found = race([(last, None), (broken, None), (behind, None)])
    assert [own.score for own in found] == [pytest.approx(-3 / 8), -np.inf, pytest.approx(-1 / 8)]
    assert found[2].examples == batches * (BATCH // LANES)
    assert last.asked == [(0, batches // 4)]


def test_few_batches_decide_nothing(original):
    graph = load(original)
    entrants = [Known(graph, [value] * 28) for value in (-1.0, -2.0)]  # a quarter of them are seven
    assert race([(entrant, None) for entrant in entrants]) == [Standing(value, 28 * 8) for value in (-1 / 8, -2 / 8)]
