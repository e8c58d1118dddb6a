"""Tests of choosing questions to look at, and of their thumbnails."""

import base64
import io
import json

import numpy as np
from PIL import Image

from logramed.eval.comparison.html_report import write_run_report
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.worst_questions import (
    choose_all_wrong,
    choose_divided,
    item_score,
    question_sections,
    read_thumbnail,
)
from tests.eval.run_folders import make_questions, write_run_folder


def make_runs(tmp_path, columns, rows=None):
    """One run for each column of closed accuracies."""
    rows = rows or [row | {"image": f"{row['question_id']}.png"} for row in closed_questions(len(columns[0]))]
    return [
        read_run_folder(
            write_run_folder(
                tmp_path / f"run{place}", rows=rows, scores=[{"closed_accuracy": float(score)} for score in column]
            )
        )
        for place, column in enumerate(columns)
    ]


def closed_questions(number):
    return [row | {"answer_type": "CLOSED"} for row in make_questions(number)]


def open_image(address):
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))))


def test_questions_that_nobody_gets_right_and_that_divide_are_found(tmp_path):
    runs = make_runs(tmp_path, [[0, 0, 100, 100, 0], [0, 100, 0, 100, 0]])
    assert choose_all_wrong(runs) == ["q0", "q4"]
    assert choose_divided(runs) == ["q1", "q2"]


def test_images_come_once_before_any_comes_twice(tmp_path):
    rows = [row | {"image": "ab"[place > 2] + ".png"} for place, row in enumerate(closed_questions(5))]
    runs = make_runs(tmp_path, [[0] * 5], rows)
    assert choose_all_wrong(runs) == ["q0", "q3", "q1", "q4", "q2"]


def test_best_of_all_systems_ranks_wrong_answers(tmp_path):
    rows = make_questions(3, task="report")
    columns = ([60.0, 20.0, 10.0], [10.0, 30.0, 0.0])
    runs = [
        read_run_folder(
            write_run_folder(
                tmp_path / str(place), task="report", rows=rows, scores=[{"rouge_l": score} for score in column]
            )
        )
        for place, column in enumerate(columns)
    ]
    assert choose_all_wrong(runs) == ["q2", "q1"]


def test_unjudged_questions_are_left_out(tmp_path):
    rows = make_questions(3, task="chat")
    scores = [{"relative_score": 10.0}, {}, {"relative_score": 20.0}]
    folder = write_run_folder(tmp_path / "a", task="chat", rows=rows, scores=scores, blank=None)
    assert choose_all_wrong([read_run_folder(folder)]) == ["q0", "q2"]
    assert item_score({}, "chat") is None
    assert item_score({"rouge_l": 10.0, "bleu_1": 30.0, "cider": 9.0}, "report") == 10.0


def test_thumbnail_is_a_small_jpeg_of_the_whole_image(tmp_path):
    Image.new("RGB", (1200, 600), (200, 30, 30)).save(tmp_path / "a.png")
    image = open_image(read_thumbnail(tmp_path / "a.png"))
    assert (image.format, image.size) == ("JPEG", (360, 180))
    assert np.allclose(np.asarray(image).mean(axis=(0, 1)), (200, 30, 30), atol=4)


def test_thumbnail_of_sixteen_bits_is_scaled_as_a_model_sees_it(tmp_path):
    Image.fromarray(np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)).save(tmp_path / "a.png")
    pixels = np.asarray(open_image(read_thumbnail(tmp_path / "a.png")))
    assert pixels[0].mean() < 10
    assert pixels[-1].mean() > 245


def test_what_is_no_image_has_no_thumbnail(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    assert read_thumbnail(tmp_path / "a.png") is None


def test_images_that_are_gone_or_broken_are_named_and_looked_for_in_all_runs(tmp_path):
    rows = make_questions(8)
    scores = [{"open_recall" if row["answer_type"] == "OPEN" else "closed_accuracy": 0.0} for row in rows]
    run = read_run_folder(write_run_folder(tmp_path / "a", rows=rows, scores=scores, images=tmp_path / "images"))
    (tmp_path / "images" / "image0.png").unlink()
    (tmp_path / "images" / "image1.png").write_text("broken")
    (section,) = question_sections([run], images=True)
    cards = {card["id"]: card for card in section["cards"]}
    assert section["title"] == "Wrong answers"
    assert cards["q0"]["images"] == [{"name": "image0.png", "address": None}]
    assert cards["q2"]["images"] == [{"name": "image1.png", "address": None}]
    assert cards["q4"]["images"][0]["address"].startswith("data:image/jpeg;base64,")
    kept = read_run_folder(write_run_folder(tmp_path / "b", rows=rows, scores=scores, images=tmp_path / "kept"))
    (section,) = question_sections([run, kept], images=True)
    assert all(card["images"][0]["address"] for card in section["cards"] if card["id"] in ("q0", "q1"))
    (section,) = question_sections([run], images=False)
    assert not any(card["images"] for card in section["cards"])


def test_all_images_of_a_question_are_shown_and_those_that_are_gone_named(tmp_path):
    row = closed_questions(1)[0]
    folder = write_run_folder(tmp_path / "run", rows=[row], scores=[{"closed_accuracy": 0.0}])
    (written,) = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    written = {key: value for key, value in written.items() if key != "image"} | {"images": ["a.png", "b.png"]}
    (folder / "predictions.jsonl").write_text(json.dumps(written) + "\n")
    Image.new("RGB", (8, 8), (200, 30, 30)).save(tmp_path / "a.png")
    paths = {"images": {row["question_id"]: [str(tmp_path / "a.png"), str(tmp_path / "b.png")]}}
    (folder / "local_paths.json").write_text(json.dumps(paths))
    run = read_run_folder(folder)
    assert run.images == paths["images"]
    (section,) = question_sections([run], images=True)
    first, second = section["cards"][0]["images"]
    assert open_image(first["address"]).size == (8, 8)
    assert second == {"name": "b.png", "address": None}
    page = write_run_report(folder).read_text()
    assert f"Image 1 of question {row['question_id']}" in page
    assert "The image b.png cannot be read on this machine." in page
