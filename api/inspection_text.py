"""What `inspect` prints: the groups by their share of the work, and the barriers by reason. `--json` has every line.

1. The largest first; what does not fit in GROUPS lines is summed up in one.
2. Barriers with the same reason and operator are one entry, with as many of the weights that it holds as fit.
3. No line is longer than WIDTH; of names that are too long the end is kept, which is what tells them apart.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_netadapt.inspection import Inspection

WIDTH = 120
GROUPS = 40
REASONS = 12
NAME = 40

Row = Mapping[str, Any]


def text_of(found: "Inspection") -> str:
    """The inspection as a page of text."""
    totals, shares = found.totals, found.weights
    lines = [
        f"{found.model}  ({found.producer or 'producer unknown'}, opset {found.opset})",
        f"  {totals['macs']:,} MACs, {totals['params']:,} parameters, {totals['size_bytes']:,} bytes",
    ]
    if shares["params"]:
        lines.append(
            f"  of the weights {shares['all_axes']:.1%} can be pruned along every channel axis, "
            f"{shares['some_axes']:.1%} along some, {shares['no_axis']:.1%} along none"
        )
    if found.estimate_ms is not None:
        lines.append(f"  estimated latency {found.estimate_ms:.3f} ms, granularity {found.granularity}")
    lines += ["", *_groups(found.groups), "", *_barriers(found.barriers)]
    for note in found.notes:
        lines += wrap(f"note: {note}", WIDTH, initial_indent="  ", subsequent_indent="        ")
    return "\n".join(lines)


def _groups(groups: Sequence[Row]) -> list[str]:
    """Rule 1."""
    if not groups:
        return ["  nothing can be pruned"]
    timed = "latency_ms" in groups[0]
    head = f"  {'group':>6} {'units':>6} {'params':>7} {'MACs':>7} {'latency':>10}  made by -> summed by"
    lines = [head if timed else head.replace(f" {'latency':>10}", "")]
    order = sorted(groups, key=lambda row: (-row.get("latency_ms", row["share_macs"]), -row["share_params"]))
    for row in order[:GROUPS]:
        latency = f" {row['latency_ms']:>7.3f} ms" if timed else ""
        start = f"  {row['id']:>6} {row['units']:>6} {row['share_params']:>7.1%} {row['share_macs']:>7.1%}{latency}  "
        lines.append(start + _ends(row["producers"], row["consumers"], WIDTH - len(start)))
    rest = order[GROUPS:]
    if rest:
        most = [max(row[key] for row in rest) for key in ("share_params", "share_macs")]
        lines.append(
            f"  and {len(rest)} more groups with at most {most[0]:.1%} of the parameters and {most[1]:.1%} of the MACs "
            "each (--json lists them)"
        )
    lines.append("  Shares overlap: a weight between two groups counts for both.")
    return lines


def _ends(made: Sequence[str], read: Sequence[str], room: int) -> str:
    left = _names(made, (room - 4) // 2)
    return f"{left} -> {_names(read, room - 4 - len(left))}"


def _names(names: Sequence[str], room: int) -> str:
    """As many of the names as there is room for, and how many are left out; the first is always named."""
    if not names:
        return "-"
    for count in range(len(names), 0, -1):
        more = f" +{len(names) - count}" if count < len(names) else ""
        text = ", ".join(clipped(name, NAME) for name in names[:count]) + more
        if len(text) <= room:
            return text
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return clipped(names[0], room - len(more)) + more


def clipped(name: str, most: int) -> str:
    """The name, or its end where it is too long."""
    return name if len(name) <= most else "…" + name[len(name) - max(most, 2) + 1 :]


def _barriers(barriers: Sequence[Row]) -> list[str]:
    """Rule 2."""
    if not barriers:
        return ["  no barriers: every axis of every weight can be pruned"]
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(barriers, key=lambda row: -row["share_params"]):
        kinds.setdefault((row["reason"], row["op_type"]), []).append(row)
    shares = {kind: sum({row["tensor"]: row["share_params"] for row in rows}.values()) for kind, rows in kinds.items()}
    lines = ["  barriers: weights that stay whole along an axis, and their share of the parameters"]
    ordered = sorted(kinds.items(), key=lambda item: -shares[item[0]])
    for kind, rows in ordered[:REASONS]:
        count = len({row["tensor"] for row in rows})
        head = f"{shares[kind]:>7.1%}  {count} weight{'s' if count > 1 else ''}: {kind[0]}{_holder(rows)}"
        lines += wrap(head, WIDTH, initial_indent="  ", subsequent_indent=" " * 11, break_on_hyphens=False)
        lines.append(" " * 11 + _names([f"{row['tensor']} axis {row['axis']}" for row in rows], WIDTH - 11))
    if len(ordered) > REASONS:
        left = sum(shares[kind] for kind, _ in ordered[REASONS:])
        lines.append(f"  and {len(ordered) - REASONS} more reasons, {left:.1%} together (--json lists them)")
    return lines


def _holder(rows: Sequence[Row]) -> str:
    """The node that says so, and how many others do."""
    nodes = list(dict.fromkeys(row["node"] for row in rows))
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f" [{rows[0]['op_type']} {clipped(nodes[0], NAME)}{more}]".replace("[ ", "[")
