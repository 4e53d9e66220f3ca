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
    assert {k for k in one if one[k] != two[k]} == {"threads"}
    assert {"onnxruntime", "provider", "provider_options", "session_options", "cpu", "cpu_flags"} <= one.keys()
