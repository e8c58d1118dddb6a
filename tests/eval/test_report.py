"""Tests of the figures of a run and of the printed tables."""

from pathlib import Path

import pytest

from logramed.eval.comparison.html_report import render_markdown
from logramed.eval.comparison.run_folder import RunFolder
from logramed.eval.comparison.runs import compare_runs
from logramed.eval.report import best_constant_answer, compute_metrics, figures_without_leakage
from logramed.eval.run import PRINTED


RUN = {"benchmark": "vqa_rad", "split": "test", "subset": None, "num_questions": 4, "model": "M", "limit": None}
RUN |= {"versions": {}}


def make_row(prediction, answer, answer_type, organ):
    return {"prediction": prediction, "answer": answer, "answer_type": answer_type, "groups": {"organ": organ}}


ROWS = [
    make_row("Yes", "yes", "CLOSED", "CHEST"),
    make_row("abnormal", "no", "CLOSED", "CHEST"),
    make_row("left lung", "left", "OPEN", "CHEST"),
    make_row("liver", "left lung", "OPEN", "HEAD"),
]
CHOICES = [
    {"prediction": "MRI", "answer": "MRI", "options": ["CT", "MRI"], "groups": {"modality": "MR"}},
    {"prediction": "CT", "answer": "MRI", "options": ["CT", "MRI", "PET", "US"], "groups": {"modality": "MR"}},
]


def describe(rows=ROWS, task="vqa", run=None, **further):
    """What `eval/run.py` writes."""
    metrics = {"run": RUN | (run or {}), "task": task, "interval_unit": "image", **compute_metrics(rows, task)}
    del metrics["items"]
    metrics |= {"blank_images": {"missing": "turned off"}, "leakage": {"missing": "no training files"}}
    return metrics | {"differences": []} | further


def print_tables(metrics, rows=ROWS, blank_items=None):
    """What the command prints."""

    def by_id(items):
        return {str(place): item for place, item in enumerate(items)}

    scores = by_id(compute_metrics(rows, metrics["task"])["items"])
    blank = None if blank_items is None else by_id(blank_items)
    run = RunFolder(Path("M"), metrics, by_id(rows), scores, blank)
    return render_markdown(compare_runs([run]), PRINTED)


def cells(text, caption, label):
    """The cells of the row `label` in the table of a caption."""
    table = text.split(f"### {caption}\n\n")[1].split("\n\n")[0]
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_metrics_are_given_overall_and_per_group_with_their_counts():
    metrics = compute_metrics(ROWS, "vqa")
    assert metrics["overall"]["closed_accuracy"] == metrics["overall"]["open_recall"] == 50.0
    assert metrics["groups"]["organ"]["CHEST"]["open_recall"] == 100.0
    assert metrics["groups"]["organ"]["CHEST"]["num_closed"] == 2
    assert "closed_accuracy" not in metrics["groups"]["organ"]["HEAD"]
    assert metrics["release_protocol"]["closed_accuracy"] == 100.0  # "no" stands in "abnormal"
    assert [item.get("closed_accuracy") for item in metrics["items"]] == [100.0, 0.0, None, None]


def test_table_prints_each_figure_with_its_number_of_questions():
    text = print_tables(describe())
    assert cells(text, "Main figures", "M")[:3] == ["M", "50.0 (0.0 to 100.0) of 2", "50.0 (0.0 to 100.0) of 2"]
    assert cells(text, "Open recall by organ", "HEAD") == ["HEAD", "0.0 (0.0 to 0.0) of 1"]
    assert "HEAD" not in text.split("### Closed accuracy by organ")[1]
    assert cells(text, "Release protocol", "M")[3] == "100.0 (100.0 to 100.0)"
    assert "constant answer “yes”" in text
    assert "closed accuracy of 50.0" in text
    assert "No figures without sight of M: turned off." in text
    assert "No leakage report of M: no training files." in text


