"""Questions worth looking at: those that no system gets right, and those that divide the systems."""

import base64
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from logramed.eval.comparison.run_folder import MAIN_FIGURES, RunFolder
from logramed.eval.question_images import list_images
from logramed.eval.volumes import open_if_volume, parse_reference
from logramed.image_processing_logramed import convert_to_rgb, load_image


NUM_SHOWN = 12  # questions of each kind
HALF_RIGHT = 50  # percent; the best system scores less on a question that no system gets right
LARGEST_SIDE = 360  # pixels of a thumbnail
JPEG_QUALITY = 80


@dataclass(frozen=True)
class QuestionChoice:
    """
    Questions to show.

    Attributes:
        question_ids (`list[str]`): Those to show, the worst first, few about one image.
        num_found (`int`): How many there are.
    """

    question_ids: list[str]
    num_found: int


def item_score(scores: dict[str, float], task: str) -> float | None:
    """
    One score for a question: the mean of the main figures it has, or `None` if it has none (an unjudged answer).

    Example:
        >>> item_score({"closed_accuracy": 100.0, "open_f1": 0.0}, "vqa")
        100.0
    """
    values = [scores[figure] for figure in MAIN_FIGURES[task] if figure in scores]
    return sum(values) / len(values) if values else None


def score_table(runs: Sequence[RunFolder]) -> dict[str, list[float]]:
    """The score that each run has on a question, by question id; questions that some run has no score for are out."""
    table = {}
    for key in runs[0].scores:
        scores = [item_score(run.scores[key], run.task) for run in runs]
        if None not in scores:
            table[key] = scores
    return table


def choose_all_wrong(runs: Sequence[RunFolder], num_shown: int = NUM_SHOWN) -> QuestionChoice:
    """Questions on which even the best run scores below 50, lowest first."""
    table = {key: scores for key, scores in score_table(runs).items() if max(scores) < HALF_RIGHT}
    ranked = sorted(table, key=lambda key: (max(table[key]), sum(table[key])))
    return QuestionChoice(_spread(ranked, runs[0], num_shown), len(ranked))


def choose_divided(runs: Sequence[RunFolder], num_shown: int = NUM_SHOWN) -> QuestionChoice:
    """Questions on which one run scores at least 50 more than another, widest first, whoever is ahead by turns."""
    table = score_table(runs)
    table = {key: scores for key, scores in table.items() if max(scores) - min(scores) >= HALF_RIGHT}
    widest = sorted(table, key=lambda key: min(table[key]) - max(table[key]))
    turns, ranked = defaultdict(int), []
    for key in widest:
        ahead = tuple(score >= HALF_RIGHT for score in table[key])
        ranked.append((min(table[key]) - max(table[key]), turns[ahead], key))
        turns[ahead] += 1
    ordered = [key for _, _, key in sorted(ranked, key=lambda entry: entry[:2])]
    return QuestionChoice(_spread(ordered, runs[0], num_shown), len(ordered))


def _spread(question_ids: Sequence[str], run: RunFolder, num_shown: int) -> list[str]:
    """The first of `question_ids`, but a second question about an image only after all images had their first."""
    turns, ranked = defaultdict(int), []
    for key in question_ids:
        images = tuple(_image_names(run.rows[key])) or key
        ranked.append((turns[images], key))
        turns[images] += 1
    return [key for _, key in sorted(ranked, key=lambda entry: entry[0])[:num_shown]]


def _image_names(row: dict) -> list[str]:
    return list_images(row) if "image" in row or "images" in row else []


def find_images(runs: Sequence[RunFolder], question_id: str) -> list[Path | None]:
    """Where each image of a question lies, if any of the runs knows a file that is still there."""
    known = [run.images[question_id] for run in runs if question_id in run.images]
    copies = zip(*known, strict=True)  # the runs are over the same questions
    return [next((Path(path) for path in paths if _is_there(path)), None) for paths in copies]


def _is_there(path: str) -> bool:
    return bool(path) and os.path.exists(parse_reference(path).path)


def read_thumbnail(path: Path) -> str | None:
    """
    A small JPEG of an image, as a model sees it, as a `data:` address; `None` if it cannot be read as an image.
    """
    try:
        shown = convert_to_rgb(open_if_volume(path) or load_image(path), (0, 0, 0))
    except (OSError, ValueError):
        return None
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# ---------------------------------------------------------------------------------------------------------------------
# What a report shows of them
# ---------------------------------------------------------------------------------------------------------------------


def question_sections(runs: Sequence[RunFolder], images: bool) -> list[dict]:
    """The kinds of questions to show, each with `title`, `text` and `cards`; kinds without questions are left out."""
    several = len(runs) > 1
    wrong, divided = choose_all_wrong(runs), choose_divided(runs) if several else QuestionChoice([], 0)
    is_right_or_wrong = runs[0].task in ("vqa", "multiple_choice")
    if several:
        title = "No system gets these right" if is_right_or_wrong else "All systems score low here"
        what = f"on which no system scores {HALF_RIGHT} or more"
    else:
        title = "Wrong answers" if is_right_or_wrong else "Low scores"
        what = f"on which the score is below {HALF_RIGHT}"
    kinds = (
        (title, wrong, what),
        ("These divide the systems", divided, f"on which one system scores at least {HALF_RIGHT} more than another"),
    )
    return [
        {
            "title": title,
            "text": f"{len(choice.question_ids)} of {choice.num_found} questions {what}.",
            "cards": [_question_card(runs, key, images) for key in choice.question_ids],
        }
        for title, choice, what in kinds
        if choice.question_ids
    ]


def _question_card(runs: Sequence[RunFolder], question_id: str, images: bool) -> dict:
    row = runs[0].rows[question_id]
    answers = []
    for place, run in enumerate(runs):
        score = item_score(run.scores[question_id], run.task)
        answers.append({"run": place, "text": run.rows[question_id]["prediction"], "score": score})
    return {
        "id": question_id,
        "images": _card_images(runs, question_id) if images else [],
        "question": row["question"],
        "options": row.get("options", []),
        "reference": row["answer"],
        "kind": row.get("answer_type", ""),
        "answers": answers,
    }


def _card_images(runs: Sequence[RunFolder], question_id: str) -> list[dict[str, str | None]]:
    """Each image of a question as a `data:` `address`, or in `missing` why there is none."""
    names = _image_names(runs[0].rows[question_id])
    paths = find_images(runs, question_id) or [None] * len(names)
    return [_card_image(path, name) for path, name in zip(paths, names or [""] * len(paths), strict=True)]


def _card_image(path: Path | None, name: str) -> dict[str, str | None]:
    if path is None:
        missing = f"The image file {name} is no longer where it was, or was read on another machine."
        return {"address": None, "missing": missing}
    thumbnail = read_thumbnail(path)
    return {"address": thumbnail, "missing": "" if thumbnail else f"The file {name} cannot be read as an image."}
