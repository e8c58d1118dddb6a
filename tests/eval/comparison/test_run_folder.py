"""Tests of reading run folders: what is refused, and how runs are named."""

import json
from dataclasses import replace

import pytest

from logramed.eval.comparison.run_folder import (
    check_same_questions,
    count_of,
    has_several_shares,
    name_runs,
    read_run_folder,
    strata_of,
)
from tests.eval.run_folders import change_metrics, make_questions, make_scores, write_lines, write_run_folder


def test_run_folder_is_read_back(tmp_path):
    rows = make_questions(10)
    scores = make_scores(rows, ability=0.7, seed=0)
    run = read_run_folder(write_run_folder(tmp_path / "a", rows=rows, scores=scores, images=tmp_path / "images"))
    assert list(run.rows) == [row["question_id"] for row in rows]
    assert run.scores == {row["question_id"]: figures for row, figures in zip(rows, scores, strict=True)}
    assert run.main_figures == ("open_recall", "closed_accuracy", "average")
    assert len(run.images) == 10
    assert run.blank_scores.keys() == run.scores.keys()


def test_scores_are_joined_by_id_whatever_their_order(tmp_path):
    folder = write_run_folder(tmp_path / "a", num_questions=12)
    expected = read_run_folder(folder).scores
    lines = (folder / "scores.jsonl").read_text().splitlines(keepends=True)
    (folder / "scores.jsonl").write_text("".join(reversed(lines)))
    assert read_run_folder(folder).scores == expected


def test_answers_may_hold_line_separators(tmp_path):
    folder = write_run_folder(tmp_path / "a", answer=lambda row, scores: "yes\u2028or\x85no")
    assert read_run_folder(folder).rows["q0"]["prediction"] == "yes\u2028or\x85no"


@pytest.mark.parametrize("name", ["metrics.json", "predictions.jsonl", "scores.jsonl"])
def test_unfinished_run_is_refused_by_file(tmp_path, name):
    folder = write_run_folder(tmp_path / "a")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        read_run_folder(folder)


def test_files_of_different_runs_are_refused(tmp_path):
    folder, other = (write_run_folder(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    (folder / "scores.jsonl").write_text((other / "scores.jsonl").read_text())
    with pytest.raises(ValueError, match=r"`open_recall` is .* in metrics.json, but the mean of scores.jsonl is"):
        read_run_folder(folder)
    average = write_run_folder(tmp_path / "average")
    change_metrics(average, lambda metrics: metrics["overall"].update(average=99.0))
    with pytest.raises(ValueError, match=r"`average` is 99.0 in metrics.json, but the mean"):
        read_run_folder(average)
    few = write_run_folder(tmp_path / "few", num_questions=39)
    (folder / "scores.jsonl").write_text((few / "scores.jsonl").read_text())
    with pytest.raises(ValueError, match=r"not about the same questions: 1 stand in one.*'q39'"):
        read_run_folder(folder)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (None, "must be a number"),
        (True, "must be a number"),
        (float("nan"), "must be a number"),
        (-1.0, "from 0 on, in percent, got -1.0"),
        (50.0, "`closed_accuracy` must be 0 or 100, got 50.0"),
    ],
)
def test_scores_that_are_none_are_refused_by_question(tmp_path, score, message):
    folder = write_run_folder(tmp_path / "a", num_questions=5)
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    rows[3]["scores"] = {"closed_accuracy": score}
    write_lines(folder / "scores.jsonl", rows)
    with pytest.raises(ValueError, match=rf"question 'q3': .*{message}|{message}"):
        read_run_folder(folder)


def test_malformed_lines_are_refused_by_line(tmp_path):
    folder = write_run_folder(tmp_path / "a", num_questions=5)
    lines = (folder / "scores.jsonl").read_text().splitlines()
    for line, message in (("{", "line 2 is no JSON"), ("[]", "line 2 lacks `question_id`"), (lines[0], "second time")):
        (folder / "scores.jsonl").write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match=message):
            read_run_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metrics: metrics.pop("task"), "lacks `task`"),
        (lambda metrics: metrics.update(task="poetry"), "`task` must be one of vqa, .*got 'poetry'"),
        (lambda metrics: metrics["run"].update(training_data_share=0), "above 0 and up to 100, got 0"),
        (lambda metrics: metrics["run"].update(training_data_share="10%"), "must be a percentage.*'10%'"),
    ],
)
def test_malformed_metrics_are_refused_by_name(tmp_path, change, message):
    folder = write_run_folder(tmp_path / "a")
    change_metrics(folder, change)
    with pytest.raises(ValueError, match=message):
        read_run_folder(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("benchmark", "slake"),
        ("split", "train"),
        ("subset", "zh"),
        ("limit", 40),
        ("data_fingerprint", "f" * 64),
    ],
)
def test_runs_over_other_questions_are_refused_by_setting(tmp_path, name, value):
    folders = [write_run_folder(tmp_path / "a"), write_run_folder(tmp_path / "b", run={name: value})]
    with pytest.raises(ValueError, match=rf"b cannot be compared with .*a: `{name}` is {value!r} there"):
        check_same_questions([read_run_folder(folder) for folder in folders])


