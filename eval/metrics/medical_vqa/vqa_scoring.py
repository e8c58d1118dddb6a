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
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache

import numpy as np

from .chinese_answers import HAN, polarities, polarity_of_reference, score_option
from .release_protocol import score_closed_release, score_open_release
from .reply_reader import read_reply, strip_role_words
from .word_overlap import ARTICLES, HAN_NUMBERS, NUMBER_WORDS, bleu_scores, precision_recall_f1


ANSWER_TYPES = ("OPEN", "CLOSED")
PROTOCOLS = ("strict", "release")
LARGEST_DRAW = 2_000_000  # numbers drawn at once


# Every item is compared with every candidate answer, so the same few thousand texts are normalized again and again.
_cache = lru_cache(maxsize=100_000)

# ---------------------------------------------------------------------------------------------------------------------
# Normalization, strict protocol
# ---------------------------------------------------------------------------------------------------------------------

_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc]")
_DIGITS = NUMBER_WORDS | HAN_NUMBERS
_HAN = re.compile(f"[{HAN}]")
_WORD = re.compile(rf"\d+(?:\.\d+)*|[{HAN}]|[^\W\d_{HAN}][^\W_{HAN}]*")


def clean(text: str) -> str:
    """
    The text of an answer alone: Unicode folded (NFKC, lower case), role words stripped.

    Example:
        >>> clean("Assistant: Left lung ")
        'left lung'
    """
    return strip_role_words(unicodedata.normalize("NFKC", text)).casefold()


@_cache
def normalize_strict(text: str) -> tuple[str, ...]:
    """
    The words of an answer: role words stripped, Unicode folded (NFKC, lower case), marks out, number words as digits.

    A number and the unit glued to it are two words ("3.5cm" is "3.5 cm"), apostrophes go ("Crohn's" is "crohns"), and
    articles go except as the last word, where "A" is a name ("hepatitis A"). Each Han character is a word of its own.

    Example:
        >>> normalize_strict("Assistant: The X-ray shows two nodules (3.5cm).")
        ('x', 'ray', 'shows', '2', 'nodules', '3.5', 'cm')
        >>> normalize_strict("CT扫描,两个结节")
        ('ct', '扫', '描', '2', '个', '结', '节')
    """
    text = _THOUSANDS_COMMA.sub("", _APOSTROPHES.sub("", clean(text)))
    words = [_DIGITS.get(word, word) for word in _WORD.findall(text)]
    return tuple([word for word in words[:-1] if word not in ARTICLES] + words[-1:])


# ---------------------------------------------------------------------------------------------------------------------
# One open question
# ---------------------------------------------------------------------------------------------------------------------


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
    predicted_counts = Counter(predicted)
    for words in {normalize_strict(str(candidate)) for candidate in candidates}:
        if predicted_counts.keys().isdisjoint(words):  # nearly all are: spares the slow count
            continue
        num_matches = (predicted_counts & Counter(words)).total()
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
        "increased decreased",
        "high low",
        "dark bright",
        "medial lateral",
        "proximal distal",
        "superficial deep",
        "arterial venous",
    )
)
# Words around an option that an answer may leave out: "Right side" is named by "right", "with contrast" by "contrast".
OPTION_FILLERS = frozenset(
    ("side", "sides", "in", "on", "of", "at", "to", "with", "just", "view", "image", "plane", "scan", "weighted")
)
NEGATIONS = frozenset(("no", "not", "non", "without", "never", "neither", "nor", "isnt", "arent", "wasnt", "werent"))
NEGATIONS |= {"不", "非", "没", "无"}
# A negation reaches past these: "not on the left", "not really left", "without IV contrast".
_NEGATED_THROUGH = OPTION_FILLERS | {"really", "likely", "clearly", "definitely", "located", "any", "iv", "是", "有"}
_NEGATED_YES_OR_NO = re.compile(r"(?:\bnot|n['\u2019]t|\bcannot|\bneither|\bnor|\bnever)\s+(?:say\s+)?\W?(?:yes|no)\b")
_OR = frozenset(("or", "vs", "versus"))


