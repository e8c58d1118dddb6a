"""What the loaders of all benchmarks share: reading fields, checking rows, and saying how many there should be."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from logramed.eval.question_images import IMAGE_PLACEHOLDER, all_sources, describe_mismatch
from logramed.eval.text_values import number_repeated, to_text
from logramed.eval.volumes import image_exists


ANSWER_TYPES = ("OPEN", "CLOSED")
NUM_NAMED = 3  # bad rows named in a sentence


def check_split(split: str, splits: Sequence[str]) -> None:
    """Refuse a `split` that the benchmark has not."""
    if split not in splits:
        raise ValueError(f"`split` must be one of {', '.join(splits)}, got {split!r}.")


def check_subset(subset: str | None, subsets: Sequence[str], benchmark: str) -> None:
    """
    Refuse a `subset` that is none of `subsets`; `None` (the default one) passes always.

    Example:
        >>> check_subset("fr", ("en", "zh"), "slake")
        Traceback (most recent call last):
        ValueError: `subset` of slake must be one of en, zh, got 'fr'.
        >>> check_subset("en", (), "vqa_rad")
        Traceback (most recent call last):
        ValueError: vqa_rad has no subsets: leave `subset` out, got 'en'.
    """
    if subset is None or subset in subsets:
        return
    if not subsets:
        raise ValueError(f"{benchmark} has no subsets: leave `subset` out, got {subset!r}.")
    raise ValueError(f"`subset` of {benchmark} must be one of {', '.join(subsets)}, got {subset!r}.")


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """
    The rows of a JSON list (or of JSON lines, if `path` ends in .jsonl), each with its place in words for errors.

    Raises:
        ValueError: If the file is not JSON, not a list, or a row is not an object; with file and row or line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    records = []
    for where, value in _parse_lines(path, text) if path.suffix == ".jsonl" else _parse_list(path, text):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object with fields, got {type(value).__name__}.")
        records.append((where, value))
    return records


def _parse_list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a list of rows, got {type(values).__name__}.")
    return ((f"{path}, row {number}", value) for number, value in enumerate(values))


def _parse_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error


def read_rows(
    records: Iterable[tuple[str, Any]],
    read_row: Callable[[Any, str], Any],
    skipped: list[str] | None = None,
    id_field: str | None = None,
) -> list[Any]:
    """
    What `read_row` makes of each record and its place.

    Args:
        records (iterable of `tuple`): Places in words, and records, as from `read_records`.
        read_row (callable): Raises `ValueError` for a bad row.
        skipped (`list[str]`, *optional*): Bad rows are left out, and added here in words. Without it they are refused.
        id_field (`str`, *optional*): Field of the id that these words name.

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
    How many bad rows were left out, and the first of them.

    Example:
        >>> describe_skipped(["qid 7: row 0, `answer` is empty."])
        '1 bad row left out (qid 7: row 0, `answer` is empty)'
    """
    first = "; ".join(words.rstrip(".") for words in skipped[:NUM_NAMED])
    more = f"; and {len(skipped) - NUM_NAMED} more" if len(skipped) > NUM_NAMED else ""
    return f"{len(skipped)} bad row{'s' * (len(skipped) > 1)} left out ({first}{more})"


def read_text(record: Mapping[str, Any], field: str, where: str) -> str:
    """
    The text in a field, without blanks around it. Numbers count as text: the field's files hold both.

    Raises:
        ValueError: If the field is missing, empty, or holds what `to_text` refuses; with `where` and `field`.

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
    "OPEN" or "CLOSED", however the field `answer_type` spells it with blanks and small letters.

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
    The type of a question in files that give none: "CLOSED" if the answer is yes or no, otherwise "OPEN".

    Example:
        >>> infer_answer_type("Yes."), infer_answer_type("no"), infer_answer_type("left lung")
        ('CLOSED', 'CLOSED', 'OPEN')
    """
    return "CLOSED" if answer.strip().rstrip(".").lower() in ("yes", "no") else "OPEN"


