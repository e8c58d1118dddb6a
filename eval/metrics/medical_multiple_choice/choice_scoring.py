"""
Score multiple-choice answers: map one answer to an option, score it, aggregate.

An answer is a generated text, or a list with one score per option, such as its mean log-probability per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from logramed.eval.metrics.aggregation import bootstrap_intervals, check_columns, check_settings
from logramed.eval.metrics.medical_multiple_choice.option_matching import choose_by_text, fold, option_identities


def choose_by_scores(scores: Sequence[float], options: Sequence[str | None]) -> int | None:
    """
    Index of the option with the highest score, or `None` if different options share it. Expects one score per option
    that is not missing; raises `ValueError` if their numbers differ or a score is NaN.

    Example:
        >>> choose_by_scores([-2.0, -0.5, -3.0], ["CT", "MRI", "X-ray"])
        1
        >>> choose_by_scores([-1.0, -1.0], ["CT", "MRI"]) is None
        True
    """
    present = [index for index, option in enumerate(options) if option is not None]
    values = np.asarray(scores, dtype=float)
    if values.shape != (len(present),):
        raise ValueError(f"There are {len(present)} options, but {values.size} scores.")
    if np.isnan(values).any():
        raise ValueError(f"A score is not a number: {values.tolist()}.")
    identities = option_identities(options)
    best = {identities[present[place]] for place in np.flatnonzero(values == values.max())}
    return best.pop() if len(best) == 1 else None


def choose_by_release(prediction: str, options: Sequence[str | None]) -> tuple[int | None, list[float]]:
    """
    Index that the release's zero-shot script chooses, or `None` if every ratio is 0; and the ratios it compares, by
    characters: `difflib.SequenceMatcher(None, option, prediction).ratio()` of each option that is not missing.

    Source: `find_most_similar_index` of the ExGra-Med zero-shot script.

    Example:
        >>> choose_by_release("mri", ["CT", "MRI", "X-ray"])  # its fault: case matters, and only "X-ray" has an "r"
        (2, [0.0, 0.0, 0.25])
    """
    present = [index for index, option in enumerate(options) if option is not None]
    ratios = [SequenceMatcher(None, options[index], prediction).ratio() for index in present]
    best = max(ratios)
    return (present[ratios.index(best)] if best > 0 else None), ratios


def score_choice(
    prediction: str | Sequence[float], reference: str, options: Sequence[str | None], protocol: str = "strict"
) -> dict:
    """
    Score one answer: a generated text, or one score per option that is not missing. Missing options are `None` or
    empty and keep their letter.

    Returns `accuracy`, 1.0 or 0.0; `index` of the chosen option, `None` if undecided, which counts as wrong; under
    "release" (generated text only) also `ratios`. Raises `ValueError` if there are fewer than two options, `reference`
    is not one of them ("strict" only), the numbers of scores and options differ, or a score is NaN.

    Example:
        >>> score_choice("B. MRI", "MRI", ["CT", "MRI"])
        {'accuracy': 1.0, 'index': 1}
        >>> score_choice([-0.7, -0.9], "MRI", ["CT", "MRI"])
        {'accuracy': 0.0, 'index': 0}
    """
    options = [option if option and option.strip() else None for option in options]
    if num_different_options(options) < 2:
        raise ValueError(f"There must be at least two different options, got {options}.")
    if protocol == "release":
        if not isinstance(prediction, str):
            raise ValueError(f'`protocol="release"` takes generated texts, got {prediction!r}.')
        index, ratios = choose_by_release(prediction, options)
        return {"accuracy": float(index is not None and options[index] == reference), "index": index, "ratios": ratios}
    folded = [None if option is None else fold(option) for option in options]
    if fold(reference) not in folded:
        raise ValueError(f"The reference {reference!r} is not one of the options {[o for o in options if o]}.")
    if isinstance(prediction, str):
        index = choose_by_text(prediction, options)
    else:
        index = choose_by_scores(prediction, options)
    return {"accuracy": float(index == folded.index(fold(reference))), "index": index}


def num_different_options(options: Sequence[str | None]) -> int:
    """
    Number of different options.

    Example:
        >>> num_different_options(["CT", "MRI", "ct", None])
        2
    """
    return len({fold(option) for option in options if option})


def evaluate_choices(
    predictions: Sequence[str | Sequence[float]],
    references: Sequence[str],
    options: Sequence[Sequence[str | None]],
    protocol: str = "strict",
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict:
    """
    Score answers to multiple-choice questions. Each list has one entry per question, as for `score_choice`.

    `protocol` is "strict" (ours) or "release" (the ExGra-Med zero-shot script). `return_items` adds the result of
    `score_choice` for every question, under `items`, in percent. The bootstrap draws whole `clusters`, such as the
    image of each question, or questions if there are none; `num_resamples=0` leaves out `intervals`.

    Returns `accuracy` and `chance` in percent, `num_items`, `num_undecided`, `num_clusters` (with `clusters`),
    `counts` and `intervals`. Raises `ValueError` as `score_choice`, with the number of the item, or if the lists are
    empty or differ in length, or `num_resamples` is negative; `TypeError` if a reference or cluster is not text.

    Example:
        >>> result = evaluate_choices(["B", "CT or MRI"], ["MRI", "CT"], [["CT", "MRI"]] * 2)
        >>> result["accuracy"], result["chance"], result["num_undecided"], result["num_items"]
        (50.0, 50.0, 1, 2)
    """
    check_settings(protocol, num_resamples)
    columns = {"predictions": predictions, "references": references, "options": options, "clusters": clusters}
    check_columns(columns, texts=["references", "clusters"])
    items = []
    for position, arguments in enumerate(zip(predictions, references, options, strict=True)):
        try:
            items.append(score_choice(*arguments, protocol))
        except (ValueError, TypeError) as error:
            raise ValueError(f"Item {position}: {error}") from error
    results = {
        "accuracy": sum(item["accuracy"] for item in items) / len(items) * 100,
        "chance": sum(1 / num_different_options(of_item) for of_item in options) / len(items) * 100,
        "num_items": len(items),
        "num_undecided": sum(item["index"] is None for item in items),
        "counts": {"accuracy": len(items)},
    }
    if clusters is not None:
        results["num_clusters"] = len(set(clusters))
    if num_resamples:
        results["intervals"] = bootstrap_intervals(items, ["accuracy"], num_resamples, seed, clusters, 100)
    if return_items:
        results["items"] = [item | {"accuracy": 100 * item["accuracy"]} for item in items]
    return results
