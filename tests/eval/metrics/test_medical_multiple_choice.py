"""Tests of `medical_multiple_choice` as `evaluate` loads it."""

import evaluate
import pytest

from tests.eval.metrics.loading import METRICS_FOLDER


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(METRICS_FOLDER / "medical_multiple_choice"), cache_dir=str(tmp_path))


def test_compute_takes_texts_and_scores_side_by_side(metric):
    result = metric.compute(
        predictions=["B", [-0.5, -2.0, -3.0]],
        references=["MRI", "CT"],
        options=[["CT", "MRI", None, None], ["CT", "MRI", "PET"]],
        groups=["head", "chest"],
        return_items=True,
    )
    assert result["accuracy"] == 100.0
    assert result["counts"] == {"accuracy": 2}
    assert set(result["groups"]) == {"head", "chest"}
    assert [item["index"] for item in result["items"]] == [1, 0]


@pytest.mark.parametrize("predictions", [["B", "CT or MRI"], [[-0.5, -2.0], [-2.0, -0.5]]])
def test_compute_after_add_and_add_batch_equals_compute_at_once(metric, predictions):
    references, options = ["MRI", "CT"], [["CT", "MRI"]] * 2
    clusters = ["1", "1"]
    at_once = metric.compute(predictions=predictions, references=references, options=options, clusters=clusters)
    metric.add(prediction=predictions[0], reference="MRI", options=["CT", "MRI"])
    metric.add_batch(predictions=predictions[1:], references=["CT"], options=[["CT", "MRI"]])
    assert metric.compute(clusters=clusters) == at_once
    assert at_once["intervals"]["accuracy"] == [at_once["accuracy"]] * 2  # of one image


def test_collected_options_may_be_numbers_or_missing_as_at_once(metric):
    columns = {"predictions": ["10", "D"], "references": ["10", "PET"], "options": [[1, 10], ["CT", None, "", "PET"]]}
    metric.add_batch(**columns)
    assert metric.compute() == metric.compute(**columns)


def test_metric_refuses_missing_columns_and_unknown_arguments(metric):
    with pytest.raises(ValueError, match="needs `options` too"):
        metric.compute(predictions=["A"], references=["CT"])
    with pytest.raises(TypeError, match="protocoll"):
        metric.compute(predictions=["A"], references=["CT"], options=[["CT", "MRI"]], protocoll="release")
