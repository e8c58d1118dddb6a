"""Each metric folder is a Space as it stands: card, page and requirements."""

import ast
import doctest
import inspect
import json
import re
import sys

import pytest
import yaml

from tests.eval.metrics.loading import METRICS_FOLDER, load_metric_module


METRICS = sorted(path.parent.name for path in METRICS_FOLDER.glob("*/app.py"))
MODULES = sorted(path for path in METRICS_FOLDER.glob("*/*.py") if path.stem not in ("__init__", "app"))
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_the_metrics_are_all_here():
    assert {"medical_vqa", "medical_multiple_choice"} <= set(METRICS)


@pytest.mark.parametrize("metric", METRICS)
def test_card_says_what_a_space_needs(metric):
    card = (METRICS_FOLDER / metric / "README.md").read_text(encoding="utf-8")
    empty, front_matter, body = card.split("---\n", 2)
    assert empty == ""
    said = yaml.safe_load(front_matter)
    assert said["title"]
    assert said["emoji"]
    assert {said["colorFrom"], said["colorTo"]} <= COLORS
    assert (said["sdk"], said["app_file"], said["pinned"]) == ("gradio", "app.py", False)
    assert re.fullmatch(r"\d+\.\d+\.\d+", said["sdk_version"])
    assert said["license"] == "apache-2.0"
    assert {"evaluate", "metric"} <= set(said["tags"])
    assert len(said["description"]) > 50
    assert f"# Metric: {metric}" in body


@pytest.mark.parametrize("metric", METRICS)
def test_requirements_are_what_the_files_import(metric):
    folder = METRICS_FOLDER / metric
    required = {
        re.match(r"[\w-]+", line)[0] for line in (folder / "requirements.txt").read_text().splitlines() if line
    }
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    # The Space brings gradio, in the version that the card names.
    assert imported - set(sys.stdlib_module_names) - {"gradio"} == required


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_docstring_examples_hold(path):
    # The example of the metric itself is one of `evaluate.load`, which the card shows too.
    results = doctest.testmod(load_metric_module(path.parent.name, path.stem))
    assert results.failed == 0


@pytest.mark.parametrize("metric", METRICS)
def test_python_blocks_of_the_card_run(metric, monkeypatch, capsys):
    monkeypatch.chdir(METRICS_FOLDER.parents[1])
    card = (METRICS_FOLDER / metric / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, metric, "exec"), {})
        for said in re.findall(r"print\(.*\)  # (.*)", block):
            assert said in capsys.readouterr().out


@pytest.mark.parametrize("metric", METRICS)
def test_page_scores_its_example_and_leaves_empty_rows_out(metric):
    app = load_metric_module(metric, "app")
    settings = ["strict"][: len(inspect.signature(app.score).parameters) - 1]
    result = app.score(app.EXAMPLE, *settings)
    assert result
    assert app.score([*app.EXAMPLE, [None] * len(app.COLUMNS), [""] * len(app.COLUMNS)], *settings) == result
    with pytest.raises(ValueError, match="nothing"):
        app.score([], *settings)


def test_pages_score_an_empty_answer_as_a_wrong_one():
    assert load_metric_module("medical_vqa", "app").score([["", "yes", "CLOSED"]], "strict")["num_closed"] == 1
    multiple_choice = load_metric_module("medical_multiple_choice", "app")
    assert multiple_choice.score([["", "CT", "CT | MRI"]], "release")["accuracy"] == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_page_answers_over_http(metric):
    pytest.importorskip("gradio", reason="needs gradio, which the Space brings")
    from gradio_client import Client

    app = load_metric_module(metric, "app")
    page = app.build_page()
    settings = ["strict"][: len(inspect.signature(app.score).parameters) - 1]
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        table = {"headers": app.COLUMNS, "data": app.EXAMPLE, "metadata": None}
        answer = Client(url, verbose=False).predict(table, *settings, api_name="/score")
    finally:
        page.close()
    assert answer == json.loads(json.dumps(app.score(app.EXAMPLE, *settings)))
