"""Every operator's torch form against ONNX Runtime: on the records' networks, and option by option."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from net import MICROSOFT, Net
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import UnsupportedOp
from onnx_netadapt.ir.lowering import bare_graph, build
from onnx_netadapt.ir.ops import all_rules
from onnx_netadapt.ir.ops.resize_torch import _coordinates
from onnx_netadapt.ir.ops.torch_only import SINCE, forms, lowering_of
from onnx_netadapt.passes.equivalence import random_feeds
from onnx_netadapt.passes.to_torch import to_torch, unsupported
from oracle import difference, run
from record import Record
from single import assert_alike, both, node_model
from test_rules import CASES

torch = pytest.importorskip("torch")

GRID = 0.06
"""A step of the output's 8-bit grid, as a share of its range: where a value lies on a tie, one step is no mistake."""


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _worst(model: onnx.ModelProto, graph: Any, seed: int) -> float:
    feeds = random_feeds(graph, 1, seed)
    wanted = run(model, feeds, optimize=False)
    module = to_torch(graph)
    with torch.no_grad():
        found = module({name: torch.from_numpy(value) for name, value in feeds[0].items()})
    return difference(wanted, [[y.numpy() for y in (found if isinstance(found, tuple) else (found,))]])


@pytest.mark.parametrize(("record", "opset"), CASES)
def test_torch_agrees_with_onnx_runtime(record: Record, opset: int) -> None:
    net = Net(opset, open_batch=record.open_batch)
    record.build(net)
    model = net.model()
    graph = load(model, shapes=net.shapes)
    if unsupported(graph):
        pytest.skip(unsupported(graph)[0])
    quantized = any("Quantize" in node.op_type or node.op_type.startswith("Q") for node in graph.nodes)
    allowed = GRID if quantized else 1e-4
    # a division by a number that happens to be next to 0 says nothing about the lowering: another draw decides
    assert min(_worst(model, graph, seed) for seed in (0, 1)) <= allowed


WITHOUT_TORCH_FORM = {
    "files": {"ImageDecoder"},
    "dropped before opset 7": {"GRUUnit", "ParametricSoftplus", "Scale", "GivenTensorFill", "ScaledTanh"},
}  # fmt: skip


def test_the_default_domain_has_a_torch_form_for_every_rule() -> None:
    functions = {
        s.name
        for s in onnx.defs.get_all_schemas_with_history()
        if s.domain == "" and (s.has_function or s.has_context_dependent_function)
    }
    excused = set().union(*WITHOUT_TORCH_FORM.values())
    with_form = {name for domain, name in forms() if not domain}
    assert {name for domain, name, _ in all_rules() if not domain} - with_form - functions - excused == set()
    assert excused & with_form == set()


OLD = {"Affine", "Crop", "ImageScaler", "SimplifiedLayerNormalization"}
"""Operators that ONNX's default domain had before its first release, or that ONNX Runtime adds to it."""


def test_a_form_stands_in_the_domain_of_its_operator() -> None:
    defined = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    foreign = {key for key in forms() if key not in defined and key[0] != MICROSOFT and key[1] not in OLD}
    assert foreign == set()
    assert all(rule_for_name(domain, name) or (domain, name) in SINCE for domain, name in forms())


def rule_for_name(domain: str, name: str) -> bool:
    return any((d, n) == (domain, name) for d, n, _ in all_rules())


def test_an_operator_of_another_domain_does_not_get_the_default_domains_form() -> None:
    """com.microsoft has operators that are called like standard ones and compute something else."""
    shared = sorted({n for d, n in forms() if not d} & {n for d, n in forms() if d == MICROSOFT})
    assert shared == ["DequantizeLinear", "Gelu", "GridSample", "QuantizeLinear"]
    assert all(forms()["", name] is forms()[MICROSOFT, name] for name in shared)  # which are the same operators
    for name in ("Gemm", "Conv", "Relu", "Attention"):
        for domain in ("my.own", "com.example"):
            node = onnx.helper.make_node(name, ["x"], ["y"], domain=domain)
            values = [onnx.helper.make_tensor_value_info(n, 1, [2, 3]) for n in "xy"]
            graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
            opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(domain, 1)]
            bare = bare_graph(onnx.helper.make_model(graph, opset_imports=opsets))
            assert lowering_of(bare, bare.nodes[0]) is None


COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn",
)  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("size", [1, 3, 4, 7, 10, 13, 17, 22, 31])
def test_resize_picks_the_same_pixels(coordinates: str, nearest: str, size: int) -> None:
    opset = {"half_pixel_symmetric": 19, "tf_half_pixel_for_nn": 11}.get(coordinates, 13)
    attrs = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    for length in (5, 11):
        x = np.arange(length, dtype=np.float32).reshape(1, 1, 1, length)
        constants = {1: np.zeros(0, np.float32), 2: np.zeros(0, np.float32), 3: np.array([1, 1, 1, size], np.int64)}
        wanted, found = both(node_model("Resize", [x], constants=constants, opset=opset, **attrs), [x])
        at = _coordinates(length, size, np.float32(size / length), (0, 1), coordinates).astype(np.float64)
        # exactly between two pixels the last bit of a float decides, which compilers round in their own way
        tie = np.abs(2 * at - np.rint(2 * at)) < 1e-5
        assert wanted[0].shape == found[0].shape
        assert np.array_equal(wanted[0][..., ~tie], found[0][..., ~tie])
        assert np.abs(wanted[0] - found[0]).max() <= 1


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", [c for c in COORDINATES if c != "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("scales", [(1.4, 2.0), (2.0, 2.0), (0.6, 0.7), (1.0, 3.3)])
def test_resize_blends_the_same_pixels(mode: str, coordinates: str, scales: tuple[float, float]) -> None:
    x = _random(2, 3, 5, 11)
    constants = {1: np.zeros(0, np.float32), 2: np.array([1, 1, *scales], np.float32)}
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    assert_alike(node_model("Resize", [x], constants=constants, opset=19, **attrs), [x])


@pytest.mark.parametrize(("mode", "outside"), [("linear", 0), ("cubic", 0), ("cubic", 1)])
@pytest.mark.parametrize("sizes", [(3, 7), (2, 5), (4, 13)])
def test_resize_with_antialias(mode: str, outside: int, sizes: tuple[int, int]) -> None:
    x = _random(1, 3, 7, 17)
    constants = {1: np.zeros(0, np.float32), 2: np.zeros(0, np.float32), 3: np.array([1, 3, *sizes], np.int64)}
    attrs = {"mode": mode, "antialias": 1, "exclude_outside": outside}
    assert_alike(node_model("Resize", [x], constants=constants, opset=18, **attrs), [x], rtol=1e-4)


def test_resize_crops() -> None:
    x = _random(1, 2, 5, 11)
    roi = np.array([0, 0, 0.2, -0.1, 1, 1, 0.7, 1.2], np.float32)
    constants = {1: roi, 2: np.zeros(0, np.float32), 3: np.array([1, 2, 7, 13], np.int64)}
    attrs = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.5}
    assert_alike(node_model("Resize", [x], constants=constants, **attrs), [x])


POOLS = list(itertools.product([(3, 2), (2, 5)], [(1, 1), (2, 3)], [(0, 0, 0, 0), (1, 0, 1, 1), (1, 1, 1, 1)], [0, 1]))


@pytest.mark.parametrize(("kernel", "strides", "pads", "ceil"), POOLS)
def test_pools_see_the_same_windows(kernel: Any, strides: Any, pads: Any, ceil: int) -> None:
    x = _random(2, 3, 7, 11)
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": ceil}
    assert_alike(node_model("MaxPool", [x], **attrs, opset=12), [x], rtol=0)
    assert_alike(node_model("MaxPool", [x], **attrs, opset=12, dilations=(2, 1)), [x], rtol=0)
    if not ceil:
        assert_alike(node_model("MaxPool", [x], **attrs, opset=12, outputs=2), [x], rtol=0)
    for count in (0, 1):
        assert_alike(node_model("AveragePool", [x], **attrs, opset=19, count_include_pad=count), [x])
    assert_alike(node_model("AveragePool", [x], **attrs, opset=19, dilations=(2, 1)), [x])
    assert_alike(node_model("LpPool", [x], **attrs, opset=18, p=3), [x], rtol=1e-4)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("strides", "dilations"), [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 1), (2, 3))])
def test_convolutions_pad_alike(auto: str, strides: Any, dilations: Any) -> None:
    x, w, b = _random(2, 3, 11, 13), _random(5, 3, 2, 3, seed=1), _random(5, seed=2)
    attrs: dict[str, Any] = {"auto_pad": auto, "strides": strides, "dilations": dilations}
    if auto == "NOTSET":
        attrs = {"pads": (1, 0, 0, 2), "strides": strides, "dilations": dilations}
    if auto.startswith("SAME") and dilations != (1, 1):
        pytest.skip("ONNX Runtime pads no dilated kernel by itself")
    assert_alike(node_model("Conv", [x], constants={1: w, 2: b}, **attrs), [x])
    if dilations == (1, 1):
        assert_alike(node_model("MaxPool", [x], kernel_shape=(2, 3), **attrs, opset=12), [x], rtol=0)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": (2, 3), "output_padding": (1, 2)},
        {"strides": (2, 3), "pads": (1, 0, 0, 2)},
        {"strides": (2, 3), "pads": (1, 1, 1, 1), "output_padding": (1, 0)},
        {"strides": (2, 2), "output_shape": (10, 15)},
        {"strides": (2, 2), "auto_pad": "SAME_UPPER"},
        {"strides": (3, 2), "auto_pad": "SAME_LOWER"},
        {"dilations": (2, 3), "pads": (0, 2, 1, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("group", [1, 3])
def test_transposed_convolutions(attrs: dict[str, Any], group: int) -> None:
    x, w, b = _random(2, 3, 5, 7), _random(3, 4, 3, 4, seed=1), _random(4 * group, seed=2)
    assert_alike(node_model("ConvTranspose", [x], constants={1: w, 2: b}, group=group, **attrs), [x])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", [(0, 1, 2, 0, 2, 1), (0, 0, -1, 0, 1, 2), (0, -1, 0, 0, -1, 3)])
def test_pads(mode: str, pads: tuple[int, ...]) -> None:
    if mode == "wrap" and min(pads) < 0:
        pytest.skip("ONNX Runtime wraps a cropped axis around its cropped part, numpy around the whole")
    if mode == "reflect" and min(pads) < 0:
        pytest.skip("ONNX Runtime reflects at the cropped edge")
    x = _random(2, 5, 7)
    constants = {1: np.array(pads, np.int64), 2: np.array(1.5, np.float32)}
    assert_alike(node_model("Pad", [x], constants=constants, mode=mode, opset=19), [x], rtol=0)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(1, 5, 1), (-3, 100, 1), (6, 0, -2), (100, -100, -1), (-1, -6, -3), (5, 5, 1), (4, -9, -1)],
)
def test_slices(start: int, end: int, step: int) -> None:
    x = _random(3, 7)
    bounds = {k + 1: np.array([v], np.int64) for k, v in enumerate((start, end, 1, step))}
    assert_alike(node_model("Slice", [x], constants=bounds), [x], rtol=0)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("option", ["plain", "lengths", "states", "clip", "special"])
