"""Tests of `medical_chat_judge` as `evaluate` loads it."""

import os
import subprocess
import sys

import evaluate
import pytest

from tests.eval.metrics.loading import METRICS_FOLDER


METRIC_FOLDER = METRICS_FOLDER / "medical_chat_judge"
ROWS = {
    "predictions": ["8 4", "Assistant 1: 3\nAssistant 2: 6", "9 9", None],
    "question_ids": [1, "1", 2, 2],
    "question_types": ["conversation"] * 4,
    "domains": ["mri", ["mri"], ["histology", "gross"], ["histology", "gross"]],
    "orders": ["reference_first", "model_first"] * 2,
}
# Loads and computes in a process that ends at any attempt to reach the network, also one that would be caught.
OFFLINE_PROGRAM = """
import os
import socket

def refuse(*arguments):
    os.write(2, f"network: {arguments}".encode())
    os._exit(3)

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

metric = evaluate.load("eval/metrics/medical_chat_judge")
columns = dict(predictions=["8 4"], question_ids=[1], question_types=["conversation"], domains=["mri"])
print(metric.compute(**columns, protocol="release")["relative_score"])
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
    assert run.stdout.strip() == "50.0", run.stderr


def test_compute_joins_orders_and_lists_what_could_not_be_judged(metric):
    result = metric.compute(**ROWS, return_items=True)
    assert (result["relative_score"], result["num_items"], result["num_asked"]) == (50.0, 1, 2)
    assert [problem["question_id"] for problem in result["not_judged"]] == ["2"]
    assert len(result["items"]) == 1
    assert list(result["groups"]["domain"]) == ["mri"]


def test_compute_after_add_and_add_batch_equals_compute_at_once(metric):
    one, *_ = zip(*ROWS.values(), strict=True)
    metric.add(prediction=one[0], **dict(zip(list(ROWS)[1:], one[1:], strict=True)))
    metric.add_batch(**{name: column[1:] for name, column in ROWS.items()})
    collected = metric.compute(seed=3, clusters=["1"] * len(ROWS["predictions"]))
    assert collected == metric.compute(**ROWS, seed=3, clusters=["1"] * len(ROWS["predictions"]))
    assert collected["num_clusters"] == 1


def test_collected_replies_without_orders_have_the_reference_first(metric):
    columns = {name: ROWS[name][::2] for name in ROWS if name != "orders"}
    metric.add_batch(**columns)
    assert metric.compute(protocol="release") == metric.compute(**columns, protocol="release")


def test_metric_refuses_missing_columns_and_unknown_arguments(metric):
    with pytest.raises(ValueError, match="needs `question_types`, `domains` too"):
        metric.compute(predictions=["8 7"], question_ids=[1])
    with pytest.raises(ValueError, match="`orders` is missing"):
        metric.compute(**ROWS | {"orders": None})
    with pytest.raises(TypeError, match="protocoll"):
        metric.compute(**ROWS, protocoll="release")
    with pytest.raises(TypeError, match=r"`domains\[0\]`.*got 3"):
        metric.add_batch(**ROWS | {"domains": [3]})


def test_card_names_every_figure_and_option_of_the_metric(metric):
    card = (METRIC_FOLDER / "README.md").read_text(encoding="utf-8")
    result = metric.compute(**ROWS, return_items=True)
    assert result["position_bias"].keys() - {"intervals"}
    names = {*result, *result["position_bias"], *result["groups"], *result["not_judged"][0], *ROWS}
    for name in names | {"protocol", "return_items", "num_resamples", "seed", "clusters", "num_clusters"}:
        assert f"`{name}`" in card, name
