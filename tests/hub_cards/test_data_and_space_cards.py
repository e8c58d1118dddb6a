"""Data sets, metrics and the demo: their cards, and what of them travels."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from logramed.hub_cards.publications import REPO_TYPES, find_kind, prepare, read_front_matter
from logramed.hub_cards.push import push
from logramed.hub_cards.screening import find_problems
from logramed.hub_cards.space_card import DEMO_FOLDER
from tests.hub_cards.conftest import client_environment
from tests.hub_cards.test_model_card import untraced_figures
from tests.hub_client import client_of
from tests.hub_server import running_hub


METRICS = sorted(path.parent for path in (Path(__file__).parents[2] / "eval" / "metrics").glob("*/example.json"))
HIDE_LOGRAMED = "import sys; sys.modules['logramed'] = None\n"


@pytest.fixture
def extended(tmp_path):
    folder = tmp_path / "extended"
    (folder / "extended_answers.parts").mkdir(parents=True)
    rows = [
        {
            "id": str(number),
            "conversations_long": [{"from": "human", "value": "Mass?"}, {"from": "gpt", "value": text}],
        }
        for number, text in enumerate(["Yes, a mass | of the lung.", "No.", "No, there is none at all."])
    ]
    (folder / "extended_answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "extended_answers.failures.jsonl").write_text('{"id": "9"}\n')
    settings = {"model": "someone/chat-model", "endpoint": "http://localhost:1/v1", "data": "ab" * 32}
    (folder / "extended_answers.parts" / "settings.json").write_text(json.dumps(settings))
    return folder


def test_card_of_extended_answers_counts_them_and_names_the_model(extended):
    publication = prepare(extended, "someone/extended", license="cc0-1.0", datasets=["someone/vqa"])
    assert publication.kind == "extended_answers"
    assert "| conversations | 3 |" in publication.card
    assert "| words of an answer, median | 6 |" in publication.card
    assert "| conversations that failed the checks to the end | 1 |" in publication.card
    assert "`someone/chat-model`" in publication.card
    assert "- Yes, a mass | of the lung." in publication.card
    assert read_front_matter(publication.card)["source_datasets"] == ["someone/vqa"]
    assert set(publication.contents.files) == {"README.md", "extended_answers.jsonl", "statistics.json"}


def test_answers_with_other_line_separators_than_a_newline_are_whole(extended):
    turns = [{"from": "human", "value": "Mass?"}, {"from": "gpt", "value": "No\u2028mass\u0085here"}]
    with (extended / "extended_answers.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"id": "3", "conversations_long": turns}, ensure_ascii=False) + "\n")
    publication = prepare(extended, "someone/extended", license="cc0-1.0")
    assert "| conversations | 4 |" in publication.card
    assert "| extended answers | 4 |" in publication.card


def test_a_line_of_extended_answers_that_is_no_json_is_named(extended):
    with (extended / "extended_answers.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ValueError, match=r"extended_answers\.jsonl, line 4 is not JSON"):
        prepare(extended, "someone/extended", license="cc0-1.0")


def test_prediction_sets_have_answers_and_figures_but_no_images_or_paths(evaluated):
    folder = evaluated.parent / "evaluation"
    publication = prepare(folder, "someone/predictions", license="apache-2.0")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert publication.kind == "predictions"
    assert f"{metrics['overall']['closed_accuracy']:.1f}" in publication.card
    names = {"predictions.jsonl", "predictions.blank_images.jsonl", "scores.jsonl", "scores.blank_images.jsonl"}
    assert set(publication.contents.files) == names | {"metrics.json", "README.md"}
    assert find_problems(publication.contents, folder) == []
    assert json.loads(publication.contents.files["metrics.json"])["run"]["model"] == "model"


def test_every_figure_of_a_data_sets_card_is_traced(extended, evaluated):
    for folder in (extended, evaluated.parent / "evaluation"):
        publication = prepare(folder, "someone/answers", license="mit")
        figures, untraced = untraced_figures(publication)
        assert untraced == set()
        assert len(figures) > 2


def test_an_unfinished_evaluation_is_no_prediction_set(evaluated, tmp_path):
    folder = tmp_path / "evaluation"
    shutil.copytree(evaluated.parent / "evaluation", folder)
    (folder / "scores.jsonl").unlink()
    with pytest.raises(ValueError, match=r"scores\.jsonl is missing"):
        prepare(folder, "someone/predictions", license="mit")


@pytest.mark.parametrize("folder", METRICS, ids=lambda path: path.name)
def test_metrics_are_published_with_the_page_and_metadata_of_the_installed_gradio(folder):
    gradio = pytest.importorskip("gradio", reason="needs gradio: pip install 'logramed[demo]'")
    publication = prepare(folder, f"someone/{folder.name}")
    assert publication.contents.files["reply_reader.py"].startswith(b'"""\nExtract the answer from')
    assert b"logramed" not in publication.contents.files[f"{folder.name}.py"]
    metadata, own = read_front_matter(publication.card), (folder / "README.md").read_text()
    assert metadata["sdk_version"] == gradio.__version__
    assert metadata["title"] == read_front_matter(own)["title"]
    assert own.split("---\n", 2)[2].strip() in publication.card
    assert {"app.py", "requirements.txt", f"{folder.name}.py"} <= set(publication.contents.files)
    assert not [name for name in publication.contents.files if "__pycache__" in name]
    assert find_problems(publication.contents, folder) == []


