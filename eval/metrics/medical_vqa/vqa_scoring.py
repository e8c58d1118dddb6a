"""
Scoring of medical question answers in two protocols: normalize, score one pair, aggregate.

`strict` is this project's own protocol. `release` reproduces the LLaVA-Med / ExGra-Med `run_eval` scripts, including
their faults, to compare with published figures. The card (`README.md`) lists the differences.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from logramed.eval.metrics.aggregation import bootstrap_intervals, bootstrap_means, check_columns, check_settings
from logramed.eval.metrics.medical_vqa.release_protocol import (
    ARTICLES,
    DIGIT_OF_WORD,
    bleu_scores,
    precision_recall_f1,
    score_closed_release,
    score_open_release,
)
from logramed.eval.metrics.reply_reader import HAN, read_reply, strip_role_words


ANSWER_TYPES = ("OPEN", "CLOSED")

_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc]")
_HAN_NUMBERS = {character: str(value) for value, character in enumerate("零一二三四五六七八九十")} | {"两": "2"}
_DIGITS = DIGIT_OF_WORD | _HAN_NUMBERS
_HAN = re.compile(f"[{HAN}]")
_WORD = re.compile(rf"\d+(?:\.\d+)*|[{HAN}]|[^\W\d_{HAN}][^\W_{HAN}]*")


def clean(text: str) -> str:
    """
    Clean the text of an answer: Unicode folded (NFKC, lower case), role words stripped.

    Example:
        >>> clean("Assistant: Left lung ")
        'left lung'
    """
    return strip_role_words(unicodedata.normalize("NFKC", text)).casefold()


def normalize_strict(text: str) -> tuple[str, ...]:
    """
    The words of an answer: no role words, Unicode folded (NFKC, lower case), no punctuation, number words as digits.

    A number and its unit are two words even if joined ("3.5cm" is "3.5 cm"). Apostrophes are removed ("Crohn's" is
    "crohns"), and articles except as the last word, where "A" is a name ("hepatitis A"). Each Han character is a word.

    Example:
        >>> normalize_strict("Assistant: The X-ray shows two nodules (3.5cm).")
        ('x', 'ray', 'shows', '2', 'nodules', '3.5', 'cm')
        >>> normalize_strict("CT扫描,两个结节")
        ('ct', '扫', '描', '2', '个', '结', '节')
    """
    text = _THOUSANDS_COMMA.sub("", _APOSTROPHES.sub("", clean(text)))
    words = [_DIGITS.get(word, word) for word in _WORD.findall(text)]
    return tuple([word for word in words[:-1] if word not in ARTICLES] + words[-1:])


def score_open_strict(prediction: str, reference: str) -> dict[str, float]:
    """
    Scores of one open answer, each in 0..1, over the words of `normalize_strict`.

    Recall, precision and F1 count a common word as often as both have it; exact match requires the same words in the
    same order.

    Example:
        >>> score_open_strict("Assistant: left lobe", "left left lobe")["open_recall"]
        0.6666666666666666
    """
    predicted, expected = normalize_strict(prediction), normalize_strict(reference)
    num_matches = (Counter(predicted) & Counter(expected)).total()
    precision, recall, f1 = precision_recall_f1(num_matches, len(predicted), len(expected))
    scores = {"open_recall": recall, "open_precision": precision, "open_f1": f1}
    scores["open_exact_match"] = float(predicted == expected)
    return scores | bleu_scores(predicted, expected)


# Options that exclude each other: an answer that names two of a family is undecided.
_FAMILIES = """\
left right, unilateral bilateral, upper lower, superior inferior, anterior posterior, interior exterior,
inside outside, supratentorial infratentorial, medial lateral, proximal distal, superficial deep, apex base,
axial sagittal saggital coronal, ap pa, ct mri ultrasound, t1 t2 flair, arterial venous, male female,
normal abnormal, benign malignant, acute chronic, cystic solid, focal diffuse, regular irregular,
symmetric asymmetric, homogeneous heterogeneous, homogenous heterogenous, hyperintense hypointense isointense,
hyperdense hypodense isodense, hyperinflation hypoinflation, radiolucent radioopaque, increased decreased,
smaller larger, more less, high low, 1 multiple, dark bright, gray white, grey white"""
OPTION_FAMILIES = tuple(frozenset(family.split()) for family in _FAMILIES.split(","))
# Words around an option that an answer may leave out: "Right side" is named by "right", "with contrast" by "contrast".
OPTION_FILLERS = frozenset(
    ("side", "sides", "in", "on", "of", "at", "to", "with", "just", "view", "image", "plane", "scan", "weighted")
)
NEGATIONS = frozenset(("no", "not", "non", "without", "never", "neither", "nor", "isnt", "arent", "wasnt", "werent"))
# A negation reaches past these: "not on the left", "not really left", "without IV contrast".
_NEGATED_THROUGH = OPTION_FILLERS | {"really", "likely", "clearly", "definitely", "located", "any", "iv"}
_NEGATED_YES_OR_NO = re.compile(r"(?:\bnot|n['\u2019]t|\bcannot|\bneither|\bnor|\bnever)\s+(?:say\s+)?\W?(?:yes|no)\b")
_OR = frozenset(("or", "vs", "versus"))
# Chinese says yes by repeating the verb of the question ("包含肝脏吗?" "包含"), and no by negating it. Such an answer
# is the whole text or comes before a mark: "无回声" and "对称" are options.
_VERBS = "是|对|有|包含|包括|含有?|存在|可以|能够?|会|属于|需要|正确"
_END = r"[的了啊呢吧]*(?=[,.;:!?。、\s]|$)"
_CHINESE_YES = re.compile(rf"(?:{_VERBS}|嗯){_END}")
_CHINESE_NO = re.compile(rf"(?:(?:不|没有?|未|并?非)(?:{_VERBS})|否|不|没有?|无|错误?){_END}")
# Optional words around a Chinese option: "右侧", "在右边" and "右" are the same.
_FILLER_BEFORE = re.compile(r"^(?:在|位于|(?:这|图中)?是|为)(?=.)")
_FILLERS_AFTER = re.compile(r"(?<=.)(?:[侧边面位部的]|平面|加权|成像|图像|像|扫描)+$")


def yes_or_no(reference: str) -> str | None:
    """
    The answer to a yes/no question, or `None` if `reference` answers a question between other options.

    "No" must end the text or be followed by a mark: "No, it is clear" means no, "no contrast" is an option. Also reads
    Chinese.

    Example:
        >>> yes_or_no("Yes."), yes_or_no("No, it is clear"), yes_or_no("no contrast"), yes_or_no("normal")
        ('yes', 'no', None, None)
        >>> yes_or_no("包含"), yes_or_no("不是"), yes_or_no("左侧")
        ('yes', 'no', None)
    """
    text = clean(reference)
    found = re.match(r"yes\b|no\b(?=\W*$|\s*[,.;:!])", text)
    if found or not _HAN.search(text):
        return found.group() if found else None
    if _CHINESE_NO.match(text):
        return "no"
    return "yes" if _CHINESE_YES.match(text) else None


def chinese_option(text: str) -> str:
    """
    A Chinese option without punctuation and optional words.

    Example:
        >>> chinese_option("在右侧"), chinese_option("冠状面。"), chinese_option("T2加权像"), chinese_option("面")
        ('右', '冠状', 't2', '面')
    """
    return _FILLERS_AFTER.sub("", _FILLER_BEFORE.sub("", re.sub(r"[\s,.;:!?。、]+", "", clean(text))))


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
    Words that an answer with `options` must not also name: the rest of their families, and their opposites.

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

    Yes/no questions: the prediction must contain exactly one of the whole words "yes" and "no", the right one, and not
    negate it ("not yes"). Other closed questions ("left or right?"): the prediction must name the reference's
    option in whole words, must not name another of its family (`OPTION_FAMILIES`), and must not leave the choice open
    with an "or" or "vs". Chinese answers must begin with the yes or no, or be the option and nothing else.

    Example:
        >>> score_closed_strict("Yes, there is no effusion", "no")
        0.0
        >>> score_closed_strict("It is on the left.", "Left side")
        1.0
    """
    words, expected = normalize_strict(prediction), yes_or_no(reference)
    if expected is not None:
        said = ({"yes", "no"} & set(words)) | ({yes_or_no(prediction)} - {None})
        return float(said == {expected} and not _NEGATED_YES_OR_NO.search(clean(prediction)))
    if _HAN.search(reference):
        return float(chinese_option(prediction) == chinese_option(reference))
    reference_options = named_options(normalize_strict(reference))
    reference_options = (reference_options - OPTION_FILLERS) or reference_options
    named = named_options(words)
    rivals = rival_options(reference_options)
    undecided = bool(_OR & named) and not _OR & reference_options
    return float(reference_options <= named and not named & rivals and not undecided)


