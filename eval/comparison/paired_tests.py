"""Tests of the difference between two systems that answered the same questions; plain functions of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


NUM_RESAMPLES = 10_000
CONFIDENCE = 95  # percent
# Means that differ by less are equal: scores such as 100/3 do not add up exactly.
TIE = 1e-9
LARGEST_DRAW = 2_000_000  # numbers drawn at once


@dataclass(frozen=True)
class BootstrapTest:
    """
    A difference between two systems.

    Attributes:
        difference (`float`): First minus second, in the unit of the scores.
        low, high (`float`): Its 95% interval.
        p_value (`float`): Two-sided.
        num_items (`int`): Questions it is over.
    """

    difference: float
    low: float
    high: float
    p_value: float
    num_items: int


@dataclass(frozen=True)
class McNemarTest:
    """
    How often only one of two systems is right.

    Attributes:
        num_only_first, num_only_second (`int`): Questions that only the first, only the second system has right.
        p_value (`float`): Two-sided, exact.
        num_items (`int`): Questions both answered.
    """

    num_only_first: int
    num_only_second: int
    p_value: float
    num_items: int


def paired_bootstrap(
    differences: Sequence[np.ndarray], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> BootstrapTest:
    """
    Test a mean difference by drawing the questions again, with replacement.

    The interval is the percentile interval. The p-value is its counterpart: twice the share of resamples on the other
    side of 0 than most, ties counted against, so that it is below 0.05 where the interval leaves out 0. One is added
    to both counts, so that it is never 0: the least possible is `2 / (num_resamples + 1)`. Over fewer than some 50
    questions such intervals are a little too narrow and such p-values a little too small.

    Args:
        differences (`Sequence[np.ndarray]`):
            Score of the first system minus that of the second, for each question. One array for a mean over
            questions. Several for a mean of such means (the average of open and closed): each kind of question is
            drawn among its own, so that its number stays.
        num_resamples (`int`, *optional*, defaults to 10,000): Draws.
        seed (`int`, *optional*, defaults to 0): The same gives the same result.

    Raises:
        ValueError: If an array is empty.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 15; the 1 that is added:
    Davison and Hinkley 1997, section 4.2.

    Example:
        >>> paired_bootstrap([np.zeros(5)])
        BootstrapTest(difference=0.0, low=0.0, high=0.0, p_value=1.0, num_items=5)
    """
    means = resampled_means(differences, num_resamples, seed)
    low, high = np.percentile(means, ((100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2))
    tail = min(np.count_nonzero(means <= TIE), np.count_nonzero(means >= -TIE))
    return BootstrapTest(
        difference=float(np.mean([np.mean(values) for values in differences])),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * (tail + 1) / (num_resamples + 1))),
        num_items=sum(len(values) for values in differences),
    )


def resampled_means(strata: Sequence[np.ndarray], num_resamples: int, seed: int) -> np.ndarray:
    """
    Means of `num_resamples` samples drawn with replacement from each of `strata`, averaged over the strata.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`.
    """
    if any(not len(values) for values in strata) or not strata:
        raise ValueError("There are no questions to draw from.")
    generator = np.random.default_rng(seed)
    return np.mean([_resampled_mean(np.asarray(values), num_resamples, generator) for values in strata], axis=0)


def _resampled_mean(values: np.ndarray, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    # Scores take few values, and how often each is drawn is multinomial: the same as drawing questions, but quick
    # even for a benchmark of 90,000.
    distinct, counts = np.unique(values, return_counts=True)
    means, size = [], max(1, LARGEST_DRAW // len(distinct))
    for start in range(0, num_resamples, size):
        drawn = generator.multinomial(len(values), counts / len(values), size=min(size, num_resamples - start))
        means.append(drawn @ distinct / len(values))
    return np.concatenate(means)


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> McNemarTest:
    """
    Exact McNemar test: of the questions that only one system has right, is its share compatible with one half?

    Args:
        first, second (`np.ndarray` of shape `(num_items,)`, bool): Whether each system has each question right.

    Raises:
        ValueError: If the shapes differ or there are no questions.

    Source: McNemar 1947; two-sided exact binomial test.

    Example:
        >>> mcnemar_test(np.array([True, True, True, False]), np.array([False, False, False, False]))
        McNemarTest(num_only_first=3, num_only_second=0, p_value=0.25, num_items=4)
    """
    if first.shape != second.shape or not first.size:
        raise ValueError(f"Two systems must have answered the same questions, got {first.shape} and {second.shape}.")
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    discordant = only_first + only_second
    p_value = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    return McNemarTest(only_first, only_second, float(p_value), int(first.size))


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
