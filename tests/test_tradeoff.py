"""The comparison's arithmetic: rows that are kept, curves, and speed at equal score; and the torch form of rivals."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """Lets the scripts be imported as they import each other."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


def _row(**changes):
    from tradeoff import Row

    row = Row("net", 0.5, "ours", 0, 300, "latency", 10, 0.9, 0.92, 0.5, 0.5, 10.0, 20.0, 100)
    return replace(row, **changes)


def test_rows_are_read_back_and_a_cut_off_line_is_left_out(tmp_path):
    from tradeoff import read_rows

    store = tmp_path / "rows.jsonl"
    rows = [_row(), _row(seed=1), _row(method="tp", score=None, note="not installed")]
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    store.write_text(text + json.dumps(asdict(_row(seed=2)))[:40])
    assert list(read_rows(store).values()) == rows
    assert read_rows(tmp_path / "none.jsonl") == {}
    assert _row().key == _row(short=3).key
    assert _row(method="recipe").key != _row(method="recipe", short=3).key


def test_a_curve_is_the_mean_over_seeds_by_budget():
    from tradeoff import curve, table

    rows = [
        _row(seed=0, score=0.80, latency=0.40), _row(seed=1, score=0.90, latency=0.50),
        _row(budget=0.7, score=0.95, latency=0.70), _row(method="tp", score=0.1),
        _row(budget=0.35, score=None, note="out of reach"),
    ]  # fmt: skip
    assert curve(rows, "net", "ours") == [(pytest.approx(0.45), pytest.approx(0.85)), (0.70, 0.95)]
    lines = table(rows).splitlines()
    assert len(lines) == 2 + 4
    assert "0.8500 ± 0.0707" in lines[3]
    assert "out of reach" in lines[5]


def test_speed_at_equal_score_is_interpolated():
    from tradeoff import latency_at, speedups

    ours = [(0.35, 0.80), (0.50, 0.90), (0.70, 0.92)]
    assert latency_at(ours, 0.85) == pytest.approx(0.425)
    assert latency_at(ours, 0.91) == pytest.approx(0.60)
    assert latency_at(ours, 0.92) == pytest.approx(0.70)
    assert latency_at(ours, 0.10) == 0.35
    assert latency_at(ours, 0.93) is None
    assert latency_at([], 0.5) is None
    rows = [_row(latency=latency, score=score, budget=latency) for latency, score in ours]
    told = speedups([*rows, _row(method="tp", latency=0.85, score=0.85)])
    assert "0.425 | 2.00" in told


def test_the_least_pruning_that_is_fast_enough_is_found_past_slow_ratios():
    from rivals import Absent, bisected

    def latency(ratio):  # one hump: between 0.32 and 0.5 pruning makes it slower
        return 1.3 - ratio if 0.32 < ratio < 0.5 else 1.0 - ratio

    found, ratio = bisected(lambda ratio: ratio, latency, 0.75)
    assert ratio == found
    assert latency(found) <= 0.75
    assert found == pytest.approx(0.25, abs=0.01)
    with pytest.raises(Absent, match="no ratio"):
        bisected(lambda ratio: ratio, latency, 0.01)


def test_the_torch_form_is_the_model_and_comes_back_pruned():
    import onnx
    import onnxruntime
    from layers import layers_of
    from onnx_netadapt.models.architectures import ARCHITECTURES
    from onnx_netadapt.models.export import export

    architecture = ARCHITECTURES["mobilenet_v1"].quickest
    model = export(architecture, dynamic_batch=True)
    module = layers_of(model)
    x = next(iter(architecture.example_inputs(batch=1).values()))

    def run(which):
        session = onnxruntime.InferenceSession(which.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(x)).numpy(), run(model), atol=1e-4)
    assert np.allclose(run(module.to_onnx()), run(model), atol=1e-5)
    first, second, third = list(module.layers.values())[:3]  # a convolution, a depthwise one, a pointwise one
    keep = torch.arange(first.out_channels - 3)
    for layer in (first, second):
        layer.weight = torch.nn.Parameter(layer.weight.detach()[keep])
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer.bias.detach()[keep])
    third.weight = torch.nn.Parameter(third.weight.detach()[:, keep])
    second.groups = len(keep)
    with torch.no_grad():
        pruned = module.to_onnx()
        onnx.checker.check_model(pruned)
        assert np.allclose(module(torch.from_numpy(x)).numpy(), run(pruned), atol=1e-4)
