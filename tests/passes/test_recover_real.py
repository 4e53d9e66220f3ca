"""Recovery on a trained network: what RECOVERY.md measured with a prototype holds here."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_netadapt.ir import load
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.gram import collect
from onnx_netadapt.passes.importance import order, weight_order
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.sequential import refit_sequential

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
MODEL = SHARED / "models" / "derived_torch_cifar10_resnet20.onnx"
DATA = SHARED / "data" / "cifar10_lossless.npz"
MEAN, STD = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def _prepared(images: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (images.transpose(0, 3, 1, 2) / np.float32(255) - MEAN) / STD
    return scaled.astype(np.float32)


def _accuracy(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"input": x})[0].argmax(axis=1) == y).mean())


@pytest.mark.slow
@pytest.mark.skipif(not (MODEL.exists() and DATA.exists()), reason="the shared models and data are not here")
def test_half_the_inner_channels_of_resnet20_can_go() -> None:
    with np.load(DATA) as data:
        train, x, y = _prepared(data["x_train"][:500]), _prepared(data["x_test"]), data["y_test"].reshape(-1)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        return ({"input": train[start : start + 100]} for start in range(0, len(train), 100))

    coupling = couple(load(MODEL))
    statistics = collect(coupling, batches)
    inner = [group for group in coupling.groups if len(statistics.consumers.by_group[group.id]) == 1]
    measured, plain = order(coupling, statistics), weight_order(coupling)
    kept = {g.id: measured[g.id].kept(g.units // 2) for g in inner}
    by_norm = {g.id: plain[g.id].kept(g.units // 2) for g in inner}
    model = prune(coupling, kept).model
    sequential = refit_sequential(coupling, kept, model, batches, statistics)
    found = {
        "norms, no refit": _accuracy(prune(coupling, by_norm).model, x, y),
        "symmetric": _accuracy(apply_weights(model, refit_symmetric(coupling, statistics, kept)), x, y),
        "sequential": _accuracy(apply_weights(model, sequential), x, y),
    }
    assert found["norms, no refit"] < 0.2, found
    assert found["symmetric"] > 0.7, found
    assert found["sequential"] > 0.78, found
