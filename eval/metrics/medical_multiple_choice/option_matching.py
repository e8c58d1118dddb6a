"""
Which option a generated text chooses, word-aware: by its letter, its exact text, or by naming it in whole words.

Plain functions of strings. `None` stands for an undecided answer: no option, or more than one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from .reply_reader import read_reply


# A letter stands for its option alone ("B", "(b)."), before the text ("B: MRI", "(B) MRI", "B is right") or after a
# word such as "answer". "The answer is a CT" must not choose A: there it has to be a capital or to end the clause.
_LETTERS = r"\(?[A-Z]\b\)?(?:\s*(?:,|/|&|\band\b|\bor\b)\s*\(?[A-Z]\b\)?)*"
_LETTERS_ALONE = re.compile(rf"\W*(?:option\s+)?({_LETTERS})\W*", re.IGNORECASE)
_LETTER_BEFORE_TEXT = re.compile(
    r"\W*(?:\(([A-Za-z])\)|([A-Za-z])\s*(?:[):]|\.\s)|([A-Z])\s*(?:,\s|\n|\s[-\u2013]\s|\sis\s(?:the\s)?(?:correct|right|best|answer)\b))"
)
_LETTER_AFTER_WORD = re.compile(
    r"(?<!\bnot )(?<!n't )\b(?i:answer|options?|choice)\b(?:\s+(?:is|are|would be|should be|must be))?(?:\s+option)?"
    rf"\s*[:=]?\s*\**({_LETTERS}|\(?[a-z]\)?(?=\W*$|[.;:]|,(?!\s*\(?[a-z]\b)))(?!['\u2019\w])"
    rf"|\b(?i:choose|select|pick|it is|it's)\s+({_LETTERS})(?=\W*$|[.,;:])"
    rf"|(?<![不非别勿])(?<!不能)(?<!不该)(?<!不应该)(?<!不应当)(?:答案|选项?|选择)(?:应该|应当)?[是为]?[\s:\uff1a]*({_LETTERS})"
)

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc]")
_WORD = re.compile(rf"\d+(?:\.\d+)*|[{_HAN}]|[^\W\d_{_HAN}][^\W_{_HAN}]*|[.,;:!?\n\u3002\u3001]")
_MARKS = frozenset(".,;:!?\n\u3002\u3001")
_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_ZERO_TO_TEN)}
_ARTICLES = frozenset(("a", "an", "the"))
# From such a word to the end of its clause, options are ruled out, not chosen.
NEGATIONS = frozenset(("no", "not", "non", "without", "never", "neither", "nor", "cannot", "cant", "dont", "doesnt"))
NEGATIONS |= {"isnt", "arent", "wasnt", "werent", "不", "没", "无", "非", "未"}
_NEGATING_PAIRS = frozenset((("rather", "than"), ("instead", "of")))
_ENDS_NEGATION = frozenset(("but", "however", "但", "而"))


def fold(text: str) -> str:
    """
    A text for comparison as a whole: NFKC, lower case, blanks collapsed, quotes and stops around it off.

    Example:
        >>> fold(' "X-Ray". '), fold("Grade 1+")
        ('x-ray', 'grade 1+')
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip("\"'`*.,;:! ")


