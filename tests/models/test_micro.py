"""Every micro-network holds the structure that it is there for, and computes in ONNX what it computes in torch."""

from __future__ import annotations

import onnx
import pytest
from exported import producers, run_ort, shared_initializers, worst_error
from onnx_netadapt.models.export import materialize, run_torch, to_onnx
from onnx_netadapt.models.micro import MICRO_NETS, Architecture

ALL = pytest.mark.parametrize("net", MICRO_NETS.values(), ids=lambda a: a.name)
# The operators that carry a net's point; numbers are the least that must be there.
STRUCTURE = {
    "fan_out": {"Conv": 5, "Gemm": 3},
    "fpn": {"Resize": 2, "Add": 2},
    "flatten": {"Flatten": 1, "Gemm": 2},
    "nhwc_linear": {"Transpose": 2, "MatMul": 2},
    "unet": {"ConvTranspose": 2, "Concat": 2},
    "preactivation": {"BatchNormalization": 4, "Add": 3},
    "c2f": {"Split": 1, "Concat": 1, "Add": 2},
    "channel_slice": {"Slice": 3},
    "shared_head": {"Conv": 8},
    "pixel_shuffle": {"DepthToSpace": 1},
    "channel_shuffle": {"Transpose": 1, "Reshape": 2, "Slice": 2},
    "group_norm": {"InstanceNormalization": 5, "Add": 2},
    "vit_block": {"MatMul": 4, "Softmax": 1, "LayerNormalization": 3},
    "lstm": {"LSTM": 1},
    "gru": {"GRU": 1},
    "bidirectional_lstm": {"LSTM": 1},
    "view_before_deconvolution": {"Reshape": 1, "ConvTranspose": 2},
    "single_channel": {"Mul": 1},
    "depthwise_chain": {"HardSwish": 4, "HardSigmoid": 2},
    "nested_concat": {"Slice": 6, "Concat": 6},
    "flat_conv1d": {"Flatten": 1, "MaxPool": 2},
    "wide_and_deep": {"Concat": 1, "Gemm": 5},
    "depthwise_residual": {"BatchNormalization": 3, "Concat": 1},
}


@ALL
def test_computes_in_onnx_what_it_computes_in_torch_and_holds_its_structure(net: Architecture) -> None:
    module = materialize(net)
    model = to_onnx(module, net)
    onnx.checker.check_model(model, full_check=True)
    inputs = net.example_inputs(seed=1)
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4
    found = producers(model)
    assert all(found.get(op, 0) >= least for op, least in STRUCTURE[net.name].items()), found


def test_shared_head_reads_every_weight_twice() -> None:
    net = MICRO_NETS["shared_head"]
    shared = shared_initializers(to_onnx(materialize(net), net))
    assert len(shared) == 6  # three convolutions, weight and bias
    assert set(map(tuple, shared.values())) == {("Conv", "Conv")}


def test_single_channel_convolutions_are_not_grouped() -> None:
    net = MICRO_NETS["single_channel"]
    model = to_onnx(materialize(net), net)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    narrow = [node for node in convs if shapes[node.input[1]][0] == 1]
    assert len(narrow) == 2
    assert all(a.i == 1 for node in narrow for a in node.attribute if a.name == "group")


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("dynamic_batch", [False, True], ids=["fixed", "open"])
def test_dynamo_computes_the_same(net: Architecture, dynamic_batch: bool) -> None:
    pytest.importorskip("onnxscript")
    module = materialize(net)
    model = to_onnx(module, net, exporter="dynamo", opset=18, dynamic_batch=dynamic_batch)
    inputs = net.example_inputs(seed=1, batch=3 if dynamic_batch else None)
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4


@pytest.mark.slow
@ALL
def test_computes_the_same_at_its_smallest_opset(net: Architecture) -> None:
    module = materialize(net)
    inputs = net.example_inputs(seed=1)
    model = to_onnx(module, net, opset=net.min_opset)
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4
