"""Types of the public API, checked by mypy on the packages laid out as they are installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
LAYOUT = {
    "modeling_logramed": "logramed",
    "trainer": "logramed/trainer",
    "eval": "logramed/eval",
    "hub_cards": "logramed/hub_cards",
}


def check_types(folder):
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--package", "logramed"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    for source, target in LAYOUT.items():
        shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_types_agree(installed):
    done = check_types(installed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_type_is_found(installed):
    module = installed / "logramed/trainer/wrong.py"
    module.write_text("from logramed.eval.files import hash_file\n\n\nbroken: int = hash_file('a')\n")
    try:
        done = check_types(installed)
    finally:
        module.unlink()
    assert done.returncode == 1
    assert 'trainer/wrong.py:4: error: Incompatible types in assignment (expression has type "bytes"' in done.stdout
