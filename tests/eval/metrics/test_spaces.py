"""Each metric folder, with the page, is a Space: card, page and requirements."""

import ast
import doctest
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.eval.metrics.loading import METRICS_FOLDER, load_by_path, load_metric_module


METRICS = sorted(path.parent.name for path in METRICS_FOLDER.glob("*/example.json"))
MODULES = sorted(path for path in METRICS_FOLDER.glob("*/*.py") if path.stem != "__init__")
page = load_by_path("page_of_metrics", METRICS_FOLDER / "page.py")
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
    for path in [*folder.glob("*.py"), Path(page.__file__)]:
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
    columns, *rows = read_example(metric)
    result = page.score(METRICS_FOLDER / metric, columns, rows)
    assert len(result["items"]) in (len(rows), len(rows) // 2)  # the judge has two replies to a question
    empty = [[None] * len(columns), [""] * len(columns)]
    assert page.score(METRICS_FOLDER / metric, columns, rows + empty) == result
    with pytest.raises(ValueError, match="nothing"):
        page.score(METRICS_FOLDER / metric, columns, [])


def test_pages_score_an_empty_answer_as_a_wrong_one():
    columns = ["predictions", "references", "answer_types"]
    assert page.score(METRICS_FOLDER / "medical_vqa", columns, [["", "yes", "CLOSED"]])["num_closed"] == 1
    columns = ["predictions", "references", "options"]
    choices = METRICS_FOLDER / "medical_multiple_choice"
    assert page.score(choices, columns, [["", "CT", "CT | MRI"]], protocol="release")["accuracy"] == 0.0
    columns = ["predictions", "references"]
    report = page.score(METRICS_FOLDER / "medical_report", columns, [["Mass.", "Mass."], [None, "No mass."]])
    assert [item["rouge_l"] for item in report["items"]] == [100.0, 0.0]


@pytest.mark.parametrize("metric", METRICS)
def test_page_answers_over_http(metric):
    pytest.importorskip("gradio", reason="needs gradio, which the Space brings")
    from gradio_client import Client

    columns, *rows = read_example(metric)
    served = page.build_page(METRICS_FOLDER / metric)
    settings = [] if metric == "medical_report" else ["strict"]
    _, url, _ = served.launch(prevent_thread_lock=True, quiet=True)
    try:
        table = {"headers": columns, "data": rows, "metadata": None}
        answer = Client(url, verbose=False).predict(table, *settings, api_name="/score")
    finally:
        served.close()
    assert answer == json.loads(json.dumps(page.score(METRICS_FOLDER / metric, columns, rows)))


def read_example(metric: str) -> list[list[str]]:
    return json.loads((METRICS_FOLDER / metric / "example.json").read_text(encoding="utf-8"))
