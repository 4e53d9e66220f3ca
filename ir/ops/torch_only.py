"""Operators that torch can run, but that have no rule for channels: in coupling they are barriers.

The table gives the definition versions that each lowering was written for; the lowering itself stands in its family's
`*_torch.py`. An operator leaves this table when it gets a rule.
"""

from __future__ import annotations

_BODIES = (1, 8, 9, 11, 13, 16, 19, 21, 23, 24, 25)

SINCE: dict[str, tuple[int, ...]] = {
    "Bernoulli": (15, 22), "CenterCropPad": (18,), "Compress": (9, 11, 28), "ConcatFromSequence": (11,),
    "Constant": (11, 12, 13, 19, 21, 23, 24, 25), "CumProd": (26,), "DynamicQuantizeLinear": (11,), "EyeLike": (9, 22),
    "GatherElements": (11, 13), "GatherND": (11, 12, 13), "If": _BODIES, "Loop": _BODIES, "MaxUnpool": (9, 11, 22),
    "Multinomial": (7, 22), "OneHot": (9, 11, 28), "Optional": (15, 28), "OptionalGetElement": (15, 18, 28),
    "OptionalHasElement": (15, 18, 28), "RandomNormal": (1, 22), "RandomNormalLike": (1, 22),
    "RandomUniform": (1, 22), "RandomUniformLike": (1, 22), "Range": (11, 27), "ReverseSequence": (10, 28),
    "Scan": _BODIES, "Scatter": (9, 11), "ScatterElements": (11, 13, 16, 18), "ScatterND": (11, 13, 16, 18),
    "SequenceAt": (11,), "SequenceConstruct": (11,), "SequenceEmpty": (11,), "SequenceErase": (11,),
    "SequenceInsert": (11,), "SequenceLength": (11,), "SequenceMap": (17,), "SplitToSequence": (11, 24),
    "Trilu": (14,), "Unique": (11, 28),
}  # fmt: skip
