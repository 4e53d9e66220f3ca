"""The command line on bad input: the exit codes of CONTRACTS section 4, one clear message, nothing written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_netadapt as na
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt import cli
from onnx_netadapt.ir.errors import InputError

FAST = ["--budget", "macs=0.6x", "--finetune", "none"]


def small_model(*, op="Relu", domain="", nan=False, hidden=13):
    """Two linear layers with an operator between them."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((5, hidden)).astype(np.float32)
    if nan:
        first[2, 3] = np.nan
    weights = [first, rng.standard_normal((hidden, 3)).astype(np.float32)]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node(op, ["a"], ["b"], domain=domain),
        helper.make_node("MatMul", ["b", "w1"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 5), ("y", 3))]
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], tensors)
    sets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


@pytest.fixture
def folder(tmp_path):
    onnx.save(small_model(), tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((64, 5)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    return tmp_path


def run(folder: Path, capsys, *arguments):
    """The exit code and what was printed to standard error; no output may appear, and inputs stay as they are."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code = cli._run(["adapt", *map(str, arguments)])
    if code != 0:
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return code, capsys.readouterr().err


def test_a_missing_file(folder, capsys):
    code, said = run(folder, capsys, folder / "none.onnx", *FAST)
    assert (code, said.count("\n")) == (2, 1)
    assert "does not exist" in said


def test_a_text_file_with_the_wrong_name(folder, capsys):
    (folder / "t.onnx").write_text("this is not a model\n" * 50)
    code, said = run(folder, capsys, folder / "t.onnx", *FAST)
    assert code == 2
    assert "not an ONNX model" in said


def test_an_empty_file(folder, capsys):
    (folder / "e.onnx").write_bytes(b"")
    code, said = run(folder, capsys, folder / "e.onnx", *FAST)
    assert code == 2
    assert "not an ONNX model" in said


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_model(folder, capsys, share):
    content = (folder / "m.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[: int(len(content) * share)])
    code, said = run(folder, capsys, folder / "cut.onnx", *FAST)
    assert code in (2, 4)
    assert said.startswith("onnx-netadapt: ")


def test_a_folder_in_place_of_a_model(folder, capsys):
    (folder / "sub").mkdir()
    code = cli._run(["adapt", str(folder / "sub"), *FAST])
    assert code == 2


def test_an_unknown_custom_operator(folder, capsys):
    onnx.save(small_model(op="Mystery", domain="com.example"), folder / "c.onnx")
    code, said = run(folder, capsys, folder / "c.onnx", *FAST)
    assert code == 4
    assert "Mystery" in said


@pytest.mark.parametrize("budget", ["5bananas", "0x", "macs=3ms"])
def test_a_budget_that_is_none(folder, capsys, budget):
    code, said = run(folder, capsys, folder / "m.onnx", "--budget", budget)
    assert code == 2
    assert budget in said


def test_no_budget(folder, capsys):
    assert run(folder, capsys, folder / "m.onnx")[0] == 2


def test_a_budget_below_reach_says_what_can_be_reached(folder, capsys):
    code, said = run(folder, capsys, folder / "m.onnx", "--budget", "macs=3", "--data", folder / "d.npz", "--quiet")
    assert code == 3
    assert "macs 16 " in said  # two hidden units of 13, a tenth rounded up: 2 * (5 + 3) multiplications


def test_best_effort_writes_the_nearest_model_and_says_that_it_is_not_met(folder, capsys):
    arguments = [str(folder / "m.onnx"), "--budget", "macs=3", "--data", str(folder / "d.npz"), "--quiet"]
    code = cli._run(["adapt", *arguments, "--best-effort", "--finetune", "none"])
    assert code == 3
    assert "NOT MET" in capsys.readouterr().out
    assert (folder / "m.adapted.onnx").is_file()


def test_data_of_the_wrong_shape(folder, capsys):
    np.savez(folder / "bad.npz", x=np.zeros((9, 7), dtype=np.float32))
    code, said = run(folder, capsys, folder / "m.onnx", *FAST, "--data", folder / "bad.npz")
    assert code == 2
    assert "(9, 7)" in said


def test_weights_that_are_not_numbers(folder, capsys):
    onnx.save(small_model(nan=True), folder / "nan.onnx")
    code, said = run(folder, capsys, folder / "nan.onnx", *FAST)
    assert code == 2
    assert "'w0'" in said
    assert "1 NaN" in said


def test_a_model_with_nothing_to_prune(folder, capsys):
    onnx.save(small_model(op="Softmax"), folder / "stuck.onnx")
    code, said = run(folder, capsys, folder / "stuck.onnx", *FAST, "--quiet")
    assert code == 3
    assert "nothing to prune" in said
    assert "Softmax" in said


@pytest.mark.parametrize(
    "option",
    [
        ["--target", "toaster"],
        ["--search", "luck"],
        ["--metric", "beauty"],
        ["--metric", "top1"],
        ["--shape", "x=0,5"],
        ["--min-keep", "7"],
        ["--exclude", "no_such_node"],
        ["--finetune", "steps=many"],
        ["-o", "/no/such/folder/out.onnx"],
        ["--resume"],
    ],
)
def test_a_bad_option(folder, capsys, option):
    code, _ = run(folder, capsys, folder / "m.onnx", *FAST, "--data", folder / "d.npz", "--quiet", *option)
    assert code == 2


def test_a_provider_that_is_not_there(folder, capsys):
    code, said = run(folder, capsys, folder / "m.onnx", *FAST, "--target", "cuda")
    assert code == 4
    assert "CUDAExecutionProvider" in said


def test_the_output_must_not_be_the_input(folder, capsys):
    code, said = run(folder, capsys, folder / "m.onnx", *FAST, "-o", folder / "m.onnx")
    assert code == 2
    assert "the input needs" in said


@pytest.mark.parametrize("command", [["adapt", "--budget", "macs=0.9x"], ["prune", "--keep", "0.9"]])
@pytest.mark.parametrize("output", ["b.onnx", "m.onnx"])
def test_the_output_must_not_replace_the_weights_of_the_input(tmp_path, capsys, command, output):
    """The weights of m.onnx lie where those of b.onnx would be written."""
    onnx.save(small_model(), tmp_path / "m.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert cli._run([command[0], str(tmp_path / "m.onnx"), *command[1:], "-o", str(tmp_path / output)]) == 2
    assert "the input needs" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("run", [na.adapt, na.adapt_each])
def test_nor_do_the_functions_write_there(tmp_path, run):
    onnx.save(small_model(), tmp_path / "m.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    (tmp_path / "b.macs-0.8x.onnx.data").symlink_to(tmp_path / "b.onnx.data")
    with pytest.raises(InputError, match="the input needs"):
        run(tmp_path / "m.onnx", ["macs=0.9x", "macs=0.8x"], output=tmp_path / "b.onnx")


def test_an_interrupt_says_how_to_go_on(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_netadapt.pipeline.prepare", interrupted)
    code = cli._run(["adapt", str(folder / "m.onnx"), *FAST])
    assert code == 130
    assert "--resume" in capsys.readouterr().err


def test_a_defect_shows_a_traceback(folder, capsys, monkeypatch):
    monkeypatch.setattr("onnx_netadapt.pipeline.prepare", lambda *_: 1 / 0)
    code = cli._run(["adapt", str(folder / "m.onnx"), *FAST])
    assert code == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_program_starts_as_a_module():
    found = subprocess.run(
        [sys.executable, "-m", "onnx_netadapt.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "--budget 40ms" in found.stdout
