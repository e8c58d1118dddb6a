"""
SLAKE: questions in English and Chinese about radiology images, written by physicians.

Source: Liu et al. 2021, arXiv:2102.09542. Read from the official release and its copy on the Hub (`test.json`, images
in `imgs/` or `imgs.zip`), or from its English part as LLaVA-Med and ExGra-Med convert it. The release calls the
validation file `validate.json`, the copy `validation.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from logramed.eval.benchmarks.converted import is_converted, read_converted_rows
from logramed.eval.benchmarks.folds import FOLD_SPLITS, FOLD_TRAINING_SPLITS, is_in_fold_split
from logramed.eval.benchmarks.hub import locate, read_questions, require_file
from logramed.eval.benchmarks.rows import (
    check_ids,
    check_split,
    check_subset,
    describe_count_differences,
    find_image,
    read_answer_type,
    read_records,
    read_text,
    warn_of_differences,
)
from logramed.eval.grounding.boxes import Box, read_box_file
from logramed.eval.question_images import all_images, list_images


TASK = "vqa"
SPLITS = ("test", "train", "validation", *FOLD_SPLITS)
TRAINING_SPLITS = FOLD_TRAINING_SPLITS  # training splits for the leakage check; otherwise "train"
SUBSETS = ("en", "zh", "all")
HUB_ID = "BoKelvin/SLAKE"
GROUPS = ("content_type", "modality", "location")
FILES = {
    "test": ("test.json", "test_w_options_new.json"),
    "train": ("train.json", "train_w_options_new.json"),
    "validation": ("validation.json", "validate.json", "val_w_options_new.json"),
}
BOXES_FILE = "boxes.json"
IMAGE_FOLDERS = ("imgs", "images", ".")
# English: the denominators of the published figures of LLaVA-Med and ExGra-Med. Chinese and all: the question ids of
# the official files, contiguous across train (0 to 9,834), validation (to 11,933) and test (to 14,027, Chinese from
# 12,995 on); together the 14,028 of the paper.
EXPECTED_COUNTS = {
    "en": {
        "test": {"OPEN questions": 645, "CLOSED questions": 416},
        "train": {"questions": 4919},
        "validation": {"questions": 1053},
    },
    "zh": {"test": {"questions": 1033}, "train": {"questions": 4916}, "validation": {"questions": 1046}},
    "all": {"test": {"questions": 2094}, "train": {"questions": 9835}, "validation": {"questions": 2099}},
}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The questions of one split of the files above in one language or both: subset "en" (the default, used by published
    figures), "zh" or "all". `groups`: `content_type` ("Organ", "Position"), `modality`, `location` and, with "all",
    `language`; converted files have none. The splits "fold_0" to "fold_4" have the questions of the training and
    validation files about the images of one fold, "without_fold_0" to "without_fold_4" those about all other images
    (see `folds`).
    """
    check_split(split, SPLITS)
    check_subset(subset, SUBSETS, "slake")
    subset = subset or SUBSETS[0]
    if split not in FOLD_SPLITS:
        questions = _read_file(data, split, subset, skipped)
        warn_of_differences(f"SLAKE ({subset})", split, count_differences(questions, split, subset))
        return questions
    questions = [row for name in ("train", "validation") for row in _read_file(data, name, subset, skipped)]
    check_ids(questions, Path(data), "qid")
    return [row for row in questions if is_in_fold_split("/".join(Path(list_images(row)[0]).parts[-2:]), split)]


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """Describe differences from `EXPECTED_COUNTS`; `[]` for folds, which have no published figures."""
    expected = {} if split in FOLD_SPLITS else EXPECTED_COUNTS[subset or SUBSETS[0]][split]
    return describe_count_differences(questions, expected)


def _read_file(data: str | Path, split: str, subset: str, skipped: list[str] | None) -> list[dict]:
    """The questions of one of `FILES`."""
    folder = locate(data, "SLAKE", HUB_ID, (*FILES[split], "imgs.zip"))
    path = require_file(folder, FILES[split], "SLAKE")
    if not is_converted(path):
        questions = read_questions(
            [(where, row) for where, row in read_records(path) if subset in (_read_language(row, where), "all")],
            lambda record, where, images: _question_row(record, where, images, subset),
            skipped,
            image_fields=("img_name",),
            image_folders=IMAGE_FOLDERS,
            archives=("imgs.zip",),
            folder=folder,
            id_field="qid",
        )
        check_ids(questions, path, "qid")
        return questions
    if subset != "en":
        raise ValueError(
            f"{path} is a converted file with only the English questions, got `subset` {subset!r}. Use the "
            "official files for Chinese."
        )
    questions = read_converted_rows(path, IMAGE_FOLDERS, skipped=skipped)
    check_ids(questions, path, "id")
    return questions


def _read_language(record: dict, where: str) -> str:
    language = read_text(record, "q_lang", where).lower()
    if language not in ("en", "zh"):
        raise ValueError(f"{where}, `q_lang`: expected en or zh, got {record['q_lang']!r}.")
    return language


def _question_row(record: dict, where: str, images: Path, subset: str) -> dict:
    language = {"language": _read_language(record, where)} if subset == "all" else {}
    return {
        "question_id": read_text(record, "qid", where),
        "image": find_image(images, record.get("img_name"), where, "img_name"),
        "question": read_text(record, "question", where),
        "answer": read_text(record, "answer", where),
        "answer_type": read_answer_type(record, where),
        "groups": {name: read_text(record, name, where) for name in GROUPS} | language,
    }


def load_boxes(data: str | Path, questions: Sequence[dict]) -> dict[str, list[Box]]:
    """
    The boxes of the images of `questions`, by absolute image path, from `boxes.json` in the folder `data`, whose keys
    are the names of image folders ("xmlab1"). Raises like `read_box_file`.
    """
    boxes = read_box_file(Path(data).expanduser().resolve() / BOXES_FILE)
    return {path: boxes.get(Path(path).parent.name, []) for path in all_images(questions)}
