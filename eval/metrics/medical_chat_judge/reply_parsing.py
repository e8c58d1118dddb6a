"""
Reading two scores out of a judge's reply: in whatever form it wrote them, or in the one form that the release reads.

Plain functions of a text.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterator

from .reply_reader import without_reasoning


LOWEST_SCORE, HIGHEST_SCORE = 1, 10
# Characters of a reply that an error shows.
NUM_SHOWN = 80
# Opening braces of a reply at which a JSON object is looked for.
NUM_BRACES = 20

# "8", "8.5", "8/10", "[8]"; not "8%", "8/5", "8cm" or a part of a longer number.
_SCORE = r"[\[(]*([0-9]{1,3}(?:\.[0-9]+)?)(?:\s*(?:/|out\ of)\s*10)?(?![\w%]|\.[0-9]|\s*/)[\])]*"
_PAIR = rf"{_SCORE}(?:\s*[,;|&]\s*(?:and\s+)?|\s+(?:(?:and|vs\.?|-)\s+)?){_SCORE}"
# What may follow on the line: the end, or text that does not go on with a third score ("8 7. 2 lesions ..." does not).
_THIRD_SCORE = r"[\W_]*[0-9.]++\s*(?:[^\sA-Za-z]|$|(?:and|or|out|to|vs)\b)"
_EXPLANATION = rf"(?:\s*[.;:|(\u2014\u2013-]\s*(?!{_THIRD_SCORE}).*|\s*,(?![\W_]*[0-9]).*|\s+[A-Z].*|\s*)"
_PAIR_AS_ASKED = re.compile(_PAIR + _EXPLANATION)
_WORDS = r"[A-Za-z' ]+(?:\([^()]*\)\s*)?"
_PAIR_AFTER_WORDS = re.compile(rf"{_WORDS}(?:[:=-]|\b(?:scores|ratings) are\b)\s*{_PAIR}{_EXPLANATION}")
_PAIR_ALONE = re.compile(rf"(?:{_WORDS}[:=-]\s*)?{_PAIR}\s*[.|]?\s*")
_SCORE_ALONE = re.compile(rf"{_SCORE}\s*\.?")

_NOUN = r"(?:answer|assistant|response|model|score|rating)"
_PLACED_SCORE = re.compile(
    rf"""
    (?:
        \b {_NOUN} \s* [\#(\[]? (?P<place>1|2|a|b|one|two) \b [\])]?
        | \b (?P<ordinal>first|second) \b (?: \s+ {_NOUN} )?
    )
    (?: ['\u2019]s )? (?: \s+ (?:final|overall) )? (?: \s+ (?:score|rating) )?
    \s* (?: [:=|] | - | \b (?:is|gets|receives|scores) \b ) \s* (?: an?\s+ )?
    {_SCORE}
    (?= [^\S\n]* (?: $ | [.,;|)!] | (?:and|but|while|points?|the|{_NOUN})\b | \ [\u2014\u2013-]\ [A-Za-z] ) )
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_PLACE_OF_KEY = re.compile(r"(?<![0-9])[12](?![0-9])|(?<![a-z])(?:a|b|one|two|first|second)(?![a-z])")
_FIRST_PLACE = ("1", "a", "one", "first")

# Emphasis and code marks, and what starts a heading, a quotation, an entry of a list or a row of a table.
_MARKUP = re.compile(r"[*`]|__|^[^\S\n]*(?:[#>|]+|[-•](?=\s))[^\S\n]*", re.MULTILINE)


def parse_scores(reply: str) -> tuple[float, float]:
    """
    The scores of the first and the second answer in a judge's reply, however it writes them.

    The requested form is two numbers alone on the first line, or followed by an explanation there: it is taken
    whatever comes after it. Any other form ("Answer 1: 8", JSON, the numbers in a later line) must say one pair only.

    Raises:
        ValueError: If there is no pair, more than one, or a score outside 1 to 10. Shows how the reply begins.

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
    pairs = set(_find_pairs(text))
    if len(pairs) != 1:
        found = "no two scores" if not pairs else "more than one pair of scores"
        raise ValueError(f"{found} in the reply: {beginning(reply)}")
    ((first, second),) = pairs
    if not all(LOWEST_SCORE <= score <= HIGHEST_SCORE for score in (first, second)):
        raise ValueError(
            f"scores {first:g} and {second:g} are not on the scale of {LOWEST_SCORE} to {HIGHEST_SCORE}: "
            f"{beginning(reply)}"
        )
    return first, second


def _find_pairs(text: str) -> Iterator[tuple[float, float]]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    as_asked = _PAIR_AS_ASKED.fullmatch(lines[0]) if lines else None
    if as_asked:
        yield _numbers(as_asked)
        return
    json_object = _read_json_object(text)
    if json_object is not None:
        yield from _pairs_of_json(json_object)
        return
    for number, line in enumerate(lines):
        match = _PAIR_ALONE.fullmatch(line) or (number == 0 and _PAIR_AFTER_WORDS.fullmatch(line))
        if match:
            yield _numbers(match)
    yield from _pairs_by_place(text)
    alone = [_numbers(match) for match in map(_SCORE_ALONE.fullmatch, lines) if match]
    if len(alone) == 2 and all(_SCORE_ALONE.fullmatch(line) for line in lines[:2]):
        yield alone[0] + alone[1]


def _numbers(match: re.Match) -> tuple[float, ...]:
    return tuple(float(group) for group in match.groups() if group is not None)


def _pairs_by_place(text: str) -> Iterator[tuple[float, float]]:
    by_place = {True: [], False: []}
    for match in _PLACED_SCORE.finditer(text):
        place = (match["place"] or match["ordinal"]).lower()
        by_place[place in _FIRST_PLACE].append(float(match[3]))
    for first in by_place[True]:
        for second in by_place[False]:
            yield first, second


def _read_json_object(text: str) -> dict | None:
    for start in itertools.islice(re.finditer(r"\{", text), NUM_BRACES):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        return value
    return None


def _pairs_of_json(value: dict) -> Iterator[tuple[float, float]]:
    scores = list(_scores_of_json(value, place=None))
    places = [place for place, _ in scores]
    if len(scores) == 2 and places in ([None, None], [True, False], [False, True]):
        ordered = reversed(scores) if places[0] is False else scores
        yield tuple(score for _, score in ordered)


def _scores_of_json(value: object, place: bool | None) -> Iterator[tuple[bool | None, float]]:
    """Each number in `value`, with whether its key says the first place, the second (`False`) or neither (`None`)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            said = _PLACE_OF_KEY.search(key.lower())
            yield from _scores_of_json(inner, place if said is None else said.group() in _FIRST_PLACE)
    elif isinstance(value, list):
        for inner in value:
            yield from _scores_of_json(inner, place)
    elif not isinstance(value, bool) and (match := _SCORE_ALONE.fullmatch(str(value))):
        yield place, float(match[1])


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
    The scores as the release reads them: the first line, split on single spaces, must be two numbers and nothing else.

    Raises:
        ValueError: If it is not, or is not finite.

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
