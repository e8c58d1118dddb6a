"""
Match a generated text to an option: by letter, by exact text, or by whole words that name it.

`None` means an undecided answer: no option, or more than one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from logramed.eval.metrics.reply_reader import HAN, NUMBER_WORDS, read_reply


# A letter chooses its option by itself ("B", "(b)."), before the text ("B: MRI", "(B) MRI", "B is right") or after a
# word such as "answer". "The answer is a CT" must not choose A: there it must be a capital or end the clause.
_LETTERS = r"\(?[A-Z]\b\)?(?:\s*(?:,|/|&|\band\b|\bor\b)\s*\(?[A-Z]\b\)?)*"
_LETTERS_ALONE = re.compile(rf"\W*(?:option\s+)?({_LETTERS})\W*", re.IGNORECASE)
_LETTER_BEFORE_TEXT = re.compile(
    r"\W*(?:\(([A-Za-z])\)|([A-Za-z])\s*(?:[):]|\.\s)"
    r"|([A-Z])\s*(?:,\s|\n|\s[-\u2013]\s|\sis\s(?:the\s)?(?:correct|right|best|answer)\b))"
)
_LETTER_AFTER_WORD = re.compile(
    r"(?<!\bnot )(?<!n't )\b(?i:answer|options?|choice)\b(?:\s+(?:is|are|would be|should be|must be))?(?:\s+option)?"
    rf"\s*[:=]?\s*\**({_LETTERS}|\(?[a-z]\)?(?=\W*$|[.;:]|,(?!\s*\(?[a-z]\b)))(?!['\u2019\w])"
    rf"|\b(?i:choose|select|pick|it is|it's)\s+({_LETTERS})(?=\W*$|[.,;:])"
    rf"|(?<![不非别勿])(?<!不能)(?<!不该)(?<!不应该)(?<!不应当)(?:答案|选项?|选择)(?:应该|应当)?[是为]?[\s:\uff1a]*({_LETTERS})"
)

_APOSTROPHES = re.compile("['\u2018\u2019\u02bc]")
_MARK = r"[.,;:!?\n\u3002\u3001]"
_TOKEN = re.compile(rf"\d+(?:\.\d+)*|[{HAN}]|[^\W\d_{HAN}][^\W_{HAN}]*|{_MARK}")
# Options between a negation and the next mark or "but" are ruled out.
_NEGATION = (
    "no|not|non|without|never|neither|nor|cannot|cant|dont|doesnt|isnt|arent|wasnt|werent|rather than|instead of"
    "|不|没|无|非|未"
)
_END_OF_NEGATION = "but|however|但|而"


def fold(text: str) -> str:
    """
    Normalize a text for comparison: NFKC, lower case, whitespace collapsed, surrounding quotes and marks stripped.

    Example:
        >>> fold(' "X-Ray". '), fold("Grade 1+")
        ('x-ray', 'grade 1+')
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip("\"'`*.,;:! ")


@lru_cache(maxsize=100_000)
def spaced_words(text: str) -> str:
    """
    The words of a text separated by single spaces; number words become digits, and each mark a separate comma.

    Example:
        >>> spaced_words("It's one CT-scan, not MRI.")
        'its 1 ct scan , not mri ,'
    """
    folded = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    tokens = (NUMBER_WORDS.get(token, token) for token in _TOKEN.findall(folded))
    return " ".join("," if re.fullmatch(_MARK, token) else token for token in tokens)


@lru_cache(maxsize=100_000)
def option_words(option: str) -> str:
    """
    The words of an option without marks and a leading article.

    Example:
        >>> option_words("An X-ray"), option_words("A")
        ('x ray', 'a')
    """
    words = spaced_words(option).replace(",", "")
    return re.sub(r"^(?:an?|the) (?=\w)", "", " ".join(words.split()))


def choose_by_text(prediction: str, options: Sequence[str | None]) -> int | None:
    """
    Index of the option that a generated text chooses, or `None` if it is undecided. Missing options are `None` and
    keep their letter; of equal options, the first one counts.

    Tries in this order: the whole text is an option; it gives a letter (and names no other option); it names one
    option in whole words, the words "a" and "I" only at the end of a clause. If an option is part of another one, the
    longest counts ("CT angiography" is not "CT"). Options after a negation, up to the next mark or "but", are ruled
    out.

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
    named = named_options(text, options)
    if letters:
        return chosen.pop() if len(letters) == 1 and named <= chosen and chosen else None
    return named.pop() if len(named) == 1 else None


def option_identities(options: Sequence[str | None]) -> list[int]:
    """
    For each option, the index of the first one with the same folded text.

    Example:
        >>> option_identities(["CT", "MRI", "ct "])
        [0, 1, 0]
    """
    folded = [None if option is None else fold(option) for option in options]
    return [folded.index(text) for text in folded]


def letters_given(text: str, options: Sequence[str | None]) -> set[int]:
    """
    Indices of the options that a text gives by letter.

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
        words = spaced_words(text).replace(" ,", "") + " "
        starts = [option_words(option) for option in options if option is not None]
        # "C. difficile" is an option, not a letter.
        if not any(start.startswith(f"{letter.casefold()} ") and words.startswith(f"{start} ") for start in starts):
            return _places(letter, len(options))
    after = (match[1] or match[2] or match[3] for match in _LETTER_AFTER_WORD.finditer(text))
    return {place for letters in after for place in _places(letters, len(options))}


def _places(letters: str, num_options: int) -> set[int]:
    """Indices of single letters; empty if any of them is not the letter of an option."""
    places = {ord(letter) - ord("A") for letter in re.findall(r"\b[A-Z]\b", letters.upper())}
    return places if all(place < num_options for place in places) else set()


def named_options(text: str, options: Sequence[str | None]) -> set[int]:
    """
    Indices of the options that a text names in whole words and does not rule out.

    An option that is both named and ruled out counts as two, so that the text is undecided.

    Example:
        >>> named_options("Abnormal, not benign", ["Normal", "Benign", "Abnormal"])
        {2}
    """
    indices_of = {}
    for identity, option in zip(option_identities(options), options, strict=True):
        if option is not None and option_words(option):
            indices_of.setdefault(option_words(option), set()).add(identity)
    # "a mass" does not name blood group A, nor "I think" grade I: these must end the clause.
    longest_first = sorted(indices_of, key=len, reverse=True)
    names = [f"{words}(?= ,|$)" if words in ("a", "i") else words.replace(" ", "(?: ,)? ") for words in longest_first]
    pattern = rf"(?<!\S)(?:({'|'.join(names) or '(?!)'})|({_NEGATION})|{_END_OF_NEGATION}|,)(?!\S)"
    named, ruled_out, negated = set(), set(), False
    for match in re.finditer(pattern, spaced_words(text)):
        if match[1]:
            (ruled_out if negated else named).update(indices_of[match[1].replace(" ,", "")])
        else:
            negated = match[2] is not None
    return named | {-1} if named & ruled_out else named
