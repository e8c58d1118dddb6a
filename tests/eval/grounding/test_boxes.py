"""Tests of boxes on grids of image tokens, by hand."""

import json

import numpy as np
import pytest

from logramed.eval.grounding.boxes import Box, Window, find_window, lay_on_grid, read_box_file
from logramed.image_processing_logramed import LoGraMedImageProcessor, pad_to_square


class CroppingProcessor:
    do_center_crop, size, crop_size = True, {"shortest_edge": 8}, {"height": 8, "width": 8}


class UnknownProcessor:
    size = {"longest_edge": 8}  # noqa: RUF012


def write(folder, content):
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def test_boxes_are_read_by_image(tmp_path):
    path = write(tmp_path, {"xmlab1": [["Liver", 0.1, 0.2, 0.3, 0.4]], "xmlab2": []})
    assert read_box_file(path) == {"xmlab1": [Box("Liver", 0.1, 0.2, 0.3, 0.4)], "xmlab2": []}


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (["Liver", 0.9, 0.2, 0.3, 0.4], "image xmlab1, box 1: expected a box within the image"),
        (["Liver", -0.1, 0.2, 0.3, 0.4], "got x -0.1, y 0.2"),
        (["Liver", 0.1, 0.2, 0.0, 0.4], "width 0 and height 0.4"),
        (["Liver", 0.1, 0.2, 0.3], r"expected \[label, x, y, width, height\]"),
        (["Liver", 0.1, 0.2, 0.3, "0.4"], r"expected \[label, x, y, width, height\]"),
    ],
)
def test_a_bad_box_is_refused_by_file_image_and_number(tmp_path, box, words):
    path = write(tmp_path, {"xmlab1": [["Liver", 0.1, 0.2, 0.3, 0.4], box]})
    with pytest.raises(ValueError, match=words) as refused:
        read_box_file(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_missing_or_of_another_form_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="needs the boxes of the images, but there is no"):
        read_box_file(tmp_path / "boxes.json")
    with pytest.raises(ValueError, match="expected an object with a list of boxes"):
        read_box_file(write(tmp_path, [1]))
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_box_file(tmp_path / "boxes.json")


def test_a_padded_window_reaches_beyond_the_shorter_side():
    processor = LoGraMedImageProcessor()
    assert find_window((40, 10), processor) == Window(0.0, -1.5, 1.0, 4.0)
    assert find_window((10, 40), processor) == Window(-1.5, 0.0, 4.0, 1.0)
    assert find_window((7, 7), processor) == Window(0.0, 0.0, 1.0, 1.0)
    assert find_window((40, 10), LoGraMedImageProcessor(do_pad_to_square=False)) == Window(0.0, 0.0, 1.0, 1.0)


def test_the_window_is_where_padding_puts_the_image():
    from PIL import Image

    for width, height in ((5, 8), (9, 4)):  # odd differences too
        padded = np.asarray(pad_to_square(Image.new("RGB", (width, height), (255, 0, 0)), (0, 0, 0)))[..., 0]
        rows, columns = padded.any(axis=1).nonzero()[0], padded.any(axis=0).nonzero()[0]
        window = find_window((width, height), LoGraMedImageProcessor())
        assert -window.left * width == columns[0]
        assert -window.top * height == rows[0]
        assert window.width * width == window.height * height == len(padded)


def test_a_cropped_window_is_the_middle_of_the_image():
    assert find_window((40, 10), CroppingProcessor()) == Window(0.375, 0.0, 0.25, 1.0)


def test_a_processor_that_splits_images_is_refused():
    with pytest.raises(ValueError, match="cannot tell which part of an image UnknownProcessor shows"):
        find_window((40, 10), UnknownProcessor())


def test_a_box_covers_shares_of_cells():
    # Of a grid of 4 x 4: the upper right quarter of cell (1, 1), and half of (1, 2).
    cells = lay_on_grid([Box("Nodule", 0.375, 0.25, 0.25, 0.125)], (4, 4))
    expected = np.zeros((4, 4))
    expected[1, 1:3] = 0.25
    assert cells.inside == pytest.approx(expected)
    assert cells.visible == pytest.approx(np.ones((4, 4)))
    # Its own middle (0.5, 0.3125) is on the border of cells (1, 1) and (1, 2), and counts for the second.
    assert np.argwhere(cells.is_positive).tolist() == [[1, 2]]
    assert cells.is_candidate.all()


def test_overlapping_boxes_count_once():
    boxes = [Box("Liver", 0.0, 0.0, 0.5, 0.5), Box("Liver", 0.25, 0.25, 0.5, 0.5)]
    cells = lay_on_grid(boxes, (2, 2))
    assert cells.inside == pytest.approx(np.array([[1.0, 0.25], [0.25, 0.25]]))
    fine = lay_on_grid(boxes, (8, 8))
    assert fine.inside.sum() / 64 == pytest.approx(cells.inside.sum() / 4) == pytest.approx(0.4375)


def test_padding_is_not_a_part_of_the_image():
    # 40 x 10 pixels in a square of 4 x 4 tokens: rows 0 and 3 and half of rows 1 and 2 are padding.
    window = find_window((40, 10), LoGraMedImageProcessor())
    cells = lay_on_grid([Box("Liver", 0.0, 0.0, 0.5, 0.5)], (4, 4), window)
    assert cells.visible == pytest.approx(np.repeat([[0.0], [0.5], [0.5], [0.0]], 4, axis=1))
    assert cells.inside == pytest.approx(np.array([[0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert cells.is_candidate.tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    assert np.argwhere(cells.is_positive).tolist() == [[1, 0], [1, 1]]


def test_a_box_that_was_cropped_off_has_no_cell():
    window = find_window((40, 10), CroppingProcessor())
    cells = lay_on_grid([Box("Liver", 0.0, 0.0, 0.2, 1.0)], (2, 2), window)
    assert not cells.is_positive.any()
    assert not cells.inside.any()
    half = lay_on_grid([Box("Liver", 0.0, 0.0, 0.5, 1.0)], (2, 2), window)
    assert half.inside.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_shares_agree_with_counted_points():
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.uniform(0, 0.6, 2)
        boxes = [Box("a", x, y, 0.3, 0.2), Box("b", *generator.uniform(0, 0.5, 2), 0.1, 0.5)]
        window = Window(*generator.uniform(-0.4, 0.1, 2), *generator.uniform(0.8, 1.6, 2))
        cells = lay_on_grid(boxes, (3, 5), window)
        size = 300
        rows = window.top + window.height * (np.arange(3 * size) + 0.5) / (3 * size)
        columns = window.left + window.width * (np.arange(5 * size) + 0.5) / (5 * size)
        hit = np.zeros((len(rows), len(columns)), dtype=bool)
        for box in boxes:
            in_row = (box.y <= rows) & (rows < box.y + box.height)
            hit |= in_row[:, None] & ((box.x <= columns) & (columns < box.x + box.width))[None]
        counted = hit.reshape(3, size, 5, size).mean(axis=(1, 3))
        assert cells.inside == pytest.approx(counted, abs=0.02)
