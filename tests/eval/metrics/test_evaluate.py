"""Each metric as `evaluate` loads it from its folder, and its card."""

import re
from pathlib import Path

import evaluate
import pytest


METRICS_FOLDER = Path(__file__).parents[3] / "eval" / "metrics"
COLUMNS = {
    "medical_vqa": {
        "predictions": ["Assistant: 2", "left or right", "yes"],
        "references": ["2", "left", "yes"],
        "answer_types": ["open", "CLOSED ", "CLOSED"],
    },
    "medical_multiple_choice": {
        "predictions": ["B", "CT or MRI"],
        "references": ["MRI", "CT"],
        "options": [["CT", "MRI", None, ""], ["CT", "MRI"]],
    },
    "medical_report": {
        "predictions": ["The heart is enlarged. No effusion.", ""],
        "references": ["Cardiomegaly without pleural effusion.", "Small left pleural effusion."],
    },
    "medical_chat_judge": {
        "predictions": ["8 4", "Assistant 1: 3\nAssistant 2: 6", "9 9", ""],
        "question_ids": ["1", "1", "2", "2"],
        "question_types": ["conversation"] * 4,
        "domains": [["mri"], ["mri"], ["histology", "gross"], ["histology", "gross"]],
        "orders": ["reference_first", "model_first"] * 2,
    },
}
FIGURES = {
    "medical_vqa": {"open_exact_match": 100.0, "closed_accuracy": 50.0, "average": 75.0},
    "medical_multiple_choice": {"accuracy": 50.0, "chance": 50.0, "num_undecided": 1},
    "medical_report": {"num_items": 2},
    "medical_chat_judge": {"relative_score": 50.0, "num_items": 1, "num_asked": 2},
}


def load(name, tmp_path):
    return evaluate.load(str(METRICS_FOLDER / name), cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", COLUMNS)
def test_compute_gives_the_figures_at_once_and_after_add_batch(name, tmp_path):
    metric, columns = load(name, tmp_path), COLUMNS[name]
    result = metric.compute(**columns, return_items=True, num_resamples=50)
    assert FIGURES[name].items() <= result.items()
    metric.add_batch(**{key: column[:1] for key, column in columns.items()})
    metric.add_batch(**{key: column[1:] for key, column in columns.items()})
    assert metric.compute(return_items=True, num_resamples=50) == result


def test_multiple_choice_takes_scores_of_the_options(tmp_path):
    metric = load("medical_multiple_choice", tmp_path)
    columns = {"references": ["MRI"], "options": [["CT", "MRI"]]}
    assert metric.compute(predictions=[[-2.0, -0.5]], **columns)["accuracy"] == 100.0


def test_missing_columns_and_unknown_arguments_are_refused(tmp_path):
    metric = load("medical_vqa", tmp_path)
    with pytest.raises(ValueError, match=r"missing.*answer_types"):
        metric.compute(predictions=["yes"], references=["yes"])
    with pytest.raises(TypeError, match="protocoll"):
        metric.compute(**COLUMNS["medical_vqa"], protocoll="release")


@pytest.mark.parametrize("name", COLUMNS)
def test_card_names_every_figure_and_input(name, tmp_path):
    card = (METRICS_FOLDER / name / "README.md").read_text(encoding="utf-8")
    metric = load(name, tmp_path)
    arguments = ["return_items", "num_resamples", "seed"]
    arguments += ["clusters", "num_clusters", "protocol"] * (name != "medical_report")
    for figure in (*metric.compute(**COLUMNS[name], return_items=True), *COLUMNS[name], *arguments):
        if not re.fullmatch(r"open_bleu_[23]", figure):
            assert f"`{figure}`" in card, figure


@pytest.mark.parametrize("name", COLUMNS)
def test_python_blocks_of_the_card_run(name, monkeypatch, capsys):
    monkeypatch.chdir(METRICS_FOLDER.parents[1])
    card = (METRICS_FOLDER / name / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})
        said = re.findall(r"print\((?:[^#]|\n)*\)  # (.*)", block)
        assert said
        assert all(line in capsys.readouterr().out for line in said)
