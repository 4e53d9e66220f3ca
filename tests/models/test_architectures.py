"""The zoo's networks have the published sizes, and what is exported computes what torch computes."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
from exported import run_ort, worst_error
from onnx_netadapt.models.architectures import ARCHITECTURES, Architecture
from onnx_netadapt.models.export import materialize, run_torch, to_onnx

# Parameters as published: torchvision's table of weights (classification, video; segmentation with its auxiliary head;
# LR-ASPP), WRN-28-10 and the pose baseline from their authors. RetinaNet: torchvision's 34,014,999 and the 53,120
# parameters of the trunk's BatchNorm, which torchvision freezes into buffers.
PUBLISHED = {
    "alexnet": 61_100_840,
    "vgg11_bn": 132_868_840,
    "vgg16_bn": 138_365_992,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet28_10": 36_479_194,
    "resnext50_32x4d": 25_028_904,
    "densenet121": 7_978_856,
    "googlenet": 6_624_904,
    "squeezenet1_1": 1_235_496,
    "regnet_y_400mf": 4_344_144,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "mnasnet1_0": 4_383_312,
    "efficientnet_b0": 5_288_548,
    "efficientnet_v2_s": 21_458_488,
    "shufflenet_v2_x1_0": 2_278_604,
    "convnext_tiny": 28_589_128,
    "fcn_resnet50": 35_322_218,
    "deeplabv3_resnet50": 42_004_074,
    "lraspp_mobilenet_v3_large": 3_221_538,
    "retinanet_resnet50": 34_014_999 + 53_120,
    "pose_resnet50": 33_999_697,
    "vit_b_16": 86_567_656,
    "swin_t": 28_288_354,
    "conv3d_r3d18": 33_371_472,
}
ALL = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda a: a.name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name: str) -> None:
    import torch

    with torch.device("meta"):
        module = ARCHITECTURES[name].build()
    assert sum(p.numel() for p in module.parameters()) == PUBLISHED[name]


@ALL
def test_quick_variant_computes_in_onnx_what_it_computes_in_torch(architecture: Architecture) -> None:
    quick = architecture.quickest
    module = materialize(quick)
    model = to_onnx(module, quick)
    onnx.checker.check_model(model, full_check=True)
    assert [x.name for x in model.graph.input] == list(quick.inputs)
    assert [y.name for y in model.graph.output] == list(quick.outputs)
    inputs = quick.example_inputs(seed=1)
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4


def test_other_weights_give_other_outputs() -> None:
    """The control to the test above: the bound is tight enough to tell two sets of weights apart."""
    quick = ARCHITECTURES["resnet18"].quickest
    inputs = quick.example_inputs(seed=1)
    model = to_onnx(materialize(quick, seed=0), quick)
    assert worst_error(run_ort(model, inputs), run_torch(materialize(quick, seed=1), inputs)) > 0.05


def test_names_agree_with_keys_and_quick_variants_are_smaller() -> None:
    for name, architecture in ARCHITECTURES.items():
        assert architecture.name == name
        assert architecture.quick is not None
        assert architecture.quick.quick is None
        assert architecture.quick.outputs == architecture.outputs
        assert list(architecture.quick.inputs) == list(architecture.inputs)


def test_registries_do_not_import_torch() -> None:
    code = (
        "import sys; from onnx_netadapt.models.architectures import ARCHITECTURES; "
        "from onnx_netadapt.models.micro import MICRO_NETS; import onnx_netadapt.models.export; "
        "a = ARCHITECTURES['resnet50']; a.example_inputs(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@ALL
def test_full_size_runs_at_its_published_input(architecture: Architecture) -> None:
    import torch

    with torch.device("meta"), torch.no_grad():
        specs = architecture.inputs.values()
        inputs = [torch.empty(x.shape, dtype=torch.int64 if x.high else torch.float32) for x in specs]
        outputs = architecture.build().eval()(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(architecture.outputs)
    assert all(y.shape[0] == 1 for y in outputs)


@pytest.mark.slow
@ALL
def test_min_opset_is_the_first_that_computes_the_same(architecture: Architecture) -> None:
    quick = architecture.quickest
    module, inputs = materialize(quick), quick.example_inputs(seed=1)

    def holds(opset: int) -> bool:
        try:
            model = to_onnx(module, quick, opset=opset)
            return worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4
        except Exception:  # the exporter and ONNX Runtime refuse old opsets with errors of many kinds
            return False

    assert holds(quick.min_opset)
    assert quick.min_opset == 7 or not holds(quick.min_opset - 1)


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("dynamic_batch", [False, True], ids=["fixed", "open"])
def test_dynamo_computes_the_same(architecture: Architecture, dynamic_batch: bool) -> None:
    pytest.importorskip("onnxscript")
    quick = architecture.quickest
    module = materialize(quick)
    model = to_onnx(module, quick, exporter="dynamo", opset=18, dynamic_batch=dynamic_batch)
    inputs = quick.example_inputs(seed=1, batch=3 if dynamic_batch else None)
    assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4


@pytest.mark.slow
@ALL
def test_open_batch_takes_other_batches(architecture: Architecture) -> None:
    quick = architecture.quickest
    module = materialize(quick)
    model = to_onnx(module, quick, dynamic_batch=True)
    for batch in (1, 3):
        inputs = quick.example_inputs(seed=1, batch=batch)
        assert worst_error(run_ort(model, inputs), run_torch(module, inputs)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "swin_t", "yolo_c2f"])
def test_full_size_computes_in_onnx_what_it_computes_in_torch(name: str) -> None:
    architecture = ARCHITECTURES[name]
    module = materialize(architecture)
    inputs = architecture.example_inputs(seed=1)
    assert worst_error(run_ort(to_onnx(module, architecture), inputs), run_torch(module, inputs)) <= 1e-4
