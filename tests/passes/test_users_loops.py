"""Modules in the hands of others: torch.compile, torch.export, wrappers that replace parameters, saving as arrays."""

from __future__ import annotations

import copy
import multiprocessing
import os
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_netadapt.ir import load
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import materialize, to_onnx
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.to_torch import to_torch, write_back

torch = pytest.importorskip("torch")

MAIN = ("mobilenet_v2", "resnet18", "vit_b_16")


@cache
def _model(name: str) -> onnx.ModelProto:
    quick = ARCHITECTURES[name].quickest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_onnx(materialize(quick), quick, dynamic_batch=True)


def _input(name: str, batch: int = 2) -> Any:
    return torch.from_numpy(next(iter(ARCHITECTURES[name].quickest.example_inputs(seed=1, batch=batch).values())))


def _gradients(module: Any, x: Any, run: Any = None) -> dict[str, Any]:
    module.zero_grad()
    (module if run is None else run)(x).square().mean().backward()
    return {name: weight.grad.clone() for name, weight in module.weights()}


def _assert_compiles(name: str, backend: str, tolerance: float) -> None:
    """One graph without breaks, which gives the same numbers and the same gradients."""
    module, x = to_torch(load(_model(name))), _input(name)
    wanted, slopes = module(x).detach(), _gradients(module, x)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about the machine
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        found = compiled(x).detach()
        others = _gradients(module, x, compiled)
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
    largest = max(float(slope.abs().max()) for slope in slopes.values())
    for key, slope in slopes.items():
        assert float((others[key] - slope).abs().max()) <= 10 * tolerance * largest, key


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """The inputs do not depend on which tests ran before in the same process."""
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAIN)
def test_the_main_architectures_compile_in_one_piece(name: str) -> None:
    _assert_compiles(name, "aot_eager", 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "clang++")),
    reason="torch.compile's default backend needs a C++ compiler",
)
@pytest.mark.parametrize("name", MAIN)
def test_the_main_architectures_compile_to_machine_code(name: str) -> None:
    _assert_compiles(name, "inductor", 1e-3)


