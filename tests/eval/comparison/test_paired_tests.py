"""Tests of the statistics against direct computations, hand-worked tables and known distributions."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, ks_1samp, uniform

from logramed.eval.comparison.paired_tests import (
    holm_correction,
    mcnemar_test,
    paired_bootstrap,
    sign_flip_p_value,
)


def recall_differences(num_items, shift, seed=0):
    """Differences as recalls have them: a few values, many ties at 0."""
    generator = np.random.default_rng(seed)
    values = np.array([-100.0, -100 / 3, 0.0, 0.0, 0.0, 100 / 3, 100.0])
    weights = np.array([1 - shift, 1 - shift, 2, 2, 2, 1 + shift, 1 + shift])
    return generator.choice(values, size=num_items, p=weights / weights.sum())


def bootstrap_by_drawing_questions(strata, num_resamples=20_000, seed=1):
    """The slow and obvious way: draw places with replacement, in each kind of question by itself."""
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn = [values[generator.integers(len(values), size=len(values))].mean() for values in strata]
        means[resample] = sum(drawn) / len(drawn)
    tail = min(np.mean(means <= 1e-9), np.mean(means >= -1e-9))
    return *np.percentile(means, [2.5, 97.5]), min(1.0, 2 * tail)


@pytest.mark.parametrize(("num_items", "shift"), [(40, 0.3), (300, 0.2), (60, -0.4)])
def test_paired_bootstrap_agrees_with_drawing_questions_one_by_one(num_items, shift):
    differences = recall_differences(num_items, shift)
    test = paired_bootstrap([differences], num_resamples=100_000)
    low, high, p_value = bootstrap_by_drawing_questions([differences])
    assert test.difference == pytest.approx(differences.mean())
    assert (test.low, test.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert test.p_value == pytest.approx(p_value, abs=0.02)
    assert test.num_items == num_items


def test_average_is_drawn_within_each_kind_of_question():
    strata = [recall_differences(30, 0.5, seed=3), recall_differences(90, 0.0, seed=4)]
    test = paired_bootstrap(strata, num_resamples=100_000)
    low, high, p_value = bootstrap_by_drawing_questions(strata)
    assert test.difference == pytest.approx((strata[0].mean() + strata[1].mean()) / 2)
    assert (test.low, test.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert test.p_value == pytest.approx(p_value, abs=0.02)
    assert test.num_items == 120


def test_average_of_two_constants_does_not_vary():
    # Drawn from one heap, the share of each kind and so the average would vary.
    test = paired_bootstrap([np.full(7, 10.0), np.zeros(50)])
    assert (test.difference, test.low, test.high) == (5.0, 5.0, 5.0)


def test_interval_of_many_questions_is_that_of_the_normal_distribution():
    differences = recall_differences(5000, 0.1)
    test = paired_bootstrap([differences])
    margin = 1.96 * differences.std() / math.sqrt(5000)
    assert test.high - test.difference == pytest.approx(margin, rel=0.05)
    assert test.difference - test.low == pytest.approx(margin, rel=0.05)


def test_equal_systems_have_a_p_value_of_one():
    test = paired_bootstrap([np.zeros(20), np.zeros(30)])
    assert (test.difference, test.low, test.high, test.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_differences_that_cancel_have_no_small_p_value():
    # 100/3 three times is not exactly 100 in floating point.
    test = paired_bootstrap([np.array([100 / 3, 100 / 3, 100 / 3, -100.0] * 10)])
    assert test.p_value > 0.9


def test_exchanged_systems_mirror_the_result():
    differences = recall_differences(100, 0.3)
    test, mirrored = paired_bootstrap([differences]), paired_bootstrap([-differences])
    assert mirrored.difference == -test.difference
    assert (mirrored.low, mirrored.high) == pytest.approx((-test.high, -test.low), abs=1.0)
    assert mirrored.p_value == pytest.approx(test.p_value, abs=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_p_value_is_below_five_percent_where_the_interval_leaves_out_zero(seed):
    test = paired_bootstrap([recall_differences(80, 0.25, seed)])
    is_outside = test.low > 0 or test.high < 0
    if abs(test.p_value - 0.05) > 0.01:
        assert (test.p_value < 0.05) == is_outside


def test_p_values_of_equal_systems_are_spread_evenly():
    generator = np.random.default_rng(0)
    p_values = [paired_bootstrap([generator.normal(size=150)], 200, seed).p_value for seed in range(200)]
    assert ks_1samp(p_values, uniform.cdf).pvalue > 0.01
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.1


def test_least_possible_p_value_is_not_zero():
    assert paired_bootstrap([np.full(10, 5.0)], num_resamples=999).p_value == 2 / 1000


def test_same_seed_gives_the_same():
    differences = [np.random.default_rng(0).normal(size=500)]
    assert paired_bootstrap(differences) == paired_bootstrap(differences)


def test_bootstrap_refuses_no_questions():
    for strata in ([], [np.zeros(0)], [np.zeros(3), np.zeros(0)]):
        with pytest.raises(ValueError, match="no questions to draw from"):
            paired_bootstrap(strata)


def table_of(both, only_first, only_second, neither):
    """Answers of two systems with so many questions of each kind."""
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemar_of_a_hand_worked_table():
    # Of 10 questions that one alone has right, 1 or fewer fall to either side: 2 * (1 + 10) / 2**10.
    test = mcnemar_test(*table_of(50, 9, 1, 40))
    assert (test.num_only_first, test.num_only_second, test.num_items) == (9, 1, 100)
    assert test.p_value == pytest.approx(22 / 1024)


@pytest.mark.parametrize(("only_first", "only_second"), [(3, 12), (30, 12), (7, 7), (0, 5), (1, 0)])
def test_mcnemar_agrees_with_the_binomial_test_and_its_sum(only_first, only_second):
    test = mcnemar_test(*table_of(20, only_first, only_second, 11))
    number, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(number, count) for count in range(fewer + 1)) / 2**number
    assert test.p_value == pytest.approx(min(1.0, 2 * tail))
    assert test.p_value == pytest.approx(binomtest(fewer, number, 0.5).pvalue)


def test_mcnemar_of_equal_systems_is_one_and_needs_questions():
    assert mcnemar_test(*table_of(5, 0, 0, 5)).p_value == 1.0
    with pytest.raises(ValueError, match="same questions"):
        mcnemar_test(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        mcnemar_test(np.zeros(2, dtype=bool), np.zeros(3, dtype=bool))


def test_images_of_equal_questions_give_the_interval_of_one_question_each():
    differences = recall_differences(100, 0.3)
    one, four = (
        paired_bootstrap([differences]),
        paired_bootstrap([differences.repeat(4)], clusters=[[str(place) for place in range(100) for _ in range(4)]]),
    )
    assert (four.low, four.high, four.p_value) == pytest.approx((one.low, one.high, one.p_value))
    assert (four.num_items, four.num_clusters) == (400, 100)
    by_question = paired_bootstrap([differences.repeat(4)])
    assert one.high - one.low == pytest.approx(2 * (by_question.high - by_question.low), rel=0.1)


def test_average_by_image_draws_both_kinds_of_an_image_together():
    # What an image gains in the one kind it loses in the other: the average does not vary, unless drawn apart.
    gains = recall_differences(80, 0.0)
    images = [str(place) for place in range(80)]
    test = paired_bootstrap([gains, 10 - gains], clusters=[images, images])
    assert (test.difference, test.low, test.high) == pytest.approx((5.0, 5.0, 5.0))
    assert paired_bootstrap([gains, 10 - gains]).high > 10
    assert test.num_clusters == 80


def test_average_by_image_agrees_with_drawing_images_one_by_one():
    # Images with open, with closed and with both kinds of questions, two of each kind at most.
    generator = np.random.default_rng(0)
    images = [
        [generator.choice([-100.0, 0.0, 100.0], size=number) + 20 for number in numbers]
        for numbers in [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (1, 2)] * 15
    ]
    drawn_apart = [[0, 1], [2], [3, 4, 5]]
    means = np.empty(5_000)
    for resample in range(len(means)):
        drawn = []
        for kinds in drawn_apart:
            own = [image for place, image in enumerate(images) if place % 6 in kinds]
            drawn += [own[place] for place in generator.integers(len(own), size=len(own))]
        means[resample] = np.mean([np.concatenate([image[part] for image in drawn]).mean() for part in (0, 1)])
    strata = [np.concatenate([image[part] for image in images]) for part in (0, 1)]
    clusters = [[str(place) for place, image in enumerate(images) for _ in image[part]] for part in (0, 1)]
    test = paired_bootstrap(strata, num_resamples=50_000, clusters=clusters)
    low, high = np.percentile(means, [2.5, 97.5])
    assert (test.low, test.high) == pytest.approx((low, high), abs=0.04 * (high - low))


def test_p_values_by_image_of_equal_systems_are_spread_evenly_and_by_question_too_small():
    by_image, by_question = [], []
    images = np.arange(120) // 4
    for seed in range(300):
        generator = np.random.default_rng(seed)
        # Four questions an image that one system has right or wrong together, by coins.
        sums = generator.choice([-1, 0, 1], size=30).repeat(4)
        first, second = sums > 0, sums < 0
        by_image.append(mcnemar_test(first, second, images.astype(str)).p_value)
        by_question.append(mcnemar_test(first, second).p_value)
    assert np.mean(np.array(by_image) < 0.05) <= 0.07
    assert np.mean(np.array(by_question) < 0.05) > 0.25


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_by_image_agree_with_all_of_them(seed):
    sums = np.random.default_rng(seed).integers(-3, 4, size=12)
    flipped = [abs(sum(sums * signs)) for signs in product((-1, 1), repeat=12)]
    assert sign_flip_p_value(sums) == pytest.approx(np.mean(np.array(flipped) >= abs(sums.sum())))


def test_mcnemar_of_two_images_worked_by_hand():
    # Three questions of one image and one of another, all right in the first system alone: 4, 2, -2 or -4.
    first, second = np.ones(4, dtype=bool), np.zeros(4, dtype=bool)
    assert mcnemar_test(first, second, ["a", "a", "a", "b"]).p_value == pytest.approx(0.5)
    assert mcnemar_test(first, second).p_value == pytest.approx(0.125)
    one_each = mcnemar_test(*table_of(20, 12, 3, 11), [str(place) for place in range(46)])
    assert one_each == mcnemar_test(*table_of(20, 12, 3, 11))


def test_mcnemar_of_many_questions_is_quick_and_exact():
    test = mcnemar_test(*table_of(60_000, 9_000, 8_700, 10_000))
    assert test.p_value == pytest.approx(binomtest(9_000, 17_700, 0.5).pvalue)


def test_holm_of_a_hand_worked_list():
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1; never below the one before.
    assert holm_correction([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm_correction([0.6, 0.9]) == [1.0, 1.0]
    assert holm_correction([0.2]) == [0.2]
    assert holm_correction([]) == []


def test_holm_lies_between_the_raw_values_and_bonferroni():
    p_values = np.random.default_rng(0).uniform(size=12)
    corrected = np.array(holm_correction(p_values.tolist()))
    assert np.all(corrected >= p_values)
    assert np.all(corrected <= np.minimum(1, 12 * p_values) + 1e-12)
    assert np.all(np.diff(corrected[np.argsort(p_values)]) >= 0)
