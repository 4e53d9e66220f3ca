"""The torch forms of recurrent layers, step by step, so that every option of ONNX holds and every weight is trained.

Gate order in the weights is ONNX's: LSTM i, o, f, c; GRU z, r, h. Sequences of different lengths keep their last state
and give zeros behind their end; the backward direction starts at each sequence's own end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import View
from .runtime import Lowered, Lowering, refuse

State = tuple[Any, ...]
Cell = Callable[[Any, State, Any, Any, Any], State]
"""(projected input (n, gates * h), states, R, recurrent bias, peepholes) -> new states; the first is the output."""


def _activations(view: View, torch: Any, defaults: list[str]) -> list[Callable[[Any], Any]]:
    functional = torch.nn.functional
    directions = 2 if view.attr("direction", "forward") == "bidirectional" else 1
    given = view.attr("activations", defaults * directions)
    names = [(name.decode() if isinstance(name, bytes) else str(name)).lower() for name in given]
    alphas = list(view.attr("activation_alpha", ()))
    betas = list(view.attr("activation_beta", ()))
    table: dict[str, tuple[int, int, Callable[..., Any]]] = {
        "relu": (0, 0, torch.relu),
        "tanh": (0, 0, torch.tanh),
        "sigmoid": (0, 0, torch.sigmoid),
        "softsign": (0, 0, functional.softsign),
        "softplus": (0, 0, functional.softplus),
        "leakyrelu": (1, 0, lambda x, a=0.01: functional.leaky_relu(x, a)),
        "elu": (1, 0, lambda x, a=1.0: functional.elu(x, a)),
        "thresholdedrelu": (1, 0, lambda x, a=1.0: torch.where(x > a, x, torch.zeros_like(x))),
        "affine": (1, 1, lambda x, a=1.0, b=0.0: a * x + b),
        "scaledtanh": (1, 1, lambda x, a=1.0, b=1.0: a * torch.tanh(b * x)),
        "hardsigmoid": (1, 1, lambda x, a=0.2, b=0.5: torch.clamp(a * x + b, 0, 1)),
    }
    found: list[Callable[[Any], Any]] = []
    for name in names:
        if name not in table:
            raise refuse(view, f"activation '{name}'")
        takes_alpha, takes_beta, function = table[name]
        arguments = [alphas.pop(0)] if takes_alpha and alphas else []
        arguments += [betas.pop(0)] if takes_beta and betas and arguments else []
        found.append(_bound(function, tuple(arguments)))
    return found


def _bound(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    return lambda x: function(x, *arguments)


def _clip(view: View, torch: Any) -> Callable[[Any], Any]:
    limit = view.attr("clip")
    return (lambda x: x) if limit is None else lambda x: torch.clamp(x, -float(limit), float(limit))


def _lstm_cell(view: View, torch: Any, f: Any, g: Any, h: Any) -> Cell:
    clip, coupled = _clip(view, torch), bool(view.attr("input_forget", 0))

    def cell(x: Any, state: State, r: Any, bias: Any, peepholes: Any) -> State:
        hidden, memory = state
        i, o, forget, c = (x + hidden @ r.transpose(0, 1) + bias).chunk(4, -1)
        pi, po, pf = peepholes.chunk(3, -1) if peepholes is not None else (0, 0, 0)
        gate = f(clip(i + pi * memory))
        keep = 1 - gate if coupled else f(clip(forget + pf * memory))
        memory = keep * memory + gate * g(clip(c))
        return f(clip(o + po * memory)) * h(memory), memory

    return cell


def _gru_cell(view: View, torch: Any, f: Any, g: Any) -> Cell:
    clip, before_reset = _clip(view, torch), bool(view.attr("linear_before_reset", 0))

    def cell(x: Any, state: State, r: Any, bias: Any, peepholes: Any) -> State:
        (hidden,) = state
        xz, xr, xh = x.chunk(3, -1)
        rz, rr, rh = r.chunk(3, 0)
        bz, br, bh = bias.chunk(3, -1)
        z = f(clip(xz + hidden @ rz.transpose(0, 1) + bz))
        reset = f(clip(xr + hidden @ rr.transpose(0, 1) + br))
        if before_reset:
            new = g(clip(xh + reset * (hidden @ rh.transpose(0, 1) + bh)))
        else:
            new = g(clip(xh + (reset * hidden) @ rh.transpose(0, 1) + bh))
        return ((1 - z) * new + z * hidden,)

    return cell


def _rnn_cell(view: View, torch: Any, f: Any) -> Cell:
    clip = _clip(view, torch)

    def cell(x: Any, state: State, r: Any, bias: Any, peepholes: Any) -> State:
        return (f(clip(x + state[0] @ r.transpose(0, 1) + bias)),)

    return cell


_KINDS: dict[str, tuple[list[str], Callable[..., Cell], int]] = {
    "LSTM": (["Sigmoid", "Tanh", "Tanh"], _lstm_cell, 2),
    "GRU": (["Sigmoid", "Tanh"], _gru_cell, 1),
    "RNN": (["Tanh"], _rnn_cell, 1),
}


def lower_recurrent(view: View, torch: Any) -> Lowered:
    """LSTM, GRU and RNN: X, W, R, B, lengths, initial states, peepholes -> all outputs, last states."""
    defaults, make, states = _KINDS[view.node.op_type]
    functions = _activations(view, torch, defaults)
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
        view.attr("direction", "forward")
    ]
    width = len(defaults)
    cells = [make(view, torch, *functions[d * width : (d + 1) * width]) for d in range(len(directions))]
    batch_first = bool(view.attr("layout", 0))

    def run(x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h0: Any = None, *rest: Any) -> Any:
        c0, peepholes = (*rest, None, None)[:2] if states == 2 else (None, None)
        if batch_first:
            x = x.transpose(0, 1)
            h0, c0 = (None if each is None else each.transpose(0, 1) for each in (h0, c0))
        outputs, lasts = [], []
        for d, backward in enumerate(directions):
            first = [_initial(each, d, x, r) for each in (h0, c0)[:states]]
            bias = b[d] if b is not None else x.new_zeros(2 * r.shape[1])
            peephole = None if peepholes is None else peepholes[d]
            y, last = _scan(cells[d], x, w[d], r[d], bias, first, peephole, lengths, backward, torch)
            outputs.append(y)
            lasts.append(last)
        y = torch.stack(outputs, 1)  # (t, d, n, h)
        final = [torch.stack([last[k] for last in lasts]) for k in range(states)]  # (d, n, h)
        if batch_first:
            y, final = y.permute(2, 0, 1, 3), [each.transpose(0, 1) for each in final]
        return (y, *final)

    return run


def _initial(given: Any, direction: int, x: Any, r: Any) -> Any:
    return x.new_zeros((x.shape[1], r.shape[2])) if given is None else given[direction]


def _scan(
    cell: Cell,
    x: Any,
    w: Any,
    r: Any,
    bias: Any,
    state: list[Any],
    peephole: Any,
    lengths: Any,
    backward: bool,
    torch: Any,
) -> tuple[Any, State]:
    """One direction: all outputs (t, n, h) and the last states."""
    here, there = bias.chunk(2, -1)
    projected = x @ w.transpose(0, 1) + here  # (t, n, gates * h)
    steps: list[Any] = [None] * x.shape[0]
    current: State = tuple(state)
    for t in reversed(range(x.shape[0])) if backward else range(x.shape[0]):
        new = cell(projected[t], current, r, there, peephole)
        if lengths is None:
            current = new
            steps[t] = new[0]
            continue
        alive = (lengths > t)[:, None]
        current = tuple(torch.where(alive, a, b) for a, b in zip(new, current, strict=True))
        steps[t] = torch.where(alive, new[0], torch.zeros_like(new[0]))
    y = torch.stack(steps) if steps else x.new_zeros((0, x.shape[1], r.shape[1]))
    return y, current


LOWER: dict[str, Lowering] = dict.fromkeys(_KINDS, lower_recurrent)
