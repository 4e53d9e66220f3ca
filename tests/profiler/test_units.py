from pathlib import Path

import numpy as np
import onnx
import pytest
from mobile_net import MobileNet
from onnx_netadapt.ir.errors import ProfileError, TargetError
from onnx_netadapt.profiler import Attribution, Target, attribute, trace
from onnx_netadapt.profiler.trace import _runs, lower_mean, named_copy, node_times

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def attributed(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Attribution:
    return attribute(trace(model, Target(), feeds, runs=3, warm_up=1))


def covers(told: Attribution) -> dict[str, tuple[str, ...]]:
    return {node: e.covers for e in told.executed for node in e.covers}


RESIDUAL = """<ir_version: 8, opset_import: ["" : 13]>
net (float[1, 16, 13, 13] x) => (float[1, 5, 13, 13] out)
<float[32, 16, 3, 3] w1, float[16, 32, 1, 1] w2, float[5, 16, 1, 1] w3,
 float[32] scale, float[32] bias, float[32] mean, float[32] var>
{
    x0 = Sigmoid (x)
    c1 = Conv <pads = [1, 1, 1, 1]> (x0, w1)
    n1 = BatchNormalization (c1, scale, bias, mean, var)
    r1 = Relu (n1)
    c2 = Conv (r1, w2)
    s = Add (c2, x0)
    r2 = Relu (s)
    gone = Identity (r2)
    c3 = Conv (gone, w3)
    out = Tanh (c3)
}"""


def residual() -> onnx.ModelProto:
    model = onnx.parser.parse_model(RESIDUAL)
    rng = np.random.default_rng(0)
    names = {value.name: value for value in model.graph.value_info}
    for name in ("w1", "w2", "w3", "scale", "bias", "mean", "var"):
        shape = [d.dim_value for d in names[name].type.tensor_type.shape.dim]
        values = np.abs(rng.standard_normal(shape)).astype(np.float32) + 0.1
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    del model.graph.value_info[:]
    return model


def test_fused_nodes_are_found_again_without_any_names() -> None:
    model = residual()
    assert not any(node.name for node in model.graph.node)
    told = attributed(model, {"x": np.ones((1, 16, 13, 13), np.float32)})
    owner = covers(told)
    assert {"c1", "n1", "r1"} <= set(owner["c1"])  # convolution, folded normalization, activation
    assert "c2" not in owner["c1"]
    assert "s" not in owner["c3"]  # an Add never belongs to the convolution that reads it
    assert set(owner) >= {"x0", "c1", "n1", "r1", "c2", "s", "r2", "c3", "out"}
    assert told.unattributed_share == 0.0


def test_no_original_node_is_counted_twice() -> None:
    net = MobileNet()
    model = net.build({})
    told = attributed(model, net.feeds(model))
    nodes = [node for e in told.executed for node in e.covers]
    assert len(nodes) == len(set(nodes)) == len(model.graph.node)
    assert all(bool(e.covers) != (e.tensor is not None) for e in told.executed)


def test_what_belongs_to_nothing_is_reported() -> None:
    model = residual()
    traced = trace(model, Target(), {"x": np.ones((1, 16, 13, 13), np.float32)}, runs=2, warm_up=1)
    known = sum(t.us for t in traced.times.values())
    stranger = next(iter(traced.times.values()))
    doctored = type(traced)(traced.original, traced.fused, traced.final, {**traced.times, "stranger": stranger})
    told = attribute(doctored)
    assert told.unattributed_us == pytest.approx(stranger.us)
    assert told.unattributed_share == pytest.approx(stranger.us / (known + stranger.us))


def test_a_compiled_graph_is_unattributed() -> None:
    model = residual()
    traced = trace(model, Target(), {"x": np.ones((1, 16, 13, 13), np.float32)}, runs=2, warm_up=1)
    told = attribute(type(traced)(traced.original, None, None, traced.times))
    assert told.unattributed_share == 1.0
    assert told.executed == ()


def test_tracing_leaves_the_model_alone() -> None:
    model = residual()
    before = model.SerializeToString(deterministic=True)
    copy = named_copy(model)
    assert model.SerializeToString(deterministic=True) == before
    assert [node.name for node in copy.graph.node] == [node.output[0] for node in model.graph.node]


def event(name: str, dur: int, cat: str = "Node") -> dict[str, object]:
    return {"cat": cat, "name": name, "dur": dur, "args": {"output_type_shape": [{"float": [1]}, {"int64": [1]}]}}


def test_node_times_drop_warm_up_subgraphs_and_other_events() -> None:
    events = [event("a_kernel_time", d) for d in (99, 98, 4, 6, 5, 70)]
    events += [event("inner:b_kernel_time", 5), event("model_run", 9, "Session"), event("a_fence_before", 3)]
    times = node_times(events, warm_up=2)
    assert set(times) == {"a"}
    assert times["a"].us == 4.5  # of 4, 5, 6, 70
    assert times["a"].types == ("float", "int64")
    with pytest.raises(ProfileError, match="no node events"):
        node_times(events[-2:], warm_up=0)


def test_short_networks_are_run_more_often_than_long_ones() -> None:
    runs = [_runs(seconds, nodes) for seconds, nodes in ((1e-4, 20), (2e-2, 20), (5.0, 20), (1e-4, 1000), (0.0, 0))]
    assert runs == [100, 20, 8, 10, 100]


def test_the_lower_half_ignores_preempted_runs() -> None:
    assert lower_mean([5, 9000, 5, 6, 4000]) == pytest.approx(16 / 3)
    assert lower_mean([7]) == 7
    assert lower_mean([30, 10, 20, 9000, 8000], 0.4) == 15
    assert lower_mean([30, 10], 0.01) == 10


def shared_models() -> list[object]:
    names = ["derived_torch_cifar10_resnet20", "cls_squeezenet11_imagenet_fp16_caffe2", "facedet_scrfd500m",
             "det_yolox_nano", "ocr_cls_ppocr_mbv3", "derived_qdq_cifar10_resnet20", "vit_cifar10_ibp_3_3_8",
             "cls_conv1d_keras_onnxmltools", "rnn_pointhistory_lstm_pinto", "derived_mbv2_imagenet_dynamo_dequant",
             "facedet_yolox_proxyless", "seg_carvana_unet_simp"]  # fmt: skip
    paths = [MODELS / f"{name}.onnx" for name in names]
    missing = pytest.mark.skipif(not MODELS.is_dir(), reason="no shared models")
    return [pytest.param(path, id=path.stem, marks=missing) for path in paths]


@pytest.mark.parametrize("path", shared_models())
def test_all_time_of_real_models_is_attributed(path: Path) -> None:
    model = onnx.load(path)
    told = attributed(model, random_feeds(model))
    assert told.unattributed_share < 0.01
    nodes = [node for e in told.executed for node in e.covers]
    assert len(nodes) == len(set(nodes))


@pytest.mark.slow
@pytest.mark.skipif(not MODELS.is_dir(), reason="no shared models")
def test_no_runnable_file_breaks_attribution() -> None:
    seen = 0
    for path in sorted(MODELS.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        try:
            Target().session(model).run(None, random_feeds(model))
        except Exception:
            continue
        assert attributed(model, random_feeds(model)).unattributed_share < 0.01, path.name
        seen += 1
    assert seen > 40


def random_feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in Target().session(model).get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else (1 if k == 0 else 32) for k, d in enumerate(value.shape)]
        feeds[value.name] = rng.random(shape).astype(TYPES[value.type])
    return feeds


def test_a_model_that_cannot_run_is_a_target_error() -> None:
    net = MobileNet()
    with pytest.raises(TargetError):
        trace(net.build({}), Target(), {"image": np.zeros((1, 2, 3, 4), np.float32)})
