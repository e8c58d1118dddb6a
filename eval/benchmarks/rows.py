"""Shared by all benchmark loaders: reading files and fields, checking and counting rows."""

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from logramed.eval.metrics.medical_vqa.vqa_scoring import ANSWER_TYPES
from logramed.eval.question_images import IMAGE_PLACEHOLDER, all_sources, describe_mismatch
from logramed.eval.text_values import number_repeated, to_text
from logramed.eval.volumes import image_exists


NUM_NAMED = 3  # bad rows named in a sentence
Located = tuple[str, Any]  # location (file and row, as text) and record


def check_split(split: str, splits: Sequence[str]) -> None:
    """Raise `ValueError` for an unknown `split`."""
    if split not in splits:
        raise ValueError(f"`split` must be one of {', '.join(splits)}, got {split!r}.")


def check_subset(subset: str | None, subsets: Sequence[str], benchmark: str) -> None:
    """Raise `ValueError` if `subset` is not one of `subsets`; `None`, the default, always passes."""
    if subset is None or subset in subsets:
        return
    if not subsets:
        raise ValueError(f"{benchmark} has no subsets: leave `subset` out, got {subset!r}.")
    raise ValueError(f"`subset` of {benchmark} must be one of {', '.join(subsets)}, got {subset!r}.")


