"""
Scoring of multiple-choice answers: map one answer to an option, score it, aggregate.

Plain functions of strings and lists; no model, no `torch`. `medical_multiple_choice.py` wraps them as an
`evaluate.Metric`. An answer is a generated text, or a list with one score for each option: its mean log-probability a
token, say.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from .option_matching import choose_by_text, fold, option_identities


PROTOCOLS = ("strict", "release")


def choose_by_scores(scores: Sequence[float], options: Sequence[str | None]) -> int | None:
    """
    The index of the option with the highest score; `None` if different options share it.

    Args:
        scores: One for each option that is not missing, any unit; higher is better.

    Example:
        >>> choose_by_scores([-2.0, -0.5, -3.0], ["CT", "MRI", "X-ray"])
        1
        >>> choose_by_scores([-1.0, -1.0], ["CT", "MRI"]) is None
        True
    """
    present = [index for index, option in enumerate(options) if option is not None]
    identities = option_identities(options)
    best = {identities[index] for index, score in zip(present, scores, strict=True) if score == max(scores)}
    return best.pop() if len(best) == 1 else None


def choose_by_release(prediction: str, options: Sequence[str | None]) -> tuple[int | None, list[float]]:
    """
    The index that the release's zero-shot script chooses, and the ratios it compares.

    The ratio is `difflib.SequenceMatcher(None, option, prediction).ratio()`, character by character. The first highest
    one is chosen; none at all if every ratio is 0. Missing options have no ratio.

    Source: `find_most_similar_index` of the ExGra-Med zero-shot script.

    Example:
        >>> choose_by_release("mri", ["CT", "MRI", "X-ray"])  # a fault of it: case counts, and only "X-ray" has an "r"
        (2, [0.0, 0.0, 0.25])
    """
    present = [index for index, option in enumerate(options) if option is not None]
    # As a new `SequenceMatcher(None, option, prediction)` each, but the prediction is indexed once.
    matcher = SequenceMatcher(None, "", prediction)
    ratios = []
    for index in present:
        matcher.set_seq1(options[index])
        ratios.append(matcher.ratio())
    best = max(ratios)
    return (present[ratios.index(best)] if best > 0 else None), ratios


def score_choice(
    prediction: str | Sequence[float], reference: str, options: Sequence[str | None], protocol: str = "strict"
) -> dict:
    """
    Score one answer.

    Args:
        prediction: The generated text, or one score for each option that is not missing.
        reference (`str`): The text of the right option.
        options: Two texts or more. Missing ones are `None`, NaN or empty and keep their letter.
        protocol (`str`): "strict" or "release" (generated text only).

    Returns:
        `dict`: `accuracy`, 1.0 or 0.0; `index` of the chosen option, `None` if undecided, which counts as wrong; under
        "release" also `ratios`.

    Raises:
        ValueError: If there are fewer than two options, if `reference` is none of them ("strict" only), if there are
            not as many scores as options or one is NaN.
        TypeError: If an argument has the wrong type.

    Example:
        >>> score_choice("B. MRI", "MRI", ["CT", "MRI"])
        {'accuracy': 1.0, 'index': 1}
        >>> score_choice([-0.7, -0.9], "MRI", ["CT", "MRI"])
        {'accuracy': 0.0, 'index': 0}
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {list(PROTOCOLS)}, got {protocol!r}.")
    if not isinstance(reference, str):
        raise TypeError(
            f"The reference must be the text of an option, got {reference!r} ({type(reference).__name__})."
        )
    options = checked_options(options)
    if protocol == "release":
        if not isinstance(prediction, str):
            raise TypeError(f'`protocol="release"` takes generated texts, got {prediction!r}.')
        index, ratios = choose_by_release(prediction, options)
        return {"accuracy": float(index is not None and options[index] == reference), "index": index, "ratios": ratios}
    right = index_of_reference(reference, options)
    if isinstance(prediction, str):
        index = choose_by_text(prediction, options)
    else:
        index = choose_by_scores(checked_scores(prediction, options), options)
    return {"accuracy": float(index == right), "index": index}


