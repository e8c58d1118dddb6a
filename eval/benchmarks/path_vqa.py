"""
PathVQA: questions generated from the captions of pathology images.

Source: He et al. 2020, arXiv:2003.10286. Read from the official release (pickled rows in `qas/`, `images/`), from its
conversations (ExGra-Med's `test_w_options_new.json`, LLaVA-Med's `test.json`), or from the copy on the Hub, which
leaves out repeated triplets.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.converted import read_converted_rows, read_table_rows
from logramed.eval.benchmarks.hub import find_file, locate, parquet_files, refuse_folder
from logramed.eval.benchmarks.rows import (
    check_split,
    check_subset,
    describe_count_differences,
    find_image,
    number_repeated_ids,
    read_answer_type,
    read_rows,
    read_text,
    warn_of_differences,
)


TASK = "vqa"
SPLITS = ("test", "train", "validation")
HUB_ID = "flaviagiammarino/path-vqa"
FILE_STEMS = {"test": "test", "train": "train", "validation": "val"}
# Test: the denominators behind the published figures of LLaVA-Med and ExGra-Med. Validation: the length that a public
# loader of the official file notes. Train: what these leave of the 32,795 pairs that the Hub's card counts in the
# official files.
EXPECTED_COUNTS = {
    "test": {"OPEN questions": 3370, "CLOSED questions": 3391},
    "train": {"questions": 19755},
    "validation": {"questions": 6279},
}
# Source: the card of the Hub's copy.
HUB_ROWS = {"test": 6719, "train": 19654, "validation": 6259}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    Read the questions of one split.

    Official files call a question "yes/no", "number" or "other": the first counts as "CLOSED", as ExGra-Med converts
    it. The Hub's copy has no types: there a question whose answer is yes or no is "CLOSED". Official rows are read
    without running any code that a pickle may hold. Row counts that differ from the known ones give a warning that
    says what differs.

    Args:
        data (`str` or `Path`): Folder with `qas/test_vqa.pkl` and `images/test/` (or a folder `pvqa` with these), or
            with `test_w_options_new.json` or `test.json` and `images/`; or the Hub id "flaviagiammarino/path-vqa", or
            a folder with its files.
        split (`str`): "test", "train" or "validation" (`val` in the names of files).
        subset (`None`): There are none.
        skipped (`list[str]`, *optional*): Bad rows are left out and added here in words (see `read_rows`).

    Returns:
        `list[dict]`: one row a question, in the order of the file, with `question_id`, `image` (absolute path),
        `question`, `answer`, `answer_type` ("OPEN" or "CLOSED") and `groups`: `question_type` ("what", "where", ...),
        which only the official files have. An id that several rows share (converted files give the image's) gets "-1",
        "-2", ... in the order of the file; rows of the Hub's copy have their numbers for ids.

    Raises:
        ValueError: If `split` is unknown, the file or an image is missing, a pickle holds more than plain values, or a
            row is not of its form.
    """
    check_split(split, SPLITS)
    check_subset(subset, (), "path_vqa")
    stem = FILE_STEMS[split]
    names = (f"qas/{stem}_vqa.pkl", f"pvqa/qas/{stem}_vqa.pkl", f"{stem}_w_options_new.json", f"{stem}.json")
    folder = locate(data, "PathVQA", HUB_ID, (f"data/{split}-*.parquet",))
    path = find_file(folder, names)
    tables = parquet_files(folder, split)
    if path is not None:
        questions = (_read_official if path.suffix == ".pkl" else _read_converted)(path, stem, skipped)
    elif tables:
        questions = read_table_rows(tables)
    else:
        raise refuse_folder(folder, (*names, f"data/{split}-*.parquet"), "PathVQA")
    warn_of_differences(
        "PathVQA", split, count_differences(questions, split), "Use the files of the official release."
    )
    return number_repeated_ids(questions)


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """What differs from `EXPECTED_COUNTS`, in words. The Hub's copy differs always, and is named."""
    differences = describe_count_differences(questions, EXPECTED_COUNTS[split])
    if len(questions) == HUB_ROWS[split]:
        differences.append("the rows of the Hub's copy, which leaves out repeated triplets")
    return differences


def read_plain_pickle(path: Path) -> Any:
    """
    The plain values (lists, dicts, texts, numbers) of a pickle file; nothing in it is run.

    Raises:
        ValueError: If the file names any class or function, or is no pickle.
    """
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8").load()
        except (pickle.UnpicklingError, EOFError, UnicodeDecodeError, ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path} is no pickle of plain values: {error}.") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and loading that could run any code")


def _read_official(path: Path, stem: str, skipped: list[str] | None) -> list[dict]:
    records = read_plain_pickle(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path}: expected a list of rows, got {type(records).__name__}.")
    images = path.parents[1] / "images" / stem
    located = ((f"{path}, row {number}", record) for number, record in enumerate(records))
    return read_rows(located, lambda record, where: _question_row(record, images, where), skipped, "question_id")


def _question_row(record: dict, images: Path, where: str) -> dict:
    label = record.get("label")
    if not isinstance(label, dict) or not label:
        raise ValueError(f"{where}, `label`: expected the answers and their scores, got {label!r}.")
    # The release scores the first answer; others stand in few rows.
    answer = read_text({"label": next(iter(label))}, "label", where)
    return {
        "question_id": read_text(record, "question_id", where),
        "image": find_image(images, f"{read_text(record, 'img_id', where)}.jpg", where, "img_id"),
        "question": read_text(record, "sent", where),
        "answer": answer,
        "answer_type": _read_type(record, where),
        "groups": {"question_type": read_text(record, "question_type", where).lower()},
    }


def _read_converted(path: Path, stem: str, skipped: list[str] | None) -> list[dict]:
    return read_converted_rows(path, (f"images/{stem}", "images", "."), read_type=_read_type, skipped=skipped)


def _read_type(record: Mapping[str, Any], where: str) -> str:
    """The spellings of the official files, which stand in some converted ones too, or OPEN and CLOSED."""
    spelling = read_text(record, "answer_type", where).lower()
    if spelling in ("number", "other"):
        return "OPEN"
    return "CLOSED" if spelling == "yes/no" else read_answer_type(record, where)
