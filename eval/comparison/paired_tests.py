"""Tests for differences between two systems on the same questions, as plain functions of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from logramed.eval.metrics.aggregation import bootstrap_means


NUM_RESAMPLES = 10_000
CONFIDENCE = 95  # percent
# Smaller differences between means count as ties: scores such as 100/3 do not add up exactly.
TIE = 1e-9


@dataclass(frozen=True)
class BootstrapTest:
    """
    The `difference` between two systems, first minus second, in the unit of the scores, with its 95% interval and
    two-sided p-value, over `num_items` questions about `num_clusters` images (if questions were drawn, the number of
    questions).
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
    How many of `num_items` questions only the first or only the second system answers correctly; two-sided, exact.
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
    Test a mean difference by resampling images with replacement, each with all its questions.

    `differences` has, for each question, the first system's score minus the second's: one array for a mean over
    questions, several for a mean of such means (the average of open and closed). Images are resampled within groups
    that have the same kinds of questions, so that each resample has all kinds. `clusters` has the image of each
    question, in the same form; without it, questions are resampled. Raises `ValueError` if an array is empty.

    Uses the percentile interval. The p-value matches it: twice the share of resamples on the minority side of 0, with
    ties counted against significance, so that it is below 0.05 if the interval excludes 0. One is added to both
    counts, so that it is at least `2 / (num_resamples + 1)`. With fewer than about 50 images, intervals are slightly
    too narrow and p-values slightly too small.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 15; adding 1:
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
    Exact McNemar test on whether each system answers each question correctly (bool, `(num_items,)`): among questions
    that only one system answers correctly, is its share compatible with one half? Raises `ValueError` if the shapes
    differ or there are no questions.

    With `clusters`, the image of each question, the signs of an image's questions flip together: an exact sign-flip
    test of the sums by image. With one question per image it equals McNemar's test.

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
    Two-sided probability that the integers in `sums`, with random signs, add up to at least as much in magnitude.

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
    p-values corrected for multiple tests: controls the family-wise error rate.

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
