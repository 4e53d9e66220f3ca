"""Attention as one operator: Y = softmax(scale Q K^T + mask) V, head by head.

Letters: n batch, t queries, s keys, H heads of keys and values, g query heads for each of them, D width of a head of Q
and K, V width of a head of V. Whole heads, D and V can be pruned. The product sums over D without weights, so that a
removed place of D is cut off at the producers of Q or K (see passes/cuts.py). The scale is that of the original width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ShapeError
from ..graph import Shape
from . import MICROSOFT, Edit, OpRule, Scope, View, Zeros, first


def relate_attention(s: Scope) -> None:
    """Attention: Q, K, V, mask, past keys, past values -> Y, keys, values, Q K^T; with heads as an axis or not."""
    queries, pairs, _ = head_counts(s)
    shared = queries // pairs
    q = "H g" if shared > 1 else "H"
    if s.rank(0) == 4:
        axis = f"({q})" if shared > 1 else "H"
        text = f"n {axis} t D, n H s D, n H s V, {_mask(s, 3, axis)}, n H p D, n H p V, _ -> n {axis} t V"
    else:
        axis = f"({q})" if shared > 1 else "H"
        text = f"n t ({q} D), n s (H D), n s (H V), {_mask(s, 3, axis)}, n H p D, n H p V, _ -> n t ({q} V)"
    s.signature(f"{text}, n H r D, n H r V, n {axis} t r", H=pairs, g=shared)
    s.contract(s.inp(0, -1))
    s.contract(s.inp(1, -1))


def _mask(s: Scope, slot: int, heads: str) -> str:
    """A mask with an axis for heads loses them too; any other holds none."""
    return f"m {heads} t k" if s.has(slot) and s.rank(slot) == 4 and s.shape(slot)[1] > 1 else "_"


def head_counts(view: View) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, width of a head of Q."""
    shape = view.shape(0)
    if len(shape) == 4:
        return shape[1], view.shape(1)[1], shape[3]
    queries = int(view.attr("q_num_heads", view.attr("num_heads", 0)))
    if len(shape) != 3 or not queries:
        raise ShapeError("the heads of an attention are neither an axis nor an attribute")
    return queries, int(view.attr("kv_num_heads", queries)), shape[2] // queries


def patch_attention(edit: Edit) -> None:
    """The numbers of heads follow; a scale that followed from the width of a head is written out."""
    queries, pairs, width = head_counts(edit)
    kept_queries, kept_pairs = queries, pairs
    if edit.rank(0) == 3:
        # the heads that are left: all widths of a head go alike
        kept_pairs = _kept_heads(edit, 2, pairs)
        kept_queries = queries // pairs * kept_pairs
        edit.attrs["q_num_heads"], edit.attrs["kv_num_heads"] = kept_queries, kept_pairs
        new_width = edit.new_shape(0)[2] // kept_queries
    else:
        new_width = edit.new_shape(0)[3]
    if new_width != width and "scale" not in edit.node.attrs:
        edit.attrs["scale"] = float(1 / np.sqrt(width))


def _kept_heads(edit: Edit, slot: int, heads: int) -> int:
    """The number of heads of which anything is left, of an input (n, tokens, heads x width)."""
    return int(edit.kept_in(slot, 2).reshape(heads, -1).any(axis=1).sum())


def zeros_attention(view: View) -> Zeros:
    """Zero where V is: every output is a mean of V's rows."""
    return ((2,),)