def answer_type(value: str, position: int) -> str:
    """
    Parse "OPEN" or "CLOSED", in any case and with surrounding whitespace.

    Example:
        >>> answer_type("closed ", position=0)
        'CLOSED'
    """
    if value.strip().upper() not in ANSWER_TYPES:
        raise ValueError(f"`answer_types[{position}]` must be one of {list(ANSWER_TYPES)}, got {value!r}.")
    return value.strip().upper()


def candidate_list(candidates: Sequence | Mapping | None, protocol: str) -> list[str] | None:
    """
    Candidate answers as texts, from a list or the release's `candidate.json` format `{"0": [...]}`.

    Example:
        >>> candidate_list({"0": ["left lung", 5]}, "release")
        ['left lung', '5']
    """
    if candidates is None:
        return None
    if protocol != "release":
        raise ValueError(f'`candidates` are for `protocol="release"`, got {protocol!r}.')
    if isinstance(candidates, Mapping):
        if list(candidates) != ["0"]:
            raise ValueError(f'`candidates` as a mapping must have the one key "0", got {list(candidates)}.')
        candidates = candidates["0"]
    if isinstance(candidates, str | Set) or len(candidates) == 0:  # a set has no first candidate
        raise ValueError(f"`candidates` must be a list of at least one answer or `None`, got {candidates!r}.")
    if None in list(candidates):
        raise TypeError(f"`candidates[{list(candidates).index(None)}]` must be text, got None.")
    return [str(candidate) for candidate in candidates]


