"""
Scoring of medical question answers in two protocols: normalize, score one pair, aggregate.

Plain functions of strings and lists; no model, no `torch`. `medical_vqa.py` wraps them as an `evaluate.Metric`.

`strict` is the protocol this project stands for. `release` gives the numbers of the LLaVA-Med / ExGra-Med `run_eval`
scripts, faults included, so that published figures can be compared with. The card (`README.md`) lists the differences.
"""

from __future__ import annotations

import math
import numbers
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache

import numpy as np


ANSWER_TYPES = ("OPEN", "CLOSED")
PROTOCOLS = ("strict", "release")
ARTICLES = ("a", "an", "the")
_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_ZERO_TO_TEN)} | {"none": "0"}


# Every item is compared with every candidate answer, so the same few thousand texts are normalized again and again.
_cache = lru_cache(maxsize=100_000)

# ---------------------------------------------------------------------------------------------------------------------
# Normalization, release protocol: the public VQA-v2 evaluator's, as the release applies it
# ---------------------------------------------------------------------------------------------------------------------

RELEASE_MARKS = ';/[]"{}()=+\\_-><@`,?!'

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
# The release passes `re.UNICODE` where `re.sub` takes the number of replacements, and 32 is its value.
_RELEASE_MAX_STOPS = 32

_CONTRACTED = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
_TWICE_CONTRACTED = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've"""
_IRREGULAR = {"someonell": "someone'll", "somebody'd": "somebodyd", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}


