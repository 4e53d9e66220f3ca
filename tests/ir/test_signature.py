"""The notation of axis signatures: what it says, and what it refuses."""

from __future__ import annotations

import pytest
from onnx_netadapt.ir.relations import Freeze, Relations
from onnx_netadapt.ir.signature import Operand, Token, parse


def test_a_convolution_is_read_as_written() -> None:
    signature = parse("n (G C) h w, (G O) C k l, (G O) -> n (G O) p q")
    assert [len(operand.tokens) for operand in signature.inputs] == [4, 4, 1]
    assert signature.inputs[0].tokens[1] == Token(("G", "C"), "product")
    assert signature.kept == {"n", "G", "O", "p", "q"}


def test_sums_marks_numbers_and_leading_axes_are_read() -> None:
    signature = parse("... T K', (A + B), 3, _ -> ... (A + B)")
    assert signature.inputs[0].leading
    assert signature.inputs[0].tokens[1] == Token(("K",), contracted=True)
    assert signature.inputs[1].tokens[0] == Token(("A", "B"), "sum")
    assert signature.inputs[2].tokens[0] == Token(("3",))
    assert signature.inputs[3] == Operand((), ignored=True)


@pytest.mark.parametrize("text", ["n C h w", "n C ? -> n C", "(n C -> n", "n (G C') -> n G"])
def test_a_signature_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"signature|notation|contracted"):
        parse(text)


def _relations(**sizes: int) -> Relations:
    return Relations(lambda axis: sizes[f"{axis[0]}{axis[1]}"])


def test_a_flatten_is_one_product() -> None:
    relations = _relations(x0=2, x1=7, x2=5, y0=2, y1=35)
    relations.regroup([("x", 0), ("x", 1), ("x", 2)], [("y", 0), ("y", 1)], "r", 0)
    assert [(same.a, same.b) for same in relations.same] == [(("x", 0), ("y", 0))]
    (fold,) = relations.folds
    assert fold.whole == ("y", 1)
    assert fold.parts == (("x", 1), ("x", 2))


def test_two_groupings_share_their_finest_factors() -> None:
    """(6, 5) and (2, 15): factors 2, 3 and 5, of which 3 is an axis that no tensor shows."""
    relations = _relations(x0=6, x1=5, y0=2, y1=15)
    relations.regroup([("x", 0), ("x", 1)], [("y", 0), ("y", 1)], "r", 0)
    wholes = {fold.whole: fold.parts for fold in relations.folds}
    assert set(wholes) == {("x", 0), ("y", 1)}
    assert {wholes["x", 0][0], ("y", 0)} in [{same.a, same.b} for same in relations.same]
    assert wholes["x", 0][1] == wholes["y", 1][0]
    assert relations.length(wholes["x", 0][1]) == 3


def test_groupings_that_do_not_nest_freeze_what_they_touch() -> None:
    relations = _relations(x0=6, x1=4, y0=4, y1=6)
    relations.regroup([("x", 0), ("x", 1)], [("y", 0), ("y", 1)], "r", 5)
    assert relations.same == relations.folds == []
    assert {freeze.axis for freeze in relations.freezes} == {("x", 0), ("x", 1), ("y", 0), ("y", 1)}
    assert all(isinstance(freeze, Freeze) and freeze.node == 5 for freeze in relations.freezes)


def test_axes_of_length_one_say_nothing() -> None:
    relations = _relations(x0=1, x1=7, y0=7, y1=1, y2=1)
    relations.regroup([("x", 0), ("x", 1)], [("y", 0), ("y", 1), ("y", 2)], "r", 0)
    assert [(same.a, same.b) for same in relations.same] == [(("x", 1), ("y", 0))]
