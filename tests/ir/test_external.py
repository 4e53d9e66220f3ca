"""Large weights left on the disk: read when asked for, written one after the other, never held as a whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt.ir import InputError, load
from onnx_netadapt.ir.external import byte_size, split
from onnx_netadapt.ir.load import read_apart
from onnx_netadapt.ir.write import data_file, save
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import check, check_files, random_feeds, run_plain, zeroed
from onnx_netadapt.passes.prune import prune

WIDTH, LAYERS = 768, 8
SIZE = 4 * WIDTH * WIDTH  # bytes of one weight: 2.4 MB, above what is kept apart


def stack(layers: int = LAYERS) -> onnx.ModelProto:
    """Square products with ReLUs between them, and a small bias."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array((rng.standard_normal((WIDTH, WIDTH)) / 20).astype(np.float32), f"w{number}")
        for number in range(layers)
    ]
    tensors.append(numpy_helper.from_array(rng.standard_normal(WIDTH).astype(np.float32), "bias"))
    nodes, x = [helper.make_node("Add", ["x", "bias"], ["a"])], "a"
    for number in range(layers):
        nodes.append(helper.make_node("MatMul", [x, f"w{number}"], [f"m{number}"]))
        nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"]))
        x = f"r{number}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "stack", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "stack.onnx"
    onnx.save(stack(), file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return file


def test_large_weights_stay_on_the_disk_and_small_ones_do_not(path: Path) -> None:
    graph, whole = load(path, on_disk=True), load(path)
    assert set(graph.weights) == {f"w{number}" for number in range(LAYERS)}
    assert graph.model.ByteSize() < SIZE / 100
    assert whole.weights == {}
    assert graph.shapes == whole.shapes
    for name, constant in whole.constants.items():
        np.testing.assert_array_equal(graph.constants[name].array(), constant.array())


def test_pruning_from_the_disk_gives_the_same_model(path: Path, tmp_path: Path) -> None:
    kept = {f"g{number}": np.arange(0, WIDTH, 3) for number in range(LAYERS - 1)}
    apart, whole = (prune(couple(load(path, on_disk=on_disk)), kept) for on_disk in (True, False))
    assert apart.plan == whole.plan
    save(apart.model, tmp_path / "out.onnx", weights=apart.weights)
    written = onnx.load(tmp_path / "out.onnx").graph.initializer
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in written}
    for tensor in whole.model.graph.initializer:
        np.testing.assert_array_equal(found[tensor.name], numpy_helper.to_array(tensor))


def test_pruning_and_writing_hold_one_weight_at_a_time(path: Path, tmp_path: Path) -> None:
    """numpy's own memory is traced; mapped files are not in it, which is the point."""
    coupling = couple(load(path, on_disk=True))
    kept = {group.id: np.arange(group.units - 8) for group in coupling.groups}
    tracemalloc.start()
    pruned = prune(coupling, kept)
    save(pruned.model, tmp_path / "out.onnx", weights=pruned.weights)
    streamed = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    prune(couple(load(path)), kept)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data_file(tmp_path / "out.onnx").stat().st_size > (LAYERS - 1) * SIZE
    assert streamed < 4 * SIZE  # of one weight: cut along one axis, along both, and laid out for the file
    assert held > LAYERS * SIZE / 2  # the measure does see arrays


def test_the_check_from_files_agrees_with_the_one_in_memory(path: Path, tmp_path: Path) -> None:
    graph, whole = load(path, on_disk=True), load(path)
    pruned = prune(couple(graph), {"g1": np.arange(0, WIDTH, 2)})
    save(pruned.model, tmp_path / "out.onnx", weights=pruned.weights)
    feeds = random_feeds(whole, 2)
    assert check_files(graph.model, graph.weights, tmp_path / "out.onnx", pruned.plan, feeds, tmp_path).passed
    assert check(whole.model, load(tmp_path / "out.onnx").model, pruned.plan, feeds).passed
    on_disk = run_plain(onnx.load(tmp_path / "zeroed.onnx"), feeds, optimize=False)
    for want, have in zip(run_plain(zeroed(whole.model, pruned.plan), feeds, optimize=False), on_disk, strict=True):
        np.testing.assert_array_equal(want[0], have[0])


def test_the_check_from_files_finds_a_wrong_index(path: Path, tmp_path: Path) -> None:
    graph = load(path, on_disk=True)
    pruned = prune(couple(graph), {"g1": np.arange(0, WIDTH, 2)})
    save(pruned.model, tmp_path / "out.onnx", weights=pruned.weights)
    for member in pruned.plan["groups"][0]["members"]:
        member["removed"] = [place - 1 for place in member["removed"]]
    feeds = random_feeds(graph, 1)
    assert not check_files(graph.model, graph.weights, tmp_path / "out.onnx", pruned.plan, feeds, tmp_path).passed


def test_a_model_is_written_with_external_data_without_a_second_copy(tmp_path: Path) -> None:
    model = stack()
    tracemalloc.start()
    save(model, tmp_path / "out.onnx", external=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * SIZE < LAYERS * SIZE
    assert (tmp_path / "out.onnx").stat().st_size < SIZE / 100
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].raw_data == model.graph.initializer[0].raw_data
    onnx.checker.check_model(tmp_path / "out.onnx")


def test_what_protobuf_cannot_hold_goes_to_external_data_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(stack(2), tmp_path / "small.onnx")
    assert not data_file(tmp_path / "small.onnx").exists()
    monkeypatch.setattr("onnx_netadapt.ir.write.PROTOBUF_LIMIT", 2 * SIZE)
    save(stack(2), tmp_path / "large.onnx")
    assert data_file(tmp_path / "large.onnx").stat().st_size >= 2 * SIZE
    assert load(tmp_path / "large.onnx").model.graph.node == load(tmp_path / "small.onnx").model.graph.node
    large, small = (onnx.load(tmp_path / name).graph.initializer for name in ("large.onnx", "small.onnx"))
    assert [tensor.raw_data for tensor in large] == [tensor.raw_data for tensor in small]


def test_sizes_are_counted_without_writing(path: Path) -> None:
    model, (skeleton, weights) = stack(), read_apart(path)
    exact = model.ByteSize()
    assert byte_size(model) == pytest.approx(exact, rel=1e-3)
    assert byte_size(skeleton, weights) == pytest.approx(exact, rel=1e-3)
    assert split(model)[0].ByteSize() < SIZE / 100


def records(path: Path, **changes: str) -> Path:
    """The model with entries of the record of its first weight changed."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | changes
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"location": "gone.bin"}, "which is missing"),
        ({"location": ""}, "which is missing"),
        ({"offset": str(10**12)}, "cannot be read"),
        ({"offset": "-4096"}, "cannot be read"),
        ({"length": "17"}, "cannot be read"),
        ({"offset": "soon"}, "holds no numbers"),
    ],
)
def test_bad_records_are_refused(path: Path, on_disk: bool, changes: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(records(path, **changes), on_disk=on_disk)


@pytest.mark.parametrize("on_disk", [False, True])
def test_data_that_is_cut_off_is_refused(path: Path, on_disk: bool) -> None:
    data = path.with_name("weights.bin")
    data.write_bytes(data.read_bytes()[: 7 * SIZE])
    with pytest.raises(InputError, match=r"'w7' .* cannot be read: .*cut off"):
        load(path, on_disk=on_disk)


def test_a_model_whose_data_cannot_be_found_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="give the model's path instead"):
        load(onnx.load(path, load_external_data=False))
