"""Axis signatures: an operator's coupling written as one line, like `n (G C) h w, (G O) C k l, (G O) -> n (G O) p q`.

1. Operands are separated by commas, inputs from outputs by `->`; each token is one axis.
2. An upper-case name is a channel axis: all axes of one name are the same channels. A lower-case name is an axis that
   cannot be pruned (batch, rows, columns). A number is an axis of that size that cannot be pruned.
3. `(A B)` is a row-major product, `(A + B)` a concatenation.
4. A channel name that no output carries is contracted: the operator sums over it. `A'` is A, and contracted at this
   place even though an output carries it (the recurrent weights of an LSTM).
5. `...` stands for any leading axes, matched from the right and broadcast; `_` is an operand without channel axes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Token:
    """One axis: `names` has one entry, or several joined by a product ('*') or a sum ('+')."""

    names: tuple[str, ...]
    kind: str = "plain"
    contracted: bool = False


@dataclass(frozen=True, slots=True)
class Operand:
    """The tokens of one tensor; `leading` when it begins with `...`, `ignored` when it is `_`."""

    tokens: tuple[Token, ...]
    leading: bool = False
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed signature."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]

    @property
    def kept(self) -> frozenset[str]:
        """Names that an output carries."""
        return frozenset(name for operand in self.outputs for token in operand.tokens for name in token.names)


_TOKEN = re.compile(r"\([^()]*\)|\.\.\.|[A-Za-z]\w*'?|\d+|_")


@lru_cache(maxsize=4096)
def parse(text: str) -> Signature:
    """The parsed form of a signature; ValueError when it does not follow the notation."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"signature '{text}' has no '->'")
    return Signature(tuple(map(_operand, left.split(","))), tuple(map(_operand, right.split(","))))


def _operand(text: str) -> Operand:
    words = _TOKEN.findall(text)
    if "".join(words).replace(" ", "") != text.replace(" ", ""):
        raise ValueError(f"operand '{text.strip()}' of a signature does not follow the notation")
    if words == ["_"]:
        return Operand((), ignored=True)
    leading = words[:1] == ["..."]
    return Operand(tuple(_token(word) for word in words[leading:]), leading=leading)


def _token(word: str) -> Token:
    if word.startswith("("):
        inner = word[1:-1]
        if "'" in inner:
            raise ValueError(f"'{word}': only a name that stands alone can be marked as contracted")
        if "+" in inner:
            return Token(tuple(part.strip() for part in inner.split("+")), "sum")
        return Token(tuple(inner.split()), "product")
    return Token((word.rstrip("'"),), contracted=word.endswith("'"))
