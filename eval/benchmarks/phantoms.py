"""The questions of the embedded phantoms (see `logramed.trainer.phantoms`) as evaluation rows."""

from collections.abc import Sequence
from pathlib import Path

from logramed.eval.benchmarks.converted import read_converted_rows
from logramed.eval.benchmarks.rows import check_ids, check_split, check_subset


TASK = "vqa"
SPLITS = ("test", "validation")
HUB_ID = None
GROUPS = ("organ", "question_type")


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The questions about held-out phantoms in a folder written by `generate_phantoms`; `groups`: `organ` and
    `question_type`.
    """
    check_split(split, SPLITS)
    check_subset(subset, (), "phantoms")
    folder = Path(data).expanduser().resolve()
    path = folder / f"{split}_questions.json"
    if not path.is_file():
        raise ValueError(
            f"`data` holds no {path.name}: {folder}. Generate the phantoms with "
            f"`python trainer/phantoms.py --output {folder}`."
        )
    questions = read_converted_rows(path, ("images",), groups=GROUPS, skipped=skipped)
    check_ids(questions, path, "id")
    return questions


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """Always `[]`: any number of phantoms can be generated."""
    return []
