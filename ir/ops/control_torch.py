"""The torch forms of control flow: If, Loop and Scan run their bodies; sequences are Python lists.

The tensors that a body reads from outside come behind the node's own inputs, in the order of `Node.captures`; behind
them come the weights that stand in the bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..lowering import Body, build_body, inner_weights
from . import View
from .runtime import Lowered, Lowering


def _body(view: View, name: str, torch: Any) -> Body:
    return build_body(view.graph, view.node, name, torch)


def _outer(view: View) -> Callable[[tuple[Any, ...]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """A function of all that the node reads: its own inputs, and what its bodies read besides, by name."""
    count, names = len(view.node.inputs), (*view.node.captures, *inner_weights(view.graph, view.node))
    return lambda args: (args[:count], dict(zip(names, args[count:], strict=True)))


def _unpack(outputs: list[Any]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def lower_if(view: View, torch: Any) -> Lowered:
    """If: one of two bodies."""
    yes, no, split = _body(view, "then_branch", torch), _body(view, "else_branch", torch), _outer(view)

    def run(*args: Any) -> Any:
        (condition,), outer = split(args)
        return _unpack((yes if bool(condition) else no).run([], outer))

    return run


def lower_loop(view: View, torch: Any) -> Lowered:
    """Loop: a body of (number, condition, carried ...) -> (condition, carried ..., scanned ...)."""
    body, split = _body(view, "body", torch), _outer(view)
    carried = len(view.node.inputs) - 2

    def run(*args: Any) -> Any:
        (limit, condition, *state), outer = split(args)
        most = int(limit) if limit is not None else None
        going, number = True if condition is None else bool(condition), 0
        scanned: list[list[Any]] = [[] for _ in range(len(body.program.outputs) - 1 - carried)]
        while going and (most is None or number < most):
            outputs = body.run([torch.tensor(number), torch.tensor(going), *state], outer)
            going, state = bool(outputs[0]), list(outputs[1 : 1 + carried])
            for rows, row in zip(scanned, outputs[1 + carried :], strict=True):
                rows.append(row)
            number += 1
        return _unpack([*state, *(torch.stack(rows) if rows else torch.zeros(0) for rows in scanned)])

    return run


def lower_scan(view: View, torch: Any) -> Lowered:
    """Scan: a body of (states ..., slices ...) -> (states ..., rows ...), over one axis of each scanned input."""
    body, scans = _body(view, "body", torch), int(view.attr("num_scan_inputs"))
    if view.version < 9:
        return _scan_batched(view, torch, body, scans)
    split = _outer(view)
    return lambda *args: _unpack(_scan(view, torch, body, scans, *split(args)))


def _scan(view: View, torch: Any, body: Body, scans: int, inputs: Any, outer: Any) -> list[Any]:
    states = list(inputs[: len(inputs) - scans])
    results = len(body.program.outputs) - len(states)
    axes = view.attr("scan_input_axes", [0] * scans)
    columns = [list(x.unbind(int(axis))) for x, axis in zip(inputs[len(states) :], axes, strict=True)]
    turned = view.attr("scan_input_directions", view.attr("directions", [0] * scans))
    columns = [column[::-1] if back else column for column, back in zip(columns, turned, strict=True)]
    rows: list[list[Any]] = [[] for _ in range(results)]
    for slices in zip(*columns, strict=True):
        outputs = body.run([*states, *slices], outer)
        states = list(outputs[: len(states)])
        for row, value in zip(rows, outputs[len(states) :], strict=True):
            row.append(value)
    out_axes = view.attr("scan_output_axes", [0] * results)
    out_turned = view.attr("scan_output_directions", [0] * results)
    stacked = [
        torch.stack(row[::-1] if back else row, int(axis))
        for row, axis, back in zip(rows, out_axes, out_turned, strict=True)
    ]
    return [*states, *stacked]


def _scan_batched(view: View, torch: Any, body: Body, scans: int) -> Lowered:
    """Scan of opset 8: lengths first, then every input with a batch axis in front."""
    split = _outer(view)

    def run(*args: Any) -> Any:
        (lengths, *inputs), outer = split(args)
        found = []
        for place in range(inputs[0].shape[0]):
            sample = [each[place] for each in inputs]
            if lengths is not None:
                end = int(lengths[place])
                sample[len(sample) - scans :] = [each[:end] for each in sample[len(sample) - scans :]]
            found.append(_scan(view, torch, body, scans, sample, outer))
        return _unpack([torch.stack(list(each)) for each in zip(*found, strict=True)])

    return run


def lower_sequence_map(view: View, torch: Any) -> Lowered:
    """SequenceMap: a body applied to the elements of sequences side by side."""
    body, split = _body(view, "body", torch), _outer(view)

    def run(*args: Any) -> Any:
        inputs, outer = split(args)
        rows = [
            body.run([each[k] if isinstance(each, list) else each for each in inputs], outer)
            for k in range(len(inputs[0]))
        ]
        return _unpack([[row[k] for row in rows] for k in range(len(body.program.outputs))])

    return run


def lower_concat_from_sequence(view: View, torch: Any) -> Lowered:
    """ConcatFromSequence."""
    axis, join = int(view.attr("axis")), torch.stack if view.attr("new_axis", 0) else torch.cat
    return lambda sequence: join(sequence, axis)


def lower_split_to_sequence(view: View, torch: Any) -> Lowered:
    """SplitToSequence: into parts of one size, of given sizes, or position by position."""
    axis, keep = int(view.attr("axis", 0)), bool(view.attr("keepdims", 1))

    def run(x: Any, split: Any = None) -> Any:
        if split is None:
            return list(x.split(1, axis)) if keep else list(x.unbind(axis))
        return list(x.split(int(split) if split.dim() == 0 else split.tolist(), axis))

    return run


def lower_sequence_insert(view: View, torch: Any) -> Lowered:
    """SequenceInsert: before a position, by default at the end."""

    def run(sequence: Any, x: Any, place: Any = None) -> Any:
        at = len(sequence) if place is None else int(place)
        at = at + len(sequence) if at < 0 else at
        return [*sequence[:at], x, *sequence[at:]]

    return run


def lower_sequence_erase(view: View, torch: Any) -> Lowered:
    """SequenceErase: the element at a position, by default the last."""

    def run(sequence: Any, place: Any = None) -> Any:
        at = (-1 if place is None else int(place)) % len(sequence)
        return [*sequence[:at], *sequence[at + 1 :]]

    return run


def lower_optional(view: View, torch: Any) -> Lowered:
    """Optional: the value itself, or None for an empty one."""
    return lambda x=None: x


def _has(torch: Any) -> Lowered:
    return lambda x=None: torch.tensor(x is not None)


LOWER: dict[str, Lowering] = {
    "If": lower_if,
    "Loop": lower_loop,
    "Scan": lower_scan,
    "SequenceMap": lower_sequence_map,
    "ConcatFromSequence": lower_concat_from_sequence,
    "SplitToSequence": lower_split_to_sequence,
    "SequenceInsert": lower_sequence_insert,
    "SequenceErase": lower_sequence_erase,
    "SequenceConstruct": lambda view, torch: lambda *args: list(args),
    "SequenceEmpty": lambda view, torch: lambda: [],
    "SequenceAt": lambda view, torch: lambda sequence, place: sequence[int(place)],
    "SequenceLength": lambda view, torch: lambda sequence: torch.tensor(len(sequence)),
    "Optional": lower_optional,
    "OptionalGetElement": lower_optional,
    "OptionalHasElement": lambda view, torch: _has(torch),
}
