"""The commands of `eval/README.md` run, and the examples of docstrings and of the metric's card hold."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

from logramed.eval import run


REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "eval" / "README.md"
CARD = REPOSITORY / "eval" / "metrics" / "medical_vqa" / "README.md"
ENTRY_POINTS = ("python eval/run.py ", "logramed-eval ")
MODULES_WITH_EXAMPLES = [
    "logramed.eval.benchmarks",
    "logramed.eval.benchmarks.vqa_rad",
    "logramed.eval.metrics.medical_vqa.vqa_scoring",
    "logramed.eval.predictions",
    "logramed.eval.report",
    "logramed.eval.run",
]


def code_blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
def test_every_command_of_the_readme_runs(tiny_model, tiny_vqa_rad, tmp_path, capsys):
    folders = {"MODEL_FOLDER": tiny_model, "VQA_RAD_FOLDER": tiny_vqa_rad, "OUTPUT_FOLDER": tmp_path}
    commands = [line for block in code_blocks(README, "bash") for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        for name, folder in folders.items():
            command = command.replace(name, str(folder))
        (arguments,) = [command.removeprefix(entry) for entry in ENTRY_POINTS if command.startswith(entry)]
        assert run.main(shlex.split(arguments)) == 0
        assert "closed accuracy" in capsys.readouterr().out
    assert (tmp_path / "metrics.blank_images.json").is_file()
    assert (tmp_path / "first" / "metrics.json").is_file()


@pytest.mark.parametrize("document", [README, CARD], ids=["README", "card"])
def test_python_blocks_of_the_documents_run(document, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    (block,) = code_blocks(document, "python")
    exec(compile(block, str(document), "exec"), {})
    said = re.search(r"print\(.*\)  # (.*)", block)
    assert said is None or capsys.readouterr().out.strip() == said.group(1)


@pytest.mark.parametrize("name", MODULES_WITH_EXAMPLES)
def test_docstring_examples_hold(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_card_names_every_figure_and_option_of_the_metric():
    from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers

    card = CARD.read_text(encoding="utf-8")
    result = evaluate_answers(["a b", "no"], ["a b", "no"], ["OPEN", "CLOSED"], candidates=["a b"], return_items=True)
    shorthand = {"open_bleu_2": "`_2`", "open_bleu_3": "`_3`"}
    for name in (*result, "protocol", "candidates", "return_items", "num_resamples", "seed"):
        assert shorthand.get(name, f"`{name}`") in card, name
