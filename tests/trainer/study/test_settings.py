from collections import Counter
from itertools import combinations

import pytest

from logramed.trainer.study.arms import ARMS, PLAIN, PRIMARY, Run
from logramed.trainer.study.settings import (
    ORTHOGONAL_ARRAY,
    TUNED_ARMS,
    Settings,
    choose_settings,
    read_settings,
    settings_of,
    trials,
    write_settings,
)


def test_every_arm_of_a_model_has_as_many_trials_and_the_same_ones_but_for_the_strength():
    for model, arms in TUNED_ARMS.items():
        plain = trials(model, PLAIN)
        assert len(set(plain)) == len(plain)
        for arm in arms:
            tried = trials(model, arm)
            assert len(tried) == len(plain)
            for one, other in zip(tried, plain, strict=True):
                assert (one.learning_rate, one.num_steps, one.weight_decay) == (
                    other.learning_rate,
                    other.num_steps,
                    other.weight_decay,
                )
                assert (one.strength is None) == (ARMS[arm].strength is None)


def test_array_is_orthogonal():
    for first, second in combinations(range(4), 2):
        assert set(Counter((row[first], row[second]) for row in ORTHOGONAL_ARRAY).values()) == {1}


def test_chosen_settings_are_the_best_levels_of_an_additive_score():
    tried = trials("scratch", PRIMARY)
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
    path = write_settings(tmp_path / "settings.yaml", settings, "From\nhere.")
    assert path.read_text().startswith("# From\n# here.\nscratch:\n")
    assert read_settings(path) == settings
    del settings["mini"][PLAIN]
    write_settings(path, settings, "")
    with pytest.raises(ValueError, match="no settings of mini for plain"):
        read_settings(path)


def test_runs_at_plains_settings_keep_the_strength_of_their_arm():
    settings = read_settings()
    settings["scratch"][PLAIN] = Settings(2e-3, 800, 0.2)
    settings["scratch"][PRIMARY] = Settings(5e-4, 200, 0.01, 0.5)
    run = Run("scratch", "slake", 10, PRIMARY, 0)
    assert settings_of(run, settings) == Settings(5e-4, 200, 0.01, 0.5)
    assert settings_of(Run(*[*vars(run).values()][:-1], settings="plain"), settings) == Settings(2e-3, 800, 0.2, 0.5)
    assert settings_of(Run(*[*vars(run).values()][:-1], settings="trial4"), settings) == trials("scratch", PRIMARY)[4]
