"""The commands of `eval/README.md` run, and the examples of docstrings and of the metrics' cards hold."""

import json
import re
import shlex
from pathlib import Path

import pytest

from logramed.eval import compare, run
from tests.eval.benchmarks.conftest import write_image
from tests.eval.benchmarks.test_chat import FILE, official_row, write_rows
from tests.eval.foreign_files import release_rows, write_lines
from tests.eval.judge_server import JudgeServer


REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "eval" / "README.md"
CARDS = sorted((REPOSITORY / "eval" / "metrics").glob("*/README.md"))
PROGRAMS = {
    "python eval/run.py ": run.main,
    "logramed-eval ": run.main,
    "python eval/compare.py ": compare.main,
}
EVALUATION = REPOSITORY / "eval"


def code_blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def chat_folder(tmp_path):
    """One question of the chat benchmark, in words by which the judge of the tests knows it."""
    row = official_row(0, "0.jpg", "What does item q0 show?\n<image>", ["mri"])
    write_rows(tmp_path / "chat_data" / FILE, [row | {"gpt4_answer": "REFERENCE answer 0."}])
    write_image(tmp_path / "chat_data" / "images" / "0.jpg")
    return tmp_path / "chat_data"


@pytest.mark.filterwarnings("ignore:This .* split has")
def test_every_command_of_the_readme_runs(tiny_model, tiny_vqa_rad, chat_folder, tmp_path, capsys, monkeypatch):
    # The judge of the tests looks for these words in the model's answer.
    monkeypatch.setattr(
        "logramed.eval.answering.clean_answers", lambda tokenizer, rows, stop=None: ["MODEL answer 0." for _ in rows]
    )
    questions = run.get_benchmark("vqa_rad").load_questions(tiny_vqa_rad)
    answers = write_lines(tmp_path / "answers.jsonl", release_rows(questions, ["yes"] * len(questions)))
    output = tmp_path / "output"
    commands = [line for block in code_blocks(README, "bash") for line in block.splitlines()]
    assert len(commands) == 6
    with JudgeServer() as server:
        words = {
            "MODEL_FOLDER": tiny_model,
            "VQA_RAD_FOLDER": tiny_vqa_rad,
            "OUTPUT_FOLDER": output,
            "CHAT_FOLDER": chat_folder,
            "JUDGE_URL": server.url,
            "JUDGE_NAME": "judge",
            "ANSWERS_FILE": answers,
        }
        for command in commands:
            for word, value in words.items():
                command = command.replace(word, str(value))
            ((program, main),) = [entry for entry in PROGRAMS.items() if command.startswith(entry[0])]
            assert main(shlex.split(command.removeprefix(program))) == 0
            assert capsys.readouterr().out
    for folder in (output, *(output / name for name in ("first", "hint", "chat", "llava_med"))):
        assert json.loads((folder / "metrics.json").read_text())["overall"]
        assert (folder / "report.html").is_file()
    assert (output / "comparison" / "comparison.html").is_file()


@pytest.mark.parametrize("document", [README, *CARDS], ids=lambda path: path.parent.name)
def test_python_blocks_of_the_documents_run(document, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    blocks = code_blocks(document, "python")
    assert blocks
    for block in blocks:
        exec(compile(block, str(document), "exec"), {})
        said = re.search(r"print\(.*\)  # (.*)", block)
        assert said is None or capsys.readouterr().out.strip() == said.group(1)
