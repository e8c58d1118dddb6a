"""
Questions of VQA data sets in converted formats: LLaVA-Med's JSON files, and tables on the Hub.

A JSON file (`test_w_options_new.json`; ExGra-Med has the same format) is a JSON list of rows with `id`, `image`,
`answer_type` and `conversations`: one question with the image placeholder and, for closed questions, its options, and
one answer. Some files spell the field `conversatons`. A row may have several images, in `images`; then the
placeholders mark their positions. A table is parquet files with `image` or `images`, `question` and `answer`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.hub import read_parquet_rows, read_questions
from logramed.eval.benchmarks.rows import (
    find_images,
    infer_answer_type,
    read_answer_type,
    read_question,
    read_records,
    read_text,
)


CONVERSATION_FIELDS = ("conversations", "conversatons")


def is_converted(path: Path) -> bool:
    """Whether the first row of a JSON file holds a conversation."""
    records = read_records(path)
    return bool(records) and any(field in records[0][1] for field in CONVERSATION_FIELDS)


def read_converted_rows(
    path: Path,
    image_folders: Sequence[str],
    groups: Sequence[str] = (),
    read_type: Callable[[Mapping[str, Any], str], str] = read_answer_type,
    skipped: list[str] | None = None,
) -> list[dict]:
    """
    Question rows of one file, with images in one of `image_folders`, relative to the file's folder. `groups` are
    fields to break figures down by, which every row must have; `read_type` reads the answer type from a row and its
    location. A row with another format or a missing image raises `ValueError` with file, id and field, or is `skipped`
    (see `read_rows`).
    """

    def read_row(record: dict, where: str, images: Path) -> dict:
        question_id = read_text(record, "id", where)
        where = f"{path}, row with `id` {question_id}"
        found = find_images(images, record, where)
        asked, answered, where_turns = _find_turns(record, where)
        return {
            "question_id": question_id,
            **found,
            "question": read_question(asked, "value", f"{where_turns}, turn 0", found.get("images")),
            "answer": read_text(answered, "value", f"{where_turns}, turn 1"),
            "answer_type": read_type(record, where),
            "groups": {name: read_text(record, name, where) for name in groups},
        }

    return read_questions(
        path,
        read_row,
        skipped,
        image_fields=("image", "images"),
        image_folders=image_folders,
        archives=("images.zip", "imgs.zip"),
        id_field="id",
    )


def _find_turns(record: dict, where: str) -> tuple[dict, dict, str]:
    field = next((field for field in CONVERSATION_FIELDS if field in record), CONVERSATION_FIELDS[0])
    turns = record.get(field)
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{where}, `{field}`: expected two turns, a question and its answer, got {turns!r}.")
    return *turns, f"{where}, `{field}`"


def read_table_rows(paths: Sequence[Path]) -> list[dict]:
    """
    Question rows of the parquet files of one split. Ids are row numbers, counted across all files.

    The tables have no answer types: questions answered by yes or no are "CLOSED", all others "OPEN".
    """
    questions = []
    for number, (where, record) in enumerate(read_parquet_rows(paths)):
        images = {name: record[name] for name in ("image", "images") if record.get(name)}
        answer = read_text(record, "answer", where)
        questions.append(
            {
                "question_id": str(number),
                **images,
                "question": read_question(record, "question", where, images.get("images")),
                "answer": answer,
                "answer_type": infer_answer_type(answer),
                "groups": {},
            }
        )
    return questions
