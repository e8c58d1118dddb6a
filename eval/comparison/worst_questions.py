"""Questions worth looking at: those that no system gets right, and those on which systems differ."""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

from logramed.eval.comparison.run_folder import MAIN_FIGURES, RunFolder
from logramed.eval.question_images import in_turns, list_images
from logramed.eval.volumes import open_if_volume, parse_reference
from logramed.image_processing_logramed import convert_to_rgb, load_image


NUM_SHOWN = 12  # questions of each kind
HALF_RIGHT = 50  # percent; on a question that no system gets right, the best system scores less
LARGEST_SIDE = 360  # pixels of a thumbnail


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
    """Scores of all runs by question id, without questions that some run has no score for."""
    table = {key: [item_score(run.scores[key], run.task) for run in runs] for key in runs[0].scores}
    return {key: scores for key, scores in table.items() if None not in scores}


def choose_all_wrong(runs: Sequence[RunFolder]) -> list[str]:
    """Questions on which even the best run scores below 50, lowest first."""
    table = {key: scores for key, scores in score_table(runs).items() if max(scores) < HALF_RIGHT}
    return spread(sorted(table, key=lambda key: (max(table[key]), sum(table[key]))), runs[0])


def choose_divided(runs: Sequence[RunFolder]) -> list[str]:
    """Questions on which one run scores at least 50 more than another, largest gap first."""
    gaps = {key: max(scores) - min(scores) for key, scores in score_table(runs).items()}
    gaps = {key: gap for key, gap in gaps.items() if gap >= HALF_RIGHT}
    return spread(sorted(gaps, key=gaps.get, reverse=True), runs[0])


def spread(question_ids: Sequence[str], run: RunFolder) -> list[str]:
    """`question_ids`, but a second question about an image only after all images had their first."""
    places = in_turns([tuple(list_images(run.rows[key])) for key in question_ids])
    return [question_ids[place] for place in places]


def question_sections(runs: Sequence[RunFolder], images: bool) -> list[dict]:
    """The kinds of questions to show, each with `title`, `text` and `cards`; kinds without questions are left out."""
    several = len(runs) > 1
    kinds = [
        (
            "No system gets these right" if several else "Wrong answers",
            choose_all_wrong(runs),
            f"on which no system scores {HALF_RIGHT} or more" if several else f"with a score below {HALF_RIGHT}",
        ),
        (
            "These divide the systems",
            choose_divided(runs),
            f"on which one system scores at least {HALF_RIGHT} more than another",
        ),
    ]
    return [
        {
            "title": title,
            "text": f"{min(len(found), NUM_SHOWN)} of {len(found)} questions {what}.",
            "cards": [_question_card(runs, key, images) for key in found[:NUM_SHOWN]],
        }
        for title, found, what in kinds
        if found
    ]


def _question_card(runs: Sequence[RunFolder], question_id: str, images: bool) -> dict:
    row = runs[0].rows[question_id]
    return {
        "id": question_id,
        "images": _card_images(runs, row) if images else [],
        "question": row["question"],
        "options": row.get("options", []),
        "reference": row["answer"],
        "answers": [
            {
                "run": place,
                "text": run.rows[question_id]["prediction"],
                "score": item_score(run.scores[question_id], run.task),
            }
            for place, run in enumerate(runs)
        ],
    }


def _card_images(runs: Sequence[RunFolder], row: dict) -> list[dict[str, str | None]]:
    """Each image of a question with its `name` and `data:` URL (`address`), `None` if it is unreadable."""
    known = [run.images[row["question_id"]] for run in runs if row["question_id"] in run.images]
    cards = []
    for place, name in enumerate(list_images(row)):
        path = next((of_run[place] for of_run in known if os.path.exists(parse_reference(of_run[place]).path)), None)
        cards.append({"name": name, "address": None if path is None else read_thumbnail(Path(path))})
    return cards


def read_thumbnail(path: Path) -> str | None:
    """A thumbnail of an image, as a model sees it, as a JPEG `data:` URL; `None` if it cannot be read."""
    try:
        shown = convert_to_rgb(open_if_volume(path) or load_image(path), (0, 0, 0))
    except (OSError, ValueError):
        return None
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