def macs_attention(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Each pair of a query and a key costs the width of Q and of V, over all heads."""
    q, k, y = ins[0], ins[1], outs[0]
    keys = k[-2]
    return int(np.prod(q, dtype=np.int64) + np.prod(y, dtype=np.int64)) * keys


def relate_multi_head(s: Scope) -> None:
    """com.microsoft.MultiHeadAttention: Q, K, V (n, tokens, heads x width), bias of all three, masks -> Y."""
    if any(not s.has(slot) or s.rank(slot) != 3 for slot in (0, 1, 2)):
        raise ShapeError("packed or cached inputs")
    heads = int(s.attr("num_heads"))
    width = "d" if s.has(3) else "D"
    rest = ["_"] * (len(s.node.inputs) - 4)
    if s.has(5):
        rest[1] = _mask(s, 5, "H")
    tail = "".join(f", {item}" for item in rest)
    text = f"n t (H {width}), n s (H {width}), n s (H V), (A + B + C){tail} -> n t (H V), n H r {width}, n H r V"
    sizes = {"A": s.shape(0)[2], "B": s.shape(1)[2], "C": s.shape(2)[2]}
    s.signature(text, H=heads, **sizes)
    if not s.has(3):
        s.contract(s.inp(0, 2))
        s.contract(s.inp(1, 2))
        return
    start = 0
    for slot in (0, 1, 2):
        s.take(s.inp(3, 0), s.inp(slot, 2), np.arange(start, start + s.shape(slot)[2]))
        start += s.shape(slot)[2]


def patch_multi_head(edit: Edit) -> None:
    """`num_heads` follows; a scale that followed from the width of a head is written out."""
    heads = int(edit.attr("num_heads"))
    kept = _kept_heads(edit, 2, heads)
    edit.attrs["num_heads"] = kept
    old, new = edit.shape(0)[2] // heads, edit.new_shape(0)[2] // kept
    if old != new and not edit.attr("scale", 0.0):
        edit.attrs["scale"] = float(1 / np.sqrt(old))


def relate_packed(s: Scope) -> None:
    """com.microsoft.Attention: one weight (E, Q + K + V) gives all three; whole heads and V's width can go."""
    if s.has(4) or s.attr("do_rotary", 0):
        raise ShapeError("cached or rotated keys")
    heads = int(s.attr("num_heads"))
    q, k, v = packed_sizes(s)
    mask = ", ".join(["_", "_", _mask(s, 5, "H"), "_"][: max(0, len(s.node.inputs) - 3)])
    s.signature(f"n t E, E (A + B + C), (A + B + C){', ' + mask if mask else ''} -> n t (H V)", A=q, B=k, C=v, H=heads)
    names = [s.relations.invent(f"{s.node.index}/{letter}", size) for letter, size in (("A", q), ("B", k), ("C", v))]
    width = s.relations.invent(f"{s.node.index}/d", q // heads)
    count, values = (
        s.relations.invent(f"{s.node.index}/{name}", size) for name, size in (("H", heads), ("V", v // heads))
    )
    s.freeze(width, "Attention sums over the width of its heads without weights")
    for name, inner in zip(names, (width, width, values), strict=True):
        s.fold(name, (count, inner))


def packed_sizes(view: View) -> tuple[int, int, int]:
    """The widths of Q, K and V inside the packed weight."""
    given = view.attr("qkv_hidden_sizes")
    if given:
        return int(given[0]), int(given[1]), int(given[2])
    third = view.shape(1)[1] // 3
    return third, third, third


def patch_packed(edit: Edit) -> None:
    """`num_heads` follows, and the three widths are written out."""
    q, k, _ = packed_sizes(edit)
    heads = int(edit.attr("num_heads"))
    kept = edit.kept_in(1, 1)
    parts = kept[:q], kept[q : q + k], kept[q + k :]
    edit.attrs["num_heads"] = int(parts[2].reshape(heads, -1).any(axis=1).sum())
    sizes = [int(part.sum()) for part in parts]
    if len(set(sizes)) > 1 or "qkv_hidden_sizes" in edit.node.attrs:
        edit.attrs["qkv_hidden_sizes"] = sizes


def macs_packed(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """The projections, and the two products of attention."""
    batch, tokens, width = ins[0]
    columns, values = ins[1][1], outs[0][2]
    return batch * tokens * (width * columns + tokens * (columns - values) // 2 + tokens * values)


def relate_rotary(s: Scope) -> None:
    """RotaryEmbedding: the two places of each pair are turned by one angle; the three go together."""
    rank = s.rank(0)
    heads = s.shape(0)[1] if rank == 4 else int(s.attr("num_heads", 0))
    if not heads:
        raise ShapeError("the number of heads is not given")
    width = s.shape(0)[-1] if rank == 4 else s.shape(0)[2] // heads
    if int(s.attr("rotary_embedding_dim", 0)) not in (0, width):
        raise ShapeError("only a part of each head is rotated")
    text = "n H t D, _, _, _ -> n H t D" if rank == 4 else "n t (H D), _, _, _ -> n t (H D)"
    operands = text.replace(
        "_, _, _",
        ", ".join([*[" ".join([*(f"a{axis}" for axis in range(s.rank(slot) - 1)), "P"]) for slot in (1, 2)], "_"]),
    )
    s.signature(operands, H=heads)
    pairs = np.arange(width // 2)
    whole = s.out(3) if rank == 4 else s.relations.invent(f"{s.node.index}/D", width)
    if width == 1 or width // 2 == 1:
        return s.freeze(whole, "a head of one pair")
    for index in (2 * pairs, 2 * pairs + 1) if s.attr("interleaved", 0) else (pairs, pairs + width // 2):
        s.take(whole, s.inp(1, -1), index)
    return None


def patch_rotary(edit: Edit) -> None:
    """`num_heads` and `rotary_embedding_dim` follow."""
    if edit.attr("rotary_embedding_dim", 0):
        edit.attrs["rotary_embedding_dim"] = 2 * edit.new_shape(1)[-1]
    if edit.attr("num_heads", 0) and edit.rank(0) == 3:
        edit.attrs["num_heads"] = _kept_heads(edit, 0, int(edit.attr("num_heads")))


RULES: dict[str, OpRule | tuple[OpRule, ...]] = {
    "Attention": (
        OpRule(relate_attention, (23, 24, 25), patch_attention, macs_attention, zeros=zeros_attention),
        OpRule(relate_packed, (1,), patch_packed, macs_packed, domain=MICROSOFT),
    ),
    "MultiHeadAttention": OpRule(
        relate_multi_head, (1,), patch_multi_head, macs_attention, domain=MICROSOFT, zeros=zeros_attention
    ),
    "RotaryEmbedding": OpRule(relate_rotary, (23,), patch_rotary, zeros=first),
}
