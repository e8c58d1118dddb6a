"""Tests of the figures of a run and of the printed table."""

import pytest

from logramed.eval.report import best_constant_answer, compute_metrics, figures_without_leakage, format_table


RUN = {"benchmark": "vqa_rad", "split": "test", "subset": None, "num_questions": 4, "model": "M", "limit": None}


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


def cells(table, label):
    (line,) = [line for line in table.splitlines() if line.startswith(label)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_metrics_are_given_overall_and_per_group_with_their_counts():
    metrics = compute_metrics(ROWS, "vqa")
    assert metrics["overall"]["closed_accuracy"] == metrics["overall"]["open_recall"] == 50.0
    assert metrics["groups"]["organ"]["CHEST"]["open_recall"] == 100.0
    assert metrics["groups"]["organ"]["CHEST"]["num_closed"] == 2
    assert "closed_accuracy" not in metrics["groups"]["organ"]["HEAD"]
    assert metrics["release_protocol"]["closed_accuracy"] == 100.0  # "no" stands in "abnormal"
    assert [item.get("closed_accuracy") for item in metrics["items"]] == [100.0, 0.0, None, None]


def test_table_prints_each_figure_with_its_number_of_questions():
    table = format_table(describe())
    assert cells(table, "all ") == ["all", "50.0 (0.0 to 100.0) of 2", "50.0 (0.0 to 100.0) of 2"]
    assert cells(table, "organ: HEAD") == ["organ: HEAD", "0.0 (0.0 to 0.0) of 1", "-"]
    assert "constant answer “yes”" in table
    assert "closed accuracy of 50.0" in table
    assert "No figures without sight: turned off." in table
    assert "Leakage was not looked for: no training files." in table


def test_intervals_are_by_image_where_rows_name_it_and_the_table_says_which():
    # The two closed questions are about one image, whose draw cannot vary.
    rows = [row | {"image_id": image} for row, image in zip(ROWS, ("a", "a", "b", "c"), strict=True)]
    metrics = describe(rows)
    for figures in (metrics["overall"], metrics["release_protocol"], metrics["groups"]["organ"]["CHEST"]):
        assert figures["intervals"]["closed_accuracy"] == [figures["closed_accuracy"]] * 2
    assert (metrics["overall"]["num_clusters"], metrics["groups"]["organ"]["CHEST"]["num_clusters"]) == (3, 2)
    assert "95% interval, bootstrap over 3 images" in format_table(metrics)
    choices = compute_metrics([row | {"image_id": "a"} for row in CHOICES], "multiple_choice")
    assert choices["overall"]["intervals"]["accuracy"] == [50.0, 50.0]


def test_figures_without_sight_stand_below():
    blank = compute_metrics([row | {"prediction": "no"} for row in ROWS], "vqa")
    table = format_table(describe(blank_images=blank))
    assert cells(table, "all, blank images")[1:] == ["0.0 (0.0 to 0.0) of 2", "50.0 (0.0 to 100.0) of 2"]


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
    table = format_table(describe(leakage=leakage | {"overall_without_triplets": clean}))
    assert cells(table, "all, not in training")[-1] == "0.0 (0.0 to 0.0) of 1"
    assert "2 of 3 test images and 1 of 4 triplets" in table
    assert figures_without_leakage(rows, "vqa", leakage | {"triplet_question_ids": []}) is None
    assert figures_without_leakage(rows, "vqa", leakage | {"triplet_question_ids": list("0123")}) is None


def test_table_of_a_limited_run_says_that_it_is_no_benchmark_figure():
    assert "not the benchmark's figures" in format_table(describe(run={"limit": 4}))


def test_table_names_another_system_its_notes_and_what_differs_from_the_split():
    run = {"model": None, "predictions": "answers.csv", "notes": ["Two rows were empty."]}
    table = format_table(describe(run=run, differences=["4 questions instead of 451"]))
    assert "answers of answers.csv" in table
    assert "differ from the known split: 4 questions instead of 451." in table
    assert table.endswith("Two rows were empty.")


def test_metrics_without_closed_questions_have_no_constant_answer():
    metrics = describe(ROWS[2:])
    assert "constant_answer" not in metrics
    assert "constant answer" not in format_table(metrics)


def test_constant_answer_joins_spellings_of_yes_and_no():
    rows = [make_row("", answer, "CLOSED", "") for answer in ("No", "no.", "No, clear", "yes", "Left")]
    assert best_constant_answer(rows) == {"answer": "no", "closed_accuracy": pytest.approx(60)}


def test_multiple_choice_has_its_chance_level_and_a_release_protocol_for_texts_only():
    by_text = describe(CHOICES, "multiple_choice")
    assert by_text["overall"]["accuracy"] == by_text["release_protocol"]["accuracy"] == 50.0
    assert "Choosing at random is right in 37.5 percent." in format_table(by_text)
    scored = [row | {"option_scores": [-float(place) for place, _ in enumerate(row["options"])]} for row in CHOICES]
    by_likelihood = describe(scored, "multiple_choice")
    assert by_likelihood["overall"]["accuracy"] == 0.0
    assert "release_protocol" not in by_likelihood
