"""Counts of common words and n-grams, and the word tables that both protocols share."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence


ARTICLES = ("a", "an", "the")
_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_ZERO_TO_TEN)} | {"none": "0"}
HAN_NUMBERS = {character: str(value) for value, character in enumerate("零一二三四五六七八九十")} | {"两": "2"}


def bleu(prediction: Sequence[str], reference: Sequence[str], weights: Sequence[float]) -> float:
    """
    Sentence BLEU of words against one reference, unsmoothed, in 0..1, exactly what nltk 3.10's `sentence_bleu` gives.

    `weights` belong to the 1-, 2-, 3-, ... grams. As there, an order without a match counts as the smallest float
    rather than zero, and no common word at all gives 0.0.

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
    """
    The release's four BLEU figures: orders 1, 2 and 3 each alone, and the usual BLEU-4 over orders 1 to 4.

    Example:
        >>> bleu_scores(["left", "lung"], ["left", "lung"])["open_bleu_2"]
        1.0
    """
    weights = {1: (1, 0, 0, 0), 2: (0, 1, 0, 0), 3: (0, 0, 1, 0), 4: (0.25, 0.25, 0.25, 0.25)}
    return {f"open_bleu_{order}": bleu(prediction, reference, weights[order]) for order in weights}


def precision_recall_f1(num_matches: int, num_predicted: int, num_expected: int) -> tuple[float, float, float]:
    """All three are 0.0 if nothing matches, also for an answer without words: it counts, as a wrong one."""
    if num_matches == 0:
        return 0.0, 0.0, 0.0
    precision, recall = num_matches / num_predicted, num_matches / num_expected
    return precision, recall, 2 * precision * recall / (precision + recall)