def _contraction_table() -> dict[str, str]:
    """
    The VQA-v2 evaluator's list of words that lost one apostrophe, by the word they are restored to.

    Left out are its entries that map to themselves and those with a capital, which never match lowered words.
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

    A mark of `RELEASE_MARKS` is deleted if it touches a space anywhere in `text`, or if `text` holds a comma between
    digits; it becomes a space otherwise. Then up to 32 full stops that no digit follows go, number words become
    digits, articles go, contractions are restored, and commas go.

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
    words = [NUMBER_WORDS.get(word, word) for word in unmarked.lower().split()]
    words = [CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(words).replace(",", "")


# ---------------------------------------------------------------------------------------------------------------------
# Normalization, strict protocol
# ---------------------------------------------------------------------------------------------------------------------

_ROLE = re.compile(r"^[\s#*]*(?:assistant|answer|gpt|bot|ai)[ *]*[:\n][\s*]*", re.IGNORECASE)
_NEXT_TURN = re.compile(r"#{2,}\s*(?:human|user|assistant)\b.*", re.IGNORECASE | re.DOTALL)
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc]")
_WORD = re.compile(r"\d+(?:\.\d+)*|[^\W\d_][^\W_]*")


def strip_role_words(text: str) -> str:
    """
    The answer alone: no "Assistant:" or "Answer:" before it, no further "### Human:" turn after it.

    Example:
        >>> strip_role_words("### Assistant: Yes ### Human: Why?")
        'Yes'
    """
    shorter = _ROLE.sub("", text)
    while shorter != text:
        text, shorter = shorter, _ROLE.sub("", shorter)
    return _NEXT_TURN.sub("", text).strip()


@_cache
def normalize_strict(text: str) -> tuple[str, ...]:
    """
    The words of an answer: role words stripped, Unicode folded (NFKC, lower case), marks out, number words as digits.

    A number and the unit glued to it are two words ("3.5cm" is "3.5 cm"), apostrophes go ("Crohn's" is "crohns"), and
    articles go except as the last word, where "A" is a name ("hepatitis A").

    Example:
        >>> normalize_strict("Assistant: The X-ray shows two nodules (3.5cm).")
        ('x', 'ray', 'shows', '2', 'nodules', '3.5', 'cm')
    """
    text = strip_role_words(unicodedata.normalize("NFKC", text)).casefold()
    text = _THOUSANDS_COMMA.sub("", _APOSTROPHES.sub("", text))
    words = [NUMBER_WORDS.get(word, word) for word in _WORD.findall(text)]
    return tuple([word for word in words[:-1] if word not in ARTICLES] + words[-1:])


# ---------------------------------------------------------------------------------------------------------------------
# One open question
# ---------------------------------------------------------------------------------------------------------------------


def bleu(prediction: Sequence[str], reference: Sequence[str], weights: Sequence[float]) -> float:
    """
    Sentence BLEU of words against one reference, unsmoothed, in 0..1: what nltk 3.10's `sentence_bleu` gives.

    `weights` belong to the 1-, 2-, 3-, ... grams. As there, an order without a match counts as the smallest float
    rather than zero, and no common word at all gives 0.0.

    Source: Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation".

    Example:
        >>> bleu(["left", "lung"], ["left", "lung"], weights=(0, 1, 0, 0))
        1.0
    """
    log_score = 0.0
    for order, weight in enumerate(weights, start=1):
        predicted, expected = _ngrams(prediction, order), _ngrams(reference, order)
        num_matches = (predicted & expected).total()
        if order == 1 and num_matches == 0:
            return 0.0
        precision = num_matches / max(1, predicted.total()) or sys.float_info.min
        log_score += weight * math.log(precision)
    brevity_penalty = min(1.0, math.exp(1 - len(reference) / len(prediction)))
    return brevity_penalty * math.exp(log_score)


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


def score_open_release(prediction: str, reference: str, candidates: Sequence | None = None) -> dict[str, float]:
    """
    Scores of one open answer, each in 0..1, as the release's `run_eval` computes them.

    "Exact match" is there the share of the prediction's words that the reference has (a precision, blind to order),
    and recall counts the *prediction's* copies of a common word: "left lobe" recalls all of "left left lobe".

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
    The candidate, normalized, with the largest share of its words predicted; the first of several, also at share 0.

    Example:
        >>> most_similar_candidate_release({"in", "right", "lung"}, ["Left lung", "Right lung"])
        'right lung'
    """
    best, best_share = None, -1.0
    for candidate in candidates:
        normalized = normalize_release(str(candidate))
        words = set(normalized.split())
        share = len(words & predicted_words) / len(words) if words else 0.0
        if share > best_share:
            best, best_share = normalized, share
    return best


def score_open_strict(prediction: str, reference: str, candidates: Sequence | None = None) -> dict[str, float]:
    """
    Scores of one open answer, each in 0..1, over the words of `normalize_strict`.

    Recall, precision and F1 count a common word as often as both have it; exact match wants the same words in the same
    order. `open_accuracy` is 1 if, of all `candidates`, the reference alone has the highest F1 with the prediction.

    Example:
        >>> score_open_strict("Assistant: left lobe", "left left lobe")["open_recall"]
        0.6666666666666666
    """
    predicted, expected = normalize_strict(prediction), normalize_strict(reference)
    num_matches = (Counter(predicted) & Counter(expected)).total()
    precision, recall, f1 = precision_recall_f1(num_matches, len(predicted), len(expected))
    scores = {"open_recall": recall, "open_precision": precision, "open_f1": f1}
    scores["open_exact_match"] = float(predicted == expected)
    scores |= bleu_scores(predicted, expected)
    if candidates is not None:
        scores["open_accuracy"] = float(most_similar_candidates_strict(predicted, candidates) == {expected})
    return scores


def most_similar_candidates_strict(predicted: Sequence[str], candidates: Sequence) -> set[tuple[str, ...]]:
    """
    Every candidate, as its words, that shares the highest F1 with `predicted`; none if no word is common.

    Example:
        >>> most_similar_candidates_strict(["lung"], ["left lung", "right lung", "liver"]) == {
        ...     ("left", "lung"), ("right", "lung")}
        True
    """
    best, best_f1 = set(), 0.0
    for words in {normalize_strict(str(candidate)) for candidate in candidates}:
        num_matches = (Counter(predicted) & Counter(words)).total()
        f1 = precision_recall_f1(num_matches, len(predicted), len(words))[2]
        if f1 > best_f1:
            best, best_f1 = {words}, f1
        elif f1 == best_f1 and f1 > 0:
            best.add(words)
    return best


# ---------------------------------------------------------------------------------------------------------------------
# One closed question
# ---------------------------------------------------------------------------------------------------------------------

# Options that exclude each other: an answer that names two of a family has not chosen.
OPTION_FAMILIES = tuple(
    frozenset(family.split())
    for family in (
        "left right",
        "unilateral bilateral",
        "upper lower",
        "superior inferior",
        "anterior posterior",
        "supratentorial infratentorial",
        "interior exterior",
        "inside outside",
        "axial sagittal saggital coronal",
        "ap pa",
        "ct mri ultrasound",
        "t1 t2 flair",
        "normal abnormal",
        "male female",
        "cystic solid",
        "smaller larger",
        "more less",
        "1 multiple",
        "hyperintense hypointense isointense",
        "hyperdense hypodense isodense",
        "hyperinflation hypoinflation",
        "homogeneous heterogeneous",
        "homogenous heterogenous",
        "symmetric asymmetric",
        "regular irregular",
        "focal diffuse",
        "acute chronic",
        "benign malignant",
        "gray white",
        "grey white",
        "apex base",
        "radiolucent radioopaque",
    )
)
# Words around an option that an answer may leave out: "Right side" is named by "right", "with contrast" by "contrast".
OPTION_FILLERS = frozenset(
    ("side", "sides", "in", "on", "of", "at", "to", "with", "just", "view", "image", "plane", "scan", "weighted")
)
NEGATIONS = frozenset(("no", "not", "non", "without", "isnt", "arent"))


def yes_or_no(reference: str) -> str | None:
    """
    The answer to a yes/no question, or `None` where `reference` answers a question between other options.

    "No" needs an end or a mark after it: "No, it is clear" says no, "no contrast" is an option.

    Example:
        >>> yes_or_no("Yes."), yes_or_no("No, it is clear"), yes_or_no("no contrast"), yes_or_no("normal")
        ('yes', 'no', None, None)
    """
    text = strip_role_words(unicodedata.normalize("NFKC", reference)).casefold()
    found = re.match(r"yes\b|no\b(?=\W*$|\s*[,.;:!])", text)
    return found.group() if found else None


def named_options(words: Sequence[str]) -> set[str]:
    """
    The words of an answer, each negation joined to the word it negates.

    Example:
        >>> sorted(named_options(["left", "not", "right"]))
        ['left', 'not right']
    """
    named, negated = set(), False
    for word in words:
        if word in NEGATIONS:
            negated = True
        else:
            named.add(f"not {word}" if negated else word)
            negated = False
    return named


def rival_options(options: Set[str]) -> set[str]:
    """
    What an answer that chose `options` must not name as well: the rest of their families, and their opposites.

    Example:
        >>> sorted(rival_options({"left"}))
        ['not left', 'right']
    """
    families = [family for family in OPTION_FAMILIES if family & options]
    opposites = {word.removeprefix("not ") if word.startswith("not ") else f"not {word}" for word in options}
    return opposites.union(*families) - options


def score_closed_strict(prediction: str, reference: str) -> float:
    """
    1.0 for a right answer to a closed question, else 0.0.

    Yes/no questions: exactly one of the whole words "yes" and "no" must stand in the prediction, and be the right one.
    Other closed questions ("left or right?"): the prediction must name the reference's option in whole words, must not
    name another of its family (`OPTION_FAMILIES`), and must not leave the choice open with an "or".

    Example:
        >>> score_closed_strict("Yes, there is no effusion", "no")
        0.0
        >>> score_closed_strict("It is on the left.", "Left side")
        1.0
    """
    words, expected = normalize_strict(prediction), yes_or_no(reference)
    if expected is not None:
        return float({"yes", "no"} & set(words) == {expected})
    reference_options = named_options(normalize_strict(reference))
    reference_options = (reference_options - OPTION_FILLERS) or reference_options
    named = named_options(words)
    rivals = rival_options(reference_options)
    undecided = "or" in named and "or" not in reference_options
    return float(reference_options <= named and not named & rivals and not undecided)


def score_closed_release(prediction: str, reference: str) -> float:
    """
    1.0 if the normalized reference is a substring of the normalized prediction, "no" in "abnormal" included.

    Example:
        >>> score_closed_release("The heart is abnormal", "no")
        1.0
    """
    return float(normalize_release(reference.lower()) in normalize_release(prediction.lower()))


# ---------------------------------------------------------------------------------------------------------------------
# All questions
# ---------------------------------------------------------------------------------------------------------------------


def answer_text(value: str | int | float, position: int, column: str) -> str:
    """
    `value` as text; numbers are written out, anything else but text is refused by name.

    Example:
        >>> answer_text(2, position=0, column="references")
        '2'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"`{column}[{position}]` must be text or a number, got {value!r} ({type(value).__name__}).")


