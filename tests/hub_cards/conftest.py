import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logramed.eval.run import main as evaluate
from logramed.trainer.phantoms import generate_phantoms
from tests.hub_server import TOKEN, running_hub


ROOT = Path(__file__).parents[2]
REPO = "tester/logramed-mini"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    return generate_phantoms(tmp_path_factory.mktemp("phantoms") / "data", num_train=12, num_validation=4, num_test=4)


@pytest.fixture(scope="session")
def published(tmp_path_factory, phantoms):
    """
    A server, and the folder of a model that `train.py --push_to_hub` has trained and published there: `hub`, `model`,
    `printed`, and `environment` for further processes.
    """
    folder = tmp_path_factory.mktemp("published")
    with running_hub(folder / "hub") as hub:
        environment = client_environment(hub, folder / "home")
        options = {
            "first_stage_data": phantoms / "train_descriptions.json",
            "train_data": phantoms / "train.json",
            "validation_data": phantoms / "validation.json",
            "output_dir": folder / "runs" / "model",
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "eval_steps": 2,
            "save_steps": 2,
            "push_to_hub": True,
            "hub_model_id": REPO,
            "hub_license": "apache-2.0",
            "use_cpu": True,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        done = run("trainer/train.py", "quickstart.yaml", *arguments, environment=environment)
        yield {
            "hub": hub,
            "model": folder / "runs" / "model",
            "printed": done.stdout,
            "environment": environment,
        }


def client_environment(hub, home):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    return environment | {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def run(program, *arguments, environment, python=sys.executable):
    """Run a program of this repository, or Python code, in a process of its own."""
    command = [python, str(ROOT / program)] if program.endswith(".py") else [python, "-c", program]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def evaluated(published, phantoms):
    """The same model's folder, with an evaluation beside it."""
    output = published["model"].parent / "evaluation"
    evaluate(
        [
            "--model",
            str(published["model"]),
            "--benchmark",
            "phantoms",
            "--data",
            str(phantoms),
            "--output",
            str(output),
        ]
    )
    return published["model"]


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
