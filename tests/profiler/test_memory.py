import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from mobile_net import MOBILENET_V2, MobileNet
from onnx import TensorProto, helper
from onnx_netadapt.ir.errors import ShapeError
from onnx_netadapt.profiler import Liveness, Target, memory

BRANCHED = """<ir_version: 8, opset_import: ["" : 13]>
net (float[2, 7] x) => (float[2, 7] out)
<float[7, 5] w = {1.0}, float[5] unused = {1.0}>
{
    a = MatMul (x, w)
    b = Relu (a)
    c = Sigmoid (a)
    d = Add (b, c)
    v = Constant <value: tensor = float[5, 7] {2.0}> ()
    out = MatMul (d, v)
}"""
SHAPES = {"x": (2, 7), "a": (2, 5), "b": (2, 5), "c": (2, 5), "d": (2, 5), "v": (5, 7), "out": (2, 7)}


def branched() -> onnx.ModelProto:
    model = onnx.parser.parse_model(BRANCHED)
    for tensor in model.graph.initializer:
        size = int(np.prod(tensor.dims))
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, [1.0] * size))
    return model


def test_the_peak_is_where_most_tensors_are_alive() -> None:
    told = memory(branched(), SHAPES)
    # alive by node: x+a = 24, a+b = 20, a+b+c = 30, b+c+d = 30, d+out = 24 elements; the first peak is named
    assert told.peak_activation_bytes == 30 * 4
    assert told.parameter_bytes == (35 + 5 + 35) * 4
    assert told.total_bytes == told.peak_activation_bytes + told.parameter_bytes
    assert told.peak_node == "c"


def test_an_output_stays_alive_to_the_end() -> None:
    model = branched()
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, (2, 5)))
    assert memory(model, SHAPES).peak_activation_bytes == (10 + 10 + 14) * 4  # b, d, out


def test_elements_count_by_their_size() -> None:
    model = branched()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(tensor.dims, np.float16), tensor.name))
    model.graph.node[4].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.ones((5, 7), np.float16)))
    assert memory(model, SHAPES).total_bytes * 2 == memory(branched(), SHAPES).total_bytes


def test_smaller_shapes_need_less() -> None:
    narrow = {name: tuple(3 if d == 5 else d for d in shape) for name, shape in SHAPES.items()}
    assert memory(branched(), narrow).peak_activation_bytes == max(14 + 6, 18, 6 + 14) * 4


def test_a_missing_shape_is_named() -> None:
    with pytest.raises(ShapeError, match="'c'"):
        memory(branched(), {k: v for k, v in SHAPES.items() if k != "c"})


def test_the_memory_of_a_pruned_network_is_told_without_building_it() -> None:
    net = MobileNet()
    liveness, full = Liveness.of(net.build({})), net.base()
    rng = np.random.default_rng(0)
    for _ in range(5):
        widths = {g: int(rng.integers(1, w + 1)) for g, w in full.items()}
        assert liveness(net.shapes(widths)) == memory(net.build(widths), net.shapes(widths))
    assert liveness(net.shapes({g: 1 for g in full})) != liveness(net.shapes(full))


@pytest.mark.slow
@pytest.mark.parametrize("net", [MobileNet(side=224), MobileNet(MOBILENET_V2, side=224, head=1280, classes=1000)])
def test_the_peak_is_near_what_onnxruntime_reports(net: MobileNet, tmp_path: Path) -> None:
    """Its arena at the peak of a run, as its profile tells (since 1.31): within a factor, since layouts pad."""
    model = net.build({})
    session = Target().session(model, profile_prefix=str(tmp_path / "p"))
    for _ in range(3):
        session.run(None, net.feeds(model))
    events = json.loads(Path(session.end_profiling()).read_text())
    peaks = [int(e["args"]["mem_in_use_peak"]) for e in events if "mem_in_use_peak" in e.get("args", {})]
    if not peaks:
        pytest.skip("this onnxruntime does not tell its memory in use")
    told = memory(model, net.shapes({}))
    assert 0.5 < max(peaks) / told.peak_activation_bytes < 4