def checked_options(options: Sequence[str | None]) -> list[str | None]:
    """
    The options with `None` for each missing one, also for NaN, as tables have it. Numbers are written out.

    Example:
        >>> checked_options(["CT", 2, "", None, float("nan")])
        ['CT', '2', None, None, None]
    """
    if isinstance(options, str) or not isinstance(options, Sequence | np.ndarray):
        raise TypeError(f"The options must be a list of texts, got {options!r}.")
    checked = []
    for option in options:
        is_blank = not option.strip() if isinstance(option, str) else isinstance(option, float) and math.isnan(option)
        if option is None or is_blank:
            checked.append(None)
        elif isinstance(option, str) or (isinstance(option, numbers.Real) and not isinstance(option, bool)):
            checked.append(str(option))
        else:
            raise TypeError(f"An option must be a text or `None`, got {option!r} ({type(option).__name__}).")
    if num_different_options(checked) < 2:
        raise ValueError(f"There must be two different options at least, got {list(options)}.")
    return checked


def checked_scores(scores: Sequence[float], options: Sequence[str | None]) -> list[float]:
    """
    The scores as numbers, one for each option that is not missing.

    Example:
        >>> checked_scores([-1, -0.5], ["CT", "MRI", None])
        [-1.0, -0.5]
    """
    if not isinstance(scores, Sequence | np.ndarray) or not all(
        isinstance(score, numbers.Real) and not isinstance(score, bool) for score in scores
    ):
        raise TypeError(f"A prediction must be a text or a list of one number for each option, got {scores!r}.")
    num_options = sum(option is not None for option in options)
    if len(scores) != num_options:
        raise ValueError(f"There are {num_options} options, but {len(scores)} scores.")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"A score is not a number: {list(scores)}.")
    return [float(score) for score in scores]


def index_of_reference(reference: str, options: Sequence[str | None]) -> int:
    """
    The option that `reference` is, compared as a whole without regard to case and blanks.

    Example:
        >>> index_of_reference("mri ", ["CT", "MRI", None])
        1
    """
    folded = [None if option is None else fold(option) for option in options]
    if fold(reference) not in folded:
        raise ValueError(
            f"The reference {reference!r} is none of the options {[o for o in options if o is not None]}."
        )
    return folded.index(fold(reference))


