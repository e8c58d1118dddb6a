"""Tests of pictures of what questions are matched to."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from logramed.eval import run
from logramed.eval.grounding import matched_images
from logramed.eval.grounding.maps import read_maps
from logramed.eval.grounding.pictures import Cell, draw_lines
from logramed.eval.grounding.tints import COLOR, STRONGEST_TINT, tint
from tests.eval.volumes.dicom_files import phantom, write_series
from tests.eval.volumes.test_options import write_questions
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
FULL = tuple(round((1 - STRONGEST_TINT) * 50 + STRONGEST_TINT * channel) for channel in COLOR)


def test_the_region_that_weighs_most_is_tinted_most_and_its_neighbours_not():
    pixels = np.asarray(tint(Image.new("L", (8, 4), 50), np.array([[0.0, 2.0], [0.0, 1.0]])))
    assert np.allclose(pixels[:2, 4:], FULL, atol=1)
    assert np.allclose(pixels[2:, 4:], np.add(FULL, 50) / 2, atol=1)
    assert (pixels[:, :4] == 50).all()


def test_one_scale_makes_images_comparable():
    weaker = np.asarray(tint(Image.new("RGB", (4, 4), (50, 50, 50)), np.ones((2, 2)), largest=2.0))
    assert np.allclose(weaker, np.add(FULL, 50) / 2, atol=1)


def test_padding_and_cropping_are_undone():
    weights = np.zeros((4, 4))
    weights[1, 3] = 1.0
    # A square of 40 pixels, of which the image is rows 10 to 29: the region is its rows 0 to 9.
    padded = np.asarray(tint(Image.new("L", (40, 20), 50), weights, (0.0, -0.5, 1.0, 2.0)))[..., 0] > 50
    assert np.argwhere(padded).min(0).tolist() == [0, 30]
    assert np.argwhere(padded).max(0).tolist() == [9, 39]
    # The middle 20 columns alone: the region is 5 pixels wide there.
    cropped = np.asarray(tint(Image.new("L", (40, 20), 50), weights, (0.25, 0.0, 0.5, 1.0)))[..., 0] > 50
    assert np.argwhere(cropped).min(0).tolist() == [5, 25]
    assert np.argwhere(cropped).max(0).tolist() == [9, 29]


def test_weights_of_nothing_colour_nothing():
    assert (np.asarray(tint(Image.new("L", (4, 4), 50), np.zeros((2, 2)))) == 50).all()


def test_more_images_than_fit_in_a_row_go_on_in_the_next(tmp_path):
    sizes = []
    for count in (4, 5, 8, 9):
        cells = [Cell(Image.new("L", (10, 10)), f"{number} $ costs $") for number in range(count)]
        with Image.open(draw_lines([("$x_ what?", cells)], tmp_path / "a.png")) as image:
            sizes.append(image.size)
    assert len({width for width, _ in sizes}) == 1
    assert sizes[0][1] < sizes[1][1] == sizes[2][1] < sizes[3][1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("a", (8, 8)), ("b", (8, 16))):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    write_series(tmp_path / "images" / "series", phantom())
    model = tiny_model(text_sizes={"vocab_size": 84})
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config.num_image_tokens).save_pretrained(tmp_path / "model")
    pair = ["a.png", "b.png"]
    write_questions(tmp_path, [("a.png", "where"), (pair, "is <image> left <image>"), ("series", "is there a mass")])
    return tmp_path


def evaluate(folder, *options):
    command = ["--model", folder / "model", "--benchmark", "vqa_rad", "--data", folder, "--output", folder / "output"]
    run.main([str(part) for part in (*command, "--max_new_tokens", 2, "--no_blank_images", *options)])
    return json.loads((folder / "output" / "metrics.json").read_text())


def test_the_command_draws_questions_with_matched_images_into_the_report(folder, monkeypatch):
    shown = []
    monkeypatch.setattr(
        matched_images, "draw_lines", lambda lines, path: shown.extend(lines) or draw_lines(lines, path)
    )
    metrics = evaluate(folder, "--grounding", "--slices", "1-2,4,6")
    assert "grounding" not in metrics
    found = {question["question_id"]: question["shares"] for question in metrics["matched_images"]}
    assert {key: len(shares) for key, shares in found.items()} == {"1": 2, "2": 3}
    assert all(sum(shares) == pytest.approx(1) for shares in found.values())
    assert [caption for caption, _ in shown] == ["is [image] left [image]", "is there a mass"]
    titles = [[cell.title for cell in cells] for _, cells in shown]
    assert titles[0] == [f"Image {number}: {100 * share:.1f}%" for number, share in enumerate(found["1"], start=1)]
    assert titles[1][1] == f"Slice 2 of 3, 7.5 mm: {100 * found['2'][1]:.1f}%"
    assert [cell.image.size for cell in shown[0][1]] == [(8, 8), (16, 8)]
    page = (folder / "output" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 1
    assert "What questions are matched to" in page
    assert 'href="#matched"' in page

    monkeypatch.setattr(matched_images, "read_maps", None)  # a second start reads none anew
    assert evaluate(folder, "--grounding", "--slices", "1-2,4,6") == metrics


def test_without_images_and_without_grounding_nothing_is_drawn(folder):
    evaluate(folder, "--grounding")
    assert "matched_images" in evaluate(folder, "--grounding", "--no_images")
    assert not (folder / "output" / matched_images.PICTURE).exists()
    evaluate(folder, "--grounding")
    assert "matched_images" not in evaluate(folder)
    assert "What questions are matched to" not in (folder / "output" / "report.html").read_text()


def test_a_single_image_is_drawn_by_both_maps_where_nothing_else_can_be(folder, monkeypatch):
    write_questions(folder, [("a.png", "where"), ("b.png", "what")])
    shown, read = [], {}

    def keep_maps(*arguments, **options):
        for row, maps in read_maps(*arguments, **options):
            read[row["question"]] = maps
            yield row, maps

    monkeypatch.setattr(matched_images, "read_maps", keep_maps)
    monkeypatch.setattr(
        matched_images, "draw_lines", lambda lines, path: shown.extend(lines) or draw_lines(lines, path)
    )
    metrics = evaluate(folder, "--grounding")
    assert [question["shares"] for question in metrics["matched_images"]] == [pytest.approx([1.0])] * 2
    assert [caption for caption, _ in shown] == ["where", "what"]
    for caption, cells in shown:
        image = cells[0].image
        assert [cell.title for cell in cells] == [
            "image",
            "by the state before the answer",
            "by the question, encoded on its own",
        ]
        for cell, kind in zip(cells[1:], ("answer_state", "question"), strict=True):
            window = (0.0, 0.0, 1.0, 1.0) if image.width == image.height else (0.0, -0.5, 1.0, 2.0)
            assert np.array_equal(cell.image, tint(image, read[caption][kind][0], window))
    page = (folder / "output" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 1
    assert "This file embeds images of the data set" in page


def test_the_report_shows_how_its_model_was_trained(folder):
    Image.new("L", (4, 4)).save(folder / "model" / "curves.png")
    evaluate(folder, "--no_images")
    page = (folder / "output" / "report.html").read_text()
    assert "How the model was trained" in page
    assert base64.b64encode((folder / "model" / "curves.png").read_bytes()).decode() in page
    assert "This file embeds images of the data set" not in page
