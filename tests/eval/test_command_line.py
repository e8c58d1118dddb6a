"""A user's mistake is one short message on stderr and exit code 2, whatever the command."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError

from logramed.eval.command_line import run_command
from logramed.trainer.checkpoints.saving import CheckpointError


ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = {name: EntryPoint(name, value, "console_scripts") for name, value in SCRIPTS.items()}
RECIPE = "train_data: data.json\noutput_dir: run\nmodel: model\nuse_cpu: true\nreport_to: none\n"
# Command, arguments, what is said. `data.json` is an empty list, `model` an empty folder.
MISTAKES = [
    ("logramed-train", ["quickstrat.yaml"], "no recipe quickstrat.yaml"),
    (
        "logramed-train",
        ["recipe.yaml", "--learnig_rate", "1"],
        "Unknown arguments: --learnig_rate",
    ),
    ("logramed-train", ["misspelt.yaml"], "alignment_wieght"),
    ("logramed-train", ["broken.yaml"], "broken.yaml, line 3 is not YAML"),
    ("logramed-train", ["recipe.yaml", "--train_data", "nowhere.json"], "no file or folder nowhere.json"),
    ("logramed-train", ["recipe.yaml", "--num_train_epochs", "x"], "invalid float value: 'x'"),
    ("logramed-train", ["recipe.yaml"], "data.json"),
    (
        "logramed-train",
        ["recipe.yaml", "--train_data", "rows.json", "--alignment_weight", "0"],
        "`--model` model is a folder without config.json",
    ),
    (
        "logramed-eval",
        ["--benchmark", "slake", "--data", "x", "--output", "x", "--modle", "y"],
        "Unknown arguments: --modle",
    ),
    (
        "logramed-eval",
        ["--model", "model", "--benchmark", "slakk", "--data", "x", "--output", "out"],
        "slakk",
    ),
    (
        "logramed-eval",
        ["--model", "model", "--benchmark", "slake", "--data", "nowhere", "--output", "out"],
        "nowhere",
    ),
    ("logramed-compare", ["one", "two", "--output", "x", "--outptu", "x"], "unrecognized arguments: --outptu"),
    ("logramed-compare", ["one", "two", "--output", "x"], "one/metrics.json is missing"),
    ("logramed-push", ["nowhere", "--repo", "someone/mine"], "no folder nowhere"),
    ("logramed-push", ["model", "--repo", "x", "--rpeo", "y"], "unrecognized arguments: --rpeo"),
    ("logramed-serve", ["--model", "runs/nothing/model"], "`--model` runs/nothing/model: there is no such folder"),
    ("logramed-serve", ["--modle", "x"], "--model"),
    ("logramed-merge", ["model", "--output", "x"], "model is not an adapter folder"),
    ("logramed-merge", ["model", "--output", "x", "--outptu", "x"], "unrecognized arguments: --outptu"),
    ("logramed-subsets", ["nowhere.json", "--share", "0.1", "--output", "x"], "nowhere.json"),
    (
        "logramed-extend",
        ["nowhere.json", "--output", "x.jsonl", "--endpoint", "http://127.0.0.1:9/v1", "--model", "model"],
        "nowhere.json",
    ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "data.json").write_text("[]")
    turns = [{"role": "user", "content": "Ill?"}, {"role": "assistant", "content": "No."}]
    row = {"id": "1", "messages": turns, "extended_answers": ["No, it is not."]}
    (tmp_path / "rows.json").write_text(f"[{row}]".replace("'", '"'))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "misspelt.yaml").write_text(RECIPE + "alignment_wieght: 1\n")
    (tmp_path / "broken.yaml").write_text("model: model\nlist: [1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "arguments", "words"), MISTAKES)
def test_a_mistake_is_a_short_message_and_exit_code_2(folder, monkeypatch, capfd, name, arguments, words):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        code = COMMANDS[name].load()()
    except SystemExit as end:  # argparse's own
        code = end.code
    said = capfd.readouterr().err
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    message = said[said.rindex(f"{name}: ") :]
    assert len(message) < 800
    assert message.count("\n") <= 3


def test_every_command_ends_this_way():
    assert COMMANDS
    for entry in COMMANDS.values():
        assert entry.attr == "command"
        module = import_module(entry.module)
        source = Path(module.__file__).read_text()
        assert "return run_command(main)" in source
        assert source.endswith('\n\nif __name__ == "__main__":\n    raise SystemExit(command())\n')


def test_debugging_shows_the_traceback(folder, monkeypatch):
    monkeypatch.setenv("LOGRAMED_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["logramed-train", "quickstrat.yaml"])
    with pytest.raises(FileNotFoundError, match="no recipe"):
        COMMANDS["logramed-train"].load()()


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "out/run.json"), "out/run.json: Permission denied"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (ImportError("needs gradio: `pip install 'logramed[demo]'`"), "needs gradio"),
        (yaml.YAMLError("found a tab"), "found a tab"),
        (StrictDataclassFieldValidationError("hidden_size", ValueError("no integer")), "hidden_size"),
        (CheckpointError("no checkpoint can be read"), "no checkpoint can be read"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_files_names_and_values_raise_is_a_mistake(capsys, error, words):
    assert run_command(raising(error)) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), KeyError("x"), AssertionError(), TypeError("f()")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_codes_of_a_command_are_kept_and_an_interruption_has_its_own(capsys):
    assert [run_command(lambda code=code: code) for code in (None, 0, 1, 143)] == [0, 0, 1, 143]
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize("script", ["trainer/train.py", "eval/run.py", "hub_cards/push.py"])
def test_commands_begin_without_a_line_of_other_packages(script):
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, script, "--no_such_argument"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: " in done.stderr.splitlines()[-1] or "--no_such_argument" in done.stderr.splitlines()[-1]
    assert "gemm" not in done.stderr
    assert "Traceback" not in done.stderr
