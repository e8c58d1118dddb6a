"""Draw which regions of its image or images a question is matched to."""

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
MAP = "answer_state"  # the map with the weights of alignment with answer states
# Maps drawn for a single image; the second one is used by alignment of turns without a text encoder.
MAPS = {MAP: "by the state before the answer", "question": "by the question, encoded on its own"}


def draw_matched_images(
    model: Any, processor: Any, rows: Sequence[dict], output: Path, *, settings: dict, pictures: bool = True
) -> dict:
    """
    Compute the answer-state weights of all image regions of some questions, and write them to `matched_images.json` in
    `output`, with `settings`, which later runs compare; draw them to `matched_images.png` if `pictures`. A single
    image is also drawn with the weights of the question.

    Uses the first question about each list of images, then the second, six in total. Returns `settings` and
    `questions`, each with `question_id` and `shares`, the weights of its images, which sum to 1.
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
    A question above its images, tinted by `maps[MAP]`, `(num_images, num_rows, num_columns)`, on one scale. A single
    image is shown plain, and tinted by each of `MAPS`.
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