@pytest.mark.parametrize("name", MAIN)
def test_the_main_architectures_are_exported(name: str) -> None:
    module, x = to_torch(load(_model(name))), _input(name)
    program, wanted = torch.export.export(module, (x,)), module(x).detach()
    assert float((program.module()(x).detach() - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert len(program.state_dict) == len(module.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_they_are_exported_with_an_open_batch(name: str) -> None:
    module = to_torch(load(_model(name)))
    program = torch.export.export(module, (_input(name),), dynamic_shapes=(({0: torch.export.Dim("batch")},),))
    x = _input(name, batch=5)
    wanted = module(x).detach()
    assert float((program.module()(x).detach() - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def _small() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[n, 5] x) => (float[n, 7] y)
        <float[5, 11] a, float[11] s, float[11] t, float[11] m, float[11] v, int8[11, 7] q, float step = {0.01}> {
            p = MatMul(x, a)
            b = BatchNormalization(p, s, t, m, v)
            r = Relu(b)
            w = DequantizeLinear(q, step)
            y = MatMul(r, w) }""")
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.integers(-99, 99, shape).astype(np.int8) if value.name == "q" else rng.random(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    return model


def test_what_is_in_the_state_can_be_saved_as_plain_arrays() -> None:
    """As safetensors and the like do: names and tensors, none sharing memory with another, no pickle."""
    module = to_torch(load(_small()))
    state = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    assert set(state) == {"a", "s", "t", "m", "v", "q", "step"}
    places = [tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()]
    assert len(set(places)) == len(places)
    other = to_torch(load(_small()))
    with torch.no_grad():
        for _, weight in other.weights():
            weight.zero_()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    x = torch.randn(3, 5)
    assert torch.equal(other(x), module(x))


def test_train_and_eval_compute_the_same() -> None:
    """An ONNX model has one way to run: statistics of BatchNormalization stay as they are in training, too."""
    module, x = to_torch(load(_small())), torch.randn(3, 5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert torch.equal(module.train()(x), module.eval()(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_other_element_types() -> None:
    module, x = to_torch(load(_small())), torch.randn(3, 5)
    wanted = module(x).detach()
    double = copy.deepcopy(module).to(torch.float64)
    assert double(x.double()).dtype == torch.float64
    assert torch.allclose(double(x.double()).float(), wanted, atol=1e-5)
    narrow = copy.deepcopy(module).to(torch.bfloat16)
    assert torch.allclose(narrow(x.bfloat16()).float(), wanted, atol=0.1 * float(wanted.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(module(x).float(), wanted, atol=0.1 * float(wanted.abs().max()))


def test_parameters_can_be_replaced_from_outside() -> None:
    """What DDP, FSDP, functional_call and parametrizations rely on: the forward call reads registered attributes."""
    module, x = to_torch(load(_small())), torch.randn(3, 5)
    changed = {name: value * 2 if name == "w_a" else value for name, value in module.named_parameters()}
    buffers = dict(module.named_buffers())
    found = torch.func.functional_call(module, (changed, buffers), (x,))
    with torch.no_grad():
        module.w_a.mul_(2)
    assert torch.allclose(found, module(x))
    torch.nn.utils.parametrize.register_parametrization(module, "w_a", _Halved())
    assert torch.allclose(module(x), to_torch(load(_small()))(x), atol=1e-5)


class _Halved(torch.nn.Module):
    def forward(self, weight: Any) -> Any:
        return weight * 0.5


def test_every_tensor_is_registered_once_and_nothing_else_holds_numbers() -> None:
    model = _model("resnet18")
    module = to_torch(load(model))
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    assert len(set(map(id, module.parameters()))) == len(list(module.parameters()))
    assert held <= 1.01 * sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
    assert module.graph.model.ByteSize() < 0.2 * held  # names, nodes, and what is smaller than 1024 numbers


def _train_distributed(meet: Path) -> None:
    import torch.distributed as distributed

    module, x = to_torch(load(_small())), torch.randn(4, 5)
    wanted = _gradients(copy.deepcopy(module), x)
    distributed.init_process_group("gloo", init_method=meet.as_uri(), rank=0, world_size=1)
    found = _gradients(module, x, torch.nn.parallel.DistributedDataParallel(module))
    assert all(torch.allclose(found[name], slope, atol=1e-6) for name, slope in wanted.items())
    # Taken down in order, one time in hundreds never ends: gloo's thread and the one that frees it wait for each other.
    os._exit(0)


def test_distributed_training_of_one_process(tmp_path: Path) -> None:
    import torch.distributed as distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    process = multiprocessing.get_context("spawn").Process(target=_train_distributed, args=(tmp_path / "meet",))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_loop_of_ones_own_and_back() -> None:
    model = _small()
    module = to_torch(load(model))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    x, goal = torch.randn(16, 5), torch.randn(16, 7)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module(x), goal)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    (wanted,) = run_plain(write_back(module, model), [{"x": x.numpy()}], optimize=False)[0]
    assert np.abs(module(x).detach().numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", MAIN)
def test_nothing_goes_between_host_and_device_within_a_step(name: str) -> None:
    """On the device without numbers, whatever would read one on the host, or brings one along, is an error."""
    module, x = to_torch(load(_model(name))), _input(name)
    wanted = module(x)
    module.to("meta")
    found = module(x.to("meta"))
    assert (found.shape, found.device.type) == (wanted.shape, "meta")
    found.sum().backward()
    assert {weight.grad.device.type for _, weight in module.weights()} == {"meta"}


SCAN = """agraph (float[4, 3] x, float[3] s) => (float[3] e, float[4, 3] y) {
    e, y = Scan<num_scan_inputs = 1, body = one (float[3] a, float[3] b) => (float[3] c, float[3] d) {
        k = Constant<value: tensor = float[3] {1, 2, 3}>()
        n = Constant<value: tensor = float {0.5}>()
        u = Mul(a, k)
        v = Mul(u, n)
        c = Add(v, b)
        d = Identity(c) }>(s, x) }"""
FUNCTION = """agraph (float[1, 4, 3] x) => (float[1, 4, 3] y) <float[2] s = {1, 2}, float[2] b = {0, 1}> {
    y = GroupNormalization<num_groups = 2>(x, s, b) }"""


@pytest.mark.parametrize("text", [SCAN, FUNCTION], ids=["body", "function"])
def test_numbers_within_bodies_and_functions_go_to_the_device(text: str) -> None:
    graph = load(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]> ' + text))
    module = to_torch(graph).to("meta")
    found = module(*(torch.empty(graph.shapes[port.name], device="meta") for port in graph.inputs))
    assert all(y.device.type == "meta" for y in (found if isinstance(found, tuple) else (found,)))


@pytest.mark.parametrize("name", MAIN)
def test_arithmetic_of_shapes_is_done_once(name: str) -> None:
    """No call of the module makes integers: sizes are known when it is built."""
    module = to_torch(load(_model(name)))
    module(_input(name, batch=3))
    programs = [module._program, *module._programs.values()]
    graph = load(_model(name))
    integers = {tensor for tensor, dtype in graph.dtypes.items() if dtype in (6, 7, 9)}
    made = {tensor for program in programs for step in program.steps for tensor in step.makes}
    assert made & integers == set()
    assert made


def _kept_for_backward(module: Any, x: Any) -> int:
    """The bytes that a forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(x)
    return sum(sizes.values())


@pytest.mark.parametrize("name", MAIN)
def test_no_more_is_kept_than_in_the_network_written_by_hand(name: str) -> None:
    hand = materialize(ARCHITECTURES[name].quickest)
    x = _input(name)
    assert _kept_for_backward(to_torch(load(_model(name))), x) <= 1.1 * _kept_for_backward(hand, x)
