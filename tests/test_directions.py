"""Which of our folders may import which: the model nothing of training, training little of evaluation and cards."""

import ast
from pathlib import Path


ROOT = Path(__file__).parents[1]
# What both do with files, images, text and the command line stands in the folder that imports less.
# How a state weighs image regions is one rule, which alignment trains with and grounding measures. Questions are dealt
# into batches, and a model and its tokenizer put into the state to answer them, in one way.
SHARED = (
    "files",
    "resumable_file",
    "image_check",
    "question_images",
    "volumes",
    "text_values",
    "model_names",
    "command_line",
    "grouped_help",
    "metrics.",
    "grounding.region_weights",
    "answering",
    "prompts",
)
OF_EVAL = tuple(f"logramed.eval.{name}" for name in SHARED)
# Extended answers are asked for as judgements are: the one client of chat models, with its retries and its key. Splits
# by image are the same lists for training and evaluation, reports are read once, and the study's tests are those of a
# comparison.
EXCEPTIONS = {
    ("trainer/data/extend_answers.py", "logramed.eval.judge_client"),
    ("trainer/data/official.py", "logramed.eval.benchmarks"),
    ("trainer/data/reports.py", "logramed.eval.benchmarks"),
    ("trainer/study/analysis.py", "logramed.eval.comparison"),
}


def imports(folder):
    """Each file of a folder with the modules that it imports by their full names, and where in the file."""
    for path in sorted(ROOT.glob(f"{folder}/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for module in modules:
                yield path.relative_to(ROOT).as_posix(), module, node.col_offset > 0


def starts_with(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_model_imports_nothing_of_training_evaluation_and_cards():
    ours = ("logramed.trainer", "logramed.eval", "logramed.hub_cards", "trl", "accelerate", "peft")
    assert not [found for found in imports("modeling_logramed") if starts_with(found[1], ours)]


def test_training_imports_cards_in_its_last_step_alone():
    found = [found for found in imports("trainer") if starts_with(found[1], ["logramed.hub_cards"])]
    assert {path for path, *_ in found} == {"trainer/train.py"}
    assert all(is_inside_a_function for *_, is_inside_a_function in found)


def test_training_imports_metrics_and_file_helpers_of_evaluation():
    found = {(path, module) for path, module, _ in imports("trainer") if starts_with(module, ["logramed.eval"])}
    used = {(path, module) for path, module in found if module != "logramed.eval" and not module.startswith(OF_EVAL)}
    assert {(path, ".".join(module.split(".")[:3])) for path, module in used} == EXCEPTIONS


def test_evaluation_imports_nothing_of_training_and_cards():
    upward = ["logramed.trainer", "logramed.hub_cards"]
    assert not [found for found in imports("eval") if starts_with(found[1], upward)]