def read_records(path: Path, form: str | None = None) -> list[Located]:
    """
    The rows of a JSON list, JSON lines or CSV file, with their locations. The format is `form` (".json", ".jsonl" or
    ".csv") or, by default, the file extension. Raises `ValueError` with row or line if the file has another
    format.
    """
    text, form = read_file(path), form or path.suffix
    if form == ".csv":
        return _read_csv(path, text)
    if form != ".jsonl":
        return list_rows(path, parse_json(path, text))
    # Not `splitlines`: texts may hold other line separators than "\n".
    lines = [(f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [(where, check_record(where, parse_json(where, line))) for where, line in lines]


def _read_csv(path: Path, text: str) -> list[Located]:
    # Not pandas, which would read "None" and "NA" as missing. `strict` raises for an unclosed quote.
    reader, rows, last = csv.DictReader(io.StringIO(text, newline=""), strict=True), [], 0
    try:
        names, last = reader.fieldnames or [], reader.line_num
        if len(set(names)) < len(names):
            raise ValueError(f"{path} has a repeated column in its header: {', '.join(names)}.")
        for row in reader:
            last = reader.line_num
            if None in row:
                raise ValueError(f"{path}, line {last} has more cells than the header.")
            rows.append((f"{path}, line {last}", row))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table after line {last}: {error}.") from error
    return rows


def require_columns(path: Path, records: Sequence[Located], columns: Sequence[str]) -> None:
    """Raise `ValueError` if the first of `records` lacks one of `columns`."""
    missing = [column for column in columns if records and column not in records[0][1]]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(records[0][1])}.")


def read_file(path: Path) -> str:
    try:
        # Not `read_text`, which would change "\r\n" inside quoted cells to "\n".
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def parse_json(where: str | Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}. It begins {text[:40]!r}.") from error


def list_rows(where: str | Path, rows: Any) -> list[Located]:
    """The rows of a list with their locations."""
    if not isinstance(rows, list):
        raise ValueError(f"{where}: expected a list of rows, got {type(rows).__name__}.")
    return [(f"{where}, row {number}", check_record(f"{where}, row {number}", row)) for number, row in enumerate(rows)]


def check_record(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with fields, got {type(row).__name__}.")
    return row


def read_rows(
    records: Iterable[Located],
    read_row: Callable[[Any, str], Any],
    skipped: list[str] | None = None,
    id_field: str | None = None,
) -> list[Any]:
    """
    Call `read_row` on each record and its location. Bad rows, for which it raises `ValueError`, are left out and
    described in `skipped`, with their `id_field`; if `skipped` is `None`, the error is raised.

    Example:
        >>> skipped = []
        >>> rows = [("row 0", {"qid": 7, "answer": ""}), ("row 1", {"qid": 8, "answer": "no"})]
        >>> read_rows(rows, lambda row, where: read_text(row, "answer", where), skipped, "qid"), skipped
        (['no'], ['qid 7: row 0, `answer` is empty.'])
    """
    rows = []
    for where, record in records:
        try:
            rows.append(read_row(record, where))
        except ValueError as error:
            if skipped is None:
                raise
            skipped.append(f"{id_field} {record.get(id_field)}: {error}" if id_field else str(error))
    return rows


def describe_skipped(skipped: Sequence[str]) -> str:
    """
    The number of bad rows that were left out, and the first few of them.

    Example:
        >>> describe_skipped(["qid 7: row 0, `answer` is empty."])
        '1 bad row left out (qid 7: row 0, `answer` is empty)'
    """
    first = "; ".join(words.rstrip(".") for words in skipped[:NUM_NAMED])
    more = f"; and {len(skipped) - NUM_NAMED} more" if len(skipped) > NUM_NAMED else ""
    return f"{len(skipped)} bad row{'s' * (len(skipped) > 1)} left out ({first}{more})"


def read_text(record: Mapping[str, Any], field: str, where: str) -> str:
    """
    The stripped text of a field. Numbers count as text, as published files mix both. A field that is missing, empty
    or not text (see `to_text`) raises `ValueError` with `where` and `field`.

    Example:
        >>> read_text({"answer": 2}, "answer", "test.json, row 0")
        '2'
    """
    value = record.get(field)
    if value is None:
        raise ValueError(f"{where} has no `{field}`.")
    try:
        text = to_text(value)
    except ValueError as error:
        raise ValueError(f"{where}, `{field}`: {error}.") from error
    if not text:
        raise ValueError(f"{where}, `{field}` is empty.")
    return text


def read_answer_type(record: Mapping[str, Any], where: str) -> str:
    """
    "OPEN" or "CLOSED" from the field `answer_type`, ignoring whitespace and case.

    Example:
        >>> read_answer_type({"answer_type": "Closed "}, "test.json, row 0")
        'CLOSED'
    """
    answer_type = read_text(record, "answer_type", where).upper()
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"{where}, `answer_type`: expected OPEN or CLOSED, got {record['answer_type']!r}.")
    return answer_type


def infer_answer_type(answer: str) -> str:
    """
    The type of a question in files without types: "CLOSED" if the answer is yes or no, otherwise "OPEN".

    Example:
        >>> infer_answer_type("Yes."), infer_answer_type("no"), infer_answer_type("left lung")
        ('CLOSED', 'CLOSED', 'OPEN')
    """
    return "CLOSED" if answer.strip().rstrip(".").lower() in ("yes", "no") else "OPEN"


def find_image(folder: Path, name: Any, where: str, field: str) -> str:
    """
    The absolute path of an image in or below `folder`, or of a folder with DICOM files. A `name` that is not a
    relative path, leads out of `folder`, or does not exist raises `ValueError` with `where` and `field`.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}, `{field}`: expected the path of an image below {folder}, got {name!r}.")
    relative = PurePosixPath(_normalize_path(name))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{where}, `{field}`: expected a path that stays in {folder}, got {name!r}.")
    image = folder.absolute() / relative
    if not image_exists(str(image)):
        raise ValueError(f"{where}, `{field}`: {image} is missing.")
    return str(image)


def find_images(folder: Path, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    The image field of a question row, for a record with images in `folder`: `image` (a path), or `images` if the
    record has a list in `images` or `image`. Raises `ValueError` if both fields are set, or like `find_image`.
    """
    field = "images" if record.get("images") is not None else "image"
    if field == "images" and record.get("image") is not None:
        raise ValueError(f"{where} has both `image` and `images`: keep one of them.")
    names = record.get(field)
    if not isinstance(names, list):
        return {"image": find_image(folder, names, where, field)}
    return {"images": find_image_list(folder, names, where, field)}


def find_image_list(folder: Path, names: Sequence[Any], where: str, field: str) -> list[str]:
    """The absolute paths of the images of a list (see `find_image`), which must not be empty."""
    if not names:
        raise ValueError(f"{where}, `{field}` is an empty list: expected the path of at least one image.")
    return [find_image(folder, name, where, f"{field}[{place}]") for place, name in enumerate(names)]


def collect_image_names(records: Iterable[Mapping[str, Any]], *fields: str) -> list[str]:
    """
    The unique texts in `fields`, also inside lists, in order, normalized as in `find_image`.

    Example:
        >>> collect_image_names([{"image": "a.png"}, {"images": ["b.png", "./a.png"]}], "image", "images")
        ['a.png', 'b.png']
    """
    values = (record.get(field) for record in records for field in fields)
    names = (name for value in values for name in (value if isinstance(value, list) else [value]))
    return list(dict.fromkeys(_normalize_path(name) for name in names if isinstance(name, str)))


def _normalize_path(name: str) -> str:
    return str(PurePosixPath(name.strip().replace("\\", "/")))


def read_question(record: Mapping[str, Any], field: str, where: str, images: Sequence[str] | None = None) -> str:
    """
    The text of a field (see `read_text`) without image placeholders. With a list of `images`, the placeholders are
    kept, as they mark positions. Raises `ValueError` if there is no other text, or if there are placeholders but not
    one for each of `images`.

    Example:
        >>> read_question({"value": "Is there a mass?\\n<image>"}, "value", "test.json, row 0")
        'Is there a mass?'
        >>> read_question({"value": "<image> Now <image> Grown?"}, "value", "test.json, row 0", ["/a.png", "/b.png"])
        '<image> Now <image> Grown?'
    """
    written = read_text(record, field, where)
    question = written.replace(IMAGE_PLACEHOLDER, "").strip()
    if not question:
        raise ValueError(f"{where}, `{field}` holds no question, only the image placeholder.")
    if images is None:
        return question
    num_placeholders = written.count(IMAGE_PLACEHOLDER)
    if num_placeholders not in (0, len(images)):
        raise ValueError(f"{where}, `{field}`: {describe_mismatch(num_placeholders, len(images))}.")
    return written


def check_ids(questions: Sequence[dict], source: str | Path, field: str = "question_id") -> None:
    """Raise `ValueError` for ids that occur more than once: answers are joined by them."""
    repeated = [qid for qid, count in Counter(question["question_id"] for question in questions).items() if count > 1]
    if repeated:
        raise ValueError(f"{source} holds the same `{field}` more than once: {', '.join(repeated[:5])}.")


def number_repeated_ids(questions: Sequence[dict]) -> list[dict]:
    """Make question ids unique: repeated ones (such as an image's) get "-1", "-2", ... in file order."""
    numbered = number_repeated([question["question_id"] for question in questions])
    return [question | {"question_id": question_id} for question, question_id in zip(questions, numbered, strict=True)]


def describe_count_differences(questions: Sequence[dict], expected: Mapping[str, int]) -> list[str]:
    """
    Describe differences from the `expected` numbers of "questions", "images", "OPEN questions" or "CLOSED questions".

    Example:
        >>> describe_count_differences([{"image": "/a.png"}], {"questions": 2000, "images": 1})
        ['1 questions instead of 2,000']
    """
    counts = Counter(f"{question['answer_type']} questions" for question in questions if "answer_type" in question)
    counts |= {"questions": len(questions), "images": len(all_sources(questions))}
    return [
        f"{counts[kind]:,} {kind} instead of {known:,}" for kind, known in expected.items() if counts[kind] != known
    ]


def warn_of_differences(benchmark: str, split: str, differences: Sequence[str]) -> None:
    """Warn if there are `differences`: figures on other questions are not comparable."""
    if differences:
        warnings.warn(
            f"This {benchmark} {split} split has {' and '.join(differences)}: its figures are not comparable with "
            "published ones.",
            stacklevel=3,
        )