def test_the_demo_names_its_model_and_brings_its_phantoms():
    publication = prepare(DEMO_FOLDER, "someone/logramed-demo", base_models=["someone/logramed-mini"])
    assert publication.kind == "demo"
    assert read_front_matter(publication.card)["models"] == ["someone/logramed-mini"]
    assert {"app.py", "style.css", "requirements.txt", "examples/chest_xray.png"} <= set(publication.contents.files)
    assert publication.contents.files["model_id.txt"] == b"someone/logramed-mini\n"
    copies = {"image_files_logramed": "read_pixels", "boxes": "find_window", "region_weights": "weigh_by_cosine"}
    for module, function in (copies | {"tints": "tint"}).items():
        assert f"def {function}(".encode() in publication.contents.files[f"{module}.py"]
    assert find_problems(publication.contents, DEMO_FOLDER) == []
    with pytest.raises(ValueError, match=r"`include` names additional files of a model's folder, but .* \(demo\)"):
        prepare(DEMO_FOLDER, "someone/demo", base_models=["someone/logramed-mini"], include=["*.md"])
    with pytest.raises(ValueError, match=r"needs exactly one model.*`--base_model org/name`"):
        prepare(DEMO_FOLDER, "someone/logramed-demo")


def test_a_demo_with_images_of_somebody_else_is_not_published(tmp_path):
    folder = tmp_path / "space"
    shutil.copytree(DEMO_FOLDER, folder)
    publication = prepare(folder, "someone/demo", base_models=["someone/logramed-mini"])
    assert any("chest_xray.png is or holds an image" in problem for problem in find_problems(publication.contents))


def test_every_kind_is_published_in_a_repository_of_its_own_type(extended, evaluated, tmp_path):
    folders = {
        "extended_answers": (extended, {"license": "cc0-1.0"}),
        "predictions": (evaluated.parent / "evaluation", {"license": "mit"}),
        "metric": (METRICS[0], {}),
        "demo": (DEMO_FOLDER, {"base_models": ["someone/logramed-mini"]}),
    }
    with running_hub(tmp_path / "hub") as hub, client_of(hub):
        for kind, (folder, options) in folders.items():
            assert find_kind(folder) == kind
            publication = prepare(folder, f"someone/{kind}", **options)
            push(publication, f"someone/{kind}")
            files = hub.hub.files(f"{REPO_TYPES[kind]}s", f"someone/{kind}")
            assert set(files) == set(publication.contents.files)
            assert read_front_matter(files["README.md"].decode())["license"] == options.get("license", "apache-2.0")
        assert hub.hub.read("spaces", "someone/demo")["sdk"] == "gradio"


def test_the_demo_starts_from_its_folder_alone_with_a_model_of_the_hub(published, tmp_path):
    pytest.importorskip("gradio", reason="needs gradio: pip install 'logramed[demo]'")
    publication = prepare(DEMO_FOLDER, "someone/demo", base_models=["tester/logramed-mini"])
    for name, content in publication.contents.files.items():
        target = tmp_path / "space" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    code = HIDE_LOGRAMED + "import app; page = app.Page(app.Assistant(app.read_arguments([]).model)); page.build()\n"
    code += "turns = [app.Turn('Is there a lesion?', ['examples/chest_xray.png'])]\n"
    code += "*_, turn = page.assistant.answer(turns, 4); print('said', repr(turn.answer))\n"
    code += (
        "print(app.draw_relevance(page.assistant, turns)[0][1], app.draw_matched_regions(page.assistant, turns)[0][1])"
    )
    environment = client_environment(published["hub"], tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "space",
        env=environment | {"GRADIO_ANALYTICS_ENABLED": "False"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"said '.*'\nImage 1 Q1, image 1: 100%", done.stdout)