def test_intervals_are_by_image_where_rows_name_it_and_the_table_says_which():
    # The two closed questions are about one image, whose draw cannot vary.
    rows = [row | {"image_id": image} for row, image in zip(ROWS, ("a", "a", "b", "c"), strict=True)]
    metrics = describe(rows)
    for figures in (metrics["overall"], metrics["release_protocol"], metrics["groups"]["organ"]["CHEST"]):
        assert figures["intervals"]["closed_accuracy"] == [figures["closed_accuracy"]] * 2
    assert (metrics["overall"]["num_clusters"], metrics["groups"]["organ"]["CHEST"]["num_clusters"]) == (3, 2)
    assert "95% interval, bootstrap over 3 images" in print_tables(metrics, rows)
    choices = compute_metrics([row | {"image_id": "a"} for row in CHOICES], "multiple_choice")
    assert choices["overall"]["intervals"]["accuracy"] == [50.0, 50.0]


def test_figures_without_sight_stand_beside():
    blank = compute_metrics([row | {"prediction": "no"} for row in ROWS], "vqa")
    text = print_tables(describe(blank_images=blank), blank_items=blank["items"])
    found = cells(text, "With and without sight", "M | open recall")
    assert found[:4] == ["M", "open recall", "50.0 (0.0 to 100.0)", "0.0 (0.0 to 0.0)"]


def test_leakage_is_told_with_the_figures_of_what_is_not_in_training():
    rows = [row | {"question_id": str(place)} for place, row in enumerate(ROWS)]
    leakage = {
        "num_test_images": 3,
        "num_test_images_in_training": 2,
        "num_questions_on_them": 3,
        "num_triplets_in_training": 1,
        "triplet_question_ids": ["0"],
        "compared_with": "train split, 9 rows",
    }
    clean = figures_without_leakage(rows, "vqa", leakage)
    assert (clean["num_closed"], clean["closed_accuracy"]) == (1, 0.0)
    text = print_tables(describe(leakage=leakage | {"overall_without_triplets": clean}))
    found = cells(text, "Test questions that also stand in training", "M")
    assert found[1:4] == ["2 of 3", "3 of 4", "1 of 4"]
    assert found[-1] == "0.0 (0.0 to 0.0) of 1"
    assert figures_without_leakage(rows, "vqa", leakage | {"triplet_question_ids": []}) is None
    assert figures_without_leakage(rows, "vqa", leakage | {"triplet_question_ids": list("0123")}) is None


def test_table_of_a_limited_run_says_that_it_is_no_benchmark_figure():
    assert "not the benchmark's figures" in print_tables(describe(run={"limit": 4}))


def test_table_names_another_system_its_notes_and_what_differs_from_the_split():
    run = {"model": None, "predictions": "answers.csv", "notes": ["Two rows were empty."]}
    text = print_tables(describe(run=run, differences=["4 questions instead of 451"]))
    assert "4 questions, strict protocol: answers" in text
    assert "differ from the known split: 4 questions instead of 451." in text
    assert "- answers: Two rows were empty." in text


def test_metrics_without_closed_questions_have_no_constant_answer():
    metrics = describe(ROWS[2:])
    assert "constant_answer" not in metrics
    assert "constant answer" not in print_tables(metrics, ROWS[2:])


def test_constant_answer_joins_spellings_of_yes_and_no():
    rows = [make_row("", answer, "CLOSED", "") for answer in ("No", "no.", "No, clear", "yes", "Left")]
    assert best_constant_answer(rows) == {"answer": "no", "closed_accuracy": pytest.approx(60)}


def test_multiple_choice_has_its_chance_level_and_a_release_protocol_for_texts_only():
    by_text = describe(CHOICES, "multiple_choice")
    assert by_text["overall"]["accuracy"] == by_text["release_protocol"]["accuracy"] == 50.0
    assert "Choosing at random is right in 37.5 percent." in print_tables(by_text, CHOICES)
    scored = [row | {"option_scores": [-float(place) for place, _ in enumerate(row["options"])]} for row in CHOICES]
    by_likelihood = describe(scored, "multiple_choice")
    assert by_likelihood["overall"]["accuracy"] == 0.0
    assert "release_protocol" not in by_likelihood