def yes_or_no(reference: str) -> str | None:
    """
    The answer to a yes/no question, or `None` where `reference` answers a question between other options.

    "No" needs an end or a mark after it: "No, it is clear" says no, "no contrast" is an option. What says yes
    and no in Chinese stands in `chinese_answers`.

    Example:
        >>> yes_or_no("Yes."), yes_or_no("No, it is clear"), yes_or_no("no contrast"), yes_or_no("normal")
        ('yes', 'no', None, None)
        >>> yes_or_no("包含"), yes_or_no("不是"), yes_or_no("左侧")
        ('yes', 'no', None)
    """
    text = clean(reference)
    found = re.match(r"yes\b|no\b(?=\W*$|\s*[,.;:!])", text)
    return found.group() if found else polarity_of_reference(text)


def named_options(words: Sequence[str]) -> set[str]:
    """
    The words of an answer, each negation joined to the word it negates.

    Example:
        >>> sorted(named_options(["left", "not", "on", "right"]))
        ['left', 'not right', 'on']
    """
    named, negated = set(), False
    for word in words:
        if word in NEGATIONS:
            negated = True
        elif negated and word in _NEGATED_THROUGH:
            named.add(word)
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

    Yes/no questions: exactly one of the whole words "yes" and "no" must stand in the prediction, be the right one, and
    not be denied ("not yes"). Other closed questions ("left or right?"): the prediction must name the reference's
    option in whole words, must not name another of its family (`OPTION_FAMILIES`), and must not leave the choice open
    with an "or" or "vs".

    Example:
        >>> score_closed_strict("Yes, there is no effusion", "no")
        0.0
        >>> score_closed_strict("It is on the left.", "Left side")
        1.0
    """
    words, expected = normalize_strict(prediction), yes_or_no(reference)
    if expected is not None:
        said = ({"yes", "no"} & set(words)) | polarities(clean(prediction))
        return float(said == {expected} and not _NEGATED_YES_OR_NO.search(clean(prediction)))
    if _HAN.search(reference):
        return score_option(clean(prediction), clean(reference), OPTION_FAMILIES)
    reference_options = named_options(normalize_strict(reference))
    reference_options = (reference_options - OPTION_FILLERS) or reference_options
    named = named_options(words)
    rivals = rival_options(reference_options)
    undecided = bool(_OR & named) and not _OR & reference_options
    return float(reference_options <= named and not named & rivals and not undecided)


# ---------------------------------------------------------------------------------------------------------------------
# All questions
# ---------------------------------------------------------------------------------------------------------------------


def answer_text(value: str | int | float, position: int, column: str) -> str:
    """
    `value` as text; numbers are written out, anything else but text is refused by name, a missing value (NaN) too.

    Example:
        >>> answer_text(2, position=0, column="references")
        '2'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value):
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


def candidate_list(candidates: Sequence | Mapping | None) -> list[str] | None:
    """
    The candidate answers of a list, or of the release's `candidate.json` form `{"0": [...]}`, as texts.

    Example:
        >>> candidate_list({"0": ["left lung", 5]})
        ['left lung', '5']
    """
    if isinstance(candidates, Mapping):
        if list(candidates) != ["0"]:
            raise ValueError(f'`candidates` as a mapping must have the one key "0", got {list(candidates)}.')
        candidates = candidates["0"]
    if candidates is None:
        return None
    if isinstance(candidates, str | Set) or len(candidates) == 0:  # a set has no first of equal candidates
        raise ValueError(f"`candidates` must be a list of at least one answer or `None`, got {candidates!r}.")
    return [answer_text(value, position, "candidates") for position, value in enumerate(candidates)]


