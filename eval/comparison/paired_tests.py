"""Tests of the difference between two systems that answered the same questions; plain functions of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from logramed.eval.metrics.aggregation import bootstrap_means


NUM_RESAMPLES = 10_000
CONFIDENCE = 95  # percent
# Means that differ by less are equal: scores such as 100/3 do not add up exactly.
TIE = 1e-9


@dataclass(frozen=True)
class BootstrapTest:
    """
    A `difference` between two systems, first minus second, in the unit of the scores, with its 95% interval and
    two-sided p-value, over `num_items` questions about `num_clusters` images (or as many questions, where these were
    drawn).
    """

    difference: float
    low: float
    high: float
    p_value: float
    num_items: int
    num_clusters: int


@dataclass(frozen=True)
class McNemarTest:
    """
    How many of `num_items` questions only the first, and only the second of two systems has right; two-sided, exact.
    """

    num_only_first: int
    num_only_second: int
    p_value: float
    num_items: int


def paired_bootstrap(
    differences: Sequence[np.ndarray],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    clusters: Sequence[Sequence[str]] | None = None,
) -> BootstrapTest:
    """
    Test a mean difference by drawing images again, with replacement and with all their questions.

    `differences` are the score of the first system minus that of the second, for each question: one array for a mean
    over questions, several for a mean of such means (the average of open and closed): images with the same kinds of
    questions are drawn among their own, so that each resample has both. `clusters` are the image of each question, in
    the same form; without them questions are drawn. Raises `ValueError` if an array is empty.

    The interval is the percentile interval. The p-value is its counterpart: twice the share of resamples on the other
    side of 0 than most, ties counted against, so that it is below 0.05 where the interval leaves out 0. One is added
    to both counts, so that it is never 0: the least possible is `2 / (num_resamples + 1)`. Over fewer than some 50
    images such intervals are a little too narrow and such p-values a little too small.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 15; the 1 that is added:
    Davison and Hinkley 1997, section 4.2.

    Example:
        >>> paired_bootstrap([np.zeros(5)])
        BootstrapTest(difference=0.0, low=0.0, high=0.0, p_value=1.0, num_items=5, num_clusters=5)
    """
    sizes = [len(values) for values in differences]
    if not sizes or not all(sizes):
        raise ValueError("There are no questions to draw from.")
    scores = np.full((sum(sizes), len(sizes)), np.nan)
    scores[np.arange(sum(sizes)), np.repeat(np.arange(len(sizes)), sizes)] = np.concatenate(differences)
    drawn = range(sum(sizes)) if clusters is None else [cluster for part in clusters for cluster in part]
    means = bootstrap_means(scores, num_resamples, seed, drawn).mean(axis=1)
    low, high = np.percentile(means, ((100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2))
    tail = min(np.count_nonzero(means <= TIE), np.count_nonzero(means >= -TIE))
    return BootstrapTest(
        difference=float(np.mean([np.mean(values) for values in differences])),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * (tail + 1) / (num_resamples + 1))),
        num_items=sum(sizes),
        num_clusters=len(set(drawn)),
    )


def mcnemar_test(first: np.ndarray, second: np.ndarray, clusters: Sequence[str] | None = None) -> McNemarTest:
    """
    Exact McNemar test of whether each system has each question right (bool, `(num_items,)`): of the questions that
    only one system has right, is its share compatible with one half? Raises `ValueError` if the shapes differ or there
    are no questions.

    With `clusters`, the image of each question, the questions of an image change sides together: an exact sign-flip
    test of the images' sums. With one question an image it is McNemar's.

    Source: McNemar 1947; two-sided exact binomial test. By image: Fisher's randomization test of paired differences.

    Example:
        >>> mcnemar_test(np.array([True, True, True, False]), np.array([False, False, False, False]))
        McNemarTest(num_only_first=3, num_only_second=0, p_value=0.25, num_items=4)
    """
    if first.shape != second.shape or not first.size:
        raise ValueError(f"Two systems must have answered the same questions, got {first.shape} and {second.shape}.")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    places = np.arange(first.size) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(places, first.astype(float) - second).astype(int)
    return McNemarTest(only_first, only_second, sign_flip_p_value(sums), int(first.size))


def sign_flip_p_value(sums: np.ndarray) -> float:
    """
    The chance that whole numbers with signs drawn by coins add up to as much as `sums` do, or more, either way.

    Example:
        >>> round(sign_flip_p_value(np.array([2, 1])), 9)  # 3, 1, -1 and -3 are equally likely
        0.5
    """
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    chances, total = np.ones(1), int(sizes @ counts)  # of each sum of the positive numbers, from 0 to total
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    is_as_far = np.abs(2 * np.arange(total + 1) - total) >= abs(sums.sum())
    return float(min(1.0, chances[is_as_far].sum()))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """
    p-values corrected for their number: the chance that any of them is below a level by luck is at most that level.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    Example:
        >>> [round(p_value, 6) for p_value in holm_correction([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
