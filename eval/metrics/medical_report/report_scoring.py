"""
Score generated reports against reference reports by word overlap (BLEU, ROUGE-L, CIDEr).

Figures are computed by sacrebleu (BLEU) and pycocoevalcap (ROUGE-L, CIDEr), imported where used; texts are split into
words here, in the same way for all figures.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logramed.eval.metrics.aggregation import bootstrap_intervals, check_columns, check_settings
from logramed.eval.metrics.reply_reader import read_reply


MAX_ORDER = 4
# "1.5" and "patient's" are one word each; hyphens, slashes and the "___" of de-identified reports separate words.
WORD = r"\d+(?:\.\d+)+|[^\W_]+(?:'[^\W_]+)*"
SECTIONS = ("findings", "impression")
# Headings of sections, and other headings, which end a section. They begin a line or sentence.
HEADINGS = {"findings": "findings", "finding": "findings", "impression": "impression", "conclusion": "impression"}
OTHER_HEADINGS = (
    "comparisons?|indications?|technique|(?:clinical )?history|(?:reason for )?exam(?:ination)?|views?|final report"
    "|recommendations?"
)
HEADING = re.compile(
    rf"(?:^|(?<=[\n.]))[\s*#]*(?P<name>{'|'.join(HEADINGS)}|{OTHER_HEADINGS})[\s*]*:[\s*]*", re.IGNORECASE
)
MISSING_PACKAGE = "medical_report needs sacrebleu and pycocoevalcap: `pip install sacrebleu pycocoevalcap`."


def evaluate_reports(
    predictions: Sequence[str],
    references: Sequence[str],
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """
    Score generated reports against reference reports. An empty prediction is scored as wrong.

    `return_items` adds the scores of every report, under `items`. With `num_resamples=0`, there is no bootstrap and no
    `intervals`.

    Returns `bleu_1` to `bleu_4` and `rouge_l` in percent; `cider`, 0 to 10; `num_items`; `counts`, the number of
    reports behind each figure; `intervals`, a 95% interval `[low, high]` for each figure in its unit. BLEU
    orders are absent if no reference is long enough, and `cider` without two different references. Items have no BLEU,
    which is computed over all reports together.

    Raises `ValueError` if the lists are empty or differ in length, a reference has no words, or `num_resamples` is
    negative; `TypeError` if a report is not text; `ImportError` if sacrebleu or pycocoevalcap is not installed.

    Example:
        >>> result = evaluate_reports(["No effusion."], ["There is no pleural effusion."])
        >>> round(result["rouge_l"], 1), result["num_items"]
        (53.0, 1)
    """
    check_settings("strict", num_resamples)
    columns = {"predictions": predictions, "references": references}
    check_columns(columns, texts=columns)
    predicted = [split_words(read_reply(text)) for text in predictions]
    expected = [split_words(text) for text in references]
    for position, words in enumerate(expected):
        if not words:
            raise ValueError(f"`references[{position}]` has no words to compare with: {references[position]!r}.")
    items = overlap_scores(predicted, expected)
    names = list(items[0])
    orders = range(1, min(MAX_ORDER, max(map(len, expected))) + 1)
    statistics = np.array([bleu_statistics(*pair) for pair in zip(predicted, expected, strict=True)])
    results: dict = bleu_figures(statistics.sum(axis=0), orders)
    results |= {name: sum(item[name] for item in items) / len(items) for name in names}
    counts = dict.fromkeys(results, len(items))
    results |= {"num_items": len(items), "counts": counts}
    if num_resamples:
        results["intervals"] = bleu_intervals(statistics, orders, num_resamples, seed)
        results["intervals"] |= bootstrap_intervals(items, names, num_resamples, seed)
    if return_items:
        results["items"] = items
    return results


def score_sections(predictions: Sequence[str], references: Sequence[str], num_resamples: int, seed: int) -> dict:
    """
    Figures of each section (see `evaluate_reports`) over the references that have it; a prediction without it is
    scored as empty. Sections that no reference has are left out.
    """
    pairs = [
        (split_sections(read_reply(prediction)), split_sections(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    figures = {}
    for section in SECTIONS:
        chosen = [(own.get(section, ""), right[section]) for own, right in pairs if right.get(section)]
        if chosen:
            own, right = (list(texts) for texts in zip(*chosen, strict=True))
            figures[section] = evaluate_reports(own, right, False, num_resamples, seed)
    return figures


def split_sections(report: str) -> dict[str, str]:
    """
    Split a report into findings and impression by its headings. Without any heading, all of it is findings, as in
    R2Gen's files. Other sections, and text before the first heading, are left out.

    Example:
        >>> split_sections("FINDINGS: The heart is large.\\nIMPRESSION: Cardiomegaly.")
        {'findings': 'The heart is large.', 'impression': 'Cardiomegaly.'}
        >>> split_sections("No effusion.")
        {'findings': 'No effusion.'}
    """
    headings = list(HEADING.finditer(report))
    names = [HEADINGS.get(heading["name"].lower()) for heading in headings]
    if not any(names):
        return {"findings": report.strip()}
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    parts: dict[str, list[str]] = {}
    for name, heading, end in zip(names, headings, ends, strict=True):
        if name is not None:
            parts.setdefault(name, []).append(report[heading.end() : end].strip())
    return {name: " ".join(filter(None, parts[name])) for name in SECTIONS if name in parts}


def join_sections(sections: Mapping[str, str]) -> str:
    """
    Join sections to a report with headings; `split_sections` reverses this.

    Example:
        >>> print(join_sections({"findings": "The heart is large.", "impression": "Cardiomegaly."}))
        Findings: The heart is large.
        Impression: Cardiomegaly.
    """
    return "\n".join(f"{name.capitalize()}: {text}" for name, text in sections.items())


def split_words(text: str) -> list[str]:
    """
    The words of a text in lower case, without punctuation.

    Example:
        >>> split_words("The follow-up shows a 1.5 cm nodule.")
        ['the', 'follow', 'up', 'shows', 'a', '1.5', 'cm', 'nodule']
    """
    return re.findall(WORD, unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold())


def bleu_statistics(prediction: Sequence[str], reference: Sequence[str]) -> list[int]:
    """
    Counts of a report for corpus BLEU: clipped matches and totals of 1- to 4-grams, words of prediction and reference.

    Example:
        >>> bleu_statistics(["no", "effusion", "seen"], ["no", "effusion"])
        [2, 1, 0, 0, 3, 2, 1, 0, 3, 2]
    """
    bleu = _bleu_class()(tokenize="none", smooth_method="none", max_ngram_order=MAX_ORDER, force=True)
    score = bleu.corpus_score([" ".join(prediction)], [[" ".join(reference)]])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu_figures(sums: np.ndarray, orders: Sequence[int]) -> dict[str, float]:
    """
    Unsmoothed corpus BLEU in percent for each of `orders`: the geometric mean over all orders up to it.

    Args:
        sums (`np.ndarray` of shape `(10,)`): Sums over all reports of `bleu_statistics`.

    Source: Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation".
    """
    matches, totals, lengths = np.split(sums, [MAX_ORDER, 2 * MAX_ORDER])
    figures = {}
    for order in orders:
        score = _bleu_class().compute_bleu(
            matches[:order].tolist(),
            totals[:order].tolist(),
            *lengths.tolist(),
            smooth_method="none",
            effective_order=False,
            max_ngram_order=order,
        )
        figures[f"bleu_{order}"] = float(score.score)
    return figures


def bleu_intervals(
    statistics: np.ndarray, orders: Sequence[int], num_resamples: int, seed: int
) -> dict[str, list[float]]:
    """95% percentile bootstrap intervals: BLEU is recomputed for each resample of reports."""
    generator = np.random.default_rng(seed)
    figures = []
    for _ in range(num_resamples):
        drawn = generator.integers(len(statistics), size=len(statistics))
        figures.append(bleu_figures(statistics[drawn].sum(axis=0), orders))
    return {name: np.percentile([drawn[name] for drawn in figures], [2.5, 97.5]).tolist() for name in figures[0]}


def overlap_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """
    `rouge_l` in percent and `cider` (0 to 10) of every report, given as words.

    ROUGE-L is the F-measure of the longest common subsequence with beta 1.2, CIDEr is CIDEr-D over 1- to 4-grams: both
    as in the COCO caption evaluation, the source of published figures of report generation. CIDEr gives n-grams more
    weight if fewer of all given references contain them. Without two different references, every weight is 0, and
    there is no `cider`.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; Vedantam et al. 2015, arXiv:1411.5726.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError(MISSING_PACKAGE) from error
    texts = [(" ".join(p), " ".join(r)) for p, r in zip(predictions, references, strict=True)]
    rouge = Rouge()
    items = [{"rouge_l": 100 * float(rouge.calc_score([prediction], [reference]))} for prediction, reference in texts]
    if len({reference for _, reference in texts}) > 1:
        _, scores = Cider().compute_score(
            {i: [reference] for i, (_, reference) in enumerate(texts)},
            {i: [prediction] for i, (prediction, _) in enumerate(texts)},
        )
        for item, score in zip(items, scores, strict=True):
            item["cider"] = float(score)
    return items


def _bleu_class() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError(MISSING_PACKAGE) from error
    return BLEU
