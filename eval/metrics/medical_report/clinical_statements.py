"""
What a report says of clinical concepts: pairs of a concept of `clinical_terms` and "present" or "absent".

Rules on words, no model: the longest spelling at a place is the term; a term in the scope of a negation is absent. The
idea of negation words with a scope is NegEx's (Chapman et al. 2001, "A simple algorithm for identifying negated
findings and diseases in discharge summaries"); word lists and scope rules here are our own. A doubt ("possible
pneumonia", "cannot exclude") counts as present: there is no third status.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence, Set

from .clinical_terms import ABNORMAL_WORDS, FINDINGS, NORMAL_WORDS, STRUCTURES


PRESENT, ABSENT = "present", "absent"

# "1.5" and "patient's" are one word each; hyphens, slashes and the "___" of de-identified reports separate words.
WORD = r"\d+(?:\.\d+)+|[^\W_]+(?:'[^\W_]+)*"
# Line breaks end a sentence before an empty line or a list item only: reports are often wrapped by hand.
SENTENCE_END = re.compile(r"(?<!\d)\.|\.(?!\d)|[;!?()\[\]]|\n\s*\n|\n\s*[-*•]")

# Negations of what follows. "not", "no longer", "resolved" and a last "no" can also negate what stands before:
# `cue_directions`.
FORWARD_CUES = (
    ("no",), ("without",), ("neither",), ("nor",), ("never",), ("negative", "for"), ("free", "of"), ("free", "from"),
    ("clear", "of"), ("absence", "of"), ("lack", "of"), ("resolution", "of"), ("removal", "of"),
)  # fmt: skip
# Negations of what stands before: "the effusion has cleared", "the tube was removed", "effusion: none".
BACKWARD_CUES = (("absent",), ("none",), ("cleared",), ("removed",), ("excluded",), ("ruled", "out"))
# "not seen", "not clearly identified": negates what stands before it.
SEEN = frozenset({
    "seen", "identified", "present", "visualized", "visualised", "visible", "evident", "apparent", "demonstrated",
    "appreciated", "detected", "noted", "found", "observed",
})  # fmt: skip
# "no change in the effusion", "cannot be excluded", "nearly resolved" negate nothing.
CHANGES = frozenset({
    "change", "changes", "increase", "decrease", "improvement", "progression", "worsening", "difference",
})  # fmt: skip
NOT_WHOLLY = frozenset({"partially", "partly", "nearly", "almost", "incompletely", "not", "cannot"})

BREAKERS = frozenset({
    "but", "however", "although", "though", "yet", "except", "excepting", "apart", "aside", "while", "whereas",
})  # fmt: skip
CONNECTORS = frozenset({",", "and", "with"})
# After a connector these begin a new statement: "no effusion, stable cardiomegaly".
STARTERS = frozenset({
    "stable", "unchanged", "mild", "mildly", "moderate", "moderately", "severe", "severely", "small", "minimal",
    "minimally", "tiny", "trace", "large", "persistent", "chronic", "old", "increased", "decreased", "worsening",
    "improving", "improved", "there", "the", "a", "an", "this", "these", "status", "again", "normal", "otherwise",
})  # fmt: skip
VERBS = frozenset({"is", "are", "was", "were", "has", "have", "had", "been", "shows", "show", "demonstrates"})
PREDICATE_ADVERBS = frozenset({
    "now", "completely", "fully", "since", "interval", "longer", "clearly", "definitely", "also", "both", "all",
})  # fmt: skip

# Words between a structure and what is said of it: "heart size, mediastinal contour and pulmonary vascularity are
# within normal limits"; "normal appearance of the heart".
MAX_WORDS_TO_PREDICATE = 8
MAX_WORDS_FROM_PREDICATE = 3
MAX_WORDS_AFTER_COLON = 2  # "heart: mildly enlarged", but not "lungs: a large nodule, normal heart"


def clinical_statements(text: str) -> set[tuple[str, str]]:
    """
    The statements of a report: `(concept, "present")` or `(concept, "absent")`; both where it says both.

    Example:
        >>> sorted(clinical_statements("Heart size is normal. No effusion, but mild bibasilar opacities."))
        [('cardiomegaly', 'absent'), ('lung opacity', 'present'), ('pleural effusion', 'absent')]
        >>> clinical_statements("The patient was turned.")
        set()
    """
    return {statement for sentence in split_sentences(text) for statement in sentence_statements(sentence)}


def normalize_text(text: str) -> str:
    """Small letters, one form of each character, straight apostrophes."""
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold()


def split_words(text: str) -> list[str]:
    """
    The words of a text in small letters, without punctuation.

    Example:
        >>> split_words("The follow-up shows a 1.5 cm nodule.")
        ['the', 'follow', 'up', 'shows', 'a', '1.5', 'cm', 'nodule']
    """
    return re.findall(WORD, normalize_text(text))


def split_sentences(text: str) -> list[tuple[str, ...]]:
    """
    Words, commas and colons of each sentence; a semicolon and a bracket also end one.

    Example:
        >>> split_sentences("Impression: no mass (no nodule).")
        [('impression', ':', 'no', 'mass'), ('no', 'nodule')]
    """
    sentences = [tuple(re.findall(rf"{WORD}|[,:]", part)) for part in SENTENCE_END.split(normalize_text(text))]
    return [sentence for sentence in sentences if sentence]


@functools.lru_cache(maxsize=1 << 16)  # reports repeat their sentences
def sentence_statements(words: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """The statements of one sentence, given as words, commas and colons."""
    terms = list(find_phrases(words, SPELLINGS))
    taken = {position for start, end, _ in terms for position in range(start, end)}
    negated = find_negated(words, taken)
    statements = {(concept, ABSENT if start in negated else PRESENT) for start, _, (concept,) in terms}
    for start, end, concepts in find_phrases(words, STRUCTURE_SPELLINGS, taken):
        for concept in concepts:
            status = structure_status(words, start, end, taken, ABNORMAL_WORDS_OF[concept])
            if status is not None:
                statements.add((concept, status))
    return frozenset(statements)


# ---------------------------------------------------------------------------------------------------------------------
# Terms
# ---------------------------------------------------------------------------------------------------------------------


def word_forms(word: str) -> set[str]:
    """
    A word and its regular plural.

    Example:
        >>> sorted(word_forms("opacity")), sorted(word_forms("abscess"))
        (['opacities', 'opacity'], ['abscess', 'abscesses'])
    """
    if word.endswith(("s", "x", "ch", "sh")):
        return {word, word + "es"}
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return {word, word[:-1] + "ies"}
    return {word, word + "s"}


def _spellings(texts_by_concept: dict[str, str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    spellings: dict[tuple[str, ...], tuple[str, ...]] = {}
    for concept, text in texts_by_concept.items():
        for phrase in filter(None, map(str.strip, text.split(","))):
            *words, last = phrase.split()
            for form in word_forms(last):
                concepts = spellings.get((*words, form), ())
                spellings[(*words, form)] = concepts if concept in concepts else (*concepts, concept)
    return spellings


def find_phrases(
    words: Sequence[str], spellings: dict[tuple[str, ...], tuple[str, ...]], taken: Set[int] = frozenset()
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Start, end and concepts of the spellings in `words` from left to right, the longest at each place."""
    longest = max(map(len, spellings))
    position = 0
    while position < len(words):
        for length in range(min(longest, len(words) - position), 0, -1):
            span = range(position, position + length)
            concepts = spellings.get(tuple(words[position : position + length]))
            if concepts is not None and taken.isdisjoint(span):
                yield span.start, span.stop, concepts
                position += length - 1
                break
        position += 1