def answer_type(value: str, position: int) -> str:
    """
    "OPEN" or "CLOSED" for `value` in any case and with blanks around it.

    Example:
        >>> answer_type("closed ", position=0)
        'CLOSED'
    """
    spelled = value.strip().upper() if isinstance(value, str) else value
    if spelled not in ANSWER_TYPES:
        raise ValueError(f"`answer_types[{position}]` must be one of {list(ANSWER_TYPES)}, got {value!r}.")
    return spelled


def candidate_list(candidates: Sequence | Mapping | None) -> Sequence | None:
    """
    The candidate answers of a list, or of the release's `candidate.json` form `{"0": [...]}`.

    Example:
        >>> candidate_list({"0": ["left lung", 5]})
        ['left lung', 5]
    """
    if isinstance(candidates, Mapping):
        if list(candidates) != ["0"]:
            raise ValueError(f'`candidates` as a mapping must have the one key "0", got {list(candidates)}.')
        candidates = candidates["0"]
    if isinstance(candidates, str) or (candidates is not None and len(candidates) == 0):
        raise ValueError(f"`candidates` must be a list of at least one answer or `None`, got {candidates!r}.")
    return candidates


def score_item(prediction: str, reference: str, kind: str, protocol: str, candidates: Sequence | None) -> dict:
    """
    The scores of one answer in 0..1, by figure name.

    Example:
        >>> score_item("Yes", "yes", "CLOSED", "strict", None)
        {'closed_accuracy': 1.0}
    """
    if kind == "CLOSED":
        score_closed = score_closed_strict if protocol == "strict" else score_closed_release
        return {"closed_accuracy": score_closed(prediction, reference)}
    score_open = score_open_strict if protocol == "strict" else score_open_release
    return score_open(prediction, reference, candidates)


