"""Gram matrices and consumers: the sums are numpy's own, and do not grow with the number of examples."""

import numpy as np
import onnx
import pytest
from linear_cases import Net, batches_of, coupled, examples, group_read_by, tensors_of
from onnx_netadapt.ir import TargetError
from onnx_netadapt.passes import consumers as consumers_module
from onnx_netadapt.passes import rows
from onnx_netadapt.passes.consumers import consumers_of
from onnx_netadapt.passes.gram import collect


def two_convolutions(*, between: str = "Relu") -> onnx.ModelProto:
    """x -> conv a (7) -> something per channel -> conv b (5) -> mean over the image."""
    net = Net((3, 11, 13))
    net.add("Conv", "x", net.weight("wa", 7, 3, 3, 3), net.weight("ba", 7), out="a", pads=[1, 1, 1, 1])
    if between == "Relu":
        net.add("Relu", "a", out="h")
    else:
        net.add("Conv", "a", net.weight("wd", 7, 1, 3, 3), net.weight("bd", 7), out="d", group=7, strides=[2, 2])
        net.add("Clip", "d", out="h")
    net.add("Conv", "h", net.weight("wb", 5, 7, 3, 2), net.weight("bb", 5), out="b", strides=[2, 1], pads=[1, 0, 1, 1])
    net.add("GlobalAveragePool", "b", out="y")
    return net.model("y", 4)


def _columns_by_hand(x: np.ndarray) -> np.ndarray:
    """Rows (examples x positions, channels x taps) of conv b, by loops over the padded input."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 1)))
    found = [
        padded[:, :, 2 * i : 2 * i + 3, j : j + 2].reshape(len(x), -1)
        for i in range((padded.shape[2] - 3) // 2 + 1)
        for j in range(padded.shape[3] - 1)
    ]
    return np.concatenate(found)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads every position."""
    monkeypatch.setattr(rows, "MIN_POSITIONS", 10**9)


@pytest.mark.usefixtures("everything")
def test_the_moments_are_those_of_all_columns() -> None:
    model, x = two_convolutions(), examples((3, 11, 13), 23)
    statistics = collect(coupled(model), batches_of(x))
    moments = statistics.moments["h", statistics.consumers.all[-1].window]
    columns = _columns_by_hand(tensors_of(model, ["h"], x)[0]).astype(np.float64)
    assert (statistics.examples, moments.count) == (23, len(columns))
    assert np.allclose(moments.second(centred=False)[0], columns.T @ columns / len(columns), rtol=1e-5, atol=1e-7)
    assert np.allclose(moments.second(centred=True)[0], np.cov(columns.T, bias=True), rtol=1e-4, atol=1e-6)
    assert np.allclose(moments.mean()[0], columns.mean(axis=0), rtol=1e-5)


def _largest(count: int, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Numbers kept at the end, and bytes of the largest set of tapped tensors on the way, all examples in one batch."""
    seen: list[int] = []
    run = rows.Runner.__call__

    def watched(self: rows.Runner, feeds: rows.Feeds) -> dict[str, np.ndarray]:
        values = run(self, feeds)
        seen.append(sum(value.nbytes for value in values.values()))
        return values

    with patch.context() as patched:
        patched.setattr(rows.Runner, "__call__", watched)
        statistics = collect(coupled(two_convolutions()), batches_of(examples((3, 11, 13), count), size=count))
    return sum(moments.gram.size + moments.total.size for moments in statistics.moments.values()), max(seen)


def test_memory_does_not_grow_with_the_number_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _largest(70, monkeypatch) == _largest(700, monkeypatch)


def test_pieces_shrink_to_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = coupled(two_convolutions()).graph
    monkeypatch.setattr(rows, "MEMORY_BYTES", 3 * 4 * 7 * 11 * 13 + 1)
    found = [len(feeds["x"]) for feeds in rows.pieces(graph, batches_of(examples((3, 11, 13), 8), size=8), ["h"])]
    assert found == [3, 3, 2]


def test_sampled_positions_give_nearly_the_same_moments() -> None:
    model, x = two_convolutions(), examples((3, 11, 13), 300)
    statistics = collect(coupled(model), batches_of(x))
    moments = statistics.moments["h", statistics.consumers.all[-1].window]
    columns = _columns_by_hand(tensors_of(model, ["h"], x)[0]).astype(np.float64)
    assert moments.count == 300 * rows.MIN_POSITIONS < len(columns)
    whole = columns.T @ columns / len(columns)
    assert np.abs(moments.second(centred=False)[0] - whole).max() < 0.1 * np.abs(whole).max()


def test_the_same_seed_gives_the_same_numbers() -> None:
    coupling, batches = coupled(two_convolutions()), batches_of(examples((3, 11, 13), 40))
    one, two, other = (collect(coupling, batches, seed=seed) for seed in (3, 3, 4))
    key = next(iter(one.moments))
    assert np.array_equal(one.moments[key].gram, two.moments[key].gram)
    assert not np.array_equal(one.moments[key].gram, other.moments[key].gram)


def test_a_depthwise_convolution_is_looked_through() -> None:
    coupling = coupled(two_convolutions(between="depthwise"))
    found = consumers_of(coupling)
    assert [item.weight for item in found.by_group[group_read_by(coupling, "a")]] == ["wb"]


def test_a_shared_weight_is_left_alone_with_a_note() -> None:
    net = Net((97,))
    weight = net.weight("w", 97, 97)  # too large to be copied for each user
    net.add("MatMul", "x", weight, out="a")
    net.add("Relu", "a", out="h")
    net.add("MatMul", "h", weight, out="b")
    net.add("MatMul", "b", net.weight("v", 97, 5), out="y")
    found = consumers_of(coupled(net.model("y", 2)))
    assert [item.weight for item in found.all] == ["v"]
    assert any("shared" in note for note in found.notes)


def test_a_hidden_weight_is_left_alone_with_a_note() -> None:
    net = Net((3,))
    net.add("MatMul", "x", net.weight("w", 3, 7), out="a")
    net.add("Transpose", net.weight("v", 5, 7), out="t", perm=[1, 0])
    net.add("MatMul", "a", "t", out="y")
    coupling = coupled(net.model("y", 2))
    found = consumers_of(coupling)
    assert found.by_group[group_read_by(coupling, "a")] == ()
    assert any("y_node" in note for note in found.notes)


def test_a_large_kernel_is_read_channel_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers_module, "COLUMN_LIMIT", 20)
    statistics = collect(coupled(two_convolutions()), batches_of(examples((3, 11, 13), 5)))
    item = statistics.consumers.all[-1]
    assert item.by_channel
    assert statistics.moments[item.key].gram.shape == (1, 7, 7)
    assert any("channel by channel" in note for note in statistics.notes)


def test_a_model_that_cannot_run_is_said_to_be_so() -> None:
    coupling = coupled(two_convolutions())
    with pytest.raises(TargetError, match="cannot run"):
        collect(coupling, batches_of(examples((4, 11, 13), 5)))
