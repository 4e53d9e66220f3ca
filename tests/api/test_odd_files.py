"""Files as users have them: what cannot be pruned is refused in one line that names the cause, what is odd is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt import cli
from onnx_netadapt.ir.errors import TargetError
from onnx_netadapt.passes.equivalence import run_plain

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
COMMANDS = {
    "prune": ["--keep", "0.5"],
    "inspect": [],
    "adapt": ["--budget", "macs=0.5x", "--finetune", "none", "--quiet"],
}
REFUSED = {  # file: exit code, and a word of the cause
    "broken_mbv2_dynamo_missing_extdata": (2, "mobilenet_v2_fp32.onnx.data"),
    "facedet_retinaface_mnet25_mxnet_deconv": (4, "rf_c3_upsampling"),
    "ml_linear_skl2onnx": (2, "LinearClassifier"),
    "ml_xgboost_onnxmltools": (2, "TreeEnsembleClassifier"),
    "quant_qlinearconv_tdnn": (4, "QLinearConv"),
    "seg_tinyunet_qonnx_chlast": (4, "Quant"),
    "sr_espcn_brevitas_quant": (4, "Quant"),
}


def run(capfd: pytest.CaptureFixture[str], command: str, path: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; warnings are errors, and a failure leaves no file behind."""
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = cli._run([command, str(path), *COMMANDS[command]])
    if code:
        assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_or_be_narrowed_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    source = SHARED / f"{name}.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} of the shared models is not here")
    (tmp_path / "m.onnx").write_bytes(source.read_bytes())
    code, _, err = run(capfd, command, tmp_path / "m.onnx")
    assert code == REFUSED[name][0]
    assert err.startswith("onnx-netadapt: ")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert REFUSED[name][1] in err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_real_model_that_is_cut_off_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], share: float, command: str
) -> None:
    source = SHARED / "cls_mnist_cntk.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} of the shared models is not here")
    content = source.read_bytes()
    (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
    code, _, err = run(capfd, command, tmp_path / "m.onnx")
    assert code in (2, 4)
    assert err.startswith("onnx-netadapt: ")
    assert err.count("\n") == 1


def model(opset: int = 13, ir_version: int = 7, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Two convolutions with a ReLU between them."""
    rng, kind = np.random.default_rng(0), helper.tensor_dtype_to_np_dtype(dtype)
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(kind), f"w{number}")
        for number, shape in enumerate([(8, 3, 1, 1), (5, 8, 1, 1)])
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, dtype, [1, c, 4, 4]) for n, c in (("x", 3), ("y", 5))]
    graph = helper.make_graph(nodes, "odd", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def runs(made: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime runs a model of `model`."""
    kind = helper.tensor_dtype_to_np_dtype(made.graph.input[0].type.tensor_type.elem_type)
    try:
        run_plain(made, [{"x": np.ones((1, 3, 4, 4), kind)}], optimize=False)
    except TargetError:
        return False
    return True


def pruned(tmp_path: Path, capfd: pytest.CaptureFixture[str], made: onnx.ModelProto) -> tuple[int, str, str]:
    onnx.save(made, tmp_path / "m.onnx")
    found = run(capfd, "prune", tmp_path / "m.onnx")
    if found[0] == 0:
        small = onnx.load(tmp_path / "m.pruned.onnx")
        assert {tuple(t.dims) for t in small.graph.initializer} >= {(4, 3, 1, 1), (5, 4, 1, 1)}
        assert "zeroing equals removing: passed" in found[1]
    return found


@pytest.mark.parametrize("ir_version", range(1, onnx.IR_VERSION + 1))
def test_every_ir_version(tmp_path: Path, capfd: pytest.CaptureFixture[str], ir_version: int) -> None:
    """Up to version 3 every initializer is a graph input too, and up to version 2 no opset is declared."""
    made = model(8 if ir_version < 4 else 13, ir_version)
    if ir_version < 4:
        made.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in made.graph.initializer
        )
    if ir_version < 3:
        del made.opset_import[:]
    code, _, err = pruned(tmp_path, capfd, made)
    assert (code, err.count("\n")) == ((0, 0) if runs(made) else (4, 1))
    assert code == 0 or ir_version < 3 or ir_version > 10


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset(tmp_path: Path, capfd: pytest.CaptureFixture[str], opset: int) -> None:
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    made = model(opset, needed)
    code, _, err = pruned(tmp_path, capfd, made)
    assert (code, err.count("\n")) == ((0, 0) if runs(made) else (4, 1))
    assert code == 0 or opset > 21


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_float_types(tmp_path: Path, capfd: pytest.CaptureFixture[str], dtype: int) -> None:
    """ONNX Runtime has no convolution of doubles or of bfloat16 on the CPU, and its message reaches the user."""
    made = model(22, 10, dtype)
    code, _, err = pruned(tmp_path, capfd, made)
    assert (code, err.count("\n")) == ((0, 0) if runs(made) else (4, 1))
    assert code == 0 or "Conv" in err
    assert code == 0 or dtype != TensorProto.FLOAT16


def test_local_functions_are_inlined_and_the_user_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = model()
    body = [helper.make_node("Relu", ["p"], ["q"])]
    made.functions.append(helper.make_function("mine", "Gate", ["p"], ["q"], body, [helper.make_opsetid("", 13)]))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    made.graph.node[1].op_type, made.graph.node[1].domain, made.ir_version = "Gate", "mine", 8
    code, out, _ = pruned(tmp_path, capfd, made)
    assert code == 0
    assert "local functions were inlined" in out
    assert "local functions were inlined" in run(capfd, "inspect", tmp_path / "m.onnx")[1]


def test_sparse_weights_are_made_dense_and_the_user_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = model()
    dense = numpy_helper.to_array(made.graph.initializer[1]) * (np.arange(40).reshape(5, 8, 1, 1) % 3 == 0)
    places = np.argwhere(dense)
    values = numpy_helper.from_array(dense[tuple(places.T)], "w1")
    del made.graph.initializer[1]
    indices = numpy_helper.from_array(places.astype(np.int64), "indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5, 8, 1, 1]))
    code, out, _ = pruned(tmp_path, capfd, made)
    assert code == 0
    assert "sparse initializers were made dense" in out
    assert "sparse initializers were made dense" in run(capfd, "inspect", tmp_path / "m.onnx")[1]
