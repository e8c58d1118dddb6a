"""Tests of bringing runs together: joins by id, which pairs are tested, what is absent."""

import numpy as np
import pytest

from logramed.eval.comparison.paired_tests import holm_correction, mcnemar_test, paired_bootstrap
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import compare_runs
from logramed.eval.comparison.tables import bootstrap_table, settings_table
from tests.eval.run_folders import make_questions, make_scores, write_run_folder


@pytest.fixture
def folders(tmp_path):
    return [
        write_run_folder(tmp_path / name, num_questions=100, ability=ability, seed=seed)
        for seed, (name, ability) in enumerate((("good", 0.9), ("fair", 0.6), ("poor", 0.3)))
    ]


def read(folders):
    return [read_run_folder(folder) for folder in folders]


def scores_of(run, figure):
    return {key: scores[figure] for key, scores in run.scores.items() if figure in scores}


def test_every_pair_and_figure_is_tested_on_joined_questions(folders):
    runs = read(folders)
    comparison = compare_runs(runs)
    pairs = [(test.figure, test.first, test.second) for test in comparison.bootstrap_tests]
    assert pairs == [
        (figure, first, second)
        for figure in ("open_recall", "closed_accuracy", "average")
        for first, second in ((0, 1), (0, 2), (1, 2))
    ]
    keys = {figure: list(scores_of(runs[0], figure)) for figure in ("open_recall", "closed_accuracy")}
    differences, images = (
        {figure: [value(key, figure) for key in of_figure] for figure, of_figure in keys.items()}
        for value in (
            lambda key, figure: runs[0].scores[key][figure] - runs[2].scores[key][figure],
            lambda key, figure: runs[0].rows[key]["image"],
        )
    )
    by_figure = {test.figure: test for test in comparison.bootstrap_tests if (test.first, test.second) == (0, 2)}
    assert by_figure["closed_accuracy"].test == paired_bootstrap(
        [differences["closed_accuracy"]], clusters=[images["closed_accuracy"]]
    )
    assert by_figure["average"].test == paired_bootstrap(list(differences.values()), clusters=list(images.values()))
    right = [np.array(list(scores_of(run, "closed_accuracy").values())) == 100 for run in runs]
    mcnemar = {(test.figure, test.first, test.second): test.test for test in comparison.mcnemar_tests}
    assert mcnemar["closed_accuracy", 0, 2] == mcnemar_test(right[0], right[2], images["closed_accuracy"])
    assert {figure for figure, *_ in mcnemar} == {"closed_accuracy", "open_exact_match"}


def test_order_of_a_file_changes_no_test(folders):
    expected = compare_runs(read(folders))
    for name in ("scores.jsonl", "predictions.jsonl"):
        lines = (folders[1] / name).read_text().splitlines(keepends=True)
        (folders[1] / name).write_text("".join(lines[::-1]))
    found = compare_runs(read(folders))
    assert found.bootstrap_tests == expected.bootstrap_tests
    assert found.mcnemar_tests == expected.mcnemar_tests


def test_p_values_are_corrected_for_their_whole_table(folders):
    comparison = compare_runs(read(folders))
    for tests in (comparison.bootstrap_tests, comparison.mcnemar_tests, comparison.sight_tests):
        corrected = holm_correction([test.test.p_value for test in tests])
        assert [test.corrected_p_value for test in tests] == corrected
        assert any(test.corrected_p_value > test.test.p_value for test in tests)


def test_identical_runs_do_not_differ(tmp_path):
    runs = read([write_run_folder(tmp_path / name, seed=3) for name in "ab"])
    comparison = compare_runs(runs)
    for test in comparison.bootstrap_tests:
        assert (test.test.difference, test.test.p_value, test.corrected_p_value) == (0.0, 1.0, 1.0)
    assert all(test.test.p_value == 1.0 for test in comparison.mcnemar_tests)
    assert not any(test.is_significant for test in comparison.bootstrap_tests + comparison.mcnemar_tests)


def test_single_run_has_no_tests_against_others(folders):
    comparison = compare_runs(read(folders[:1]))
    assert comparison.bootstrap_tests == comparison.mcnemar_tests == []
    assert {test.figure for test in comparison.sight_tests} == {"open_recall", "closed_accuracy", "average"}


def test_figure_that_no_question_has_is_absent(tmp_path):
    rows = [row for row in make_questions(30) if row["answer_type"] == "CLOSED"]
    runs = read([write_run_folder(tmp_path / name, rows=rows, seed=seed) for seed, name in enumerate("ab")])
    comparison = compare_runs(runs)
    assert comparison.figures == ["closed_accuracy"]
    assert {test.figure for test in comparison.bootstrap_tests} == {"closed_accuracy"}


def test_unscored_answers_are_compared_over_the_questions_both_have(tmp_path):
    rows = make_questions(20, task="chat")
    scores = make_scores(rows, 0.8, seed=0, task="chat")
    missing = [{} if place in (3, 4, 5) else figures for place, figures in enumerate(scores)]
    runs = read(
        [
            write_run_folder(tmp_path / "a", task="chat", rows=rows, scores=scores, blank=None),
            write_run_folder(tmp_path / "b", task="chat", rows=rows, scores=missing, blank=None),
        ]
    )
    (test,) = compare_runs(runs).bootstrap_tests
    assert (test.test.num_items, test.test.difference, test.test.p_value) == (17, 0.0, 1.0)


def test_run_without_any_figure_is_refused(tmp_path):
    rows = make_questions(4, task="chat")
    folder = write_run_folder(tmp_path / "a", task="chat", rows=rows, scores=[{}] * 4, blank=None)
    with pytest.raises(ValueError, match="none of the figures of its task"):
        compare_runs(read([folder]))


def test_images_that_add_nothing_are_seen_in_the_test_without_sight(tmp_path):
    rows = make_questions(100)
    blind = make_scores(rows, 0.5, seed=1000)
    run = read_run_folder(write_run_folder(tmp_path / "a", rows=rows, scores=blind, seed=0, blank=0.5))
    assert all(test.test.p_value == 1.0 for test in compare_runs([run]).sight_tests)
    seeing = read_run_folder(write_run_folder(tmp_path / "b", rows=rows, ability=1.2, blank=0.4))
    assert all(test.is_significant for test in compare_runs([seeing]).sight_tests)


def test_bootstrap_over_few_questions_is_said_to_be_too_sure(tmp_path):
    few = read([write_run_folder(tmp_path / f"few{seed}", num_questions=12, seed=seed) for seed in (0, 1)])
    notes = bootstrap_table(compare_runs(few)).notes
    assert any("With few images (here 4)" in note and "McNemar" in note for note in notes)
    many = read([write_run_folder(tmp_path / f"many{seed}", num_questions=200, seed=seed) for seed in (0, 1)])
    assert not any("With few" in note for note in bootstrap_table(compare_runs(many)).notes)


def test_settings_tell_no_folder_and_leave_out_what_is_not_set(tmp_path):
    settings = {"yes_no_hint": "", "load_in_4bit": True, "adapter": "./runs/lora"}
    table = settings_table(compare_runs(read([write_run_folder(tmp_path / "a", run=settings)])))
    rows = dict(table.rows)
    assert (rows["load in 4bit"], rows["model"], rows["adapter"]) == ("True", "a", "lora")
    assert "yes no hint" not in rows
    assert rows["transformers"] == "5.23.0"
    assert rows["data fingerprint"] == "d" * 12
