"""VQA-RAD from its own files: one training sample an image, its questions as turns."""

from pathlib import Path
from typing import Any

from .rows import (
    IMAGE_PLACEHOLDER,
    BadRows,
    ImageFolder,
    ReadRow,
    RowError,
    RowLocation,
    TrainingRows,
    Turn,
    build_row,
    finish,
    read_records,
    read_text,
    with_progress,
)


TRAINING_FILE = "trainset.json"
EXTENDED_FILE = "extended_train.jsonl"
# The literature's 1,797 training questions leave out the `frame` rows, which rephrase others by a fixed pattern.
PHRASE_TYPES = ("freeform", "para")


def load_vqa_rad(
    folder: Path, image_folder: ImageFolder, *, require_extended: bool, bad_rows: BadRows, check_images: bool = True
) -> TrainingRows:
    """
    Training rows of the VQA-RAD files in `folder`: `trainset.json`, `extended_train.jsonl` and the images.

    The `freeform` and `para` questions about one image become the turns of one sample, in the order of the file; its
    id is the image's name without ending. A bad question is left out alone, its image's other questions stay. Without
    `require_extended` the file of extended answers is not read.
    """
    extended = read_extended_answers(folder / EXTENDED_FILE, bad_rows) if require_extended else None
    samples = group_by_image(folder, image_folder, extended, bad_rows)
    read = [build_sample(folder, name, questions, require_extended) for name, questions in samples.items()]
    return finish(read, bad_rows, str(folder), check_images)


def read_extended_answers(path: Path, bad_rows: BadRows) -> dict[str, tuple[RowLocation, str]]:
    extended: dict[str, tuple[RowLocation, str]] = {}
    for location, record in read_records(path, bad_rows):
        try:
            located = location.with_id(record.get("qid"), "qid")
            if located.row_id in extended:
                raise located.error("qid", f"duplicated id, first at {extended[located.row_id][0].position}")
            extended[located.row_id] = (located, read_text(record.get("extended"), located, "extended", "answer"))
        except RowError as error:
            bad_rows.add(error)
    return extended


def group_by_image(
    folder: Path,
    image_folder: ImageFolder,
    extended: dict[str, tuple[RowLocation, str]] | None,
    bad_rows: BadRows,
) -> dict[str, list[dict[str, Any]]]:
    """Checked questions by image name; bad ones, and extended answers to no question, go to `bad_rows`."""
    samples: dict[str, list[dict[str, Any]]] = {}
    positions: dict[str, str] = {}
    for location, record in with_progress(list(read_records(folder / TRAINING_FILE, bad_rows))):
        if str(record.get("phrase_type")).strip() not in PHRASE_TYPES:
            continue
        try:
            located = location.with_id(record.get("qid"), "qid")
            if located.row_id in positions:
                raise located.error("qid", f"duplicated id, first at {positions[located.row_id]}")
            positions[located.row_id] = located.position
            question = read_question(located, record, image_folder, extended)
        except RowError as error:
            bad_rows.add(error)
            continue
        samples.setdefault(record["image_name"], []).append(question)
    for row_id, (location, _) in (extended or {}).items():
        if row_id not in positions:
            bad_rows.add(location.error("qid", f"no such question of {' or '.join(PHRASE_TYPES)} in {TRAINING_FILE}"))
    return samples


def read_question(
    location: RowLocation,
    record: dict[str, Any],
    image_folder: ImageFolder,
    extended: dict[str, tuple[RowLocation, str]] | None,
) -> dict[str, Any]:
    question = {
        "location": location,
        "image": image_folder.find(record.get("image_name"), location, "image_name"),
        "question": read_text(record.get("question"), location, "question", "question"),
        "answer": read_text(record.get("answer"), location, "answer", "answer"),
    }
    for field in ("question", "answer"):
        if IMAGE_PLACEHOLDER in question[field]:
            raise location.error(field, f"holds {IMAGE_PLACEHOLDER}, which stands for an image")
    if extended is not None:
        if location.row_id not in extended:
            raise location.error("extended", f"missing extended answer: {EXTENDED_FILE} has no such qid")
        question["extended"] = extended[location.row_id][1]
    return question


def build_sample(folder: Path, image_name: str, questions: list[dict[str, Any]], require_extended: bool) -> ReadRow:
    location = RowLocation(str(folder / TRAINING_FILE), questions[0]["location"].position, Path(image_name).stem)
    turns = []
    for question in questions:
        image_parts = [] if turns else [{"type": "image"}]
        turns.append(Turn("user", [*image_parts, {"type": "text", "text": question["question"]}], "question"))
        turns.append(Turn("assistant", [{"type": "text", "text": question["answer"]}], "answer"))
    row = build_row(
        location,
        [questions[0]["image"]],
        turns,
        [question["extended"] for question in questions] if require_extended else None,
        extended_field="extended",
        require_extended=require_extended,
    )
    return ReadRow(location, row, "image_name", [image_name])