def score_item(prediction: str, reference: str, kind: str, protocol: str, candidates: Sequence | None) -> dict:
    """
    Scores of one answer in 0..1, by figure name. The strict protocol scores the answer that `read_reply` extracts.

    Example:
        >>> score_item("<think>no or</think>Yes", "yes", "CLOSED", "strict", None)
        {'closed_accuracy': 1.0}
    """
    if protocol == "strict":
        prediction = read_reply(prediction)
    if kind == "CLOSED":
        score_closed = score_closed_strict if protocol == "strict" else score_closed_release
        return {"closed_accuracy": score_closed(prediction, reference)}
    if protocol == "strict":
        return score_open_strict(prediction, reference)
    return score_open_release(prediction, reference, candidates)


def evaluate_answers(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str],
    protocol: str = "strict",
    candidates: Sequence | Mapping | None = None,
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict:
    """
    Score answers to open and closed questions. Each list has one entry per question: the model's answer, the right
    answer, and "OPEN" or "CLOSED".

    `protocol` is "strict" (ours) or "release" (the LLaVA-Med / ExGra-Med `run_eval`), whose `open_accuracy` needs
    `candidates`, the answers to choose from. `return_items` adds the scores of every question, under `items`. The
    bootstrap draws whole `clusters`, such as the image of each question, or questions if there are none;
    `num_resamples=0` leaves out `intervals`.

    Returns figures in percent (`open_*` only with open questions, `closed_accuracy` only with closed ones, `average`
    only with both), `num_open`, `num_closed`, `num_clusters` (with `clusters`), `counts`, the number of questions
    behind each figure, and `intervals`, a 95% interval `[low, high]` in percent for each figure.

    Raises `ValueError` if the lists are empty or differ in length, a type is unknown, a reference is empty under
    "strict", or `num_resamples` is negative; and `TypeError` if an answer, a type or a cluster is not text.

    Example:
        >>> result = evaluate_answers(["Yes", "left lung"], ["yes", "lung"], ["CLOSED", "OPEN"])
        >>> result["closed_accuracy"], result["open_recall"], result["num_open"]
        (100.0, 100.0, 1)
    """
    check_settings(protocol, num_resamples)
    columns = {"predictions": predictions, "references": references, "answer_types": answer_types}
    check_columns(columns | {"clusters": clusters}, texts=[*columns, "clusters"])
    candidates = candidate_list(candidates, protocol)
    kinds = [answer_type(value, position) for position, value in enumerate(answer_types)]
    items = []
    for position, (prediction, reference, kind) in enumerate(zip(predictions, references, kinds, strict=True)):
        if protocol == "strict" and not normalize_strict(reference):
            raise ValueError(f"`references[{position}]` has no words to compare with: {reference!r}.")
        items.append(score_item(prediction, reference, kind, protocol, candidates))

    results: dict[str, Any] = {"num_open": kinds.count("OPEN"), "num_closed": kinds.count("CLOSED")}
    if clusters is not None:
        results["num_clusters"] = len(set(clusters))
    counts, intervals = {}, {}
    for kind in ANSWER_TYPES:
        places = [place for place, its in enumerate(kinds) if its == kind]
        if not places:
            continue
        of_kind = [items[place] for place in places]
        names = list(of_kind[0])
        results |= {name: sum(item[name] for item in of_kind) / len(of_kind) * 100 for name in names}
        counts |= dict.fromkeys(names, len(of_kind))
        if num_resamples:
            its_clusters = None if clusters is None else [clusters[place] for place in places]
            intervals |= bootstrap_intervals(of_kind, names, num_resamples, seed, its_clusters, scale=100)
    if results["num_open"] and results["num_closed"]:
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


def average_interval(
    items: Sequence[Mapping[str, float]], num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> list[float]:
    """
    95% bootstrap interval, in percent, of the mean of open recall and closed accuracy.

    Clusters with only open questions, only closed ones, and both are drawn separately, so that every resample has each
    kind, and a cluster with both contributes to both means.

    Example:
        >>> average_interval([{"open_recall": 1.0}, {"closed_accuracy": 0.0}], num_resamples=9, seed=0)
        [50.0, 50.0]
    """
    names = ("open_recall", "closed_accuracy")
    scores = np.array([[item.get(name, math.nan) for name in names] for item in items])
    means = bootstrap_means(scores, num_resamples, seed, clusters).mean(axis=1)
    return [float(end) for end in 100 * np.percentile(means, [2.5, 97.5])]
