"""
The `release` protocol: normalize and score one answer as the LLaVA-Med / ExGra-Med `run_eval` scripts do.

Reproduces their faults on purpose, only to compare with published figures. Each fault is noted where it occurs.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence, Set
from functools import lru_cache

from logramed.eval.metrics.reply_reader import NUMBER_WORDS


ARTICLES = ("a", "an", "the")
DIGIT_OF_WORD = NUMBER_WORDS | {"none": "0"}
BLEU_WEIGHTS = {1: (1, 0, 0, 0), 2: (0, 1, 0, 0), 3: (0, 0, 1, 0), 4: (0.25, 0.25, 0.25, 0.25)}
# Every item is compared with every candidate answer, so the same few thousand texts are normalized again and again.
_cache = lru_cache(maxsize=100_000)

RELEASE_MARKS = ';/[]"{}()=+\\_-><@`,?!'

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
# The release passes `re.UNICODE`, which is 32, as the maximum number of replacements of `re.sub`.
_RELEASE_MAX_STOPS = 32

_CONTRACTED = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't
should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd
there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's
where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll
you're you've"""
_TWICE_CONTRACTED = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've"""
_IRREGULAR = {"somebody'd": "somebodyd"} | dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")


def _contraction_table() -> dict[str, str]:
    """
    The VQA-v2 evaluator's map from words without one apostrophe to words with it.

    Leaves out entries that map to themselves, and entries with a capital, which never match lower-case words.
    """
    table = {}
    for word in (_CONTRACTED + " " + _TWICE_CONTRACTED).split():
        for position, letter in enumerate(word):
            if letter == "'":
                table[word[:position] + word[position + 1 :]] = word
    return table | _IRREGULAR


CONTRACTIONS = _contraction_table()


@_cache
def normalize_release(text: str) -> str:
    """
    Normalize an answer as the release's `normalize_word` does. Not idempotent: its scores apply it once or twice.

    A mark of `RELEASE_MARKS` is deleted if it is next to a space anywhere in `text`, or if `text` has a comma between
    digits; otherwise it becomes a space. Then up to 32 full stops not followed by a digit are removed, number words
    become digits, articles are removed, contractions restored, and commas removed.

    Example:
        >>> normalize_release("The X-ray shows two nodules.")
        'x ray shows 2 nodules'
        >>> normalize_release("1,000 left-lung nodules")  # the comma switches every mark to deletion
        '1000 leftlung nodules'
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    unmarked = text
    for mark in RELEASE_MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        unmarked = unmarked.replace(mark, "" if touches_space or delete_all else " ")
    unmarked = _STOP.sub("", unmarked, count=_RELEASE_MAX_STOPS)
    words = [DIGIT_OF_WORD.get(word, word) for word in unmarked.lower().split()]
    words = [CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(words).replace(",", "")


@_cache
def _normalized_and_words(text: str) -> tuple[str, frozenset[str]]:
    normalized = normalize_release(text)
    return normalized, frozenset(normalized.split())


def bleu(prediction: Sequence[str], reference: Sequence[str], weights: Sequence[float]) -> float:
    """
    Unsmoothed sentence BLEU of words against one reference, in 0..1, equal to nltk 3.10's `sentence_bleu`.

    `weights` are for 1-, 2-, 3-, ... grams. As in nltk, an order without a match counts as the smallest float instead
    of zero, and texts without a common word give 0.0.

    Source: Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation".

    Example:
        >>> bleu(["left", "lung"], ["left", "lung"], weights=(0, 1, 0, 0))
        1.0
    """
    log_precisions = []
    for order, weight in enumerate(weights, start=1):
        predicted, expected = _ngrams(prediction, order), _ngrams(reference, order)
        num_matches = (predicted & expected).total()
        if order == 1 and num_matches == 0:
            return 0.0
        precision = num_matches / max(1, predicted.total()) or sys.float_info.min
        log_precisions.append(weight * math.log(precision))
    brevity_penalty = min(1.0, math.exp(1 - len(reference) / len(prediction)))
    return brevity_penalty * math.exp(math.fsum(log_precisions))


def _ngrams(words: Sequence[str], order: int) -> Counter:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def bleu_scores(prediction: Sequence[str], reference: Sequence[str]) -> dict[str, float]:
    """The release's four BLEU figures: orders 1, 2 and 3 separately, and the usual BLEU-4 over orders 1 to 4."""
    return {f"open_bleu_{order}": bleu(prediction, reference, BLEU_WEIGHTS[order]) for order in BLEU_WEIGHTS}


def precision_recall_f1(num_matches: int, num_predicted: int, num_expected: int) -> tuple[float, float, float]:
    """All three are 0.0 if nothing matches, also for an answer without words, which counts as wrong."""
    if num_matches == 0:
        return 0.0, 0.0, 0.0
    precision, recall = num_matches / num_predicted, num_matches / num_expected
    return precision, recall, 2 * precision * recall / (precision + recall)


def score_open_release(prediction: str, reference: str, candidates: Sequence | None = None) -> dict[str, float]:
    """
    Scores of one open answer, each in 0..1, as the release's `run_eval` computes them.

    Its "exact match" is the fraction of the prediction's words that are in the reference (a precision, ignoring
    order), and its recall counts the *prediction's* copies of a common word: "left lobe" recalls all of "left left
    lobe".

    Example:
        >>> scores = score_open_release("left lung, clear", "left lung")
        >>> scores["open_recall"], round(scores["open_precision"], 3)
        (1.0, 0.667)
    """
    prediction, reference = normalize_release(prediction.lower()), normalize_release(reference.lower())
    scores = bleu_scores(prediction.split(), reference.split())
    prediction, reference = normalize_release(prediction), normalize_release(reference)
    predicted, expected = Counter(prediction.split()), Counter(reference.split())
    num_common = len(predicted.keys() & expected.keys())
    num_matches = sum(count for word, count in predicted.items() if word in expected)
    num_missed = sum(count for word, count in expected.items() if word not in predicted)
    precision, recall, f1 = precision_recall_f1(num_matches, predicted.total(), num_matches + num_missed)
    scores |= {"open_precision": precision, "open_recall": recall, "open_f1": f1}
    scores["open_exact_match"] = num_common / predicted.total() if predicted else 0.0
    if candidates is not None:
        scores["open_accuracy"] = float(most_similar_candidate_release(predicted.keys(), candidates) == reference)
    return scores


def most_similar_candidate_release(predicted_words: Set[str], candidates: Sequence) -> str:
    """
    The normalized candidate with the largest share of its words predicted; the first one if tied, even at share 0.

    Example:
        >>> most_similar_candidate_release({"in", "right", "lung"}, ["Left lung", "Right lung"])
        'right lung'
    """
    best, best_share = None, -1.0
    for candidate in candidates:
        normalized, words = _normalized_and_words(candidate)
        share = len(words & predicted_words) / len(words) if words else 0.0
        if share > best_share:
            best, best_share = normalized, share
    return best


def score_closed_release(prediction: str, reference: str) -> float:
    """
    1.0 if the normalized reference is a substring of the normalized prediction, even "no" in "abnormal".

    Example:
        >>> score_closed_release("The heart is abnormal", "no")
        1.0
    """
    return float(normalize_release(reference.lower()) in normalize_release(prediction.lower()))
