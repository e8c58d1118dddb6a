"""The questions of the embedded phantoms (see `logramed.trainer.phantoms`) as evaluation rows."""

import json
from pathlib import Path


GROUPS = ("organ", "question_type")
SPLITS = ("validation", "test")


def load_questions(data_folder: str | Path, split: str = "test") -> list[dict]:
    """
    Read the questions about held-out phantoms.

    Args:
        data_folder (`str` or `Path`): A folder that `generate_phantoms` wrote.
        split (`str`): "test" or "validation".

    Returns:
        `list[dict]`: one row a question, in the order of the file, with `question_id` (str), `image` (str, absolute
        path), `question` (str, without image placeholder), `answer` (str), `answer_type` ("OPEN" or "CLOSED") and
        `groups` (a value for each of `GROUPS`).

    Raises:
        ValueError: If `split` has no questions of its own, or the file of the questions or an image is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    folder = Path(data_folder).resolve()
    path = folder / f"{split}_questions.json"
    if not path.is_file():
        raise ValueError(
            f"`data_folder` holds no {path.name}: {folder}. Make the phantoms with "
            f"`python trainer/phantoms.py --output {folder}`."
        )
    return [_question_row(row, folder, path) for row in json.loads(path.read_text(encoding="utf-8"))]


def _question_row(row: dict, folder: Path, path: Path) -> dict:
    image = folder / "images" / row["image"]
    if not image.is_file():
        raise ValueError(f"{path}, row with `id` {row['id']}, `image`: {image} is missing. Make the phantoms anew.")
    question, answer = (turn["value"] for turn in row["conversations"])
    return {
        "question_id": str(row["id"]),
        "image": str(image),
        "question": question.replace("<image>", "").strip(),
        "answer": answer,
        "answer_type": row["answer_type"],
        "groups": {name: row[name] for name in GROUPS},
    }
