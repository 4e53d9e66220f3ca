"""Recurrent layers: inputs and hidden units are both channel axes; the gates lie side by side in the weights."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Shape
from . import Edit, OpRule, Scope, View

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def relate_recurrent(s: Scope) -> None:
    """X (t n I), W (d (g H) I), R (d (g H) H'), B (d (2g H)), lengths, states -> Y (t d n H), last states (d n H)."""
    g = _GATES[s.node.op_type]
    batch_first = bool(s.attr("layout", 0))
    x, y, state = ("n t I", "n t d H", "n d H") if batch_first else ("t n I", "t d n H", "d n H")
    peephole = f", d ({g - 1} H)" if s.node.op_type == "LSTM" else ""
    cell = f", {state}" if s.node.op_type == "LSTM" else ""
    operands = f"{x}, d ({g} H) I, d ({g} H) H', d ({2 * g} H), _, {state}{cell}{peephole}"
    s.signature(f"{operands} -> {y}, {state}{cell}", H=int(s.attr("hidden_size", s.shape(2)[2])))


def patch_recurrent(edit: Edit) -> None:
    """`hidden_size` follows."""
    if "hidden_size" in edit.node.attrs:
        edit.attrs["hidden_size"] = edit.new_shape(2)[2]


def macs_recurrent(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Each step multiplies the input and the hidden state once."""
    steps_and_batch = ins[0][0] * ins[0][1]
    directions, gates, inputs = ins[1]
    return steps_and_batch * directions * gates * (inputs + ins[2][2])


RULES = {
    "LSTM": OpRule(relate_recurrent, (1, 7, 14, 22), patch_recurrent, macs_recurrent),
    "GRU": OpRule(relate_recurrent, (1, 3, 7, 14, 22), patch_recurrent, macs_recurrent),
    "RNN": OpRule(relate_recurrent, (1, 7, 14, 22), patch_recurrent, macs_recurrent),
}
