"""The forms of operators on text; torch has no strings, so that a tensor of text is a numpy array of Python strings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import View
from .runtime import Lowered, Lowering, refuse

Texts = NDArray[Any]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _each(function: Callable[[str], Any], x: Texts, dtype: Any) -> NDArray[Any]:
    """The results for all texts, in their shape."""
    return np.array([function(_text(item)) for item in x.reshape(-1)], dtype=dtype).reshape(x.shape)


def lower_string_normalizer(view: View, torch: Any) -> Lowered:
    """StringNormalizer: accents go, stop words go, then the case changes; what is left, or one empty text.

    Accents go as in ONNX's reference (the operator's text does not mention them).
    """
    changes: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}
    change = changes[str(view.attr("case_change_action", "NONE"))]
    stops = {_text(word) for word in view.attr("stopwords", ())}
    exact = bool(view.attr("is_case_sensitive", 0))
    folded = {word.casefold() for word in stops}

    def run(x: Texts) -> Texts:
        words = [_without_accents(_text(item)) for item in x.reshape(-1)]
        kept = [change(word) for word in words if (word not in stops if exact else word.casefold() not in folded)]
        found = np.array([word for word in kept if word] or [""], dtype=object)
        return found.reshape((1, -1)) if x.ndim == 2 else found

    return run


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def lower_string_concat(view: View, torch: Any) -> Lowered:
    """StringConcat, with numpy's broadcasting."""

    def run(a: Texts, b: Texts) -> Texts:
        a, b = np.broadcast_arrays(a, b)
        pairs = zip(a.reshape(-1), b.reshape(-1), strict=True)
        return np.array([_text(x) + _text(y) for x, y in pairs], dtype=object).reshape(a.shape)

    return run


def lower_string_split(view: View, torch: Any) -> Lowered:
    """StringSplit: the parts, filled up with empty texts to the longest, and their numbers."""
    delimiter, most = _text(view.attr("delimiter", "")) or None, int(view.attr("maxsplit", -1))

    def run(x: Texts) -> tuple[Texts, Any]:
        parts = [_text(item).split(delimiter, most) for item in x.reshape(-1)]
        longest = max(map(len, parts), default=0)
        rows = [part + [""] * (longest - len(part)) for part in parts]
        counts = torch.tensor([len(part) for part in parts], dtype=torch.int64).reshape(x.shape)
        return np.array(rows, dtype=object).reshape((*x.shape, longest)), counts

    return run


def lower_regex_full_match(view: View, torch: Any) -> Lowered:
    """RegexFullMatch. RE2's syntax is read by Python's `re`, which accepts nearly all of it."""
    try:
        pattern = re.compile(_text(view.attr("pattern", "")))
    except re.error as error:
        raise refuse(view, f"Python cannot read its pattern: {error}") from error
    return lambda x: torch.from_numpy(_each(lambda text: pattern.fullmatch(text) is not None, x, np.bool_))


def lower_tfidf(view: View, torch: Any) -> Lowered:
    """TfIdfVectorizer: how often each n-gram of a pool occurs in a sequence, weighted; elements may be skipped."""
    pool = _pool(view)
    width = max(view.attr("ngram_indexes")) + 1
    sizes = range(int(view.attr("min_gram_length")), int(view.attr("max_gram_length")) + 1)
    most, mode = int(view.attr("max_skip_count")), str(view.attr("mode"))
    given = view.attr("weights")
    weights = np.ones(width, np.float32)
    if given is not None and mode != "TF":
        weights[list(view.attr("ngram_indexes"))] = given

    def counts(row: Sequence[Any]) -> NDArray[np.float32]:
        found = np.zeros(width, np.float32)
        for size in sizes:
            for step in range(1, most + 2) if size > 1 else [1]:
                for start in range(len(row) - (size - 1) * step):
                    place = pool.get(tuple(row[start : start + (size - 1) * step + 1 : step]))
                    if place is not None:
                        found[place] += 1
        return (np.minimum(found, 1) if mode == "IDF" else found) * weights

    def run(x: Any) -> Any:
        rows = x if isinstance(x, np.ndarray) else x.cpu().numpy()
        found = np.stack([counts([_plain(item) for item in row]) for row in rows.reshape(-1, rows.shape[-1])])
        return torch.from_numpy(found.reshape((*rows.shape[:-1], width)))

    return run


def _plain(item: Any) -> Any:
    return int(item) if isinstance(item, np.integer) else _text(item)


def _pool(view: View) -> dict[tuple[Any, ...], int]:
    """The place in the output of each n-gram: `ngram_counts[n - 1]` is where the n-grams begin in the pool."""
    strings = view.attr("pool_strings")
    items = [_text(item) for item in strings] if strings else [int(item) for item in view.attr("pool_int64s", ())]
    starts, places = [int(item) for item in view.attr("ngram_counts")], iter(view.attr("ngram_indexes"))
    found: dict[tuple[Any, ...], int] = {}
    for size, (start, end) in enumerate(zip(starts, [*starts[1:], len(items)], strict=True), 1):
        for at in range(start, end, size):
            found[tuple(items[at : at + size])] = int(next(places))
    return found


LOWER: dict[str, Lowering] = {
    "StringNormalizer": lower_string_normalizer,
    "StringConcat": lower_string_concat,
    "StringSplit": lower_string_split,
    "RegexFullMatch": lower_regex_full_match,
    "TfIdfVectorizer": lower_tfidf,
}
