"""Names that are not UTF-8 are refused where the file is read, wherever they stand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.load import load
from onnx_netadapt.ir.text import undecodable

WORDS = ("model_word", "node_word", "value_word", "dim_word", "attr_word", "tensor_word", "inner_word")


def written(word: str) -> bytes:
    """A model in which each of WORDS stands in another place; one of them is made undecodable."""
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["inner_word"])], "g", [], [])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("dim_word", 2))
    y = helper.make_tensor_value_info("value_word", TensorProto.FLOAT, None)
    node = helper.make_node("Foo", ["x"], ["value_word"], name="node_word", attr_word=1, domain="d")
    holder = helper.make_node("Foo", ["x"], ["z"], body=inner, domain="d")
    weight = helper.make_tensor("tensor_word", TensorProto.FLOAT, [1], [0.5])
    model = helper.make_model(helper.make_graph([node, holder], "g", [x], [y], [weight]), producer_name="model_word")
    return model.SerializeToString().replace(word.encode(), b"\xff\xfe" + word.encode()[2:])


@pytest.mark.parametrize("word", WORDS)
def test_it_is_seen_wherever_it_stands(word: str) -> None:
    with pytest.raises(InputError, match=r"model\.[\w.]+ is not UTF-8"):
        load(written(word))


def test_other_texts_are_left_alone(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.ParseFromString(written("nothing of it"))
    model.graph.doc_string = "Breite \N{LATIN SMALL LETTER U WITH DIAERESIS}ber alles"
    assert undecodable(model) is None
    model.graph.initializer[0].raw_data = b"\xff\xfe"  # numbers are no text
    assert undecodable(model) is None
