"""Loading: every way in which a file can be bad is one clear error, and odd but good files are understood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from net import Net
from onnx import TensorProto, helper, numpy_helper
from onnx_netadapt.ir import Graph, InputError, load
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.prune import prune
from oracle import assert_exact, feeds_for


def plain(opset: int = 17, **attrs: bool) -> Net:
    net = Net(opset, **attrs)
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7))
    return net.output(net.conv(x, 7, 13))


SHAPES = {"x0": (2, 3, 5, 11)}


def halves_exactly(graph: Graph) -> onnx.ModelProto:
    """Half of every group is removed, zeroing equals removing, and there was something to remove."""
    coupling = couple(graph)
    assert coupling.groups
    pruned = prune(coupling, {group.id: np.arange(group.units // 2) for group in coupling.groups})
    assert_exact(graph, pruned, feeds_for(graph), optimize=False)
    return pruned.model


def test_a_path_bytes_and_a_model_are_the_same_graph(tmp_path: Path) -> None:
    model = plain().model()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    graphs = [load(source, shapes=SHAPES) for source in (path, str(path), path.read_bytes(), model)]
    assert len({graph.model.SerializeToString() for graph in graphs}) == 1
    assert all(graph.shapes == graphs[0].shapes for graph in graphs)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        load(tmp_path / "nothing.onnx")
    assert "nothing.onnx" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"This is a text file.\n" * 50, b"\x00\xff" * 99, b"PK\x03\x04zip"])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX model"):
        load(path)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    content = plain().model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="cut off"):
        load(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)


def external(tmp_path: Path, location: str) -> Path:
    """A model whose weights lie in a file of their own, and whose records are then pointed to `location`."""
    path = tmp_path / "model.onnx"
    onnx.save(plain().model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    halves_exactly(load(external(tmp_path, "weights.bin"), shapes=SHAPES))


@pytest.mark.parametrize("location", ["../weights.bin", "sub/../../weights.bin", "/etc/hostname"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path.parent / "weights.bin").write_bytes(b"\0" * 9999)
    with pytest.raises(InputError, match="outside the model's folder"):
        load(external(tmp_path, location))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder, "link.bin")
    (tmp_path / "elsewhere.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(InputError, match="outside the model's folder"):
        load(path)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'gone\.bin', which is missing"):
        load(external(tmp_path, "gone.bin"))


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"\0\0")
    with pytest.raises(InputError, match=r"cannot be read|too short"):
        load(path, shapes=SHAPES)


def test_a_wrong_input_name_or_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"no input 'y'.*inputs are x0"):
        load(plain().model(), shapes={"y": (1,)})
    with pytest.raises(InputError, match="does not fit"):
        load(plain().model(), shapes={"x0": (2, 4, 5, 11)})


def test_sparse_initializers_are_made_dense_and_said_so() -> None:
    model = plain().model()
    dense = next(tensor for tensor in model.graph.initializer if tensor.name == "c2")
    array = numpy_helper.to_array(dense) * (np.arange(91).reshape(13, 7, 1, 1) % 3 == 0)
    places = np.argwhere(array)
    values = numpy_helper.from_array(array[tuple(places.T)], "c2")
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "i"), [13, 7, 1, 1])
    )
    graph = load(model, shapes=SHAPES)
    assert "sparse" in graph.notes[0]
    np.testing.assert_array_equal(graph.constants["c2"].array(), array)
    halves_exactly(graph)


def test_weights_that_constant_of_shape_makes_are_written_out_and_said_so() -> None:
    model = plain().model()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "c1")
    model.graph.initializer.remove(bias)
    model.graph.initializer.append(numpy_helper.from_array(np.array([7], np.int64), "length"))
    fill = helper.make_tensor("fill", onnx.TensorProto.FLOAT, [1], [0.5])
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["length"], ["c1"], value=fill))
    graph = load(model, shapes=SHAPES)
    assert graph.notes == ("1 constants that ConstantOfShape makes were written out",)
    np.testing.assert_array_equal(graph.constants["c1"].array(), np.full(7, 0.5, np.float32))
    halves_exactly(graph)


def test_functions_are_inlined_and_said_so() -> None:
    model = plain().model()
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Twice", "local"
    graph = load(model, shapes=SHAPES)
    assert "inlined" in graph.notes[0]
    assert {node.op_type for node in graph.nodes} == {"Conv", "Add"}
    halves_exactly(graph)


def test_before_ir_version_4_initializers_are_inputs_too() -> None:
    model = plain(opset=8).model()
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    graph = load(model, shapes=SHAPES)
    assert [port.name for port in graph.inputs] == ["x0"]
    pruned = halves_exactly(graph)
    declared = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in pruned.graph.input[1:]}
    assert declared == {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}


def test_constant_nodes_hold_weights_too() -> None:
    """As Paddle writes them."""
    model = plain().model()
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in reversed(tensors):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    pruned = halves_exactly(load(model, shapes=SHAPES))
    assert not pruned.graph.initializer
    assert sum(node.op_type == "Constant" for node in pruned.graph.node) == 4


@pytest.mark.parametrize("carrier", ["Identity", "Cast", "Reshape", "Transpose", "Unsqueeze", "Mul"])
def test_weights_behind_a_node_that_carries_them_are_found(carrier: str) -> None:
    """As CNTK and tf2onnx write them."""
    net = Net()
    w = net.weight(7, 3, 1, 1) if carrier != "Unsqueeze" else net.weight(7, 3, 1)
    given = {
        "Cast": lambda: net.op("Cast", w, to=TensorProto.FLOAT),
        "Identity": lambda: net.op("Identity", w),
        "Mul": lambda: net.op("Mul", w, net.positive(7, 1, 1, 1)),
        "Reshape": lambda: net.op("Reshape", net.weight(7, 3), net.ints(7, 3, 1, 1)),
        "Transpose": lambda: net.op("Transpose", net.weight(1, 1, 3, 7), perm=[3, 2, 0, 1]),
        "Unsqueeze": lambda: net.op("Unsqueeze", w, net.ints(3)),
    }[carrier]()
    second = net.op("Transpose", net.weight(1, 1, 7, 13), perm=[3, 2, 0, 1])
    x = net.op("Sigmoid", net.op("Conv", net.input(2, 3, 5, 11), given))
    graph = load(net.output(net.op("Conv", x, second)).model(), shapes=net.shapes)
    assert [group.units for group in couple(graph).groups] == [7]
    halves_exactly(graph)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types_are_sliced(dtype: int) -> None:
    model = plain().model()
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = dtype
    graph = load(model, shapes=SHAPES)
    coupling = couple(graph)
    pruned = prune(coupling, {coupling.groups[0].id: np.array([0, 6])})
    assert {tensor.data_type for tensor in pruned.model.graph.initializer} == {dtype}
    tolerance = 2e-2 if dtype == TensorProto.FLOAT16 else 1e-6
    assert_exact(graph, pruned, feeds_for(graph), optimize=False, tolerance=tolerance)


def test_what_a_body_reads_from_outside_is_a_barrier() -> None:
    net = Net(open_batch=False)
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7))
    body = helper.make_graph(
        [helper.make_node("Add", [x, x], ["doubled"])],
        "body",
        [],
        [helper.make_tensor_value_info("doubled", TensorProto.FLOAT, [2, 7, 5, 11])],
    )
    y = net.op("If", net.const(True, np.bool_), then_branch=body, else_branch=body)
    graph = load(net.output(net.conv(y, 7, 13)).model(), shapes=net.shapes)
    coupling = couple(graph)
    assert coupling.groups == ()
    assert any("the body of If reads it" in barrier.reason for barrier in coupling.barriers)
