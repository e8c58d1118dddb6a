"""Tests of the figures of a run and of the printed table."""

import pytest

from logramed.eval.report import best_constant_answer, compute_metrics, format_table


RUN = {"benchmark": "vqa_rad", "split": "test", "num_questions": 4, "model": "M", "limit": None, "blank_images": False}


def make_row(prediction, answer, answer_type, organ):
    return {"prediction": prediction, "answer": answer, "answer_type": answer_type, "groups": {"organ": organ}}


ROWS = [
    make_row("Yes", "yes", "CLOSED", "CHEST"),
    make_row("abnormal", "no", "CLOSED", "CHEST"),
    make_row("left lung", "left", "OPEN", "CHEST"),
    make_row("liver", "left lung", "OPEN", "HEAD"),
]


def cells(table, label):
    (line,) = [line for line in table.splitlines() if line.startswith(label)]
    return [cell for cell in line.split("  ") if cell.strip()]


def test_metrics_are_given_overall_and_per_group_with_their_counts():
    metrics = compute_metrics(ROWS, RUN)
    assert metrics["overall"]["closed_accuracy"] == metrics["overall"]["open_recall"] == 50.0
    assert metrics["groups"]["organ"]["CHEST"]["open_recall"] == 100.0
    assert metrics["groups"]["organ"]["CHEST"]["num_closed"] == 2
    assert "closed_accuracy" not in metrics["groups"]["organ"]["HEAD"]
    assert metrics["release_protocol"]["closed_accuracy"] == 100.0  # "no" stands in "abnormal"
    assert metrics["run"] == RUN


def test_table_prints_each_figure_with_its_number_of_questions():
    table = format_table(compute_metrics(ROWS, RUN))
    assert cells(table, "all ") == ["all", " 50.0 (0.0 to 100.0) of 2", " 50.0 (0.0 to 100.0) of 2"]
    assert [cell.strip() for cell in cells(table, "organ: HEAD")] == ["organ: HEAD", "0.0 (0.0 to 0.0) of 1", "-"]
    assert "constant answer 'yes'" in table
    assert "closed accuracy of 50.0" in table
    assert "WITHOUT SIGHT" not in table


def test_table_of_a_blind_run_says_so_and_shows_the_sighted_figures_beside():
    sighted = compute_metrics(ROWS, RUN)
    blind = compute_metrics([row | {"prediction": "no"} for row in ROWS], RUN | {"blank_images": True})
    table = format_table(blind, sighted)
    assert "WITHOUT SIGHT" in table
    assert "closed accuracy, sighted" in table
    assert [cell.strip() for cell in cells(table, "organ: CHEST")[-2:]] == ["100.0", "50.0"]
    assert "open recall, blank" in format_table(sighted, blind)


def test_table_of_a_limited_run_says_that_it_is_no_benchmark_figure():
    assert "not the benchmark's figures" in format_table(compute_metrics(ROWS, RUN | {"limit": 4}))


def test_metrics_without_closed_questions_have_no_constant_answer():
    metrics = compute_metrics(ROWS[2:], RUN)
    assert "constant_answer" not in metrics
    assert "constant answer" not in format_table(metrics)


def test_constant_answer_joins_spellings_of_yes_and_no():
    rows = [make_row("", answer, "CLOSED", "") for answer in ("No", "no.", "No, clear", "yes", "Left")]
    assert best_constant_answer(rows) == {"answer": "no", "closed_accuracy": pytest.approx(60)}
