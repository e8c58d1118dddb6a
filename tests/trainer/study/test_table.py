import json

import pytest

from logramed.trainer.study.arms import Run
from logramed.trainer.study.settings import Settings
from logramed.trainer.study.table import Table, make_row, seconds_per_step
from tests.trainer.study.evaluations import write_evaluation, write_training


RUN = Run("scratch", "slake", 10, "plain", 3)


def test_row_holds_the_figures_of_what_was_written(tmp_path):
    write_training(tmp_path / "model")
    write_evaluation(tmp_path / "evaluation")
    training = json.loads((tmp_path / "model" / "train_metrics.json").read_text())
    row = make_row(RUN, "test", Settings(1e-3, 4, 0.1), {"git_revision": "abc"}, training, tmp_path / "evaluation")
    assert row["with_sight"] == {
        "num_all": 3,
        "all": pytest.approx(175 / 3),
        "num_closed": 1,
        "closed": 100.0,
        "num_open": 2,
        "open": 37.5,
    }
    assert row["without_sight"]["all"] == pytest.approx(50 / 3)
    assert row["by_content"] == {
        "with_sight": {"Organ": [125.0, 2], "Size": [50.0, 1]},
        "without_sight": {"Organ": [0.0, 2], "Size": [50.0, 1]},
    }
    first, second = "xmlab1/source.jpg", "xmlab2/source.jpg"
    assert row["image_scores"] == {
        "with_sight": {"closed": {first: [100.0, 1]}, "open": {first: [50.0, 1], second: [25.0, 1]}},
        "without_sight": {"closed": {first: [0.0, 1]}, "open": {first: [50.0, 1], second: [0.0, 1]}},
    }
    assert row["seconds_per_step"] == 0.5
    assert row["logged"]["alignment_gradient_ratio"] == {"first": 0.2, "mean": pytest.approx(0.3), "last": 0.4}
    assert (row["run"], row["arm"], row["settings_of"], row["seed"]) == (RUN.name, "plain", "own", 3)
    assert (row["learning_rate"], row["strength"], row["git_revision"]) == (1e-3, None, "abc")
    json.dumps(row)


def test_questions_that_were_not_asked_without_sight_have_no_figures(tmp_path):
    write_evaluation(tmp_path)
    (tmp_path / "scores.blank_images.jsonl").unlink()
    training = {"log_history": []}
    assert make_row(RUN, "test", Settings(1e-3, 4, 0.1), {}, training, tmp_path)["without_sight"] is None
    assert seconds_per_step([]) is None


def test_table_has_one_row_a_run_and_split_and_drops_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "table.jsonl"
    table = Table(path)
    for run, split, value in ("a", "test", 1), ("a", "test", 2), ("a", "validation", 3), ("b", "test", 4):
        table.append({"run": run, "split": split, "value": value})
    with path.open("a") as file:
        file.write('{"run": "c", "split": "te')
    again = Table(path)
    assert {key: row["value"] for key, row in again.rows.items()} == {
        ("a", "test"): 1,
        ("a", "validation"): 3,
        ("b", "test"): 4,
    }
    again.append({"run": "c", "split": "test", "value": 5})
    assert [row["value"] for row in map(json.loads, path.read_text().splitlines())] == [1, 3, 4, 5]


def test_rows_with_other_line_separators_than_a_newline_are_whole(tmp_path):
    path = tmp_path / "table.jsonl"
    Table(path).append({"run": "a", "split": "test", "note": "one\u2028two\u0085three"})
    assert [row["note"] for row in Table(path).rows.values()] == ["one\u2028two\u0085three"]


def test_two_rows_of_a_run_are_refused(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"run": "a", "split": "test"}\n' * 2)
    with pytest.raises(ValueError, match=r"two rows of a \(test\)"):
        Table(path)
