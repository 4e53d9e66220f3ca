"""Exports are repeatable, have the biases asked for, and say nothing but what concerns the caller."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from exported import run_ort, shared_initializers, worst_error
from onnx import numpy_helper
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import export, materialize, run_torch, to_onnx
from onnx_netadapt.models.micro import MICRO_NETS
from onnx_netadapt.models.spec import Architecture, Input
from torch import Tensor, nn

RESNET = ARCHITECTURES["resnet18"].quickest


def biases(model: onnx.ModelProto) -> list[np.ndarray]:
    """The third input of every Conv and Gemm, once per node."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2]
    return [arrays[node.input[2]] for node in nodes]


def test_the_same_seed_gives_the_same_model() -> None:
    first, again, other = (export(RESNET, seed=seed).graph.initializer for seed in (3, 3, 4))
    assert [t.SerializeToString() for t in first] == [t.SerializeToString() for t in again]
    assert [t.SerializeToString() for t in first] != [t.SerializeToString() for t in other]


def test_torch_draws_the_same_numbers_after_an_export_as_without_it() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    export(MICRO_NETS["flatten"])
    assert torch.equal(torch.rand(3), expected)


def test_distinct_biases_are_all_different_and_not_zero() -> None:
    model = export(RESNET, distinct_biases=True)
    found = biases(model)
    assert len(found) >= 10
    assert len({b.tobytes() for b in found}) == len(found)
    assert all(np.abs(b).max() > 0 for b in found)
    assert shared_initializers(model) == {}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_zero_biases_become_one_initializer_of_several_nodes(name: str) -> None:
    architecture = ARCHITECTURES[name].quickest
    model = export(architecture, distinct_biases=False)
    zero = [t.name for t in model.graph.initializer if not numpy_helper.to_array(t).any()]
    shared = shared_initializers(model)
    assert any(name in shared for name in zero)
    module = materialize(architecture, distinct_biases=False)
    inputs = architecture.example_inputs(seed=1)
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4


@pytest.mark.parametrize("distinct_biases", [True, False])
def test_folding_a_batch_norm_wrongly_would_show(distinct_biases: bool) -> None:
    """Every BatchNorm, dropped alone, changes the output by far more than rounding does."""
    module = materialize(RESNET, distinct_biases=distinct_biases)
    inputs = RESNET.example_inputs(seed=1)
    expected = run_torch(module, inputs)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        handle = norm.register_forward_hook(lambda _module, arguments, _output: arguments[0])
        assert worst_error(run_torch(module, inputs), expected) > 1e-2
        handle.remove()


def test_batch_norms_see_values_of_ordinary_size_in_a_deep_network() -> None:
    architecture = ARCHITECTURES["efficientnet_v2_s"].quickest
    module = materialize(architecture)
    (output,) = run_torch(module, architecture.example_inputs(seed=1))
    assert 1e-2 < np.abs(output).max() < 1e4


def test_open_batch_is_a_named_axis_of_inputs_and_outputs() -> None:
    model = export(ARCHITECTURES["two_towers"].quickest, dynamic_batch=True)
    values = [*model.graph.input, *model.graph.output]
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in values] == ["batch"] * 3
    inputs = ARCHITECTURES["two_towers"].quickest.example_inputs(batch=5)
    assert run_ort(model, inputs)[0].shape[0] == 5


def test_dynamo_writes_the_same_function() -> None:
    pytest.importorskip("onnxscript")
    net = MICRO_NETS["wide_and_deep"]
    module, inputs = materialize(net), net.example_inputs(seed=1)
    model = to_onnx(module, net, exporter="dynamo", opset=18)
    assert model.opset_import[0].version == 18
    assert [x.name for x in model.graph.input] == ["input"]
    assert [y.name for y in model.graph.output] == ["output"]
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4


class _Warns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("my own", UserWarning, stacklevel=1)
        return x.relu()


def test_only_the_exporters_own_chatter_is_silenced() -> None:
    architecture = Architecture("warns", "micro", _Warns, {"input": Input((1, 3))})
    with pytest.warns(UserWarning, match="my own"):
        export(architecture)


def test_what_an_exporter_cannot_do_it_says() -> None:
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="scaled_dot_product_attention"):
        export(ARCHITECTURES["shared_blocks"].quickest, opset=13)


def test_another_opset_than_asked_for_is_an_error() -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(InputError, match="'c2f' through 'dynamo' came out at opset 18, not 13"):
        export(MICRO_NETS["c2f"], exporter="dynamo", opset=13)


def test_an_unknown_exporter_is_an_error() -> None:
    with pytest.raises(InputError, match="torchscript, dynamo"):
        export(MICRO_NETS["c2f"], exporter="onnx")  # type: ignore[arg-type]


def test_inputs_are_repeatable_and_take_a_batch() -> None:
    spec = ARCHITECTURES["encoder_decoder"].quickest
    first, again = spec.example_inputs(seed=5), spec.example_inputs(seed=5, batch=4)
    assert [x.shape[0] for x in first.values()] == [1, 1]
    assert [x.shape[0] for x in again.values()] == [4, 4]
    assert all(x.dtype == np.int64 and x.min() >= 0 and x.max() < 61 for x in again.values())
    np.testing.assert_array_equal(first["source"], spec.example_inputs(seed=5)["source"])
