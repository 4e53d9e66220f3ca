"""Large models on the command line: weights stay on the disk, every result is proved, memory stays far below twice."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_netadapt import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    """benchmarks/scale.py, whose generated model and measured processes these tests share."""
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module
    spec.loader.exec_module(module)
    return module


def test_prune_and_verify_read_weights_from_the_disk(
    scale: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = scale.matrices(tmp_path, 0.006, width=768), tmp_path / "out.onnx"
    before = path.read_bytes(), (tmp_path / "matrices.data").read_bytes()
    assert cli._run(["prune", str(path), "--keep", "0.5", "-o", str(out)]) == 0
    assert "passed" in capsys.readouterr().out
    assert (path.read_bytes(), (tmp_path / "matrices.data").read_bytes()) == before
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"matrices.onnx", "matrices.data", "out.onnx", "out.onnx.data", "out.plan.json"}
    dims = [list(tensor.dims) for tensor in onnx.load(out).graph.initializer]
    assert dims == [[768, 384], [384, 384], [384, 768]]
    assert cli._run(["verify", str(path), str(out)]) == 0
    assert capsys.readouterr().out.startswith("passed: zeroing equals removing for the model")


def test_verify_of_large_models_sets_refined_weights_back_and_finds_wrong_ones(
    scale: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = scale.matrices(tmp_path, 0.006, width=768), tmp_path / "out.onnx"
    cli._run(["prune", str(path), "--keep", "0.5", "-o", str(out)])
    model = onnx.load(out)
    weight = model.graph.initializer[1]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, out, save_as_external_data=True, location="refined.data")
    capsys.readouterr()
    assert cli._run(["verify", str(path), str(out)]) == 0
    assert "before its weights were refined" in capsys.readouterr().out
    plan = out.with_name("out.plan.json")
    plan.write_text(plan.read_text().replace('"role": "consumer"', '"role": "producer"'))
    assert cli._run(["verify", str(path), str(out)]) == 2
    assert capsys.readouterr().out.startswith("FAILED")


@pytest.mark.slow
def test_a_model_of_a_gigabyte_stays_under_two_and_a_half(scale: ModuleType, tmp_path: Path) -> None:
    path, out = scale.matrices(tmp_path, 1.0), tmp_path / "out.onnx"
    for arguments in (
        ["inspect", str(path)],
        ["prune", str(path), "--keep", "0.5", "-o", str(out)],
        ["verify", str(path), str(out)],
        ["save", str(path), str(tmp_path / "copy.onnx")],
    ):
        code, gigabytes, said = scale.peak(*arguments)
        assert code == 0, said
        assert gigabytes < 2.5
