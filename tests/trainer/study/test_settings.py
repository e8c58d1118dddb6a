from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from logramed.trainer.study.arms import PLAIN, PRIMARY, Run
from logramed.trainer.study.settings import (
    FIXED_WEIGHT,
    ORTHOGONAL_ARRAY,
    SETTINGS_FILE,
    Settings,
    choose_settings,
    read_settings,
    settings_of,
    trials,
    write_settings,
)


STARTED_FROM = Settings(1e-3, 300, 0.02, 5.0)


def test_plain_has_as_many_trials_as_the_primary_arm_and_the_same_ones_but_for_the_strength():
    plain = trials(PLAIN, STARTED_FROM)
    assert len(set(plain)) == len(plain) == 9
    for one, other in zip(trials(PRIMARY, STARTED_FROM), plain, strict=True):
        assert one.strength is not None
        assert replace(one, strength=None) == other


def test_fixed_weight_is_tried_at_the_settings_of_the_primary_arm():
    tried = trials(FIXED_WEIGHT, STARTED_FROM)
    assert tried == [replace(STARTED_FROM, strength=weight) for weight in (0.1, 1.0, 3.0)]


@pytest.mark.parametrize(
    ("arm", "followed"),
    [("permuted", PRIMARY), ("no_head", PRIMARY), ("paper_form", FIXED_WEIGHT), ("extended_targets", PLAIN)],
)
def test_an_arm_that_is_not_tuned_has_the_settings_of_the_one_it_follows(arm, followed):
    settings = read_settings()
    settings["scratch"] |= {PRIMARY: STARTED_FROM, FIXED_WEIGHT: Settings(2e-3, 100, 0.1, 0.7)}
    run = Run("scratch", "slake", 10, arm, 0)
    assert settings_of(run, settings) == settings["scratch"][followed]


def test_array_is_orthogonal():
    for first, second in combinations(range(4), 2):
        assert set(Counter((row[first], row[second]) for row in ORTHOGONAL_ARRAY).values()) == {1}


def test_chosen_settings_are_the_best_levels_of_an_additive_score():
    tried = trials(PRIMARY, STARTED_FROM)
    scores = [
        50
        + 3 * (settings.learning_rate == 2e-3)
        + 2 * (settings.num_steps == 400)
        - settings.weight_decay
        + (settings.strength == 1.0)
        for settings in tried
    ]
    best = Settings(2e-3, 400, 0.01, 1.0)
    assert best not in tried
    assert choose_settings(tried, scores) == best
    with pytest.raises(ValueError, match="score for each of 9 trials, got 1"):
        choose_settings(tried, [1.0])


def test_settings_are_read_as_written_and_missing_arms_are_refused(tmp_path):
    settings = read_settings()
    path = write_settings(tmp_path / "settings.yaml", settings)
    assert path.read_text() == SETTINGS_FILE.read_text()
    assert read_settings(path) == settings
    del settings["mini"][PLAIN]
    write_settings(path, settings)
    with pytest.raises(ValueError, match="no settings of mini for plain"):
        read_settings(path)


def test_runs_at_plains_settings_keep_the_strength_of_their_arm():
    settings = read_settings()
    settings["scratch"][PLAIN] = Settings(2e-3, 800, 0.2)
    settings["scratch"][PRIMARY] = Settings(5e-4, 200, 0.01, 0.5)
    run = Run("scratch", "slake", 10, PRIMARY, 0)
    assert settings_of(run, settings) == Settings(5e-4, 200, 0.01, 0.5)
    assert settings_of(Run(*[*vars(run).values()][:-1], settings="plain"), settings) == Settings(2e-3, 800, 0.2, 0.5)
    assert (
        settings_of(Run(*[*vars(run).values()][:-1], settings="trial4"), settings) == trials(PRIMARY, STARTED_FROM)[4]
    )
