"""
Scores of generated reports against reference reports: word overlap (BLEU, ROUGE-L, CIDEr).

Pure functions. The figures come from sacrebleu (BLEU) and pycocoevalcap (ROUGE-L, CIDEr), both imported where
they are used; texts are cut into words here, the same way for all of them.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from .reply_reader import read_reply


MAX_ORDER = 4
# "1.5" and "patient's" are one word each; hyphens, slashes and the "___" of de-identified reports separate words.
WORD = r"\d+(?:\.\d+)+|[^\W_]+(?:'[^\W_]+)*"
SECTIONS = ("findings", "impression")
# What sections are called, and other headings, which end a section. They stand at the start of a line or sentence.
HEADINGS = {"findings": "findings", "finding": "findings", "impression": "impression", "conclusion": "impression"}
OTHER_HEADINGS = (
    "comparisons?",
    "indications?",
    "technique",
    "(?:clinical )?history",
    "(?:reason for )?exam(?:ination)?",
    "views?",
    "final report",
    "recommendations?",
)
HEADING = re.compile(
    rf"(?:^|(?<=[\n.]))[\s*#]*(?P<name>{'|'.join([*HEADINGS, *OTHER_HEADINGS])})[\s*]*:[\s*]*",
    re.IGNORECASE,
)
MISSING_PACKAGE = "medical_report needs the package {name}: `pip install {name}`, or `pip install logramed[report]`."


def evaluate_reports(
    predictions: Sequence[str],
    references: Sequence[str],
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    by_section: bool = False,
) -> dict:
    """
    Score generated reports.

    Args:
        predictions, references:
            One text per report: the generated one and the right one. An empty prediction is scored as wrong.
        return_items (`bool`): Also return the scores of every report, under `items`.
        num_resamples, seed: Of the bootstrap; 0 resamples leaves `intervals` out.
        by_section (`bool`): Also score findings and impression by themselves, under `sections` (see `split_sections`).

    Returns:
        `dict`: `bleu_1` to `bleu_4` and `rouge_l` in percent; `cider`, 0 to 10; `num_items`; `counts`, the number of
        reports behind each figure; `intervals`, a 95% interval `[low, high]` for each figure in its unit. A figure
        that no report has a value of is absent (see `overlap_scores`). Items have no BLEU: it is a figure of all
        reports together.

    Raises:
        ValueError: If the lists are empty or of different length, a reference has no words, or `num_resamples` is
            negative.
        TypeError: If a report is not text.
        ImportError: If sacrebleu or pycocoevalcap is not installed.

    Example:
        >>> result = evaluate_reports(["No effusion."], ["There is no pleural effusion."])
        >>> round(result["rouge_l"], 1), result["num_items"]
        (53.0, 1)
    """
    if num_resamples < 0:
        raise ValueError(f"`num_resamples` must be 0 or more, got {num_resamples}.")
    predicted_words, reference_words = check_reports(predictions, references)
    statistics = np.array([bleu_statistics(*pair) for pair in zip(predicted_words, reference_words, strict=True)])
    items = overlap_scores(predicted_words, reference_words)

    longest = max(map(len, reference_words))
    results: dict = bleu_figures(statistics, orders=range(1, min(MAX_ORDER, longest) + 1))
    results |= mean_figures(items)
    counts = {
        name: len(items) if name.startswith("bleu_") else sum(name in item for item in items) for name in results
    }
    results |= {"num_items": len(items), "counts": counts}
    if num_resamples:
        results["intervals"] = bootstrap_intervals(statistics, items, list(counts), num_resamples, seed)
    if by_section:
        results["sections"] = score_sections(predictions, references, num_resamples, seed)
    if return_items:
        results["items"] = items
    return results


def score_sections(predictions: Sequence[str], references: Sequence[str], num_resamples: int, seed: int) -> dict:
    """
    The figures of each section, over the references that have it; a prediction without it is scored as empty.

    Returns:
        `dict`: figures as from `evaluate_reports` by section; sections that no reference has are left out.
    """
    pairs = [
        (split_sections(read_reply(prediction)), split_sections(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    figures = {}
    for section in SECTIONS:
        chosen = [(own.get(section, ""), right[section]) for own, right in pairs if right.get(section)]
        if chosen:
            figures[section] = evaluate_reports(*map(list, zip(*chosen, strict=True)), False, num_resamples, seed)
    return figures


def split_sections(report: str) -> dict[str, str]:
    """
    The findings and the impression of a report, by their headings. Without any heading all of it is findings, as in
    R2Gen's files. Other sections, and what stands before the first heading, are left out.

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
    A report of several sections, each below its heading, which `split_sections` takes apart again.

    Example:
        >>> print(join_sections({"findings": "The heart is large.", "impression": "Cardiomegaly."}))
        Findings: The heart is large.
        Impression: Cardiomegaly.
    """
    return "\n".join(f"{name.capitalize()}: {text}" for name, text in sections.items())


def check_reports(predictions: Sequence[str], references: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """
    The words of all predictions (of what `read_reply` reads in them) and references; refuses what cannot be scored, by
    item.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"`predictions` and `references` must be equally long, got {len(predictions)} and {len(references)}."
        )
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: `predictions` is empty.")
    columns = {"predictions": predictions, "references": references}
    words = {
        name: [split_words(read(report_text(text, i, name))) for i, text in enumerate(texts)]
        for (name, texts), read in zip(columns.items(), (read_reply, str), strict=True)
    }
    for position, reference in enumerate(words["references"]):
        if not reference:
            raise ValueError(f"`references[{position}]` has no words to compare with: {references[position]!r}.")
    return words["predictions"], words["references"]


