"""Tests of reading run folders: what is refused, and how runs are named."""

from dataclasses import replace

import pytest

from logramed.eval.comparison.run_folder import (
    check_same_questions,
    name_runs,
    read_run_folder,
)
from tests.eval.run_folders import change_metrics, make_questions, make_scores, write_run_folder


def test_run_folder_is_read_back(tmp_path):
    rows = make_questions(10)
    scores = make_scores(rows, ability=0.7, seed=0)
    run = read_run_folder(write_run_folder(tmp_path / "a", rows=rows, scores=scores, images=tmp_path / "images"))
    assert list(run.rows) == [row["question_id"] for row in rows]
    assert run.scores == {row["question_id"]: figures for row, figures in zip(rows, scores, strict=True)}
    assert run.main_figures == ["open_recall", "closed_accuracy", "average"]
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
    folder = write_run_folder(tmp_path / "a")
    few = write_run_folder(tmp_path / "few", num_questions=39)
    (folder / "scores.jsonl").write_text((few / "scores.jsonl").read_text())
    with pytest.raises(ValueError, match=r"not about the same questions: 1 are in only one.*'q39'"):
        read_run_folder(folder)


def test_broken_files_are_refused_by_file_and_line(tmp_path):
    folder = write_run_folder(tmp_path / "a", num_questions=5)
    lines = (folder / "scores.jsonl").read_text().splitlines()
    (folder / "scores.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"scores.jsonl, line 2 is not JSON"):
        read_run_folder(folder)
    change_metrics(folder, lambda metrics: metrics.pop("interval_unit"))
    with pytest.raises(ValueError, match=r"metrics.json lacks `interval_unit`: an older version wrote it"):
        read_run_folder(folder)
    (folder / "metrics.json").write_text("")
    with pytest.raises(ValueError, match=r"metrics.json is not JSON"):
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


def test_runs_of_other_tasks_are_refused(tmp_path):
    folders = [write_run_folder(tmp_path / task, task=task) for task in ("vqa", "multiple_choice")]
    with pytest.raises(ValueError, match="`task` is 'multiple_choice' there and 'vqa' here"):
        check_same_questions([read_run_folder(folder) for folder in folders])


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
    ],
)
def test_systems_are_named_after_what_answered(tmp_path, settings, expected):
    assert read_run_folder(write_run_folder(tmp_path / "folder", run=settings)).system == expected


def test_names_of_runs_are_unique(tmp_path):
    run = read_run_folder(write_run_folder(tmp_path / "run1", run={"system": "A"}))

    def make(name, folder):
        settings = run.run | {"system": name}
        return replace(run, path=tmp_path / folder, metrics=run.metrics | {"run": settings})

    assert name_runs([make("A", "x"), make("B", "y")]) == ["A", "B"]
    assert name_runs([make("A", "x"), make("A", "y"), make("B", "z")]) == ["A (x)", "A (y)", "B"]
    assert name_runs([make("A", "p/x"), make("A", "q/x")]) == ["A (x), run 1", "A (x), run 2"]


def test_figure_without_questions_is_absent_and_never_zero(tmp_path):
    rows = [row for row in make_questions(20) if row["answer_type"] == "OPEN"]
    assert read_run_folder(write_run_folder(tmp_path / "a", rows=rows)).main_figures == ["open_recall"]
