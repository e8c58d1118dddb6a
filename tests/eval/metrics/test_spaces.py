"""Each metric folder becomes a Space when it is published: card, page, requirements, and all modules it needs."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from logramed.eval.metrics import page
from logramed.hub_cards.space_card import gather_modules


METRICS_FOLDER = Path(page.__file__).parent
METRICS = sorted(path.parent.name for path in METRICS_FOLDER.glob("*/example.json"))
# Scores the examples of the Spaces in the folders of the command line, and ends at any attempt to reach the network.
PROGRAM = """
import json, os, socket, sys
from pathlib import Path

sys.modules["logramed"] = sys.modules["gradio"] = None
socket.socket.connect = socket.getaddrinfo = lambda *arguments: os._exit(3)
for folder in map(Path, sys.argv[1:]):
    sys.path.insert(0, str(folder))
    sys.modules.pop("app", None)
    import app
    columns, *rows = json.loads((folder / "example.json").read_text())
    print(json.dumps(app.score(app.FOLDER, columns, rows)))
"""


def stage(metric, folder):
    """The Space's files that the metric needs, in `folder`."""
    folder.mkdir()
    for name, content in gather_modules(METRICS_FOLDER / metric).items():
        (folder / name).write_bytes(content)
    (folder / "app.py").write_bytes((METRICS_FOLDER / "page.py").read_bytes())
    for name in ("README.md", "example.json"):
        (folder / name).write_bytes((METRICS_FOLDER / metric / name).read_bytes())


def read_example(metric):
    return json.loads((METRICS_FOLDER / metric / "example.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("metric", METRICS)
def test_card_says_what_a_space_needs(metric):
    card = (METRICS_FOLDER / metric / "README.md").read_text(encoding="utf-8")
    _, front_matter, body = card.split("---\n", 2)
    said = yaml.safe_load(front_matter)
    assert (said["sdk"], said["app_file"], said["license"]) == ("gradio", "app.py", "apache-2.0")
    assert re.fullmatch(r"\d+\.\d+\.\d+", said["sdk_version"])
    assert {"evaluate", "metric"} <= set(said["tags"])
    assert said["title"]
    assert len(said["description"]) > 50
    assert f"# Metric: {metric}" in body


@pytest.mark.parametrize("metric", METRICS)
def test_requirements_are_what_the_files_import(metric):
    requirements = (METRICS_FOLDER / metric / "requirements.txt").read_text().split()
    required = {re.match(r"[\w-]+", line)[0] for line in requirements}
    imported = set()
    for content in [*gather_modules(METRICS_FOLDER / metric).values(), Path(page.__file__).read_bytes()]:
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    # The Space brings gradio, in the version that the card names.
    assert imported - set(sys.stdlib_module_names) - {"gradio"} == required


def test_spaces_score_their_examples_without_logramed_and_network(tmp_path):
    for metric in METRICS:
        stage(metric, tmp_path / metric)
    command = [sys.executable, "-c", PROGRAM, *(tmp_path / metric for metric in METRICS)]
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": ""}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for metric, line in zip(METRICS, run.stdout.splitlines()[-len(METRICS) :], strict=True):
        columns, *rows = read_example(metric)
        assert json.loads(line) == json.loads(json.dumps(page.score(METRICS_FOLDER / metric, columns, rows)))


def test_pages_leave_empty_rows_out_and_score_an_empty_answer_as_a_wrong_one():
    columns, vqa = ["predictions", "references", "answer_types"], METRICS_FOLDER / "medical_vqa"
    assert page.score(vqa, columns, [["", "yes", "CLOSED"], ["", None, ""]])["num_closed"] == 1
    with pytest.raises(ValueError, match="nothing to score"):
        page.score(vqa, columns, [[None] * 3])


def test_page_answers_over_http():
    pytest.importorskip("gradio", reason="needs gradio, which the Space brings")
    from gradio_client import Client

    metric = "medical_multiple_choice"
    columns, *rows = read_example(metric)
    served = page.build_page(METRICS_FOLDER / metric)
    _, url, _ = served.launch(prevent_thread_lock=True, quiet=True)
    try:
        table = {"headers": columns, "data": rows, "metadata": None}
        answer = Client(url, verbose=False).predict(table, api_name="/score")
    finally:
        served.close()
    assert answer == json.loads(json.dumps(page.score(METRICS_FOLDER / metric, columns, rows)))
