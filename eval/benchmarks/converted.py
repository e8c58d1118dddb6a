"""
Questions of VQA data sets as others converted them: LLaVA-Med's JSON files, and the tables that the Hub holds.

Such a file (`test_w_options_new.json`; ExGra-Med has the same form) is a JSON list of rows with `id`, `image`,
`answer_type` and `conversations`: one question with the image placeholder and, for closed questions, its options, and
one answer. Some files spell the field `conversatons`. A row may have several images, in `images`; then the
placeholders are their places. A table is parquet files with the columns `image`, or `images`, `question` and `answer`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.hub import image_folder, read_parquet_rows
from logramed.eval.benchmarks.rows import (
    collect_image_names,
    find_images,
    infer_answer_type,
    read_answer_type,
    read_question,
    read_records,
    read_rows,
    read_text,
)


CONVERSATION_FIELDS = ("conversations", "conversatons")
TABLE_COLUMNS = ("image", "question", "answer")


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
    Question rows of one file.

    Args:
        path (`Path`): The file.
        image_folders (sequence of `str`): Where the images may lie, seen from the file's folder.
        groups (sequence of `str`): Fields to break figures down by, which every row must have.
        read_type (callable): Reads the answer type of a row, given it and its place in words.
        skipped (`list[str]`, *optional*): Bad rows are left out and added here in words (see `read_rows`).

    Raises:
        ValueError: If a row is not of this form or its image is missing; with file, id and field.
    """
    records = read_records(path)
    names = collect_image_names((record for _, record in records), "image", "images")
    images = image_folder(path.parent, image_folders, names, archives=("images.zip", "imgs.zip"))
    return read_rows(
        records, lambda record, where: _question_row(record, where, path, images, groups, read_type), skipped, "id"
    )


def read_table_rows(paths: Sequence[Path]) -> list[dict]:
    """
    Question rows of the parquet files of one split. Their ids are the row numbers, counted through all files.

    The tables hold no answer types: a question whose answer is yes or no is "CLOSED", any other "OPEN".

    Raises:
        ValueError: If a file, column, image or text is missing; with file and row.
    """
    questions = []
    for number, (where, record) in enumerate(read_parquet_rows(paths, TABLE_COLUMNS)):
        answer = read_text(record, "answer", where)
        questions.append(
            {
                "question_id": str(number),
                **_of_table(record, where),
                "answer": answer,
                "answer_type": infer_answer_type(answer),
                "groups": {},
            }
        )
    return questions


def _of_table(record: dict, where: str) -> dict:
    """The images and the question of a row of a table; the text beside one image is taken as it is."""
    if "images" not in record:
        return {"image": record["image"], "question": read_text(record, "question", where)}
    return {"images": record["images"], "question": read_question(record, "question", where, record["images"])}


def _question_row(
    record: dict,
    where: str,
    path: Path,
    images: Path,
    groups: Sequence[str],
    read_type: Callable[[Mapping[str, Any], str], str],
) -> dict:
    question_id = read_text(record, "id", where)
    where = f"{path}, row with `id` {question_id}"
    found = find_images(images, record, where)
    question, answer = _read_turns(record, where, found.get("images"))
    return {
        "question_id": question_id,
        **found,
        "question": question,
        "answer": answer,
        "answer_type": read_type(record, where),
        "groups": {name: read_text(record, name, where) for name in groups},
    }


def _read_turns(record: dict, where: str, images: list[str] | None) -> tuple[str, str]:
    field = next((field for field in CONVERSATION_FIELDS if field in record), CONVERSATION_FIELDS[0])
    turns = record.get(field)
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{where}, `{field}`: expected two turns, a question and its answer, got {turns!r}.")
    where = f"{where}, `{field}`"
    question = read_question(turns[0], "value", f"{where}, turn 0", images)
    return question, read_text(turns[1], "value", f"{where}, turn 1")