def evaluate_choices(
    predictions: Sequence[str | Sequence[float]],
    references: Sequence[str],
    options: Sequence[Sequence[str | None]],
    protocol: str = "strict",
    groups: Sequence[str] | None = None,
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict:
    """
    Score answers to multiple-choice questions.

    Args:
        predictions, references, options: One entry per question, see `score_choice`.
        protocol (`str`): "strict" (ours) or "release" (the ExGra-Med zero-shot script).
        groups: One text per question, such as its modality, to break the figures down by.
        return_items (`bool`): Also return what `score_choice` says of every question, under `items`, in percent.
        num_resamples, seed: Of the bootstrap; 0 resamples leaves `intervals` out.
        clusters: What each question belongs to, such as its image: the bootstrap draws whole clusters. `None` draws
            questions.

    Returns:
        `dict`: `accuracy` and `chance` in percent, `num_items`, `num_undecided`, `num_clusters` (with `clusters`),
        `counts`, `intervals`; with `groups` also `groups`, the same for each value.

    Raises:
        ValueError, TypeError: See `score_choice`, with the number of the item; also if the lists are empty or of
            different length, a group or cluster is no text, or `num_resamples` is negative.

    Example:
        >>> result = evaluate_choices(["B", "CT or MRI"], ["MRI", "CT"], [["CT", "MRI"]] * 2)
        >>> result["accuracy"], result["chance"], result["num_undecided"], result["num_items"]
        (50.0, 50.0, 1, 2)
    """
    if not len(predictions) == len(references) == len(options):
        raise ValueError(
            "`predictions`, `references` and `options` must be equally long, got "
            f"{len(predictions)}, {len(references)} and {len(options)}."
        )
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: `predictions` is empty.")
    if num_resamples < 0:
        raise ValueError(f"`num_resamples` must be 0 or more, got {num_resamples}.")
    for name, texts in (("groups", groups), ("clusters", clusters)):
        check_texts(name, texts, len(predictions))
    items = list(_scored(predictions, references, options, protocol))
    chances = [1 / num_different_options(checked_options(of_item)) for of_item in options]
    results = aggregate(items, chances, num_resamples, seed, clusters)
    if groups is not None:
        results["groups"] = {}
        for value in sorted(set(groups)):
            places = [place for place, group in enumerate(groups) if group == value]
            of_group, its_chances, its_clusters = (
                None if column is None else [column[place] for place in places]
                for column in (items, chances, clusters)
            )
            results["groups"][value] = aggregate(of_group, its_chances, num_resamples, seed, its_clusters)
    if return_items:
        results["items"] = [item | {"accuracy": 100 * item["accuracy"]} for item in items]
    return results


def check_texts(name: str, texts: Sequence[str] | None, num_items: int) -> None:
    """Refuses what is neither `None` nor one text per item, by `name`."""
    if texts is None:
        return
    if isinstance(texts, str) or len(texts) != num_items:
        got = repr(texts) if isinstance(texts, str) else len(texts)
        raise ValueError(f"`{name}` must be a list of one text for each of {num_items} items, got {got}.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`{name}[{position}]` must be text, got {text!r} ({type(text).__name__}).")


def _scored(predictions: Sequence, references: Sequence, options: Sequence, protocol: str) -> Iterator[dict]:
    for position, arguments in enumerate(zip(predictions, references, options, strict=True)):
        try:
            yield score_choice(*arguments, protocol)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Item {position}: {error}") from error


def num_different_options(options: Sequence[str | None]) -> int:
    """
    How many options there are to choose from.

    Example:
        >>> num_different_options(["CT", "MRI", "ct", None])
        2
    """
    return len({fold(option) for option in options if option is not None})


def aggregate(
    items: Sequence[dict],
    chances: Sequence[float],
    num_resamples: int,
    seed: int,
    clusters: Sequence[str] | None = None,
) -> dict:
    """
    The figures of scored items, which must be one at least; see `evaluate_choices`.

    Example:
        >>> aggregate([{"accuracy": 1.0, "index": 0}], [0.25], num_resamples=0, seed=0)
        {'accuracy': 100.0, 'chance': 25.0, 'num_items': 1, 'num_undecided': 0, 'counts': {'accuracy': 1}}
    """
    scores = np.array([item["accuracy"] for item in items])
    results = {
        "accuracy": float(scores.mean() * 100),
        "chance": sum(chances) / len(chances) * 100,
        "num_items": len(items),
        "num_undecided": sum(item["index"] is None for item in items),
        "counts": {"accuracy": len(items)},
    }
    if clusters is not None:
        results["num_clusters"] = len(set(clusters))
    if num_resamples:
        results["intervals"] = {"accuracy": bootstrap_interval(scores, num_resamples, seed, clusters)}
    return results


def bootstrap_interval(
    scores: np.ndarray, num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> list[float]:
    """
    95% percentile bootstrap interval, in percent, of the mean of 0/1 scores.

    Clusters are drawn with replacement (`None`: each item is one): the mean is the sum of the drawn scores / how many
    they are.

    Example:
        >>> bootstrap_interval(np.array([1.0, 1.0]), num_resamples=100, seed=0)
        [100.0, 100.0]
        >>> bootstrap_interval(np.array([1.0, 1.0, 0.0]), 100, 0, clusters=["a", "a", "b"])
        [0.0, 100.0]
    """
    places = np.arange(len(scores)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.stack([np.bincount(places, scores), np.bincount(places)], axis=1)
    # Many clusters are alike, and how often each kind is drawn is multinomial: fast for a hundred thousand items.
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=num_resamples) @ kinds
    return [float(end) for end in np.percentile(100 * drawn[:, 0] / drawn[:, 1], [2.5, 97.5])]
