"""The metrics and all tests of this folder run where neither torch nor a model library is installed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.metrics.loading import load_metric_module


ROOT = Path(__file__).parents[3]


def test_whole_folder_passes_without_torch_transformers_and_logramed():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("this is the run without torch")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.eval.metrics.without_models",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [*command, "tests/eval/metrics"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 200


def test_hiding_a_package_makes_its_import_fail():
    program = (
        "from tests.eval.metrics import without_models\n"
        "without_models.pytest_configure(None)\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "for name in ('torch', 'transformers', 'logramed.eval'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ModuleNotFoundError:\n"
        "        print(name)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["torch", "transformers", "logramed.eval"]


def test_modules_loaded_by_path_are_loaded_once_and_see_their_siblings():
    scoring = load_metric_module("medical_vqa", "vqa_scoring")
    assert load_metric_module("medical_vqa", "vqa_scoring") is scoring
    assert scoring.score_closed_release is load_metric_module("medical_vqa", "release_protocol").score_closed_release
    assert not scoring.__name__.startswith("logramed")