def find_image(folder: Path, name: Any, where: str, field: str) -> str:
    """
    The absolute path of an image in `folder`, which may lie in folders below it, or of a folder with DICOM files.

    Raises:
        ValueError: If `name` is not a relative path, leads out of `folder`, or no such file is there; with `where`,
            `field` and the path.
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


def collect_image_names(records: Iterable[Mapping[str, Any]], *fields: str) -> list[str]:
    """
    The different texts in `fields`, and in lists there, in their order, written as `find_image` looks for them.

    Example:
        >>> collect_image_names([{"image": "a.png"}, {"images": ["b.png", "./a.png"]}], "image", "images")
        ['a.png', 'b.png']
    """
    values = (record.get(field) for record in records for field in fields)
    names = (name for value in values for name in (value if isinstance(value, list) else [value]))
    return list(dict.fromkeys(_normalize_path(name) for name in names if isinstance(name, str)))


def find_images(folder: Path, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    The images of a record in `folder`, as a question row has them: `image` (a path), or `images` of a list in `images`
    or `image`.

    Raises:
        ValueError: If both fields are filled, the list is empty, or as `find_image`; with `where` and field.
    """
    field = "images" if record.get("images") is not None else "image"
    names = record.get(field)
    if field == "images" and record.get("image") is not None:
        raise ValueError(f"{where} has both `image` and `images`: keep one of them.")
    if not isinstance(names, list):
        return {"image": find_image(folder, names, where, field)}
    return {"images": find_image_list(folder, names, where, field)}


def find_image_list(folder: Path, names: Sequence[Any], where: str, field: str) -> list[str]:
    """The absolute paths of the images of a list (see `find_image`), which must hold one."""
    if not names:
        raise ValueError(f"{where}, `{field}` is an empty list: expected the path of at least one image.")
    return [find_image(folder, name, where, f"{field}[{place}]") for place, name in enumerate(names)]


def _normalize_path(name: str) -> str:
    return str(PurePosixPath(name.strip().replace("\\", "/")))


def read_question(record: Mapping[str, Any], field: str, where: str, images: Sequence[str] | None = None) -> str:
    """
    The text in a field (see `read_text`) without the image placeholder; with the placeholders, which are their places,
    of a row that has a list of `images`.

    Raises:
        ValueError: If nothing else is there, or not one placeholder for each of `images`; with `where` and `field`.

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
    """Refuse question ids that stand in `source`, in its field `field`, more than once: answers are joined by them."""
    repeated = [qid for qid, count in Counter(question["question_id"] for question in questions).items() if count > 1]
    if repeated:
        raise ValueError(f"{source} holds the same `{field}` more than once: {', '.join(repeated[:5])}.")


def number_repeated_ids(questions: Sequence[dict]) -> list[dict]:
    """
    Questions whose ids are unique: an id that several share (of an image, say) gets "-1", "-2", ... in file order.

    An id that only one question has stays as it is.

    Example:
        >>> rows = number_repeated_ids([{"question_id": "7"}, {"question_id": "7"}, {"question_id": "8"}])
        >>> [row["question_id"] for row in rows]
        ['7-1', '7-2', '8']
    """
    numbered = number_repeated([question["question_id"] for question in questions])
    return [question | {"question_id": question_id} for question, question_id in zip(questions, numbered, strict=True)]


def count_rows(questions: Sequence[dict]) -> Counter:
    """
    How many "questions" and different "images" there are, and "OPEN questions" and "CLOSED questions" where typed.

    Example:
        >>> rows = [{"image": "/a.png", "answer_type": "OPEN"}, {"image": "/a.png", "answer_type": "CLOSED"}]
        >>> sorted(count_rows(rows).items())
        [('CLOSED questions', 1), ('OPEN questions', 1), ('images', 1), ('questions', 2)]
    """
    counts = Counter(f"{question['answer_type']} questions" for question in questions if "answer_type" in question)
    counts["questions"] = len(questions)
    counts["images"] = len(all_sources(questions))
    return counts


def describe_count_differences(questions: Sequence[dict], expected: Mapping[str, int]) -> list[str]:
    """
    What differs from the known numbers, in words; `[]` if nothing does.

    Args:
        expected (`Mapping[str, int]`): Known numbers by the names of `count_rows`; what it leaves out is not compared.

    Example:
        >>> describe_count_differences([{"image": "/a.png"}], {"questions": 2000, "images": 1})
        ['1 questions instead of 2,000']
    """
    counts = count_rows(questions)
    return [
        f"{counts[kind]:,} {kind} instead of {number:,}" for kind, number in expected.items() if counts[kind] != number
    ]


def warn_of_differences(benchmark: str, split: str, differences: Sequence[str], remedy: str) -> None:
    """Warn if `differences` names any: figures over other questions are not the benchmark's. End with `remedy`."""
    if differences:
        warnings.warn(
            f"This {benchmark} {split} split has {' and '.join(differences)}: its figures do not compare with "
            f"published ones. {remedy}",
            stacklevel=3,
        )
