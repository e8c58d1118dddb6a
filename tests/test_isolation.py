"""The tests themselves: no way to the real Hub, no token of who runs them, nothing left behind."""

import gc
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets.config
import datasets.utils.logging
import evaluate.config
import huggingface_hub
import numpy
import pytest
import torch
import transformers.utils.hub
import transformers.utils.logging
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from huggingface_hub import HfApi, HfFileSystem

from tests.conftest import NEEDS_CHROMIUM, pytest_terminal_summary
from tests.hub_client import client_of
from tests.hub_server import TOKEN, running_hub
from tests.isolation import CLOSED, kept_state, seed_everything


ROOT = Path(__file__).parents[1]
PERSONS_TOKEN = "hf_" + "personal" * 4
ASK = """
import json, os, urllib.error, urllib.request
import datasets, evaluate, huggingface_hub, trackio.utils, transformers
from huggingface_hub import constants
def reach(address):
    try:
        urllib.request.urlopen(address, timeout=5)
    except urllib.error.URLError as error:
        return type(error.reason).__name__
print(json.dumps({
    "addresses": [
        constants.ENDPOINT, constants.INFERENCE_ENDPOINT, datasets.config.HF_ENDPOINT, evaluate.config.HF_ENDPOINT,
        huggingface_hub.hf_api.api.endpoint, huggingface_hub.hffs.endpoint, transformers.utils.hub.hf_api().endpoint,
    ],
    "headers": sorted(huggingface_hub.utils.build_hf_headers()),
    "token": huggingface_hub.get_token(),
    "reached": reach("https://huggingface.co"),
    "environment": [name for name, value in os.environ.items() if "hf_personal" in value],
}))
"""


def planted_environment(home):
    """As of a person who is logged in and has turned everything to the real Hub."""
    (home / "token").write_text(PERSONS_TOKEN)
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
    named = {"HF_HOME": str(home), "HF_TOKEN_PATH": str(home / "token"), "HF_HUB_OFFLINE": "0"}
    return os.environ | dict.fromkeys(names, PERSONS_TOKEN) | named | {"HF_ENDPOINT": "https://huggingface.co"}


def test_every_client_of_this_process_asks_an_address_where_nothing_listens():
    clients = [client for client in gc.get_objects() if issubclass(type(client), HfApi | HfFileSystem)]
    assert {client.endpoint for client in [*clients, transformers.utils.hub.hf_api(), HfApi()]} == {CLOSED}
    constants = huggingface_hub.constants
    assert {constants.ENDPOINT, datasets.config.HF_ENDPOINT, evaluate.config.HF_ENDPOINT} == {CLOSED}
    assert constants.HF_HUB_OFFLINE
    assert huggingface_hub.get_token() is None
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.get_session().get("https://huggingface.co", timeout=5)


def test_a_session_of_tests_and_its_processes_know_no_token_and_no_hub(tmp_path):
    script = f"import tests.conftest\n{ASK}\ntests.conftest.pytest_unconfigure(None)"
    environment = planted_environment(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["addresses"]) == {CLOSED}
    assert found["reached"] == "ConnectionRefusedError"
    assert (found["token"], "authorization" in found["headers"]) == (None, False)
    assert found["environment"] == []


def test_a_client_turned_to_a_server_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # as in a process that has made none yet
    before = shared_addresses()
    with running_hub(tmp_path / "hub") as hub, client_of(hub):
        assert transformers.utils.hub.hf_api().whoami()["name"] == "tester"
        assert CLOSED not in shared_addresses().values()
        assert huggingface_hub.get_token() == TOKEN
    assert shared_addresses() == before | {("transformers.utils.hub", "_hf_api"): CLOSED}
    assert huggingface_hub.get_token() is None
    assert huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("made_before", [False, True])
def test_a_client_that_was_made_before_talks_to_the_server_too(tmp_path, monkeypatch, made_before):
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", HfApi() if made_before else None)
    with running_hub(tmp_path / "hub") as hub, client_of(hub):
        transformers.utils.hub.hf_api().create_repo("tester/made", private=True)
        huggingface_hub.create_repo("tester/other", private=True)
        assert hub.hub.read("models", "tester/made")["private"]
        assert hub.hub.read("models", "tester/other")["private"]


def shared_addresses():
    """Where modules keep the address of a Hub, and which."""
    found = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("tests"):
            for key, value in list(vars(module).items()):
                address = value if type(value) is str else vars(value).get("endpoint") if is_client(value) else None
                if address is not None and re.match(r"http://127\.0\.0\.1:\d+", address):
                    found[name, key] = re.match(r"http://127\.0\.0\.1:\d+", address)[0]
    return found


def is_client(value):
    return issubclass(type(value), HfApi | HfFileSystem)


def test_what_a_test_leaves_in_the_process_is_put_back(tmp_path, monkeypatch):
    logger = logging.getLogger("transformers.anything")
    before = dict(os.environ), Path.cwd(), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    states = dict(PartialState._shared_state), dict(AcceleratorState._shared_state)
    verbosity = transformers.utils.logging.get_verbosity(), datasets.utils.logging.get_verbosity()
    with kept_state():
        os.environ["HF_TOKEN"] = "left"
        os.environ.pop("HF_ENDPOINT")
        os.chdir(tmp_path)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        Accelerator(cpu=True)
        logger.warning_once("said once in a process")
        transformers.utils.logging.set_verbosity_info()
        datasets.utils.logging.set_verbosity_debug()
    after = dict(os.environ), Path.cwd(), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    assert after == before
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert (transformers.utils.logging.get_verbosity(), datasets.utils.logging.get_verbosity()) == verbosity
    assert (dict(PartialState._shared_state), dict(AcceleratorState._shared_state)) == states
    said = []
    monkeypatch.setattr(logger, "warning", lambda *words, **options: said.append(words))
    logger.warning_once("said once in a process")
    assert said


def test_every_test_and_fixture_draws_from_the_same_seed():
    drawn = torch.rand(1), random.random(), numpy.random.rand()
    seed_everything()
    assert drawn == (torch.rand(1), random.random(), numpy.random.rand())


def test_tests_left_out_for_want_of_a_browser_are_told_at_the_end():
    lines = []
    skipped = [SimpleNamespace(longrepr=("test_space.py", 1, f"Skipped: {NEEDS_CHROMIUM}"))] * 9
    other = SimpleNamespace(longrepr=("test_other.py", 1, "Skipped: needs a CUDA device"))
    for reports in ([other], [other, *skipped]):
        pytest_terminal_summary(SimpleNamespace(stats={"skipped": reports}, write_line=lines.append))
    [line] = lines
    assert line.startswith("9 tests of the demo were left out")
    assert "`make install-browser`" in line


def test_a_run_on_several_processes_tells_it_too(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "LOGRAMED_CHROMIUM"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "tests/hub_cards/test_space.py", "-k", "no_width"],
        cwd=ROOT,
        env=environment | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 tests of the demo were left out" in done.stdout, done.stdout
