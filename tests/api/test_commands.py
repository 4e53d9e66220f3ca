"""The commands beside the main job, on the network that comes with the package."""

import json

import numpy as np
import onnx
import onnx_netadapt as na
import pytest
from onnx_netadapt import cli
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.models.demo import write_demo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"))[0]


def said(capsys, *arguments):
    code = cli._run([str(item) for item in arguments])
    return code, capsys.readouterr().out


def test_inspect_lists_groups_that_add_up(model, capsys):
    code, text = said(capsys, "inspect", model, "--json")
    found = json.loads(text)
    assert code == 0
    assert {"macs", "params", "size_bytes", "peak_activation_bytes"} <= set(found["totals"])
    assert found["totals"]["params"] == sum(np.prod(t.dims) for t in onnx.load(model).graph.initializer)
    assert all(group["producers"] and group["consumers"] for group in found["groups"])
    assert all(0 < group["share_params"] < 1 for group in found["groups"])
    assert [barrier["reason"] for barrier in found["barriers"]] == ["an output of the model"]
    assert str(na.inspect(model)).count("\n") > len(found["groups"])


def test_prune_writes_a_model_that_verify_accepts(model, tmp_path, capsys):
    out = tmp_path / "half.onnx"
    code, text = said(capsys, "prune", model, "--keep", "0.5", "-o", out)
    assert code == 0
    assert "passed" in text
    code, text = said(capsys, "verify", model, out)
    assert code == 0
    assert text.startswith("passed")


def test_verify_refuses_a_model_that_was_pruned_otherwise(model, tmp_path, capsys):
    for keep, name in ((0.5, "a"), (0.75, "b")):
        said(capsys, "prune", model, "--keep", keep, "-o", tmp_path / f"{name}.onnx")
    code, text = said(capsys, "verify", model, tmp_path / "a.onnx", "--plan", tmp_path / "b.plan.json")
    assert code == 2
    assert "FAILED" in text


def test_prune_takes_widths(model, tmp_path, capsys):
    widths = tmp_path / "widths.json"
    widths.write_text('{"g2": 37}')
    code, _ = said(capsys, "prune", model, "--widths", widths, "-o", tmp_path / "w.onnx")
    plan = json.loads((tmp_path / "w.plan.json").read_text())
    assert code == 0
    assert [(group["id"], len(group["kept"])) for group in plan["groups"]] == [("g2", 37)]


@pytest.mark.parametrize("widths", ['{"g99": 3}', '{"g2": 0}', '{"g2": 1000}', '{"g2": "x"}', "[1]", "{"])
def test_widths_that_do_not_fit_are_refused(model, tmp_path, capsys, widths):
    (tmp_path / "w.json").write_text(widths)
    assert said(capsys, "prune", model, "--widths", tmp_path / "w.json", "-o", tmp_path / "w.onnx")[0] == 2
    assert not (tmp_path / "w.onnx").exists()


def test_prune_needs_one_of_keep_and_widths(model):
    with pytest.raises(InputError, match="either"):
        na.prune(model)
    with pytest.raises(InputError, match="above 0"):
        na.prune(model, keep=0.0)


def test_keeping_everything_changes_no_byte(model):
    original = onnx.load(model)
    assert na.prune(original, keep=1.0).model.SerializeToString(deterministic=True) == original.SerializeToString(
        deterministic=True
    )


def test_measure_tells_statistic_count_and_clock(model):
    found = na.measure(model, runs=20)
    assert found.latency_ms["runs"] >= 20
    assert 0 < found.latency_ms["p10"] <= found.latency_ms["median"] <= found.latency_ms["p90"]
    assert found.latency_ms["clock"] == "cpu"


def test_profile_fills_a_table_that_inspect_reads(model, tmp_path, capsys):
    lut = tmp_path / "t.lut"
    code, text = said(capsys, "profile", model, "--lut", lut, "--check", "2", "--quiet")
    assert code == 0
    assert "granularity" in text
    code, text = said(capsys, "inspect", model, "--lut", lut, "--json")
    found = json.loads(text)
    assert found["estimate_ms"] > 0
    assert all("latency_ms" in group for group in found["groups"])


def test_to_torch_and_back_is_byte_identical(model):
    original = onnx.load(model)
    module = na.to_torch(model)
    assert set(module.state_dict()) <= {tensor.name for tensor in original.graph.initializer}
    assert na.from_torch(module, model).SerializeToString(deterministic=True) == original.SerializeToString(
        deterministic=True
    )
