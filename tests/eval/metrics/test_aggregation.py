"""Tests of what all metrics share: checked columns and bootstrap intervals."""

import numpy as np
import pytest

from logramed.eval.metrics.aggregation import bootstrap_intervals, bootstrap_means


def interval(right, clusters=None, num_resamples=1000, seed=0):
    items = [{"accuracy": float(is_right)} for is_right in right]
    return bootstrap_intervals(items, ["accuracy"], num_resamples, seed, clusters, scale=100)["accuracy"]


def test_interval_of_two_questions_and_of_two_clusters_is_the_hand_worked_one():
    # Of the four equally likely draws of {0, 1}, the means are 0, 1/2, 1/2, 1.
    assert interval([0, 1]) == [0.0, 100.0]
    # Drawn are "a" twice (2/2 right), "a" and "b" (2/3 right) or "b" twice (0/1): each end has a chance of 1/4.
    assert interval([1, 1, 0], ["a", "a", "b"]) == [0.0, 100.0]
    means = bootstrap_means(np.array([[1.0], [1.0], [0.0]]), 4000, 0, ["a", "a", "b"])
    values, counts = np.unique(means.round(9), return_counts=True)
    assert values == pytest.approx([0, 2 / 3, 1])
    assert counts / 4000 == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)


def test_interval_agrees_with_the_normal_approximation_and_the_seed_decides():
    right = [1, 0] * 30
    assert interval(right) == pytest.approx([37.3, 62.7], abs=2)  # 50 +- 1.96 * 50 / sqrt(60)
    assert interval(right) == interval(right)
    assert interval(right, seed=1) != interval(right)


def test_clusters_of_equal_questions_give_the_interval_of_one_question_each():
    right = np.random.default_rng(0).random(200) < 0.6
    clusters = [str(place) for place in range(200) for _ in range(4)]
    assert interval(right.repeat(4), clusters) == pytest.approx(interval(right))
    widths = [high - low for low, high in (interval(right.repeat(4), clusters), interval(right.repeat(4)))]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.1)  # the root of 4


def test_order_of_the_questions_changes_no_interval():
    generator = np.random.default_rng(0)
    right, clusters = generator.random(60) < 0.6, generator.integers(20, size=60).astype(str)
    order = generator.permutation(60)
    assert interval(right, clusters.tolist()) == interval(right[order], clusters[order].tolist())


def test_intervals_by_cluster_cover_and_those_by_question_do_not():
    # 60 images with 1 to 6 questions; of the answers about an image 10, 50 or 90 percent are right, in the mean 50.
    covered = {"cluster": 0, "question": 0}
    num_trials = 400
    for seed in range(num_trials):
        generator = np.random.default_rng(seed)
        sizes = generator.integers(1, 7, size=60)
        right = generator.random(sizes.sum()) < generator.choice([0.1, 0.5, 0.9], size=60).repeat(sizes)
        for name, clusters in (("cluster", np.arange(60).repeat(sizes)), ("question", None)):
            low, high = np.percentile(bootstrap_means(right[:, None].astype(float), 400, seed, clusters), [2.5, 97.5])
            covered[name] += low <= 0.5 <= high
    assert 0.92 <= covered["cluster"] / num_trials <= 0.97
    assert covered["question"] / num_trials < 0.87