def bootstrap_intervals(scores: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """
    95% percentile bootstrap intervals of the column means of `scores`, items drawn with replacement.

    Args:
        scores (`np.ndarray` of shape `(num_items, num_figures)`): At least one item.

    Returns:
        `np.ndarray` of shape `(2, num_figures)`: lower and upper ends, in the unit of `scores`.

    Example:
        >>> bootstrap_intervals(np.array([[1.0], [1.0]]), num_resamples=100, seed=0).tolist()
        [[1.0], [1.0]]
    """
    num_items = len(scores)
    generator = np.random.default_rng(seed)
    means = np.empty((num_resamples, scores.shape[1]))
    for resample in range(num_resamples):
        counts = np.bincount(generator.integers(num_items, size=num_items), minlength=num_items)
        means[resample] = counts @ scores / num_items
    return np.percentile(means, [2.5, 97.5], axis=0)


def evaluate_answers(
    predictions: Sequence[str | int],
    references: Sequence[str | int],
    answer_types: Sequence[str],
    protocol: str = "strict",
    candidates: Sequence | Mapping | None = None,
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """
    Score answers to open and closed questions.

    Args:
        predictions, references, answer_types:
            One entry per question: the model's answer, the right one, and "OPEN" or "CLOSED".
        protocol (`str`): "strict" (ours) or "release" (the LLaVA-Med / ExGra-Med `run_eval`).
        candidates: Answers to choose from for `open_accuracy`, which is left out without them.
        return_items (`bool`): Also return the scores of every question, under `items`.
        num_resamples, seed: Of the bootstrap; 0 resamples leaves `intervals` out.

    Returns:
        `dict`: figures in percent (`open_*` only with open questions, `closed_accuracy` only with closed ones),
        `num_open`, `num_closed`, and `intervals`, a 95% interval `[low, high]` in percent for each figure.

    Raises:
        ValueError: If the lists are empty or of different length, or hold an unknown type, or an empty reference under
            "strict".
        TypeError: If an answer is neither text nor a number.

    Example:
        >>> result = evaluate_answers(["Yes", "left lung"], ["yes", "lung"], ["CLOSED", "OPEN"])
        >>> result["closed_accuracy"], result["open_recall"], result["num_open"]
        (100.0, 100.0, 1)
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {list(PROTOCOLS)}, got {protocol!r}.")
    if not len(predictions) == len(references) == len(answer_types):
        raise ValueError(
            "`predictions`, `references` and `answer_types` must be equally long, got "
            f"{len(predictions)}, {len(references)} and {len(answer_types)}."
        )
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: `predictions` is empty.")
    candidates = candidate_list(candidates)
    kinds = [answer_type(value, position) for position, value in enumerate(answer_types)]
    items = []
    for position, (prediction, reference, kind) in enumerate(zip(predictions, references, kinds, strict=True)):
        prediction = answer_text(prediction, position, "predictions")
        reference = answer_text(reference, position, "references")
        if protocol == "strict" and not normalize_strict(reference):
            raise ValueError(f"`references[{position}]` has no words to compare with: {reference!r}.")
        items.append(score_item(prediction, reference, kind, protocol, candidates))

    results = {"num_open": kinds.count("OPEN"), "num_closed": kinds.count("CLOSED")}
    intervals = {}
    for kind in ANSWER_TYPES:
        of_kind = [item for item, item_kind in zip(items, kinds, strict=True) if item_kind == kind]
        if of_kind:
            figures, figure_intervals = aggregate(of_kind, num_resamples, seed)
            results |= figures
            intervals |= figure_intervals
    if num_resamples:
        results["intervals"] = intervals
    if return_items:
        results["items"] = [
            {"answer_type": kind, **{figure: 100 * score for figure, score in item.items()}}
            for item, kind in zip(items, kinds, strict=True)
        ]
    return results


def aggregate(items: Sequence[Mapping[str, float]], num_resamples: int, seed: int) -> tuple[dict, dict]:
    """
    Means and 95% intervals, in percent, of scores in 0..1 that all have the same figures.

    Example:
        >>> aggregate([{"closed_accuracy": 1.0}, {"closed_accuracy": 0.0}], num_resamples=0, seed=0)
        ({'closed_accuracy': 50.0}, {})
    """
    names = list(items[0])
    figures = {name: sum(item[name] for item in items) / len(items) * 100 for name in names}
    if num_resamples == 0:
        return figures, {}
    scores = np.array([[item[name] for name in names] for item in items])
    low, high = 100 * bootstrap_intervals(scores, num_resamples, seed)
    return figures, {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
