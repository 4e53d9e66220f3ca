import json

import pytest
from mobile_net import MobileNet
from onnx_netadapt.ir.errors import InputError, TargetError
from onnx_netadapt.profiler import Target


def test_plain_cpu_has_one_thread() -> None:
    assert Target.parse("cpu") == Target("CPUExecutionProvider", 1)


def test_options_are_sorted_into_threads_provider_and_session() -> None:
    text = "openvino:device_type=CPU,threads=2,session.intra_op.allow_spinning=0"
    target = Target.parse(text)
    assert target.provider == "OpenVINOExecutionProvider"
    assert target.threads == 2
    assert target.provider_options == (("device_type", "CPU"),)
    assert target.session_options == (("session.intra_op.allow_spinning", "0"),)


@pytest.mark.parametrize("text", ["cpu:threads=3", "cuda:device_id=0,threads=1", "cpu:threads=1,session.x.y=2"])
def test_text_of_a_target_parses_to_the_same_target(text: str) -> None:
    target = Target.parse(text)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "gpu9", "cpu:threads", "cpu:threads=0", "cpu:threads=x", "cpu:threads=²", "cpu:threads=1,threads=1",
             "cpu:device=1", "cpu:threads=-1", "cpu:=3", "cpu:threads=99999999"],
)  # fmt: skip
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Target.parse(text)


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(TargetError, match="TensorrtExecutionProvider"):
        Target.parse("tensorrt").session(MobileNet().build({}))


def test_a_provider_that_is_silently_replaced_counts_as_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    class Replaced:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Replaced)
    with pytest.raises(TargetError, match="replaced by CPUExecutionProvider"):
        Target.parse("cuda").session(b"")


def test_a_model_that_cannot_be_loaded_gives_the_cause(capfd: pytest.CaptureFixture[str]) -> None:
    model = MobileNet().build({})
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(TargetError, match="NoSuchOperator"):
        Target().session(model)
    with pytest.raises(TargetError):
        Target().session(b"not a model")
    assert capfd.readouterr() == ("", "")


def test_threads_reach_the_session() -> None:
    session = Target(threads=2).session(MobileNet().build({}))
    assert session.get_session_options().intra_op_num_threads == 2


def test_fingerprint_is_json_and_tells_targets_apart() -> None:
    one, two = Target().fingerprint(), Target(threads=2).fingerprint()
    assert json.loads(json.dumps(one)) == one
    assert {k for k in one if one[k] != two[k]} == {"threads", "session_options"}
    assert {"onnxruntime", "provider", "provider_options", "session_options", "cpu", "cpu_flags"} <= one.keys()


def test_session_options_reach_the_session() -> None:
    texts = ["session.intra_op.allow_spinning=0", "enable_mem_pattern=0", "graph_optimization_level=basic"]
    target = Target().with_session_options([*texts, "inter_op_num_threads=2", "execution_mode=parallel"])
    options = target.session(MobileNet().build({})).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.enable_mem_pattern is False
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.inter_op_num_threads == 2
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert Target.parse(str(target)) == target
    assert target.fingerprint() != Target().fingerprint()
    untouched = Target().session(MobileNet().build({})).get_session_options()
    assert untouched.enable_mem_pattern is True


@pytest.mark.parametrize(
    "text", ["enable_mem_pattern", "enable_mem_pattern=yes", "no_such_attribute=1", "=1", "graph_optimization_level=3",
             "inter_op_num_threads=x", "session.x.y="],
)  # fmt: skip
def test_bad_session_options_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"session.option"):
        Target().with_session_options([text])


@pytest.mark.parametrize(
    ("text", "provider", "options"),
    [
        ("openvino:device_type=CPU,threads=2", "OpenVINO", {"device_type": "CPU", "num_of_threads": "2"}),
        ("openvino:num_of_threads=3", "OpenVINO", {"num_of_threads": "3"}),
        ("xnnpack:threads=2", "Xnnpack", {"intra_op_num_threads": "2"}),
        ("cuda:device_id=1", "CUDA", {"device_id": "1"}),
        ("tensorrt:trt_fp16_enable=1", "Tensorrt", {"trt_fp16_enable": "1"}),
        ("coreml:MLComputeUnits=ALL", "CoreML", {"MLComputeUnits": "ALL"}),
        ("dml", "Dml", {}),
        ("qnn:backend_path=libQnnHtp.so", "QNN", {"backend_path": "libQnnHtp.so"}),
    ],
)
def test_providers_get_their_options(
    monkeypatch: pytest.MonkeyPatch, text: str, provider: str, options: dict[str, str]
) -> None:
    opened = opening(monkeypatch, f"{provider}ExecutionProvider", {f"{provider}ExecutionProvider": 3})
    Target.parse(text).session(b"")
    (_, session_options), given = opened
    assert given["providers"] == [(f"{provider}ExecutionProvider", options)]
    assert session_options.enable_mem_pattern is (provider != "Dml")


def test_a_provider_that_takes_no_node_is_not_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    opening(monkeypatch, "XnnpackExecutionProvider", {"CPUExecutionProvider": 7})
    with pytest.raises(TargetError, match=r"XnnpackExecutionProvider takes no node.*7 on CPUExecutionProvider"):
        Target.parse("xnnpack").session(b"")
    opening(monkeypatch, "XnnpackExecutionProvider", {"CPUExecutionProvider": 7, "XnnpackExecutionProvider": 1})
    Target.parse("xnnpack").session(b"")  # some of the nodes elsewhere is how providers work


def opening(monkeypatch: pytest.MonkeyPatch, provider: str, assigned: dict[str, int]) -> list[object]:
    """Makes `provider` look installed; what its sessions are opened with is appended to the result."""
    import onnxruntime

    opened: list[object] = []

    class Part:
        def __init__(self, name: str, count: int) -> None:
            self.ep_name, self._count = name, count

        def get_nodes(self) -> list[int]:
            return [0] * self._count

    class Session:
        def __init__(self, *arguments: object, **options: object) -> None:
            opened.extend([arguments, options])

        def get_providers(self) -> list[str]:
            return [provider, "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Part]:
            return [Part(*item) for item in assigned.items()]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return opened


def test_threads_of_one_model_do_not_spin_while_another_is_measured() -> None:
    entry, model = "session.force_spinning_stop", MobileNet().build({})
    two = Target(threads=2)
    assert two.session(model).get_session_options().get_session_config_entry(entry) == "1"
    assert two.fingerprint()["session_options"] == {entry: "1"}
    assert Target().fingerprint()["session_options"] == {}
    own = two.with_session_options([f"{entry}=0"])
    assert own.session(model).get_session_options().get_session_config_entry(entry) == "0"