def split_words(text: str) -> list[str]:
    """
    The words of a text in small letters, without punctuation.

    Example:
        >>> split_words("The follow-up shows a 1.5 cm nodule.")
        ['the', 'follow', 'up', 'shows', 'a', '1.5', 'cm', 'nodule']
    """
    return re.findall(WORD, unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold())


def report_text(value: str, position: int, column: str) -> str:
    """
    `value` if it is text; anything else is refused by name.

    Example:
        >>> report_text("No effusion.", position=0, column="references")
        'No effusion.'
    """
    if not isinstance(value, str):
        raise TypeError(f"`{column}[{position}]` must be text, got {value!r} ({type(value).__name__}).")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Word overlap
# ---------------------------------------------------------------------------------------------------------------------


def bleu_statistics(prediction: Sequence[str], reference: Sequence[str]) -> list[int]:
    """
    What a report adds to corpus BLEU: clipped matches and totals of 1- to 4-grams, words of prediction and reference.

    Example:
        >>> bleu_statistics(["no", "effusion", "seen"], ["no", "effusion"])
        [2, 1, 0, 0, 3, 2, 1, 0, 3, 2]
    """
    score = _bleu_class()(tokenize="none", smooth_method="none", max_ngram_order=MAX_ORDER, force=True).corpus_score(
        [" ".join(prediction)], [[" ".join(reference)]]
    )
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu_figures(statistics: np.ndarray, orders: Sequence[int]) -> dict[str, float]:
    """
    Corpus BLEU-1 to BLEU-4 in percent, each the geometric mean over all its orders, unsmoothed, of summed statistics.

    Args:
        statistics (`np.ndarray` of shape `(num_reports, 10)`): From `bleu_statistics`.
        orders: Which of 1 to 4. An order that no reference is long enough for cannot be above 0 and is to be left out.

    Source: Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation".
    """
    sums = statistics.sum(axis=0).tolist()
    matches, totals, (predicted_length, reference_length) = sums[:MAX_ORDER], sums[MAX_ORDER:-2], sums[-2:]
    figures = {}
    for order in orders:
        score = _bleu_class().compute_bleu(
            matches[:order],
            totals[:order],
            predicted_length,
            reference_length,
            smooth_method="none",
            effective_order=False,
            max_ngram_order=order,
        )
        figures[f"bleu_{order}"] = float(score.score)
    return figures


