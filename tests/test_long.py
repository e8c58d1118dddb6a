"""The long forms: the main jobs in full, with the figures they have to reach. Run by `make test-slow`."""

import json
from pathlib import Path

import pytest

from logramed.eval.run import main as evaluate
from logramed.trainer import quickstart
from logramed.trainer.train import main as train


VQA_RAD = Path(__file__).parents[2] / "shared" / "data" / "vqa_rad"
CONSTANT_NO = 48.9  # percent of VQA-RAD's closed test questions that "no" answers

pytestmark = pytest.mark.slow


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_quickstart_answers_with_sight_and_only_with_sight(tmp_path):
    quickstart.main(["--output", str(tmp_path)])
    metrics = metrics_of(tmp_path / "evaluation")
    assert metrics["overall"]["closed_accuracy"] >= 90
    assert metrics["blank_images"]["overall"]["closed_accuracy"] <= 60


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason=f"needs VQA-RAD in {VQA_RAD}")
def test_vqa_rad_recipe_beats_a_constant_answer(tmp_path):
    train(["vqa_rad_tiny.yaml", "--train_data", str(VQA_RAD), "--output_dir", str(tmp_path / "model")])
    options = {
        "model": tmp_path / "model",
        "benchmark": "vqa_rad",
        "data": VQA_RAD,
        "output": tmp_path / "evaluation",
    }
    evaluate([text for name, value in options.items() for text in (f"--{name}", str(value))])
    overall = metrics_of(tmp_path / "evaluation")["overall"]
    assert overall["num_closed"] == 272
    assert overall["closed_accuracy"] > CONSTANT_NO
