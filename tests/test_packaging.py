"""The wheel, used from an empty folder, and what the repository says of itself."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True, text=True)
    return next(folder.glob("logramed-*.whl"))


def test_wheel_holds_every_module_recipe_and_card(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {
        "modeling_logramed": "logramed",
        "trainer": "logramed/trainer",
        "eval": "logramed/eval",
        "hub_cards": "logramed/hub_cards",
    }
    for folder, package in folders.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".json", ".jinja", ".css") or path.name == "requirements.txt":
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names
    for path in (ROOT / "eval" / "metrics").glob("*/README.md"):
        assert f"logramed/eval/metrics/{path.parent.name}/README.md" in names
    assert not any(name.startswith("tests") for name in names)


def test_wheel_works_from_an_empty_folder(wheel, tmp_path):
    (tmp_path / "site").mkdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import logramed, logramed.trainer.train, logramed.eval.run, logramed.eval.compare, logramed.hub_cards.push
assert logramed.__file__.startswith({str(tmp_path)!r}), logramed.__file__
model, data, training = logramed.trainer.train.parse_arguments(["quickstart.yaml", "--output_dir", "here"])
print(training.output_dir, data.train_data)
import evaluate
folder = logramed.eval.run.__file__.replace("run.py", "metrics/medical_vqa")
print(evaluate.load(folder).compute(predictions=["yes"], references=["Yes"], answer_types=["CLOSED"])["num_closed"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0].startswith("here ")
    assert done.stdout.splitlines()[-1] == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("logramed-train", "--output"),
        ("logramed-eval", "--output"),
        ("logramed-compare", "--output"),
        ("logramed-push", "--repo"),
        ("logramed-serve", "--model"),
    ],
)
def test_console_commands_show_their_arguments(command, option):
    path = Path(sys.executable).with_name(command)
    done = subprocess.run([str(path), "--help"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert option in done.stdout


def test_constraints_satisfy_the_bounds_of_the_project():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    for line in PROJECT["project"]["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[requirement.name]), line
    older = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-4.57.txt").read_text(), flags=re.MULTILINE))
    assert older["transformers"].startswith("4.57.")


def test_model_code_imports_only_what_loading_may_need():
    allowed = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"} | set(sys.stdlib_module_names)
    for path in (ROOT / "modeling_logramed").glob("*.py"):
        for line in path.read_text().splitlines():
            match = re.match(r"\s*(?:from|import) (\.?[\w]+)", line)
            if match:
                assert match[1].startswith(".") or match[1] in allowed, f"{path.name}: {line}"
            assert not re.match(r"\s*from \. import", line), f"{path.name}: {line}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_threads_spin_a_little_unless_somebody_said_how_they_wait(given, expected):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP_WAIT"))}
    code = "import os, sys, logramed; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
