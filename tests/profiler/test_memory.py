import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_netadapt.ir.errors import ShapeError
from onnx_netadapt.profiler import memory

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
