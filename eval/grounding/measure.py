"""Measure where a model looks: computes `grounding.json` from question rows and boxes."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logramed.eval.comparison.html_report import MAP_PICTURE
from logramed.eval.files import write_json
from logramed.eval.grounding.boxes import Box, Cells, Window, find_window, lay_on_grid
from logramed.eval.grounding.figures import BLANK_ENDING, CENTER, RANDOM, summarize
from logramed.eval.grounding.maps import KINDS, find_grid, read_maps, unwrap
from logramed.eval.grounding.pictures import Cell, choose_shown, draw_lines
from logramed.eval.grounding.pointing import center_map, score_map, score_random
from logramed.eval.grounding.questions import BoxedQuestion, find_boxed_questions
from logramed.eval.grounding.tints import tint
from logramed.image_processing_logramed import convert_to_rgb, load_image


FILE, PICTURE = "grounding.json", MAP_PICTURE


def measure_grounding(
    model: Any,
    processor: Any,
    rows: Sequence[dict],
    boxes: Mapping[str, list[Box]],
    output: Path,
    *,
    settings: dict,
    batch_size: int,
    blank_images: bool = True,
    pictures: bool = True,
) -> dict:
    """
    Measure how well a model's maps point at the boxes (by image path) of what each question names. Rows need an
    `image_id`. Writes `grounding.json` to `output`, with `settings`, which later runs compare, and if `pictures`
    examples to `grounding.png`. With `blank_images`, maps of uniformly grey images are a baseline.

    Returns the result of `summarize` with `settings`, `grid` (rows and columns), `kinds`, `num_out_of_sight`
    (questions whose boxes were cropped off) and `questions`, the figures of each. Raises `ValueError` if no question
    names a boxed thing, or the model has no grid of image tokens.
    """
    grid = (find_grid(unwrap(model).config)[0],) * 2
    placed = place_questions(find_boxed_questions(rows, boxes), grid, processor)
    shown = [question for question, _, cells in placed if cells.is_positive.any()]
    if not shown:
        raise ValueError("`grounding` found no box in the part of the images that the model sees.")
    asked = [question.row for question in shown]
    maps = {
        ending: {
            row["question_id"]: {kind: weights[0] for kind, weights in found.items()}  # its only image
            for row, found in read_maps(model, processor, asked, batch_size=batch_size, blank_images=is_blank)
        }
        for ending, is_blank in (("", False), (BLANK_ENDING, True))
        if blank_images or not is_blank
    }
    items = [score_question(*entry, maps) for entry in placed if entry[2].is_positive.any()]
    result = {
        "settings": settings,
        "grid": list(grid),
        "kinds": KINDS,
        "num_out_of_sight": len(placed) - len(shown),
        **summarize(items),
        "questions": items,
    }
    write_json(output / FILE, result)
    (output / PICTURE).unlink(missing_ok=True)
    if pictures:
        windows = {question.row["question_id"]: window for question, window, _ in placed}
        chosen = [shown[place] for place in choose_shown([question.group for question in shown])]
        lines = [draw_line(question, windows[question.row["question_id"]], maps[""]) for question in chosen]
        draw_lines(lines, output / PICTURE)
    return result


def draw_line(
    question: BoxedQuestion, window: Window, maps: Mapping[str, dict[str, np.ndarray]]
) -> tuple[str, list[Cell]]:
    """A question above its image and each of the maps, with the boxes."""
    image = convert_to_rgb(load_image(question.row["image"]), (0, 0, 0))
    cells = [Cell(image, "", question.boxes)]
    for kind, weights in maps[question.row["question_id"]].items():
        cells.append(Cell(tint(image, weights, window), kind.replace("_", " "), question.boxes))
    return question.row["question"], cells


def place_questions(
    questions: Sequence[BoxedQuestion], grid: tuple[int, int], processor: Any
) -> list[tuple[BoxedQuestion, Window, Cells]]:
    """Each question with the window of its image that the grid covers, and the cells of its boxes."""
    image_processor = getattr(processor, "image_processor", processor)
    windows: dict[str, Window] = {}
    placed = []
    for question in questions:
        path = question.row["image"]
        if path not in windows:
            # With its EXIF orientation applied, as the model sees it.
            windows[path] = find_window(load_image(path).size, image_processor)
        placed.append((question, windows[path], lay_on_grid(question.boxes, grid, windows[path])))
    return placed


def score_question(
    question: BoxedQuestion, window: Window, cells: Cells, maps: Mapping[str, Mapping[str, dict[str, np.ndarray]]]
) -> dict:
    """
    The figures of one question for each map and baseline; `maps` are by name ending and question id.
    """
    row = question.row
    scores = {
        kind + ending: score_map(weights, cells)
        for ending, found in maps.items()
        for kind, weights in found[row["question_id"]].items()
    }
    scores[CENTER] = score_map(center_map(cells.inside.shape, window), cells)
    scores[RANDOM] = score_random(cells)
    return {
        "question_id": row["question_id"],
        "image_id": row["image_id"],
        "question": row["question"],
        "group": question.group,
        "labels": list(dict.fromkeys(box.label for box in question.boxes)),
        "area": float(cells.inside.sum() / cells.visible.sum()),
        "scores": {name: _without_nan(figures) for name, figures in scores.items()},
    }


def _without_nan(figures: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have, by `None`: the figure does not apply."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def read_former(path: Path, settings: dict) -> dict | None:
    """Result of an earlier run in `path` if it had the same settings; its answers tell model and questions."""
    if not path.is_file():
        return None
    former = json.loads(path.read_text(encoding="utf-8"))
    return former if former.get("settings") == settings else None
