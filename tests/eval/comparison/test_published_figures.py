"""Tests of the published figures: sums that must come out, and what they may stand beside."""

import json

import pytest

from logramed.eval.comparison.published_figures import FILE, published_for


NUM_CLOSED = 272  # of VQA-RAD's test split


def published(**run):
    settings = {"benchmark": "vqa_rad", "split": "test", "subset": None, "limit": None} | run
    return published_for({"run": settings, "differences": []})


def test_figures_of_the_papers_table_come_out_of_whole_questions_and_average_right():
    rows = [row for row in published()[0] if row["source"] == "ExGra-Med paper" and len(row["figures"]) == 3]
    assert len(rows) == 5
    for row in rows:
        figures = row["figures"]
        num_right = round(figures["closed_accuracy"] * NUM_CLOSED / 100)
        assert figures["closed_accuracy"] == pytest.approx(100 * num_right / NUM_CLOSED, abs=0.005)
        assert figures["average"] == pytest.approx(
            (figures["open_recall"] + figures["closed_accuracy"]) / 2, abs=0.011
        )


def test_every_figure_is_a_percentage_of_a_known_source_and_said_once():
    content = json.loads(FILE.read_text())
    for row in content["figures"]:
        assert all(0 < value <= 100 for value in row["figures"].values())
    assert len(
        {(r["source"], r["method"], r["training_data_share"], r["benchmark"]) for r in content["figures"]}
    ) == len(content["figures"])
    assert {row["source"] for row in content["figures"]} == content["sources"].keys()


@pytest.mark.parametrize(
    ("run", "is_same"),
    [
        ({}, True),
        ({"benchmark": "slake"}, True),
        ({"benchmark": "slake", "subset": "en"}, True),
        ({"benchmark": "slake", "subset": "zh"}, False),
        ({"benchmark": "path_vqa", "split": "validation"}, False),
        ({"limit": 5}, False),
        ({"benchmark": "omnimedvqa"}, False),
    ],
)
def test_published_figures_stand_beside_the_whole_same_split_only(run, is_same):
    rows, notes = published(**run)
    assert bool(rows) == is_same
    assert (notes == ["No figures are published for exactly these questions."]) != is_same
