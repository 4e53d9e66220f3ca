"""Every network that we have, through torch: the same numbers, the right gradients, the same bytes back.

1. Numbers: within 1e-4 of the output's range of ONNX Runtime, in float32. Where ONNX Runtime's own rounding is larger
   (judged by torch in float64), at most five times that.
2. Gradients as a whole: ONNX Runtime's output changes along the gradient as the gradient says.
3. Gradients one by one: a weight without one does not change ONNX Runtime's output when it is moved a little (behind a
   ReLU that is off for all the inputs tried, say).
4. The round trip gives the model's bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import NetAdaptError
from onnx_netadapt.ir.graph import Graph, Port
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import materialize, to_onnx
from onnx_netadapt.models.micro import MICRO_NETS
from onnx_netadapt.models.spec import Architecture
from onnx_netadapt.passes.equivalence import random_feeds, run_plain
from onnx_netadapt.passes.to_torch import to_torch, unsupported, write_back

torch = pytest.importorskip("torch")

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
FILES = sorted(MODELS.glob("*.onnx")) if MODELS.is_dir() else []
SMALL_FILE = 750_000
"""Files of more bytes are left to `make test-all`."""

NETWORKS = {**ARCHITECTURES, **MICRO_NETS}
QUICK = {"resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16", *MICRO_NETS}
"""The networks of the default tests; the others are left to `make test-all`."""

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A loaded model, inputs to try, and what torch makes of it."""

    graph: Graph
    feeds: list[Feeds]

    @property
    def is_rounded(self) -> bool:
        """Whether 16-bit floats or an integer grid round what the model computes."""
        narrow = any(dtype in (10, 16) for dtype in self.graph.dtypes.values())
        return narrow or any("Quantize" in node.op_type for node in self.graph.nodes)


def _architecture(architecture: Architecture, **how: Any) -> Subject:
    quick = architecture.quickest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = to_onnx(materialize(quick), quick, **how)
    return Subject(load(model), [quick.example_inputs(seed=seed) for seed in (3, 4)])


def _file(path: Path) -> Subject:
    try:
        graph = load(path)
        feeds = random_feeds(graph, 1) + random_feeds(graph, 1, seed=1)
        run_plain(graph.model, feeds, optimize=False)
    except NetAdaptError as error:
        pytest.skip(f"does not run: {str(error)[:80]}")
    return Subject(graph, feeds)