def overlap_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """
    `rouge_l` in percent and `cider` (0 to 10) of every report, given as words.

    ROUGE-L is the F-measure of the longest common subsequence with beta 1.2, CIDEr is CIDEr-D over 1- to 4-grams: both
    as the COCO caption evaluation has them, which published figures of report generation come from. CIDEr weighs
    n-grams by how few of all given references hold them. Without two different references every weight is 0, and there
    is no `cider`.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; Vedantam et al. 2015, arXiv:1411.5726.
    """
    texts = [(" ".join(p), " ".join(r)) for p, r in zip(predictions, references, strict=True)]
    rouge = _rouge_class()()
    items = [{"rouge_l": 100 * float(rouge.calc_score([prediction], [reference]))} for prediction, reference in texts]
    if len({reference for _, reference in texts}) > 1:
        _, scores = _cider_class()().compute_score(
            {i: [reference] for i, (_, reference) in enumerate(texts)},
            {i: [prediction] for i, (prediction, _) in enumerate(texts)},
        )
        for item, score in zip(items, scores, strict=True):
            item["cider"] = float(score)
    return items


def _bleu_class() -> type:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError(MISSING_PACKAGE.format(name="sacrebleu")) from error
    return BLEU


def _rouge_class() -> type:
    try:
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ImportError(MISSING_PACKAGE.format(name="pycocoevalcap")) from error
    return Rouge


def _cider_class() -> type:
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ImportError(MISSING_PACKAGE.format(name="pycocoevalcap")) from error
    return Cider


# ---------------------------------------------------------------------------------------------------------------------
# All reports
# ---------------------------------------------------------------------------------------------------------------------


def mean_figures(items: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """
    The mean of each figure over the items that have it.

    Example:
        >>> mean_figures([{"rouge_l": 20.0, "cider": 5.0}, {"rouge_l": 40.0}])
        {'rouge_l': 30.0, 'cider': 5.0}
    """
    values = {name: [item[name] for item in items if name in item] for name in ("rouge_l", "cider")}
    return {name: sum(scores) / len(scores) for name, scores in values.items() if scores}


def bootstrap_intervals(
    statistics: np.ndarray,
    items: Sequence[Mapping[str, float]],
    names: Sequence[str],
    num_resamples: int,
    seed: int,
) -> dict[str, list[float]]:
    """
    95% percentile bootstrap intervals of the figures `names`, reports drawn with replacement.

    BLEU is computed anew from the drawn reports' summed statistics. Other figures are means over the reports that have
    a value, drawn among those; CIDEr keeps the weights that it has from all references.
    """
    bleu_names = [name for name in names if name.startswith("bleu_")]
    orders = [int(name.removeprefix("bleu_")) for name in bleu_names]
    bounds = _interval(statistics, lambda drawn: list(bleu_figures(drawn, orders).values()), num_resamples, seed)
    intervals = dict(zip(bleu_names, bounds, strict=True))
    for name in names:
        if name not in intervals:
            scores = np.array([item[name] for item in items if name in item])
            (intervals[name],) = _interval(scores, lambda drawn: [drawn.mean()], num_resamples, seed)
    return intervals


def _interval(
    values: np.ndarray, compute: Callable[[np.ndarray], list[float]], num_resamples: int, seed: int
) -> list[list[float]]:
    """The interval of each figure that `compute` gives for rows of `values`."""
    figures = np.array([compute(values[drawn]) for drawn in _draws(len(values), num_resamples, seed)])
    return np.percentile(figures, [2.5, 97.5], axis=0).T.tolist()


def _draws(num_items: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield generator.integers(num_items, size=num_items)