SPELLINGS = _spellings(
    {concept: f"{concept}, {synonyms}" for section in FINDINGS.values() for concept, synonyms in section.items()}
)
STRUCTURE_SPELLINGS = _spellings({concept: structures for concept, (structures, _) in STRUCTURES.items()})
ABNORMAL_WORDS_OF = {
    concept: ABNORMAL_WORDS | set(words.replace(",", "").split()) for concept, (_, words) in STRUCTURES.items()
}


# ---------------------------------------------------------------------------------------------------------------------
# Negation
# ---------------------------------------------------------------------------------------------------------------------


def find_negated(words: Sequence[str], taken: Set[int]) -> set[int]:
    """
    Positions of a sentence that a negation reaches.

    Args:
        words: Words, commas and colons of the sentence.
        taken: Positions that belong to terms; they are no negations ("free air").

    Example:
        >>> sorted(find_negated("no effusion but edema".split(), {1, 3}))
        [1]
        >>> sorted(find_negated("the effusion has resolved".split(), {1}))
        [0, 1, 2]
    """
    negated: set[int] = set()
    for position in range(len(words)):
        forward, backward = (False, False) if position in taken else cue_directions(words, position, taken)
        if forward:
            negated.update(range(position + 1, scope_end(words, position)))
        if backward:
            negated.update(range(scope_start(words, position), position))
    return negated


def cue_directions(words: Sequence[str], position: int, taken: Set[int]) -> tuple[bool, bool]:
    """
    Whether the word at `position` negates what follows, and whether it negates what stands before it.

    Example:
        >>> cue_directions("no effusion".split(), 0, {1}), cue_directions("effusion is not seen".split(), 2, {0})
        ((True, False), (False, True))
    """
    word, following = words[position], words[position + 1] if position + 1 < len(words) else None
    is_whole = NOT_WHOLLY.isdisjoint(words[max(position - 3, 0) : position])
    if word == "not":
        if _is_followed(words, position, {"exclude", "excluded", "rule", "ruled"}, taken):
            return False, False
        is_seen = _is_followed(words, position, SEEN, taken)
        return not is_seen, is_seen
    if word == "no" and following is None:  # "effusion: no"
        return False, True
    if word == "no" and following == "longer":
        is_seen = _is_followed(words, position + 1, SEEN, taken)
        return not is_seen, is_seen
    if word in ("no", "without") and _is_followed(words, position, CHANGES, taken):
        return False, False
    if word == "resolved":
        is_verb = position > 0 and (words[position - 1] in VERBS | PREDICATE_ADVERBS or following is None)
        return not is_verb and is_whole, is_verb and is_whole
    return _starts(words, position, FORWARD_CUES), _starts(words, position, BACKWARD_CUES) and is_whole


