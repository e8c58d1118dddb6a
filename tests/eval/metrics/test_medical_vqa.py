"""Tests of `medical_vqa` as `evaluate` loads it."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest


METRIC_FOLDER = Path(__file__).parents[3] / "eval" / "metrics" / "medical_vqa"

# Loads and computes in a process that ends at any attempt to reach the network, also one that would be caught.
OFFLINE_PROGRAM = """
import os
import socket

def refuse(*arguments):
    os.write(2, f"network: {arguments}".encode())
    os._exit(3)

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

metric = evaluate.load("eval/metrics/medical_vqa")
print(metric.compute(predictions=["Yes"], references=["yes"], answer_types=["CLOSED"])["closed_accuracy"])
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


def test_compute_takes_numbers_and_says_what_evaluate_answers_says(metric):
    result = metric.compute(
        predictions=["Assistant: 2", "left or right"],
        references=[2, "left"],
        answer_types=["open", "CLOSED "],
        candidates=[2, "lung"],
        return_items=True,
    )
    assert result["open_exact_match"] == result["open_accuracy"] == 100.0
    assert result["closed_accuracy"] == 0.0
    assert len(result["items"]) == 2
    assert result["intervals"]["open_recall"] == [100.0, 100.0]
    assert result["counts"]["open_recall"] == 1
    assert result["average"] == 50.0


def test_compute_after_add_and_add_batch_equals_compute_at_once(metric):
    metric.add(prediction=2, reference="two", answer_types="open")
    metric.add_batch(predictions=["yes", "no"], references=["yes", "yes"], answer_types=["CLOSED", "CLOSED "])
    collected = metric.compute(protocol="release", clusters=["1", "2", "2"])
    at_once = metric.compute(
        predictions=[2, "yes", "no"],
        references=["two", "yes", "yes"],
        answer_types=["OPEN"] + ["CLOSED"] * 2,
        protocol="release",
        clusters=["1", "2", "2"],
    )
    assert collected == at_once
    assert collected["intervals"]["closed_accuracy"] == [50.0, 50.0]  # of one image
    assert collected["num_closed"] == 2


def test_compute_adds_its_lists_to_what_was_collected(metric):
    metric.add_batch(predictions=["yes"], references=["yes"], answer_types=["CLOSED"])
    assert metric.compute(predictions=["no"], references=["yes"], answer_types=["CLOSED"])["closed_accuracy"] == 50.0


def test_metric_refuses_missing_columns_and_unknown_arguments(metric):
    with pytest.raises(ValueError, match="needs `answer_types` too"):
        metric.compute(predictions=["yes"], references=["yes"])
    with pytest.raises(TypeError, match="protocoll"):
        metric.compute(predictions=["yes"], references=["yes"], answer_types=["CLOSED"], protocoll="release")
    with pytest.raises(ValueError, match=r"answer_types\[0\].*got 'number'"):
        metric.compute(predictions=["yes"], references=["yes"], answer_types=["number"])