@lru_cache(maxsize=100_000)
def words_and_clauses(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """
    The words of a text, and for each the number of the clause it stands in. Number words are digits.

    Example:
        >>> words_and_clauses("It's one CT-scan, not MRI.")
        (('its', '1', 'ct', 'scan', 'not', 'mri'), (0, 0, 0, 0, 1, 1))
    """
    folded = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    words, clauses, clause = [], [], 0
    for token in _WORD.findall(folded):
        if token in _MARKS:
            clause += 1
        else:
            words.append(_NUMBERS.get(token, token))
            clauses.append(clause)
    return tuple(words), tuple(clauses)


@lru_cache(maxsize=100_000)
def option_words(option: str) -> tuple[str, ...]:
    """
    The words of an option, without an article before them.

    Example:
        >>> option_words("An X-ray"), option_words("A")
        (('x', 'ray'), ('a',))
    """
    words, _ = words_and_clauses(option)
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def choose_by_text(prediction: str, options: Sequence[str | None]) -> int | None:
    """
    The index of the one option that a generated text chooses, `None` if it is undecided.

    In this order: the whole text is an option; it gives a letter (and names no other option beside it); it names one
    option in whole words, the words "a" and "I" only at the end of a clause. Of options within each other the longest
    counts ("CT angiography" is not "CT"). What stands after a negation, up to the next mark or "but", is ruled out.

    Args:
        options: The texts, `None` for a missing one, which keeps its letter. Of equal texts the first is the option.

    Example:
        >>> options = ["CT", "MRI scan", "CT angiography"]
        >>> [choose_by_text(text, options) for text in ("B", "The answer is (C).", "not MRI scan, CT")]
        [1, 2, 0]
        >>> [choose_by_text(text, options) for text in ("CT or MRI scan", "not CT", "", "B: CT", "MRI")]
        [None, None, None, None, None]
    """
    text = unicodedata.normalize("NFKC", read_reply(prediction))
    identities = option_identities(options)
    whole = {identities[i] for i, option in enumerate(options) if option is not None and fold(option) == fold(text)}
    if whole:
        return whole.pop()
    letters = letters_given(text, options)
    chosen = {identities[letter] for letter in letters if options[letter] is not None}
    named = named_options(text, options, identities)
    if letters:
        return chosen.pop() if len(letters) == 1 and named <= chosen and chosen else None
    return named.pop() if len(named) == 1 else None


def option_identities(options: Sequence[str | None]) -> list[int]:
    """
    For each option the index of the first one of the same folded text.

    Example:
        >>> option_identities(["CT", "MRI", "ct "])
        [0, 1, 0]
    """
    folded = [None if option is None else fold(option) for option in options]
    return [folded.index(text) for text in folded]


def letters_given(text: str, options: Sequence[str | None]) -> set[int]:
    """
    The places of the options that a text gives by letter.

    Example:
        >>> options = ["CT", "MRI scan", "X-ray", "PET"]
        >>> letters_given("B: MRI scan", options), letters_given("The answer is B or C", options)
        ({1}, {1, 2})
        >>> letters_given("a CT", options), letters_given("C. difficile", [*options, "C. difficile"])
        (set(), set())
    """
    alone = _LETTERS_ALONE.fullmatch(text)
    if alone:
        return _places(alone[1], len(options))
    before = _LETTER_BEFORE_TEXT.match(text)
    if before:
        letter = before[1] or before[2] or before[3]
        if not any(words[:1] == (letter.casefold(),) for words in _options_at_start(text, options)):
            return _places(letter, len(options))
    after = (match[1] or match[2] or match[3] for match in _LETTER_AFTER_WORD.finditer(text))
    return {place for letters in after for place in _places(letters, len(options))}


def _options_at_start(text: str, options: Sequence[str | None]) -> Iterator[tuple[str, ...]]:
    words, _ = words_and_clauses(text)
    for option in options:
        wanted = () if option is None else option_words(option)
        if len(wanted) > 1 and words[: len(wanted)] == wanted:
            yield wanted


def _places(letters: str, num_options: int) -> set[int]:
    """The places of single letters; none at all if one of them is no option's letter."""
    places = {ord(letter) - ord("A") for letter in re.findall(r"\b[A-Z]\b", letters.upper())}
    return places if all(place < num_options for place in places) else set()


def named_options(text: str, options: Sequence[str | None], identities: Sequence[int]) -> set[int]:
    """
    The options that a text names in whole words and does not rule out.

    An option both named and ruled out counts as two, so that the text stays undecided.

    Example:
        >>> named_options("Abnormal, not benign", ["Normal", "Benign", "Abnormal"], [0, 1, 2])
        {2}
    """
    words, clauses = words_and_clauses(text)
    mentions = list(_longest(_mentions(words, clauses, options)))
    ruled_out_places = _ruled_out_places(words, clauses, mentions)
    named = {identities[index] for start, _, index in mentions if start not in ruled_out_places}
    ruled_out = {identities[index] for start, _, index in mentions if start in ruled_out_places}
    return named | {-1} if named & ruled_out else named


def _mentions(
    words: Sequence[str], clauses: Sequence[int], options: Sequence[str | None]
) -> Iterator[tuple[int, int, int]]:
    """Where options stand in `words`: start, end, index of the option."""
    for index, option in enumerate(options):
        wanted = () if option is None else option_words(option)
        for start in range(len(words) - len(wanted) + 1 if wanted else 0):
            end = start + len(wanted)
            # "a mass" does not name the blood group A, nor "I think" the grade I: there the clause goes on.
            is_word = wanted in (("a",), ("i",)) and clauses[end : end + 1] == clauses[start : start + 1]
            if words[start:end] == wanted and not is_word:
                yield start, end, index


def _longest(mentions: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """The mentions that do not lie inside a longer one."""
    mentions = list(mentions)
    for start, end, index in mentions:
        if not any(
            other_start <= start and end <= other_end and other_end - other_start > end - start
            for other_start, other_end, _ in mentions
        ):
            yield start, end, index


def _ruled_out_places(
    words: Sequence[str], clauses: Sequence[int], mentions: Sequence[tuple[int, int, int]]
) -> set[int]:
    """Places after a negation, in its clause. One that is part of an option ("No finding") rules out nothing else."""
    part_of_option = {place for start, end, _ in mentions for place in range(start, end)}
    ruled_out, negated_clause = set(), None
    for place, word in enumerate(words):
        if word in _ENDS_NEGATION:
            negated_clause = None
        elif clauses[place] == negated_clause:
            ruled_out.add(place)
        elif (word in NEGATIONS and place not in part_of_option) or tuple(
            words[place - 1 : place + 1]
        ) in _NEGATING_PAIRS:
            negated_clause = clauses[place]
    return ruled_out
