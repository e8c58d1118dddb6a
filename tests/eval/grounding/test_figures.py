"""Tests of the figures over questions."""

import pytest

from logramed.eval.grounding.figures import summarize


def item(group, image, own, center, auc=0.5):
    def scores(value):
        return {"pointing_accuracy": value, "energy_over_area": 1.0, "auc": auc}

    return {"group": group, "image_id": image, "scores": {"answer_state": scores(own), "center": scores(center)}}


def test_figures_are_means_with_intervals_and_differences_by_image():
    items = [item("liver", f"image {number // 2}", 100.0, 0.0) for number in range(20)]
    overall = summarize(items, num_resamples=500)["overall"]
    assert (overall["num_questions"], overall["num_images"]) == (20, 10)
    figure = overall["maps"]["answer_state"]["pointing_accuracy"]
    assert (figure["value"], figure["interval"]) == (100.0, [100.0, 100.0])
    difference = figure["differences"]["center"]
    assert difference["value"] == 100.0
    assert difference["p_value"] == pytest.approx(2 / 501)
    assert "differences" not in overall["maps"]["center"]["pointing_accuracy"]


def test_equal_answers_about_one_image_make_intervals_no_narrower():
    by_image = [item("liver", "ab"[number % 2], 100.0 * (number % 2), 0.0) for number in range(40)]
    alone = [item("liver", str(number), 100.0 * (number % 2), 0.0) for number in range(40)]
    wide, narrow = (
        summarize(items, num_resamples=500)["overall"]["maps"]["answer_state"]["pointing_accuracy"]["interval"]
        for items in (by_image, alone)
    )
    assert wide == [0.0, 100.0]
    assert 30 < narrow[0] < narrow[1] < 70


def test_small_groups_are_counted_without_figures():
    items = [item("liver", str(number), 100.0, 0.0) for number in range(20)]
    items += [item("spleen", str(number), 0.0, 0.0) for number in range(19)]
    result = summarize(items, num_resamples=50)
    assert list(result["groups"]) == ["liver"]
    assert result["small_groups"] == {"spleen": 19}


def test_a_figure_that_does_not_apply_to_a_question_leaves_it_out():
    items = [item("liver", "a", 0.0, 0.0, auc=1.0), item("liver", "b", 0.0, 0.0, auc=None)]
    maps = summarize(items, num_resamples=50)["overall"]["maps"]
    assert (maps["answer_state"]["auc"]["value"], maps["answer_state"]["auc"]["num_questions"]) == (1.0, 1)
    without = summarize(items[1:], num_resamples=50)["overall"]["maps"]
    assert "auc" not in without["answer_state"]
