"""What counts as text where text is expected: in training rows, benchmark files and files of answers."""

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import Any


def to_text(value: Any) -> str:
    r"""
    A text without blanks around it, or a finite number as a person would write it.

    Args:
        value: What JSON, CSV, Parquet or `datasets` hold in a cell.

    Raises:
        ValueError: If it is none of these (a truth value, null, a list, a date, NaN, ...), or text that cannot be
            written as UTF-8; the message says what it is instead.

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
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, Real | Decimal) or not math.isfinite(value):
        raise ValueError(f"expected a text, got {value!r:.100}")
    plain = format(Decimal(str(value)) + 0, "f")  # of -0.0, 0
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
