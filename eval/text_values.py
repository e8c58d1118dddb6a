"""Conversion of values to text, and unique ids, for training rows, benchmark files and files of answers."""

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any


def to_text(value: Any) -> str:
    r"""
    A stripped text, or a finite number as a person would write it. Anything else (a boolean, null, a list, a date,
    NaN, ...) and text that cannot be encoded as UTF-8 raise `ValueError` with the value in the message.

    Example:
        >>> [to_text(value) for value in (" yes\n", 2, 2.0, 2.5, 1e-05)]
        ['yes', '2', '2', '2.5', '0.00001']
        >>> to_text(["yes"])
        Traceback (most recent call last):
        ValueError: expected a text, got ['yes']
        >>> to_text("half an emoji: \ud83d")
        Traceback (most recent call last):
        ValueError: expected a text, got half of a surrogate pair in 'half an emoji: \ud83d'
    """
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"expected a text, got half of a surrogate pair in {value!r:.100}")
        return value.strip()
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if is_number and isinstance(value, Integral):
        return str(int(value))
    if not is_number or not math.isfinite(value):
        raise ValueError(f"expected a text, got {value!r:.100}")
    plain = format(Decimal(str(value)) + 0, "f")  # turns -0.0 into 0
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def number_repeated(ids: Sequence[str]) -> list[str]:
    """
    Make ids unique: repeated ones (such as an image's) get "-1", "-2", ... in order.

    Example:
        >>> number_repeated(["7", "7", "8"])
        ['7-1', '7-2', '8']
    """
    counts, seen, numbered = Counter(ids), Counter(), []
    for own_id in ids:
        if counts[own_id] > 1:
            seen[own_id] += 1
            while f"{own_id}-{seen[own_id]}" in counts:
                seen[own_id] += 1
        numbered.append(f"{own_id}-{seen[own_id]}" if counts[own_id] > 1 else own_id)
    return numbered
