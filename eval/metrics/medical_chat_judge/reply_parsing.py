"""Parse two scores from a judge's reply: in the usual formats, or in the only format that the release reads."""

from __future__ import annotations

import math
import re
import unicodedata

from logramed.eval.metrics.reply_reader import without_reasoning


LOWEST_SCORE, HIGHEST_SCORE = 1, 10
NUM_SHOWN = 80  # characters of a reply shown in an error

# "8", "8.5", "8/10", "[8]"; not "8%", "8/5", "8cm" or part of a longer number.
_SCORE = r"[\[(]*([0-9]{1,3}(?:\.[0-9]+)?)(?:\s*(?:/|out of)\s*10)?(?![\w%]|\.[0-9]|\s*/)[\])]*"
_PAIR = rf"{_SCORE}(?:\s*[,;|&]\s*(?:and\s+)?|\s+(?:(?:and|vs\.?)\s+)?){_SCORE}"
# "8 7", "Scores (1-10): 8 and 7"; an explanation may follow, but no third number.
_FIRST_LINE = re.compile(
    rf"(?:(?:scores?|ratings?)\s*(?:\([^()]*\)\s*)?:\s*)?{_PAIR}(?:\W*|\s*[.:;|(\u2014\u2013-]\s*[a-z].*)",
    re.IGNORECASE,
)
_LABELLED = re.compile(
    rf"\b(?:answer|assistant|response|model)\s*(1|2|a|b)\b(?:['\u2019]s)?(?:\s+(?:score|rating))?\s*[:=|]\s*{_SCORE}"
    r"(?=\s*(?:$|[.,;|)!]|[\u2014\u2013-]\s+[a-z]|(?:and|answer|assistant|response|model)\b))",
    re.IGNORECASE | re.MULTILINE,
)
# Marks of emphasis and code, and of the start of a heading, quotation, list entry or table row.
_MARKUP = re.compile(r"[*`]|__|^[^\S\n]*(?:[#>|]+|[-•](?=\s))[^\S\n]*", re.MULTILINE)


def parse_scores(reply: str) -> tuple[float, float]:
    """
    The scores of the first and the second answer in a judge's reply.

    Two numbers on the first line are used, whatever follows. Otherwise "Answer 1: 8" and "Answer 2: 7" must each occur
    once, in either order.

    Raises:
        ValueError: If there is no such pair, more than one, or a score outside 1 to 10. Shows the start of the reply.

    Example:
        >>> parse_scores("8 7\\nBoth name the lesion, 3 cm wide.")
        (8.0, 7.0)
        >>> parse_scores("**Assistant 1:** 8/10, **Assistant 2:** 7/10")
        (8.0, 7.0)
        >>> parse_scores("The first is better.")
        Traceback (most recent call last):
        ValueError: no two scores in the reply: 'The first is better.'
    """
    text = unicodedata.normalize("NFKC", _MARKUP.sub("", without_reasoning(reply))).strip(" \t\r\n\"'")
    first_line = _FIRST_LINE.fullmatch(text.split("\n")[0].strip())
    if first_line:
        first, second = float(first_line[1]), float(first_line[2])
    else:
        labelled = [(match[1].lower() in "1a", float(match[2])) for match in _LABELLED.finditer(text)]
        by_place = dict(labelled)
        if len(by_place) < 2:
            raise ValueError(f"no two scores in the reply: {beginning(reply)}")
        if len(labelled) > 2:
            raise ValueError(f"more than one pair of scores in the reply: {beginning(reply)}")
        first, second = by_place[True], by_place[False]
    if not all(LOWEST_SCORE <= score <= HIGHEST_SCORE for score in (first, second)):
        raise ValueError(
            f"scores {first:g} and {second:g} are not on the scale of {LOWEST_SCORE} to {HIGHEST_SCORE}: "
            f"{beginning(reply)}"
        )
    return first, second


def beginning(reply: str) -> str:
    """
    The start of `reply`, quoted.

    Example:
        >>> beginning("8 " * 50)[-10:]
        "8 8 8 ...'"
    """
    return repr(reply if len(reply) <= NUM_SHOWN else reply[:NUM_SHOWN] + "...")


def parse_scores_release(reply: str) -> tuple[float, float]:
    """
    Parse scores as the release does. Raises `ValueError` unless the first line, split on single spaces, is exactly two
    finite numbers.

    Example:
        >>> parse_scores_release("8 7\\nBoth are good.")
        (8.0, 7.0)
        >>> parse_scores_release("8, 7")
        Traceback (most recent call last):
        ValueError: the first line is not two numbers with one space between: '8, 7'
    """
    try:
        scores = tuple(float(word) for word in reply.split("\n")[0].split(" "))
    except ValueError:
        scores = ()
    if len(scores) != 2 or not all(map(math.isfinite, scores)):
        raise ValueError(f"the first line is not two numbers with one space between: {beginning(reply)}")
    return scores