def score_item(prediction: str, reference: str, kind: str, protocol: str, candidates: Sequence | None) -> dict:
    """
    The scores of one answer in 0..1, by figure name. Of a reply, the strict protocol scores what `read_reply` reads.

    Example:
        >>> score_item("<think>no or</think>Yes", "yes", "CLOSED", "strict", None)
        {'closed_accuracy': 1.0}
    """
    if protocol == "strict":
        prediction = read_reply(prediction)
    if kind == "CLOSED":
        score_closed = score_closed_strict if protocol == "strict" else score_closed_release
        return {"closed_accuracy": score_closed(prediction, reference)}
    score_open = score_open_strict if protocol == "strict" else score_open_release
    return score_open(prediction, reference, candidates)


def bootstrap_means(
    scores: np.ndarray, num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> np.ndarray:
    """
    Column means of `scores` over clusters drawn with replacement: the sum of the drawn scores / how many they are.

    Args:
        scores (`np.ndarray` of shape `(num_items, num_figures)`):
            NaN where an item does not have a figure. Clusters are then drawn among those with the same figures, so
            that each resample has all of them. At least one item must have each figure.
        clusters: The cluster of each item, such as its image. `None`: each item is one by itself.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_figures)`, in the unit of `scores`.

    Example:
        >>> bootstrap_means(np.array([[1.0], [1.0]]), num_resamples=2, seed=0).tolist()
        [[1.0], [1.0]]
        >>> means = bootstrap_means(np.array([[1.0], [1.0], [0.0]]), 100, 0, ["a", "a", "b"])  # 2/2, 2/3 or 0/1
        >>> np.unique(means.round(3)).tolist()
        [0.0, 0.667, 1.0]
    """
    num_figures, has_figure = scores.shape[1], ~np.isnan(scores)
    places = np.arange(len(scores)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.zeros((places.max() + 1, 2 * num_figures))
    np.add.at(sums, places, np.hstack([np.where(has_figure, scores, 0), has_figure]))
    # Many clusters are alike, and how often each kind is drawn is multinomial: quick even for 90,000 questions.
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    strata = np.unique(kinds[:, num_figures:] > 0, axis=0, return_inverse=True)[1].ravel()
    generator = np.random.default_rng(seed)
    totals = np.zeros((num_resamples, 2 * num_figures))
    for stratum in range(strata.max() + 1):
        of_stratum = strata == stratum
        totals += _draw(kinds[of_stratum], counts[of_stratum], num_resamples, generator)
    return totals[:, :num_figures] / totals[:, num_figures:]


def _draw(kinds: np.ndarray, counts: np.ndarray, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Sums of as many rows of `kinds` as there are, drawn by how often each is there."""
    totals, size = [], max(1, LARGEST_DRAW // len(kinds))
    for start in range(0, num_resamples, size):
        size = min(size, num_resamples - start)
        totals.append(generator.multinomial(counts.sum(), counts / counts.sum(), size=size) @ kinds)
    return np.concatenate(totals)


def evaluate_answers(
    predictions: Sequence[str | int],
    references: Sequence[str | int],
    answer_types: Sequence[str],
    protocol: str = "strict",
    candidates: Sequence | Mapping | None = None,
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
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
        clusters: What each question belongs to, such as its image: the bootstrap draws whole clusters. `None` draws
            questions.

    Returns:
        `dict`: figures in percent (`open_*` only with open questions, `closed_accuracy` only with closed ones,
        `average` only with both), `num_open`, `num_closed`, `num_clusters` (with `clusters`), `counts`, the number of
        questions behind each figure, and `intervals`, a 95% interval `[low, high]` in percent for each figure.

    Raises:
        ValueError: If the lists are empty or of different length, or hold an unknown type, or an empty reference under
            "strict"; if `num_resamples` is negative.
        TypeError: If an answer is neither text nor a number, or missing (NaN), or a cluster is no text.

    Example:
        >>> result = evaluate_answers(["Yes", "left lung"], ["yes", "lung"], ["CLOSED", "OPEN"])
        >>> result["closed_accuracy"], result["open_recall"], result["num_open"]
        (100.0, 100.0, 1)
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {list(PROTOCOLS)}, got {protocol!r}.")
    if num_resamples < 0:
        raise ValueError(f"`num_resamples` must be 0 or more, got {num_resamples}.")
    if not len(predictions) == len(references) == len(answer_types):
        raise ValueError(
            "`predictions`, `references` and `answer_types` must be equally long, got "
            f"{len(predictions)}, {len(references)} and {len(answer_types)}."
        )
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: `predictions` is empty.")
    if clusters is not None:
        check_clusters(clusters, len(predictions))
    candidates = candidate_list(candidates)
    kinds = [answer_type(value, position) for position, value in enumerate(answer_types)]
    items = []
    for position, (prediction, reference, kind) in enumerate(zip(predictions, references, kinds, strict=True)):
        prediction = answer_text(prediction, position, "predictions")
        reference = answer_text(reference, position, "references")
        if protocol == "strict" and not normalize_strict(reference):
            raise ValueError(f"`references[{position}]` has no words to compare with: {reference!r}.")
        items.append(score_item(prediction, reference, kind, protocol, candidates))

    places = {kind: [place for place, its in enumerate(kinds) if its == kind] for kind in ANSWER_TYPES}
    results = {"num_open": len(places["OPEN"]), "num_closed": len(places["CLOSED"])}
    if clusters is not None:
        results["num_clusters"] = len(set(clusters))
    counts, intervals = {}, {}
    for of_kind in filter(None, places.values()):
        its_clusters = None if clusters is None else [clusters[place] for place in of_kind]
        figures, figure_intervals = aggregate([items[place] for place in of_kind], num_resamples, seed, its_clusters)
        results |= figures
        counts |= dict.fromkeys(figures, len(of_kind))
        intervals |= figure_intervals
    if all(places.values()):
        results["average"] = (results["open_recall"] + results["closed_accuracy"]) / 2
        counts["average"] = len(items)
        if num_resamples:
            intervals["average"] = average_interval(items, num_resamples, seed, clusters)
    results["counts"] = counts
    if num_resamples:
        results["intervals"] = intervals
    if return_items:
        results["items"] = [
            {"answer_type": kind, **{figure: 100 * score for figure, score in item.items()}}
            for item, kind in zip(items, kinds, strict=True)
        ]
    return results


def check_clusters(clusters: Sequence[str], num_items: int) -> None:
    """Refuses what is not one text per item."""
    if isinstance(clusters, str) or len(clusters) != num_items:
        got = repr(clusters) if isinstance(clusters, str) else len(clusters)
        raise ValueError(f"`clusters` must be a list of one text for each of {num_items} questions, got {got}.")
    for position, cluster in enumerate(clusters):
        if not isinstance(cluster, str):
            raise TypeError(f"`clusters[{position}]` must be text, got {cluster!r} ({type(cluster).__name__}).")


def aggregate(
    items: Sequence[Mapping[str, float]], num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> tuple[dict, dict]:
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
    low, high = 100 * np.percentile(bootstrap_means(scores, num_resamples, seed, clusters), [2.5, 97.5], axis=0)
    return figures, {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def average_interval(
    items: Sequence[Mapping[str, float]], num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> list[float]:
    """
    95% bootstrap interval, in percent, of the mean of open recall and closed accuracy.

    Drawn by themselves are clusters with open questions only, with closed ones only, and with both, so that each kind
    is in every resample and what a cluster says of both counts in both.

    Example:
        >>> average_interval([{"open_recall": 1.0}, {"closed_accuracy": 0.0}], num_resamples=9, seed=0)
        [50.0, 50.0]
    """
    names = ("open_recall", "closed_accuracy")
    scores = np.array([[item.get(name, math.nan) for name in names] for item in items])
    means = bootstrap_means(scores, num_resamples, seed, clusters).mean(axis=1)
    return [float(end) for end in 100 * np.percentile(means, [2.5, 97.5])]
