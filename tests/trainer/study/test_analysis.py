from itertools import product

import numpy as np
import pytest

from logramed.eval.comparison.paired_tests import paired_bootstrap
from logramed.trainer.study.analysis import compare, comparisons_table, hierarchical_bootstrap, summarize
from logramed.trainer.study.arms import PLAIN, PRIMARY, PRIMARY_COMPARISON, Comparison, Run, Side


def row(arm, seed, image_scores, **values):
    run = Run("scratch", "slake", values.pop("share", 10), arm, seed)
    total, count = (sum(part) for part in zip(*image_scores.values(), strict=True))
    figures = {"all": total / count, "num_all": count}
    return {
        "run": run.name,
        "model": run.model,
        "data": run.data,
        "share": run.share,
        "arm": arm,
        "seed": seed,
        "settings_of": "own",
        "split": "test",
        "with_sight": figures,
        "without_sight": None,
        "image_scores": {"with_sight": {"open": image_scores}, "without_sight": {}},
        "seconds_per_step": 0.5,
        **values,
    }


def test_bootstrap_has_the_distribution_of_all_resamples():
    differences, counts = np.random.default_rng(5).normal(1, 3, size=(3, 4)), np.array([2, 1, 3, 2])
    means = []
    for seeds in product(range(3), repeat=3):
        for images in product(range(4), repeat=4):
            means.append(differences[np.ix_(seeds, images)].sum() / (3 * counts[list(images)].sum()))
    found = hierarchical_bootstrap(differences, counts, num_resamples=200_000)
    assert found.mean == pytest.approx(differences.sum() / 24)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    below = np.mean(np.array(means) <= 1e-9)
    above = np.mean(np.array(means) >= -1e-9)
    assert found.p_value == pytest.approx(min(1, 2 * min(below, above)), abs=0.01)


def test_one_seed_with_one_question_an_image_is_the_paired_bootstrap():
    differences = np.random.default_rng(0).normal(0.15, 1, size=80)
    found = hierarchical_bootstrap(differences[None], np.ones(80, dtype=int))
    expected = paired_bootstrap([differences])
    assert found.mean == pytest.approx(expected.difference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert found.p_value == pytest.approx(expected.p_value, rel=0.15)


def test_interval_covers_both_seeds_and_images():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        seeds, images = generator.normal(size=(8, 1)), generator.normal(size=(1, 40))
        differences = seeds + images + generator.normal(size=(8, 40))
        found = hierarchical_bootstrap(differences, np.ones(40, dtype=int), num_resamples=500, seed=trial)
        covered += found.low <= 0 <= found.high
    assert 0.86 <= covered / 200 <= 0.98


def test_seeds_of_equal_images_do_not_narrow_the_interval_of_images():
    images = np.random.default_rng(0).normal(size=(1, 50))
    one, many = (hierarchical_bootstrap(np.repeat(images, n, axis=0), np.ones(50, dtype=int)) for n in (1, 8))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.05)


def test_bootstrap_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"at least one seed and image.*\(0, 3\)"):
        hierarchical_bootstrap(np.zeros((0, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2,\)"):
        hierarchical_bootstrap(np.zeros((2, 3)), np.ones(2))


def test_comparison_is_paired_by_the_seeds_that_both_have():
    rows = [
        row(PLAIN, 0, {"a": [100.0, 2], "b": [0.0, 1]}),
        row(PLAIN, 1, {"a": [100.0, 2], "b": [100.0, 1]}),
        row(PRIMARY, 1, {"a": [200.0, 2], "b": [100.0, 1]}),
        row(PRIMARY, 2, {"a": [0.0, 2], "b": [0.0, 1]}),
    ]
    found = compare(rows, PRIMARY_COMPARISON)
    assert found.mean == pytest.approx(100 / 3)
    assert (found.num_seeds, found.num_images) == (1, 2)
    assert compare(rows, Comparison(Side("no_head"), Side(PLAIN))) is None


def test_kinds_of_questions_and_sight_are_compared_by_themselves():
    plain, primary = row(PLAIN, 0, {"a": [0.0, 1]}), row(PRIMARY, 0, {"a": [0.0, 1]})
    plain["image_scores"] = {
        "with_sight": {"closed": {"a": [100.0, 1]}, "open": {"a": [0.0, 1], "b": [50.0, 2]}},
        "without_sight": {"closed": {"a": [0.0, 1]}, "open": {"a": [0.0, 1], "b": [0.0, 2]}},
    }
    primary["image_scores"] = {
        "with_sight": {"closed": {"a": [0.0, 1]}, "open": {"a": [100.0, 1], "b": [200.0, 2]}},
        "without_sight": {"closed": {"a": [0.0, 1]}, "open": {"a": [0.0, 1], "b": [20.0, 2]}},
    }
    expected = {("all", "with_sight"): 150 / 4, ("closed", "with_sight"): -100, ("open", "with_sight"): 250 / 3}
    for (kind, sight), mean in {**expected, ("all", "without_sight"): 20 / 4}.items():
        found = compare([plain, primary], PRIMARY_COMPARISON, kind, sight)
        assert found.mean == pytest.approx(mean)
        assert found.num_images == (1 if kind == "closed" else 2)


def test_runs_that_were_asked_other_questions_are_not_compared():
    rows = [row(PLAIN, 0, {"a": [100.0, 2]}), row(PRIMARY, 0, {"a": [100.0, 1]})]
    with pytest.raises(ValueError, match="were asked different questions"):
        compare(rows, PRIMARY_COMPARISON)


def test_summary_corrects_the_secondary_comparisons_alone():
    generator = np.random.default_rng(0)
    scores = {arm: 50 + shift for arm, shift in {PLAIN: 0, PRIMARY: 5, "permuted": 1, "infonce": 4}.items()}
    rows = [
        row(arm, seed, {f"{n}": [mean * 10 + generator.normal(0, 40), 10] for n in range(30)})
        for seed in range(4)
        for arm, mean in scores.items()
    ]
    lines = comparisons_table(rows).splitlines()
    assert lines[2].endswith("| primary | 4 |")
    tested = [line.split(" | ") for line in lines[3:] if "no runs" not in line]
    assert [line[0].removeprefix("| ").split()[0] for line in tested] == [PRIMARY, PRIMARY]
    raw = [float(line[4]) for line in tested]
    assert [float(line[5]) for line in tested] == pytest.approx(
        [min(1, 2 * min(raw)), max(2 * min(raw), max(raw))], abs=2e-4
    )
    text = summarize(rows, "test")
    assert "infonce (scratch, slake 10%, own settings) | plain (scratch, slake 10%, own settings)" in text
    assert summarize(rows, "validation") == "No run is scored on the validation split yet."