def test_runs_of_other_tasks_questions_or_texts_are_refused(tmp_path):
    run = read_run_folder(write_run_folder(tmp_path / "a"))
    fewer = read_run_folder(write_run_folder(tmp_path / "b", num_questions=38))
    with pytest.raises(ValueError, match=r"2 questions stand in one of them only, among them \['q38', 'q39'\]"):
        check_same_questions([run, fewer])
    rows = make_questions(40)
    rows[7]["answer"] = "maybe"
    changed = read_run_folder(write_run_folder(tmp_path / "c", rows=rows))
    with pytest.raises(ValueError, match=r"`answer` of question 'q7' is 'maybe' there and 'no' here"):
        check_same_questions([run, changed])
    with pytest.raises(ValueError, match="is given twice"):
        check_same_questions([run, read_run_folder(tmp_path / "b" / ".." / "a")])
    choices = read_run_folder(write_run_folder(tmp_path / "d", task="multiple_choice"))
    with pytest.raises(ValueError, match="`task` is 'multiple_choice' there and 'vqa' here"):
        check_same_questions([run, choices])


@pytest.mark.parametrize("name", ["model", "prompt_fingerprint"])
def test_runs_of_different_judges_are_refused(tmp_path, name):
    folders = [write_run_folder(tmp_path / folder, task="chat", blank=None) for folder in "ab"]
    change_metrics(folders[1], lambda metrics: metrics["judge"].update({name: "other"}))
    with pytest.raises(ValueError, match=rf"`judge.{name}` is 'other' there"):
        check_same_questions([read_run_folder(folder) for folder in folders])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "/home/someone/models/logramed-7b/"}, "logramed-7b"),
        ({"model": "org/llava-med"}, "llava-med"),
        ({"model": "org/llava", "adapter": "runs/vqa-rad-lora"}, "llava + vqa-rad-lora"),
        ({"model": None, "predictions": "/data/answers/radfm.test.csv"}, "radfm.test"),
        ({"model": "/models/x", "system": "Ours"}, "Ours"),
        ({"model": None}, "folder"),
    ],
)
def test_systems_are_named_after_what_answered(tmp_path, settings, expected):
    assert read_run_folder(write_run_folder(tmp_path / "folder", run=settings)).system == expected


def test_names_of_runs_are_unique(tmp_path):
    run = read_run_folder(write_run_folder(tmp_path / "run1", run={"system": "A"}))

    def make(name, share, folder):
        settings = run.run | {"system": name, "training_data_share": share}
        return replace(run, path=tmp_path / folder, metrics=run.metrics | {"run": settings})

    assert name_runs([make("A", None, "x"), make("B", None, "y")]) == ["A", "B"]
    runs = [make("A", 10, "x"), make("A", 40.5, "y"), make("B", 10, "z")]
    assert name_runs(runs) == ["A, 10% of the data", "A, 40.5% of the data", "B, 10% of the data"]
    assert has_several_shares(runs)
    assert not has_several_shares([make("A", 10, "x"), make("B", 40, "y"), make("A", None, "z")])
    assert name_runs([make("A", 10, "x"), make("A", 10, "y")]) == ["A (x)", "A (y)"]
    assert name_runs([make("A", None, "p/x"), make("A", None, "q/x")]) == ["A (x), run 1", "A (x), run 2"]


def test_figure_without_questions_is_absent_and_never_zero(tmp_path):
    rows = [row for row in make_questions(20) if row["answer_type"] == "OPEN"]
    run = read_run_folder(write_run_folder(tmp_path / "a", rows=rows))
    assert run.main_figures == ("open_recall",)
    assert run.scores_of("closed_accuracy") == {}
    with pytest.raises(ValueError, match="No question has the figure 'closed_accuracy'"):
        strata_of(run.scores, "average")
    with pytest.raises(ValueError, match="'accuracy' has no count"):
        count_of({"accuracy": 1.0}, "accuracy")
