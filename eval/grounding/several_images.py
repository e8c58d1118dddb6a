"""Which of its images, and which regions of them, a question with several images is matched to, drawn."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from logramed.eval.comparison.html_report import MATCHED_PICTURE
from logramed.eval.files import write_json
from logramed.eval.grounding.boxes import find_window
from logramed.eval.grounding.maps import read_maps
from logramed.eval.grounding.pictures import Cell, choose_shown, draw_lines
from logramed.eval.grounding.tints import tint
from logramed.eval.prompts import load_question_images
from logramed.eval.question_images import IMAGE_PLACEHOLDER, list_images


FILE, PICTURE = "matched_images.json", MATCHED_PICTURE
MAP = "answer_state"  # of the maps the one that alignment with answer states weighs regions by


def draw_matched_images(
    model: Any, processor: Any, rows: Sequence[dict], output: Path, *, settings: dict, pictures: bool = True
) -> dict:
    """
    Weigh all regions of all images of some questions by the answer state, draw it into `matched_images.png` if
    `pictures`, and write it to `matched_images.json` in `output`, with `settings`, what the weights depend on.

    The questions are the first about each list of images, then the second, six in all. Returns `settings`, and
    `questions`: of each `question_id` and `shares`, the weights of its images, which sum to 1.
    """
    chosen = [rows[place] for place in choose_shown([tuple(list_images(row)) for row in rows])]
    maps = {row["question_id"]: found[MAP] for row, found in read_maps(model, processor, chosen, batch_size=1)}
    questions = [
        {"question_id": row["question_id"], "shares": maps[row["question_id"]].sum(axis=(1, 2)).tolist()}
        for row in chosen
    ]
    result = {"settings": settings, "questions": questions}
    write_json(output / FILE, result)
    (output / PICTURE).unlink(missing_ok=True)
    if pictures:
        draw_lines([draw_line(row, maps[row["question_id"]], processor) for row in chosen], output / PICTURE)
    return result


def draw_line(row: dict, weights: np.ndarray, processor: Any) -> tuple[str, list[Cell]]:
    """A question over its images, tinted by `weights` `(num_images, num_rows, num_columns)` on one scale."""
    (images,) = load_question_images([row], processor)
    texts = [text.strip() for of_place in row.get("position_texts", []) for text in of_place] or [""] * len(images)
    image_processor = getattr(processor, "image_processor", processor)
    cells = []
    for number, (image, text, own) in enumerate(zip(images, texts, weights, strict=True), start=1):
        window = astuple(find_window(image.size, image_processor))
        title = f"{text or f'Image {number}'}: {100 * own.sum():.1f}%"
        cells.append(Cell(tint(image, own, window, weights.max()), title))
    return row["question"].replace(IMAGE_PLACEHOLDER, "[image]"), cells
