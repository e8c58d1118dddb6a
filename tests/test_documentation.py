"""Every command and every piece of Python in the READMEs is tried, in the smallest form that shows it works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser
from transformers import HfArgumentParser

from logramed.eval import compare
from logramed.eval.arguments import EvaluationArguments
from logramed.hub_cards import push, serve
from logramed.trainer import build_model, convert, mini, phantoms, train
from logramed.trainer.data import extend_answers, subsets
from logramed.trainer.study import report as study_report
from logramed.trainer.study import run as study_run
from tests.hub_cards.space_app import space_modules
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


ROOT = Path(__file__).parents[1]
READMES = sorted(
    path
    for folder in (
        ".",
        "modeling_logramed",
        "trainer",
        "trainer/alignment",
        "trainer/recipes",
        "eval",
        "eval/grounding",
        "eval/metrics/*",
        "hub_cards",
    )
    for path in ROOT.glob(f"{folder}/README.md")
)
LAUNCHERS = ("torchrun", "accelerate", "sbatch")


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands():
    recipes = [path for ending in ("yaml", "sbatch") for path in sorted(ROOT.glob(f"trainer/recipes/**/*.{ending}"))]
    for path in [*READMES, *recipes]:
        for block in blocks(path, "bash") if path.suffix == ".md" else [commented_commands(path)]:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{path.parent.name}: {line[:60]}")


def commented_commands(path):
    """The commands in a file's comments: lines set in by more than one blank, with those that continue them."""
    comments = re.findall(r"^#(?: ?$| .*)", path.read_text(), flags=re.MULTILINE)
    text = "\n".join(line[2:] for line in comments)
    return "\n".join(re.findall(r"^  (\S(?:.*\\\n)*.*)", text, flags=re.MULTILINE))


def without_launcher(words):
    """A command without what starts it on several devices or machines, whose files and options are looked at here."""
    if words[0] == "sbatch":
        script = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
        assert (ROOT / words[script]).is_file()
        assert all(word.startswith("--") or word.isdigit() for word in words[1:script])
        return ["trainer/train.py", *words[script + 1 :]]
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2:])
        assert (ROOT / launched.config_file).is_file()
        assert launched.num_processes > 1
        return [launched.training_script, *launched.training_script_args]
    launched = torchrun_parser().parse_args(words[1:])
    return [launched.training_script, *launched.training_script_args]


def test_readmes_name_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "make quickstart" in text
    assert "make test" in text


@pytest.mark.parametrize("words", commands())
def test_command_has_arguments_that_exist(words, monkeypatch, capsys):
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[0] in LAUNCHERS:
        words = without_launcher(words)
    if words[0].endswith("python"):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert all(argument in targets or "=" in argument for argument in arguments)
    elif program in ("trainer/train.py", "logramed-train"):
        monkeypatch.chdir(ROOT)
        # A CPU has no 16-bit floats with loss scaling, which is all that is left out here.
        train.parse_arguments([*arguments, "--use_cpu", "true", "--fp16", "false"])
    elif program in ("trainer/data/subsets.py", "logramed-subsets"):
        called = []
        monkeypatch.setattr(subsets, "draw_subsets", lambda *args, **kwargs: called.append(1) or 1 / 0)
        with pytest.raises(ZeroDivisionError):  # reached the work: the arguments were right
            subsets.main(arguments)
        assert called
    elif program in ("eval/run.py", "logramed-eval"):
        HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
    elif program in ("trainer/data/extend_answers.py", "logramed-extend"):
        extend_answers.parse_arguments(arguments)
    elif program == "eval/compare.py":
        called = []
        monkeypatch.setattr(compare, "write_comparison", lambda *args, **kwargs: called.append(1) or 1 / 0)
        with pytest.raises(ZeroDivisionError):  # reached the work: the arguments were right
            compare.main(arguments)
        assert called
    elif program == "trainer/mini.py":
        called = []
        monkeypatch.setattr(mini, "find_files", lambda *args, **kwargs: called.append(1) or 1 / 0)
        with pytest.raises(ZeroDivisionError):  # reached the work: the arguments were right
            mini.main(arguments)
        assert called
    elif program in ("trainer/build_model.py", "trainer/phantoms.py"):
        called = []
        for name in ("join_models", "join_new_language_model"):
            monkeypatch.setattr(build_model, name, lambda *args, **kwargs: called.append(1) or 1 / 0)
        monkeypatch.setattr(phantoms, "generate_phantoms", lambda *args, **kwargs: called.append(1) or 1 / 0)
        with pytest.raises(ZeroDivisionError):  # reached the work: the arguments were right
            {"trainer/build_model.py": build_model, "trainer/phantoms.py": phantoms}[program].main(arguments)
        assert called
    elif program == "trainer/study/run.py":
        study_run.parse_arguments(arguments)
    elif program == "trainer/study/report.py":
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(study_report, "write_report", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # reached the work: the arguments were right
            study_report.main(arguments)
    elif program in ("trainer/convert.py", "logramed-convert"):
        convert.parse_arguments(arguments)
    elif program in ("hub_cards/push.py", "logramed-push"):
        parsed = push.parse_arguments(arguments)
        assert "/" in parsed.repo
    elif program in ("hub_cards/serve.py", "logramed-serve"):
        assert serve.parse_arguments(arguments)[1] == []
    elif program == "hub_cards/space/app.py":
        pytest.importorskip("gradio", reason="needs gradio: pip install 'logramed[demo]'")
        with space_modules() as modules:
            assert modules["app"].read_arguments(arguments).model
    elif program.startswith("tests/benchmarks/"):
        assert (ROOT / program).is_file()
    elif program == "-m":
        assert arguments[0] == "sglang.launch_server"  # not installed here, as vLLM
    else:
        others = ("pip", "git", "cd", "vllm", "tensorboard", "curl", "hf")
        assert program in others, f"no test knows how to try {words}"


def test_ten_lines_answer_a_question_about_an_image(tmp_path, monkeypatch, capsys):
    code = blocks(ROOT / "README.md", "python")[0]
    assert len(code.splitlines()) <= 12
    folder = tmp_path / "runs" / "quickstart" / "model"
    tiny_model(text_sizes={"vocab_size": 84}).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    image = tmp_path / re.search(r'"path": "([^"]+)"', code)[1]
    image.parent.mkdir(parents=True)
    Image.new("L", (20, 30), 90).save(image)
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_python_of_the_alignment_readme_runs():
    [code] = blocks(ROOT / "trainer" / "alignment" / "README.md", "python")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["features"]["image"].grad.abs().sum() > 0


def test_image_of_the_ten_lines_is_one_that_the_quickstart_draws(tmp_path):
    path = re.search(r'"path": "runs/quickstart/data/([^"]+)"', (ROOT / "README.md").read_text())[1]
    folder = phantoms.generate_phantoms(tmp_path / "data", num_train=2, num_validation=2, num_test=2)
    assert (folder / path).is_file()


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w./]+/[\w.]+\.(?:py|md|yml|ipynb))`", text))
    assert len(named) > 20
    assert [path for path in sorted(named) if "NAME" not in path and not (ROOT / path).is_file()] == []
