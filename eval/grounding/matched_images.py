"""Which regions of its image, or of its several images, a question is matched to, drawn."""

from collections.abc import Sequence
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
# Those that a single image is shown with: with the other one, alignment of turns with the model's own text features.
MAPS = {MAP: "by the state before the answer", "question": "by the question, read by itself"}


def draw_matched_images(
    model: Any, processor: Any, rows: Sequence[dict], output: Path, *, settings: dict, pictures: bool = True
) -> dict:
    """
    Weigh all regions of all images of some questions by the answer state, draw it into `matched_images.png` if
    `pictures`, and write it to `matched_images.json` in `output`, with `settings`, by which a later run knows it.
    A single image is also drawn as the question weighs it.

    The questions are the first about each list of images, then the second, six in all. Returns `settings`, and
    `questions`: of each `question_id` and `shares`, the weights of its images, which sum to 1.
    """
    chosen = [rows[place] for place in choose_shown([tuple(list_images(row)) for row in rows])]
    maps = {row["question_id"]: found for row, found in read_maps(model, processor, chosen, batch_size=1)}
    questions = [
        {"question_id": row["question_id"], "shares": maps[row["question_id"]][MAP].sum(axis=(1, 2)).tolist()}
        for row in chosen
    ]
    result = {"settings": settings, "questions": questions}
    write_json(output / FILE, result)
    (output / PICTURE).unlink(missing_ok=True)
    if pictures:
        draw_lines([draw_line(row, maps[row["question_id"]], processor) for row in chosen], output / PICTURE)
    return result


def draw_line(row: dict, maps: dict[str, np.ndarray], processor: Any) -> tuple[str, list[Cell]]:
    """
    A question over its images, tinted by `maps[MAP]`, `(num_images, num_rows, num_columns)`, on one scale. A single
    image is shown as it is, and tinted by each of `MAPS`.
    """
    (images,) = load_question_images([row], processor)
    image_processor = getattr(processor, "image_processor", processor)
    windows = [find_window(image.size, image_processor) for image in images]
    caption = row["question"].replace(IMAGE_PLACEHOLDER, "[image]")
    if len(images) == 1:
        tinted = [Cell(tint(images[0], maps[kind][0], windows[0]), title) for kind, title in MAPS.items()]
        return caption, [Cell(images[0], "image"), *tinted]
    texts = [text.strip() for of_place in row.get("position_texts", []) for text in of_place] or [""] * len(images)
    cells = []
    for number, (image, window, text, own) in enumerate(zip(images, windows, texts, maps[MAP], strict=True), start=1):
        title = f"{text or f'Image {number}'}: {100 * own.sum():.1f}%"
        cells.append(Cell(tint(image, own, window, maps[MAP].max()), title))
    return caption, cells
