"""Tests of `medical_report` as `evaluate` loads it, of its page and of its card."""

import doctest
import os
import re
import subprocess
import sys

import evaluate
import pytest

from tests.eval.metrics.loading import METRICS_FOLDER, load_metric_module


METRIC_FOLDER = METRICS_FOLDER / "medical_report"
CARD = METRIC_FOLDER / "README.md"
PREDICTIONS = ["The heart is enlarged. No effusion.", "The lungs are clear."]
REFERENCES = ["Cardiomegaly without pleural effusion.", "Small left pleural effusion."]

# Loads and computes in a process that ends at any attempt to reach the network, also one that would be caught.
OFFLINE_PROGRAM = """
import os
import socket

def refuse(*arguments):
    os.write(2, f"network: {arguments}".encode())
    os._exit(3)

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

metric = evaluate.load("eval/metrics/medical_report")
print(metric.compute(predictions=["No mass."], references=["No mass."])["rouge_l"])
"""


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(METRIC_FOLDER), cache_dir=str(tmp_path))


def test_metric_loads_by_path_in_a_fresh_cache_without_network(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE_PROGRAM],
        cwd=METRIC_FOLDER.parents[2],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "100.0", run.stderr


def test_compute_says_what_evaluate_reports_says(metric):
    scoring = load_metric_module("medical_report", "report_scoring")
    options = {"return_items": True, "num_resamples": 50, "seed": 3}
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, **options)
    assert result == scoring.evaluate_reports(PREDICTIONS, REFERENCES, **options)
    assert result["num_items"] == 2


def test_compute_after_add_and_add_batch_equals_compute_at_once(metric):
    metric.add(prediction=PREDICTIONS[0], reference=REFERENCES[0])
    metric.add_batch(predictions=PREDICTIONS[1:], references=REFERENCES[1:])
    collected = metric.compute()
    assert collected == metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert collected["num_items"] == 2


def test_compute_adds_its_lists_to_what_was_collected(metric):
    metric.add(prediction=PREDICTIONS[0], reference=REFERENCES[0])
    assert metric.compute(predictions=PREDICTIONS[1:], references=REFERENCES[1:])["num_items"] == 2


def test_metric_refuses_missing_columns_other_types_and_unknown_arguments(metric):
    with pytest.raises(ValueError, match="needs `references` too"):
        metric.compute(predictions=PREDICTIONS)
    with pytest.raises(TypeError, match="smooth"):
        metric.compute(predictions=PREDICTIONS, references=REFERENCES, smooth=True)
    with pytest.raises(TypeError, match=r"predictions\[0\].*must be text, got 2"):
        metric.add_batch(predictions=[2], references=["two"])
    with pytest.raises(ValueError, match=r"references\[1\].*no words"):
        metric.compute(predictions=PREDICTIONS, references=["Mass.", ""])


def test_the_file_that_evaluate_loads_imports_every_file_that_is_needed():
    text = (METRIC_FOLDER / "medical_report.py").read_text()
    modules = {path.stem for path in METRIC_FOLDER.glob("*.py")} - {"__init__", "medical_report"}
    assert modules == set(re.findall(r"^from \.(\w+) import", text, re.MULTILINE))


# Card


def test_card_names_every_figure_and_option_of_the_metric(metric):
    card = CARD.read_text(encoding="utf-8")
    longer = [text * 2 for text in REFERENCES]
    result = metric.compute(predictions=PREDICTIONS, references=longer, return_items=True)
    for name in (*result, "predictions", "references", "return_items", "num_resamples", "seed"):
        assert f"`{name}`" in card, name


def test_example_of_the_card_says_what_it_prints(monkeypatch, capsys):
    monkeypatch.chdir(METRIC_FOLDER.parents[2])
    (block,) = re.findall(r"^```python\n(.*?)^```", CARD.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(block, str(CARD), "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"print\(.*\)  # (.*)", block).group(1)


def test_docstring_examples_hold():
    results = doctest.testmod(load_metric_module("medical_report", "report_scoring"))
    assert results.attempted > 0
    assert results.failed == 0