def _outputs(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _torch(module: Any, feeds: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    return _outputs(module({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}))


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _assert_same_numbers(subject: Subject) -> None:
    module, exact = to_torch(subject.graph), None
    for feeds in subject.feeds:
        with torch.no_grad():
            found = [y.numpy() for y in _torch(module, feeds)]
        wanted = run_plain(subject.graph.model, [feeds], optimize=False)[0]
        for place, (want, have) in enumerate(zip(wanted, found, strict=True)):
            assert want.shape == have.shape
            if want.dtype.kind != "f":
                assert np.array_equal(want, have)
                continue
            span = float(np.ptp(want.astype(np.float64))) or 1.0
            apart = float(np.abs(want.astype(np.float64) - have).max()) / span
            if apart > (2e-2 if subject.is_rounded else 1e-4):
                exact = exact or to_torch(subject.graph).double()
                wide = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in feeds.items()}
                with torch.no_grad():
                    own = float(np.abs(want - _torch(exact, wide)[place].numpy()).max()) / span
                assert apart <= 5 * own, f"{apart:.1e}, ONNX Runtime's own rounding is {own:.1e}"


def _with_slopes(subject: Subject) -> Subject:
    """The subject with its floating-point outputs, or with the tensors that a choice (ArgMax) is made from."""
    graph = subject.graph
    kinds = {port.name: graph.dtypes.get(port.name, port.dtype) for port in graph.outputs}
    names, seen = [name for name, dtype in kinds.items() if dtype in FLOATS], set()
    front = [name for name in kinds if name not in names] if not names else []
    while front:
        name = front.pop()
        for before in graph.producer[name].inputs if name in graph.producer else ():
            if before in seen or before in graph.constants:
                continue
            seen.add(before)
            (names if graph.dtypes.get(before) in FLOATS else front).append(before)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return Subject(replace(graph, model=model, outputs=tuple(Port(n, (), 0) for n in names)), subject.feeds)


def _factors(outputs: tuple[Any, ...] | list[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal(tuple(y.shape)) for y in outputs]


def _value(model: onnx.ModelProto, feeds: Feeds) -> float:
    """A random projection of the outputs, by ONNX Runtime."""
    outputs = run_plain(model, [feeds], optimize=False)[0]
    return sum(float((y.astype(np.float64) * r).sum()) for y, r in zip(outputs, _factors(outputs), strict=True))


def _backward(module: Any, feeds: Feeds) -> float:
    """Leaves the gradients of the same projection in the weights; the size of the terms of its sum."""
    outputs = _torch(module, feeds)
    terms = [y.double() * torch.from_numpy(r) for y, r in zip(outputs, _factors(outputs), strict=True)]
    module.zero_grad()
    torch.stack([term.sum() for term in terms if term.requires_grad]).sum().backward()
    return sum(float(term.detach().norm()) for term in terms)


def _moved(module: Any, model: onnx.ModelProto, moves: Mapping[str, Any]) -> onnx.ModelProto:
    """The model with its weights moved."""
    weights = {name: weight for name, weight in module.weights() if name in moves}
    old = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_((weight.double() + moves[name]).to(weight.dtype))
        found = write_back(module, model)
        for name, weight in weights.items():
            weight.copy_(old[name])
    return found


def _slope_ratio(subject: Subject, module: Any, feeds: Feeds, step: float) -> float:
    """The slope along the gradient as ONNX Runtime's outputs show it, over what the gradient says."""
    size = _backward(module, feeds)
    gradients = {name: w.grad.double() for name, w in module.weights() if w.grad is not None}
    norm = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
    far = step * size / norm**2
    up, down = (
        _value(_moved(module, subject.graph.model, {n: sign * far * g for n, g in gradients.items()}), feeds)
        for sign in (1, -1)
    )
    return (up - down) / (2 * step * size)


def _assert_right_slope(subject: Subject, module: Any) -> None:
    """By the better of two steps: a large one meets kinks (ReLU), in a small one ONNX Runtime's rounding shows."""
    feeds = subject.feeds[0]
    ratios = [_slope_ratio(subject, module, feeds, step) for step in (1e-2, 1e-3)]
    assert min(abs(ratio - 1) for ratio in ratios) <= 0.07, ratios


def _silent(subject: Subject, module: Any) -> set[str]:
    """The weights that get no gradient for any of the inputs."""
    found = {name for name, _ in module.weights()}
    for feeds in subject.feeds:
        _backward(module, feeds)
        found = {n for n, w in module.weights() if n in found and (w.grad is None or not bool(w.grad.any()))}
    return found


def _influences(subject: Subject, module: Any, name: str) -> bool:
    """Whether a weight, moved by a thousandth, changes a bit of what ONNX Runtime gives for any of the inputs."""
    weight = dict(module.weights())[name].detach()
    noise = torch.from_numpy(np.random.default_rng(7).standard_normal(tuple(weight.shape)))
    step = 1.0 if subject.graph.constants[name].array().dtype.kind in "iu" else 1e-3
    other = _moved(module, subject.graph.model, {name: step * noise * (float(weight.abs().max()) or 1.0)})
    pairs = (run_plain(model, subject.feeds, optimize=False) for model in (subject.graph.model, other))
    return any(not np.array_equal(a, b) for x, y in zip(*pairs, strict=True) for a, b in zip(x, y, strict=True))


def _assert_gradients(subject: Subject) -> None:
    """Rules 2 and 3."""
    subject = _with_slopes(subject)
    module = to_torch(subject.graph)
    silent = _silent(subject, module)
    weights = [name for name, _ in module.weights()]
    assert [name for name in silent if _influences(subject, module, name)] == []
    heard = [name for name in weights if name not in silent]
    assert heard
    spans = [float(np.ptp(y)) for y in run_plain(subject.graph.model, subject.feeds[:1], optimize=False)[0]]
    if not subject.is_rounded and max(spans) > 1e-6:  # a saturated sigmoid has no slope that float32 shows
        assert _influences(subject, module, heard[len(heard) // 2])  # the check above can tell
        _assert_right_slope(subject, module)


def _check(subject: Subject) -> None:
    assert unsupported(subject.graph) == []
    assert _bytes(write_back(to_torch(subject.graph), subject.graph.model)) == _bytes(subject.graph.model)
    _assert_same_numbers(subject)
    if any(True for _ in to_torch(subject.graph).weights()):
        _assert_gradients(subject)
    else:  # trees and the like keep their numbers in attributes
        assert subject.graph.constants == {}


def _long(is_long: bool) -> Any:
    return pytest.mark.slow if is_long else ()


@pytest.mark.parametrize(
    "file", [pytest.param(f, id=f.stem, marks=_long(f.stat().st_size > SMALL_FILE)) for f in FILES]
)
def test_real_models(file: Path) -> None:
    _check(_file(file))


@pytest.mark.parametrize("name", [pytest.param(name, marks=_long(name not in QUICK)) for name in NETWORKS])
def test_architectures(name: str) -> None:
    _check(_architecture(NETWORKS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_architectures_of_the_newer_exporter(name: str) -> None:
    pytest.importorskip("onnxscript")
    _check(_architecture(NETWORKS[name], exporter="dynamo", opset=18, dynamic_batch=True))


def _broken(change: Callable[[Any], None]) -> None:
    subject = _architecture(MICRO_NETS["fan_out"])
    module = to_torch(subject.graph)
    change(module)
    with pytest.raises(AssertionError):
        _assert_right_slope(subject, module)


def test_a_wrong_gradient_is_seen() -> None:
    """The control of rule 2: a gradient that is a fifth too large."""

    def double(module: Any) -> None:
        for _, weight in module.weights():
            weight.register_hook(lambda g: g * 1.2)

    _broken(double)


def test_a_missing_gradient_is_seen() -> None:
    """The control of rule 3: a weight that torch was told to leave alone."""
    subject = _architecture(MICRO_NETS["fan_out"])
    module = to_torch(subject.graph)
    name, weight = next(iter(module.weights()))
    weight.register_hook(torch.zeros_like)
    assert _silent(subject, module) == {name}
    assert _influences(subject, module, name)
