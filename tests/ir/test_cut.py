"""A part of a model computes what the whole computes, from what is fed to it, and has nothing else in it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_netadapt.ir.cut import cut

FLOAT = onnx.TensorProto.FLOAT

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[N, 4] x, float[N, 2] z) => (float[N, 2] y)
<float[4] a = {1, 2, 3, 4}, float[2] b = {5, 6}, float[2] unused = {0, 0}>
{
    scaled = Mul(x, a)
    left, right = Split<axis = 1>(scaled)
    sum = Add(left, b)
    both = Mul(sum, right)
    y = Add(both, z)
}
"""

WITH_BODY = """
<ir_version: 8, opset_import: ["" : 17]>
branching (float[N, 4] x, bool[] c) => (float[N, 4] y)
<float[4] a = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 8}>
{
    outer = Mul(x, a)
    aside = Mul(x, b)
    y = If (c) <
        then_branch = then () => (float[N, 4] t) { t = Add(outer, b) },
        else_branch = other () => (float[N, 4] e) { e = Sub(outer, a) }
    >
}
"""


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {port.name: feeds[port.name] for port in session.get_inputs()})


@pytest.fixture
def chain() -> onnx.ModelProto:
    return onnx.parser.parse_model(CHAIN)


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(3, 4)).astype(np.float32), "z": rng.normal(size=(3, 2)).astype(np.float32)}


def test_inner_tensors_are_computed_from_what_they_need_alone(chain, feeds):
    part = cut(chain, ["sum", "scaled"])
    assert [node.op_type for node in part.graph.node] == ["Mul", "Split", "Add"]
    assert [port.name for port in part.graph.input] == ["x"]
    assert {tensor.name for tensor in part.graph.initializer} == {"a", "b"}
    total, scaled = run(part, feeds)
    np.testing.assert_allclose(scaled, feeds["x"] * [1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(total, scaled[:, :2] + [5, 6], rtol=1e-6)


def test_what_is_fed_stands_in_for_what_makes_it(chain, feeds):
    part = cut(chain, ["y"], {"sum": FLOAT, "right": FLOAT})
    assert [node.op_type for node in part.graph.node] == ["Mul", "Add"]
    given = {name: np.full((3, 2), value, np.float32) for name, value in (("sum", 2.0), ("right", 3.0))}
    np.testing.assert_allclose(run(part, feeds | given)[0], 6 + feeds["z"], rtol=1e-6)


def test_a_node_whose_one_output_is_fed_still_makes_the_other(chain, feeds):
    part = cut(chain, ["both"], {"left": FLOAT})
    zeros = np.zeros((3, 2), np.float32)
    right = feeds["x"][:, 2:] * [3, 4]
    np.testing.assert_allclose(run(part, feeds | {"left": zeros})[0], right * [5, 6], rtol=1e-6)


def test_what_a_body_reads_from_outside_is_needed(feeds):
    model = onnx.parser.parse_model(WITH_BODY)
    part = cut(model, ["y"])
    assert [node.op_type for node in part.graph.node] == ["Mul", "If"]
    assert {tensor.name for tensor in part.graph.initializer} == {"a", "b"}
    for condition in (True, False):
        given = {"x": feeds["x"], "c": np.array(condition)}
        np.testing.assert_array_equal(run(part, given)[0], run(model, given)[0])
    inner = cut(model, ["y"], {"outer": FLOAT})
    assert [node.op_type for node in inner.graph.node] == ["If"]


def test_the_model_is_left_as_it_is(chain):
    before = chain.SerializeToString()
    cut(chain, ["both"], {"left": FLOAT})
    assert chain.SerializeToString() == before


@pytest.mark.parametrize(("outputs", "inputs"), [(["nothing"], {}), (["y"], {"nothing": FLOAT})])
def test_a_tensor_that_is_not_there(chain, outputs, inputs):
    with pytest.raises(KeyError, match="nothing"):
        cut(chain, outputs, inputs)
