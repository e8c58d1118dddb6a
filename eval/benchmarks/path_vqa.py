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
    list_rows,
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
# Test: the denominators of the published figures of LLaVA-Med and ExGra-Med. Validation: the length noted in a public
# loader of the official file. Train: the rest of the 32,795 pairs in the official files according to the Hub's card,
# which gives 6,719, 19,654 and 6,259 for its own copy.
EXPECTED_COUNTS = {
    "test": {"OPEN questions": 3370, "CLOSED questions": 3391},
    "train": {"questions": 19755},
    "validation": {"questions": 6279},
}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The questions of one split of the files above; `groups`: `question_type` ("what", "where", ...), only in the
    official files. Their answer types are "yes/no", "number" and "other": "yes/no" counts as "CLOSED", as in
    ExGra-Med's conversion. The Hub's copy has no types: questions answered by yes or no are "CLOSED". Ids shared by
    several rows (converted files use the image's id) get "-1", "-2", ...
    """
    check_split(split, SPLITS)
    check_subset(subset, (), "path_vqa")
    stem = FILE_STEMS[split]
    names = (f"qas/{stem}_vqa.pkl", f"pvqa/qas/{stem}_vqa.pkl", f"{stem}_w_options_new.json", f"{stem}.json")
    folder = locate(data, "PathVQA", HUB_ID, (f"data/{split}-*.parquet",))
    path, tables = find_file(folder, names), parquet_files(folder, split)
    if path is None and not tables:
        raise refuse_folder(folder, (*names, f"data/{split}-*.parquet"), "PathVQA")
    if path is None:
        questions = read_table_rows(tables)
    elif path.suffix == ".pkl":
        questions = _read_official(path, stem, skipped)
    else:
        questions = read_converted_rows(path, (f"images/{stem}", "images", "."), read_type=_read_type, skipped=skipped)
    warn_of_differences("PathVQA", split, count_differences(questions, split))
    return number_repeated_ids(questions)


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """Describe differences from `EXPECTED_COUNTS`. The Hub's copy, without repeated triplets, always differs."""
    return describe_count_differences(questions, EXPECTED_COUNTS[split])


def read_plain_pickle(path: Path) -> Any:
    """
    Load a pickle file of plain values (lists, dicts, texts, numbers) without running code from it. Raises `ValueError`
    if it names a class or function, or is not a pickle.
    """
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8").load()
        except (pickle.UnpicklingError, EOFError, UnicodeDecodeError, ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path} is not a pickle of plain values: {error}.") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and loading that could run any code")


def _read_official(path: Path, stem: str, skipped: list[str] | None) -> list[dict]:
    images = path.parents[1] / "images" / stem

    def read_row(record: dict, where: str) -> dict:
        label = record.get("label")
        if not isinstance(label, dict) or not label:
            raise ValueError(f"{where}, `label`: expected the answers and their scores, got {label!r}.")
        return {
            "question_id": read_text(record, "question_id", where),
            "image": find_image(images, f"{read_text(record, 'img_id', where)}.jpg", where, "img_id"),
            "question": read_text(record, "sent", where),
            # The release scores the first answer; few rows have others.
            "answer": read_text({"label": next(iter(label))}, "label", where),
            "answer_type": _read_type(record, where),
            "groups": {"question_type": read_text(record, "question_type", where).lower()},
        }

    return read_rows(list_rows(path, read_plain_pickle(path)), read_row, skipped, "question_id")


def _read_type(record: Mapping[str, Any], where: str) -> str:
    """Read the answer types of the official files, also found in some converted ones, or OPEN and CLOSED."""
    spelling = read_text(record, "answer_type", where).lower()
    known = {"number": "OPEN", "other": "OPEN", "yes/no": "CLOSED"}
    return known.get(spelling) or read_answer_type(record, where)
