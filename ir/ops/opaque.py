"""Operators through which no channel can be followed, each with its reason: they hold all that they touch."""

from __future__ import annotations

from functools import partial

from . import MICROSOFT, OpRule, Scope


def relate_opaque(s: Scope, reason: str) -> None:
    """Freezes every axis of every tensor of the node, with the reason."""
    text = f"{s.node.op_type} {reason}"
    for slot in range(len(s.node.inputs)):
        if s.has(slot) and s.node.inputs[slot] in s.graph.shapes:
            for axis in s.in_axes(slot):
                s.freeze(axis, text)
    for number, name in enumerate(s.node.outputs):
        if name in s.graph.shapes:
            for axis in s.out_axes(number):
                s.freeze(axis, text)


_VALUES = "gives a tensor whose size depends on values"
_COUNTS = "takes or gives positions that count channels"
_RANDOM = "draws random numbers in the order of the elements"
_SEQUENCE = "handles a sequence of tensors"
_BODY = "has a body of its own, which is kept as it is"
_SIGNAL = "makes or transforms a signal along its axes"
_TEXT = "handles text, files or labels"
_PACKED = "keeps its weights packed"
_STATE = "keeps states in a layout of its own"

_REASONS: dict[str, dict[str, tuple[int, ...]]] = {
    _VALUES: {"NonMaxSuppression": (10, 11), "NonZero": (9, 13), "Unique": (11, 28)},
    _COUNTS: {"MaxUnpool": (9, 11, 22)},
    _RANDOM: {
        "Bernoulli": (15, 22), "Multinomial": (7, 22), "RandomNormal": (1, 22), "RandomNormalLike": (1, 22),
        "RandomUniform": (1, 22), "RandomUniformLike": (1, 22),
    },
    _SEQUENCE: {
        "ConcatFromSequence": (11,), "Optional": (15, 28), "OptionalGetElement": (15, 18, 28),
        "OptionalHasElement": (15, 18, 28), "SequenceAt": (11,), "SequenceConstruct": (11,), "SequenceEmpty": (11,),
        "SequenceErase": (11,), "SequenceInsert": (11,), "SequenceLength": (11,), "SplitToSequence": (11, 24),
    },
    _BODY: {
        "If": (1, 11, 13, 16, 19, 21, 23, 24, 25), "Loop": (1, 11, 13, 16, 19, 21, 23, 24, 25),
        "Scan": (8, 9, 11, 16, 19, 21, 23, 24, 25), "SequenceMap": (17,),
    },
    _SIGNAL: {
        "BlackmanWindow": (17,), "DFT": (17, 20), "HammingWindow": (17,), "HannWindow": (17,), "MelWeightMatrix": (17,),
        "STFT": (17,),
    },
    _TEXT: {
        "ImageDecoder": (20,), "NegativeLogLikelihoodLoss": (12, 13, 22), "RegexFullMatch": (20,),
        "SoftmaxCrossEntropyLoss": (12, 13), "StringConcat": (20,), "StringNormalizer": (10,), "StringSplit": (20,),
        "TfIdfVectorizer": (9,),
    },
    _STATE: {"CausalConvWithState": (27,), "LinearAttention": (27,), "TensorScatter": (24,)},
    "reads its positions as coordinates": {"AffineGrid": (20,), "Det": (11, 22)},
    "reinterprets bits": {"BitCast": (26,)},
}  # fmt: skip

_MICROSOFT: dict[str, tuple[str, ...]] = {
    _PACKED: ("MatMulNBits", "MatMulBnb4", "QMoE", "MoE", "DynamicQuantizeLSTM", "QAttention"),
    _STATE: ("GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "PackedMultiHeadAttention", "PackedAttention"),
    "puts an embedding and a normalisation together": ("EmbedLayerNormalization", "QEmbedLayerNormalization"),
}

RULES: dict[str, OpRule] = {
    name: OpRule(partial(relate_opaque, reason=reason), since)
    for reason, names in _REASONS.items()
    for name, since in names.items()
} | {
    name: OpRule(partial(relate_opaque, reason=reason), (1,), domain=MICROSOFT)
    for reason, names in _MICROSOFT.items()
    for name in names
}