def test_recurrent_layers(op: str, direction: str, option: str) -> None:
    gates, d, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1, 5
    x = _random(7, 3, 4)
    constants = {
        1: _random(d, gates * hidden, 4, seed=1),
        2: _random(d, gates * hidden, hidden, seed=2),
        3: _random(d, 2 * gates * hidden, seed=3),
    }
    attrs: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if option == "lengths":
        constants[4] = np.array([7, 2, 4], np.int32)
    if option == "states":
        constants[5] = _random(d, 3, hidden, seed=5)
        if op == "LSTM":
            constants |= {6: _random(d, 3, hidden, seed=6), 7: _random(d, 3 * hidden, seed=7)}
    if option == "clip":
        attrs["clip"] = 0.3
    if option == "special":
        attrs |= {"LSTM": {"input_forget": 1}, "GRU": {"linear_before_reset": 1}, "RNN": {"activations": ["Relu"] * d}}[
            op
        ]
    assert_alike(node_model(op, [x], constants=constants, outputs=3 if op == "LSTM" else 2, **attrs), [x])


def test_integers_are_divided_towards_zero() -> None:
    a, b = np.array([7, -7, 7, -7], np.int64), np.array([2, 2, -2, -2], np.int64)
    wanted, found = both(node_model("Div", [a, b]), [a, b])
    assert wanted[0].tolist() == found[0].tolist() == [3, -3, -3, 3]


def test_before_opset_13_softmax_runs_over_all_axes_from_its_own_on() -> None:
    x = _random(2, 3, 5)
    assert_alike(node_model("Softmax", [x], opset=11, axis=1), [x])
    old, new = (both(node_model("Softmax", [x], opset=opset, axis=1), [x])[1][0] for opset in (11, 13))
    assert np.abs(old - new).max() > 0.1


def test_a_size_that_comes_as_an_input_is_read_at_each_run() -> None:
    x = _random(2, 3, 5)
    model = node_model("Reshape", [x, np.array([3, 10], np.int64)])
    module = to_torch(load(model))
    for shape in ((3, 10), (5, 2, 3), (-1,)):
        assert module(torch.from_numpy(x), torch.tensor(shape)).shape == torch.zeros(2, 3, 5).reshape(shape).shape


def test_sizes_that_depend_on_values_are_not_folded() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[7] x) => (int64[k] count, float[n] ones) {
            places = NonZero(x)
            count = Shape(places)
            axis = Constant<value: tensor = int64[1] {1}>()
            length = Gather(count, axis)
            ones = ConstantOfShape<value: tensor = float[1] {1.0}>(length)
        }""")
    module = to_torch(load(model))
    for x in ([0, 1, 0, 2, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]):
        count, ones = module(torch.tensor(x, dtype=torch.float32))
        assert count.tolist() == [1, np.count_nonzero(x)]
        assert len(ones) == np.count_nonzero(x)


def test_loops_run_their_bodies_and_let_gradients_out() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[3] x, float[3] w) => (float[3] y) {
            count = Constant<value: tensor = int64 {4}>()
            y = Loop(count, , x) <body = one (int64 i, bool go, float[3] s) => (bool on, float[3] t) {
                on = Identity(go)
                t = Mul(s, w)
            }>
        }""")
    module = to_torch(load(model))
    x, w = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    y = module(x, w)
    assert torch.allclose(y, x * w**4)
    y.sum().backward()
    assert torch.allclose(w.grad, 4 * x * w.detach() ** 3)


def test_an_unknown_operator_is_named_before_any_work() -> None:
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Frobnicate", ["x"], ["y"], name="odd one", domain="my.own")],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [2, 3])],
            [onnx.helper.make_tensor_value_info("y", 1, [2, 3])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my.own", 1)],
    )
    (reason,) = unsupported(bare_graph(model))
    assert "odd one" in reason
    assert "Frobnicate" in reason
    with pytest.raises(UnsupportedOp, match="Frobnicate"):
        build(bare_graph(model), torch)
