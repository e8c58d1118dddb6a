from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest

from logramed.eval.text_values import to_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("  two\nlines ", "two\nlines"),
        ("", ""),
        ("肺 \U0001f600", "肺 \U0001f600"),
        (0, "0"),
        (-0.0, "0"),
        (10**400, "1" + "0" * 400),
        (-3, "-3"),
        (2.0, "2"),
        (-0.5, "-0.5"),
        (1e-7, "0.0000001"),
        (1e21, "1000000000000000000000"),
        (0.1, "0.1"),
        (np.int64(7), "7"),
        (np.float32(0.1), "0.1"),
        (np.float64(30.0), "30"),
        (Decimal("2.50"), "2.5"),
        (Decimal("100"), "100"),
    ],
)
def test_texts_and_numbers_become_what_a_person_would_write(value, expected):
    assert to_text(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, np.bool_(True), [], ["a"], {}, {"text": "a"}, ("a",), b"a", {1}),
        *(float("nan"), float("inf"), -float("inf"), np.float32("nan"), Decimal("NaN"), 1j),
        *(date(2020, 1, 1), datetime(2020, 1, 1), np.datetime64("2020-01-01"), np.array([1])),
        *("\ud83d", "a\udfff", "\ud83d \ude00"),
    ],
)
def test_everything_else_is_refused_by_what_it_is(value):
    with pytest.raises(ValueError, match=r"^expected a text, got"):
        to_text(value)