def scope_end(words: Sequence[str], cue: int) -> int:
    """
    Where the scope of a negation at `cue` ends to the right: at the sentence's end, a colon, a "but", a new statement.

    Example:
        >>> words = "no effusion , stable cardiomegaly".split()
        >>> words[: scope_end(words, 0)]
        ['no', 'effusion']
    """
    end = next((position for position in range(cue + 1, len(words)) if _breaks(words, position)), len(words))
    for position in range(cue + 1, end - 1):
        # "no nodule, large effusion or mass" goes on as a list.
        is_list = not {"or", "nor"}.isdisjoint(words[position:end])
        if words[position] in CONNECTORS and words[position + 1] in STARTERS and not is_list:
            return position
    return end


def scope_start(words: Sequence[str], cue: int) -> int:
    """
    Where the scope of a negation at `cue` begins to the left: its subject, with the list that it may be.

    Right after a colon ("effusion, pneumothorax: none") it is all that stands before.

    Example:
        >>> words = "stable cardiomegaly , effusion has resolved".split()
        >>> words[scope_start(words, 5) :]
        ['effusion', 'has', 'resolved']
    """
    position = cue - 1
    if position >= 0 and words[position] == ":":
        return 0
    while position >= 0 and words[position] in VERBS | PREDICATE_ADVERBS:
        position -= 1
    in_list = False
    while position >= 0:
        word = words[position]
        if _breaks(words, position) or word in VERBS or (word == "," and not in_list):
            break
        if word in CONNECTORS and words[position + 1] in STARTERS:
            break
        in_list = in_list or word in ("and", "or")
        position -= 1
    return position + 1


def _breaks(words: Sequence[str], position: int) -> bool:
    return words[position] in (":", *BREAKERS) or tuple(words[position : position + 2]) == ("other", "than")


def _starts(words: Sequence[str], position: int, cues: Sequence[tuple[str, ...]]) -> bool:
    return any(tuple(words[position : position + len(cue)]) == cue for cue in cues)


def _is_followed(words: Sequence[str], position: int, by: Set[str], taken: Set[int]) -> bool:
    """Whether one of the words `by` is among the next three, with no term before it."""
    for following in range(position + 1, min(position + 4, len(words))):
        if following in taken:
            return False
        if words[following] in by:
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Structures called normal or abnormal
# ---------------------------------------------------------------------------------------------------------------------


def structure_status(
    words: Sequence[str], start: int, end: int, taken: Set[int], abnormal_words: Set[str]
) -> str | None:
    """
    "absent" if the structure at `words[start:end]` is called normal, "present" if abnormal, `None` if neither.

    The nearest word that says so counts, and is turned round by a "no", "not" or "without" shortly before it.

    Example:
        >>> structure_status("the heart is not enlarged".split(), 1, 2, set(), {"enlarged"})
        'absent'
    """
    after = _nearest_predicate(
        words, range(end, min(end + 2 * MAX_WORDS_TO_PREDICATE, len(words))), taken, abnormal_words
    )
    before = _nearest_predicate(words, range(start - 1, -1, -1), taken, abnormal_words)
    candidates = []
    if after is not None:
        gap = sum(word not in ",:" for word in words[end:after])
        if gap <= MAX_WORDS_TO_PREDICATE and ":" not in words[end : max(end, after - MAX_WORDS_AFTER_COLON - 1)]:
            candidates.append((gap, after))
    if before is not None and {",", ":"}.isdisjoint(words[before:start]):
        gap = start - before - 1
        if gap <= MAX_WORDS_FROM_PREDICATE:
            candidates.append((gap, before))
    if not candidates:
        return None
    _, predicate = min(candidates, key=lambda candidate: candidate[0])
    is_abnormal = words[predicate] in abnormal_words
    turned = not {"no", "not", "without"}.isdisjoint(words[max(predicate - 3, 0) : predicate])
    return PRESENT if is_abnormal != turned else ABSENT


def _nearest_predicate(
    words: Sequence[str], positions: Sequence[int], taken: Set[int], abnormal_words: Set[str]
) -> int | None:
    for position in positions:
        if words[position] in BREAKERS:
            return None
        if position not in taken and words[position] in NORMAL_WORDS | abnormal_words:
            return position
    return None
