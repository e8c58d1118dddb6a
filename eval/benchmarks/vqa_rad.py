"""
VQA-RAD: questions that clinicians asked about radiology images.

Source: Lau et al. 2018, "A dataset of clinically generated visual questions and answers about radiology images",
Scientific Data 5, 180251. Read from the files `trainset.json` and `testset.json` of the split used in the field.
"""

import json
import warnings
from collections import Counter
from pathlib import Path


# Rows by answer type. Source: the files of the field's split; 272 and 179 are the denominators behind the published
# figures of LLaVA-Med and ExGra-Med.
EXPECTED_COUNTS = {"test": {"CLOSED": 272, "OPEN": 179}, "train": {"CLOSED": 1823, "OPEN": 1241}}
QUESTION_TYPE_SPELLINGS = {"PRSE": "PRES", "ATRIB": "ATTRIB"}
FIELDS = ("qid", "image_name", "image_organ", "question", "answer", "answer_type", "question_type")


def load_questions(data_folder: str | Path, split: str = "test") -> list[dict]:
    """
    Read the questions of one split.

    Row counts that differ from the field's split give a warning that says what differs.

    Args:
        data_folder (`str` or `Path`): Folder with `testset.json` (`trainset.json`) and `images/`.
        split (`str`): "test" or "train".

    Returns:
        `list[dict]`: one row a question, in the order of the file, with `question_id` (str), `image` (str, absolute
        path), `question` (str), `answer` (str; the files hold whole numbers too), `answer_type` ("OPEN" or "CLOSED")
        and `groups`: `organ` (HEAD, CHEST, ABD) and `question_type` (see `normalize_question_type`).

    Raises:
        ValueError: If `split` is unknown, the file or an image is missing, or a row is not of the form above.
    """
    if split not in EXPECTED_COUNTS:
        raise ValueError(f"`split` must be one of {', '.join(EXPECTED_COUNTS)}, got {split!r}.")
    folder = Path(data_folder).resolve()
    path = folder / f"{split}set.json"
    if not path.is_file():
        raise ValueError(f"`data_folder` holds no {path.name}: {folder}. It must be the folder of the VQA-RAD files.")
    records = json.loads(path.read_text(encoding="utf-8"))
    questions = [_question_row(record, folder, f"{path}, row {number}") for number, record in enumerate(records)]
    check_ids(questions, path)
    check_counts(questions, split)
    return questions


def normalize_question_type(question_type: str) -> str:
    """
    One type for a question: spelled as in the paper, and of several the one named first.

    So every question counts in exactly one group and the groups add up to the whole. 8 of the 451 test questions name
    two types ("PRES, ATTRIB").

    Example:
        >>> normalize_question_type("PRSE"), normalize_question_type("Other"), normalize_question_type("POS, PRES")
        ('PRES', 'OTHER', 'POS')
    """
    first = question_type.split(",")[0].strip().upper()
    return QUESTION_TYPE_SPELLINGS.get(first, first)


def check_ids(questions: list[dict], path: Path) -> None:
    """Refuse question ids that stand in `path` more than once: answers are joined by them."""
    repeated = [qid for qid, count in Counter(question["question_id"] for question in questions).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} holds the same `qid` more than once: {', '.join(repeated[:5])}.")


def check_counts(questions: list[dict], split: str) -> None:
    """Warn if the number of questions of an answer type is not that of the field's split."""
    counts = Counter(question["answer_type"] for question in questions)
    differences = [
        f"{counts[kind]} {kind} questions instead of {expected}"
        for kind, expected in EXPECTED_COUNTS[split].items()
        if counts[kind] != expected
    ]
    if differences:
        warnings.warn(
            f"This VQA-RAD {split} split has {' and '.join(differences)}: its figures do not compare with published "
            "ones. Use the files of the field's split (3,064 training and 451 test rows).",
            stacklevel=3,
        )


def _question_row(record: dict, folder: Path, where: str) -> dict:
    missing = [field for field in FIELDS if record.get(field) is None]
    if missing:
        raise ValueError(f"{where} has no {', '.join(f'`{field}`' for field in missing)}.")
    answer_type = record["answer_type"].strip().upper()
    if answer_type not in ("OPEN", "CLOSED"):
        raise ValueError(f"{where}, `answer_type`: expected OPEN or CLOSED, got {record['answer_type']!r}.")
    image = folder / "images" / record["image_name"]
    if Path(record["image_name"]).name != record["image_name"]:
        raise ValueError(f"{where}, `image_name`: expected a file name without folders, got {record['image_name']!r}.")
    if not image.is_file():
        raise ValueError(f"{where}, `image_name`: {image} is missing.")
    return {
        "question_id": str(record["qid"]),
        "image": str(image),
        "question": str(record["question"]).strip(),
        "answer": str(record["answer"]).strip(),
        "answer_type": answer_type,
        "groups": {
            "organ": record["image_organ"].strip().upper(),
            "question_type": normalize_question_type(record["question_type"]),
        },
    }
