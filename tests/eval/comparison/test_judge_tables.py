"""Tests of what a report says of the judge."""

import pytest

from logramed.eval.comparison.html_report import render_html, render_markdown
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import compare_runs
from logramed.eval.comparison.summary import remarks
from logramed.eval.comparison.tables import judge_table, not_judged_table
from tests.eval.run_folders import change_metrics, make_questions, make_scores, write_run_folder


@pytest.fixture
def folders(tmp_path):
    rows = make_questions(20, task="chat")
    scores = make_scores(rows, 0.8, seed=0, task="chat")
    missing = [{} if place in (3, 5) else figures for place, figures in enumerate(scores)]
    return [
        write_run_folder(tmp_path / name, task="chat", rows=rows, scores=of_run, blank=None)
        for name, of_run in (("whole", scores), ("part", missing))
    ]


def compare(folders):
    return compare_runs([read_run_folder(folder) for folder in folders])


def test_judge_its_points_and_its_preference_for_a_place_are_told(folders):
    points = ["5.25 (5.00 to 5.50)", "7.50 (7.25 to 7.75)", "+0.75 (+0.50 to +1.00)"]
    assert judge_table(compare(folders)).rows == [
        ["whole", "judge, served as judge-7", "20 of 20", *points],
        ["part", "judge, served as judge-7", "18 of 20", *points],
    ]


def test_every_missing_judgement_is_listed_with_its_reason_also_those_without_sight(folders):
    problem = {"question_id": "q7", "order": "reference_first", "reason": "no two scores in the reply: '|'"}
    change_metrics(folders[0], lambda metrics: metrics["blank_images"].update(overall={}, not_judged=[problem]))
    comparison = compare(folders)
    assert not_judged_table(comparison).rows == [
        ["whole, blank images", "q7", "reference first", "no two scores in the reply: '|'"],
        ["part", "q3", "system first", "HTTP 503: busy"],
        ["part", "q5", "system first", "HTTP 503: busy"],
    ]
    for text in (render_html(comparison), render_markdown(comparison)):
        assert "HTTP 503: busy" in text
        assert "q7" in text
    assert any("part has no score for 2 of 20 questions" in line for line in remarks(comparison))


def test_tasks_without_a_judge_have_no_such_tables(tmp_path):
    comparison = compare([write_run_folder(tmp_path / "a")])
    assert judge_table(comparison) is None
    assert not_judged_table(comparison) is None


def test_a_judge_served_by_several_models_is_warned_of(folders):
    assert not any("different judge models" in line for line in remarks(compare(folders)))
    change_metrics(folders[1], lambda metrics: metrics["judge"].update(served_models=["judge-8"]))
    assert any("different judge models: judge-7 and judge-8" in line for line in remarks(compare(folders)))


def test_why_the_release_protocol_is_missing_is_told(folders):
    reason = "Question 'q3' has no reply: the release cannot be followed without it."
    change_metrics(folders[1], lambda metrics: metrics.update(release_protocol={"missing": reason}))
    whole, part = (render_html(compare([folder])) for folder in folders)
    assert "Release protocol</caption>" in whole
    assert "Release protocol</caption>" not in part
    told = "No figures of the release protocol of part: Question &#39;q3&#39; has no reply"
    assert told in part
    assert told not in whole
