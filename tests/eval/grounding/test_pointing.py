"""Tests of the figures of maps, on maps and boxes by hand."""

import numpy as np
import pytest

from logramed.eval.grounding.boxes import WHOLE_IMAGE, Box, Window, find_window, lay_on_grid
from logramed.eval.grounding.pointing import area_under_curve, center_map, energy_over_area, score_map, score_random
from logramed.image_processing_logramed import LoGraMedImageProcessor


LIVER = [Box("Liver", 0.0, 0.25, 0.5, 0.25)]  # cells (1, 0) and (1, 1) of 4 x 4


def test_a_perfect_map_scores_all():
    cells = lay_on_grid(LIVER, (4, 4))
    scores = score_map(cells.is_positive / cells.is_positive.sum(), cells)
    assert scores == {"pointing_accuracy": 100.0, "energy_over_area": pytest.approx(8.0), "auc": 1.0}


def test_the_opposite_of_a_perfect_map_scores_nothing():
    cells = lay_on_grid(LIVER, (4, 4))
    assert score_map(1.0 - cells.is_positive, cells) == {"pointing_accuracy": 0.0, "energy_over_area": 0.0, "auc": 0.0}


def test_an_even_map_scores_what_random_ones_do():
    cells = lay_on_grid(LIVER, (4, 4))
    even = score_map(np.full((4, 4), 1 / 16), cells)
    assert even == pytest.approx({"pointing_accuracy": 12.5, "energy_over_area": 1.0, "auc": 0.5})
    assert score_random(cells) == even


def test_equal_peaks_share_the_point():
    cells = lay_on_grid(LIVER, (4, 4))
    weights = np.zeros((4, 4))
    weights[1, 0] = weights[3, 3] = weights[3, 2] = weights[0, 3] = 0.25
    assert score_map(weights, cells)["pointing_accuracy"] == 25.0


def test_figures_by_hand_on_a_padded_image():
    # 20 x 10 pixels in a square of 4 x 4 tokens: rows 0 and 3 are padding. The box is cell (1, 3).
    window = find_window((20, 10), LoGraMedImageProcessor())
    cells = lay_on_grid([Box("Spleen", 0.75, 0.0, 0.25, 0.5)], (4, 4), window)
    weights = np.zeros((4, 4))
    weights[0] = 0.2  # on padding, the largest: not a place of the image
    weights[1] = [0.05, 0.0, 0.0, 0.1]
    weights[2] = [0.0, 0.05, 0.0, 0.0]
    scores = score_map(weights, cells)
    assert scores["pointing_accuracy"] == 100.0
    assert scores["energy_over_area"] == pytest.approx(0.1 / 0.2 / (1 / 8))
    assert scores["auc"] == 1.0
    assert score_random(cells)["pointing_accuracy"] == pytest.approx(100 / 8)


def test_a_map_of_nothing_but_padding_has_no_energy_on_the_image():
    cells = lay_on_grid(LIVER, (4, 4), Window(0.0, -0.5, 1.0, 2.0))
    weights = np.zeros((4, 4))
    weights[0] = 0.25
    assert energy_over_area(weights, cells) == 0.0


def test_a_box_of_the_whole_image_leaves_no_curve():
    cells = lay_on_grid([Box("Brain", 0.0, 0.0, 1.0, 1.0)], (2, 2))
    scores = score_map(np.array([[0.4, 0.3], [0.2, 0.1]]), cells)
    assert (scores["pointing_accuracy"], scores["energy_over_area"]) == (100.0, 1.0)
    assert np.isnan(scores["auc"])
    assert np.isnan(score_random(cells)["auc"])


def test_random_maps_are_about_their_baseline():
    generator = np.random.default_rng(0)
    window = find_window((30, 20), LoGraMedImageProcessor())
    cells = lay_on_grid([Box("Liver", 0.1, 0.2, 0.4, 0.5)], (6, 6), window)
    drawn = [score_map(generator.dirichlet(np.ones(36)).reshape(6, 6), cells) for _ in range(4000)]
    expected = score_random(cells)
    for metric, tolerance in (("pointing_accuracy", 2.0), ("energy_over_area", 0.04), ("auc", 0.01)):
        assert np.mean([scores[metric] for scores in drawn]) == pytest.approx(expected[metric], abs=tolerance)


def test_the_curve_is_the_share_of_pairs_in_the_right_order():
    generator = np.random.default_rng(1)
    for _ in range(20):
        weights, is_positive = generator.integers(0, 5, 12).astype(float), generator.random(12) < 0.4
        is_positive[:2] = True, False
        pairs = [(own > other) + (own == other) / 2 for own in weights[is_positive] for other in weights[~is_positive]]
        assert area_under_curve(weights, is_positive) == pytest.approx(np.mean(pairs))


def test_the_middle_of_the_image_is_the_middle_of_what_is_not_padding():
    even = center_map((4, 4), WHOLE_IMAGE)
    assert (even == even.max()).nonzero()[0].tolist() == [1, 1, 2, 2]  # four equal peaks
    odd = center_map((3, 3), Window(0.0, -0.5, 1.0, 2.0))
    assert np.unravel_index(odd.argmax(), odd.shape) == (1, 1)
    assert odd[1, 0] > odd[0, 1]  # padding reaches twice as far from the middle, in shares of the image
    cells = lay_on_grid([Box("Heart", 0.25, 0.25, 0.25, 0.25)], (4, 4))
    assert score_map(even, cells)["pointing_accuracy"] == 25.0
