"""Lanes: results in order, one item at a time for each set of sums, errors told, and the sums of one lane."""

from collections.abc import Iterator
from threading import Barrier, Lock

import numpy as np
import pytest
from linear_cases import Net, batches_of, coupled, examples
from onnx_netadapt.ir import TargetError
from onnx_netadapt.passes import gram, rows, sequential
from onnx_netadapt.passes.consumers import consumers_of
from onnx_netadapt.passes.gram import collect
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.rows import added_up, in_lanes, lanes_for
from onnx_netadapt.passes.sequential import ROWS_PER_COLUMN, examples_needed, refit_sequential
from test_gram import two_convolutions


def test_results_come_in_order_and_lanes_work_side_by_side() -> None:
    together = Barrier(2, timeout=60)  # breaks unless both lanes are at work at once

    def work(number: int, item: str) -> str:
        together.wait()
        return f"{number}{item}"

    assert list(in_lanes("abcd", work)) == ["0a", "1b", "2c", "3d"]


def test_items_of_one_lane_are_never_worked_on_together() -> None:
    lanes, free = 3, [Lock() for _ in range(3)]

    def work(number: int, item: int) -> bool:
        with_nobody = free[number % lanes].acquire(blocking=False)
        np.ones((50, 50)) @ np.ones((50, 50))
        free[number % lanes].release()
        return with_nobody

    assert all(in_lanes(range(200), work, lanes))


def test_no_more_items_are_made_than_there_are_lanes_beside_the_next() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    results = in_lanes(items(), lambda number, item: item)
    for number in range(10):
        assert next(results) == number
        assert len(made) <= number + 3
    results.close()
    assert len(made) <= 12


def test_what_goes_wrong_in_a_lane_is_told() -> None:
    def work(number: int, item: int) -> int:
        if item == 5:
            raise TargetError("the fifth")
        return item

    with pytest.raises(TargetError, match="the fifth"):
        list(in_lanes(range(9), work))


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_is_run_is_added_up_in_order(lanes: int) -> None:
    sums: list[list[int]] = [[] for _ in range(lanes)]

    def add(number: int, value: int) -> int:
        sums[number % lanes].append(value)
        return number

    assert list(added_up(range(9), lambda item: item * item, add, lanes)) == list(range(9))
    assert sums == [[n * n for n in range(lane, 9, lanes)] for lane in range(lanes)]


def test_values_that_are_not_finite_are_no_warning_in_any_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_PIECE", 5)
    x = examples((3, 11, 13), 23)
    x[1], x[7] = np.inf, np.inf  # in the first piece of both lanes
    statistics = collect(coupled(two_convolutions()), batches_of(x))
    assert any("not finite" in note for note in statistics.notes)


def test_a_layer_behind_a_pool_asks_for_more_examples() -> None:
    net = Net((3, 8, 8))
    net.add("Conv", "x", net.weight("wa", 200, 3, 3, 3), net.weight("ba", 200), out="a", pads=[1, 1, 1, 1])
    net.add("Relu", "a", out="h")
    net.add("GlobalAveragePool", "h", out="p")
    net.add("Flatten", "p", out="f")
    net.add("Gemm", "f", net.weight("wb", 200, 5), net.weight("bb", 5), out="y")
    coupling = coupled(net.model("y", 2))
    consumers = consumers_of(coupling).all
    assert examples_needed(coupling.graph, consumers) == 200 * ROWS_PER_COLUMN * 5 / 4


def test_sums_too_large_for_two_lanes_are_made_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [lanes_for(size) for size in (0, rows.LANE_BYTES / 2, rows.LANE_BYTES)] == [2, 2, 1]
    monkeypatch.setattr(rows, "MAX_PIECE", 5)
    monkeypatch.setattr(rows, "MIN_POSITIONS", 10**9)  # every position
    coupling, x = coupled(two_convolutions()), examples((3, 11, 13), 43)

    def made() -> tuple[gram.Statistics, dict[str, np.ndarray]]:
        statistics = collect(coupling, batches_of(x))
        kept = {group.id: np.arange(3) for group in coupling.groups}
        return statistics, refit_sequential(coupling, kept, prune(coupling, kept).model, batches_of(x), statistics)

    two = made()
    monkeypatch.setattr(gram, "lanes_for", lambda size: 1)
    monkeypatch.setattr(sequential, "lanes_for", lambda size: 1)
    one = made()
    for key, moments in two[0].moments.items():
        assert moments.count == one[0].moments[key].count
        assert np.allclose(moments.second(centred=True), one[0].moments[key].second(centred=True), rtol=1e-5, atol=1e-5)
    assert two[1].keys() == one[1].keys()
    assert two[1]
    assert all(np.allclose(two[1][name], one[1][name], rtol=1e-3, atol=1e-5) for name in one[1])
