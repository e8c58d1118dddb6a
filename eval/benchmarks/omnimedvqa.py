"""
OmniMedVQA: multiple-choice questions about the images of many classification data sets; its open-access part.

Source: Hu et al. 2024, arXiv:2402.09181. Read from the official folders `QA_information/Open-access/` and `Images/`,
or from `OmniMedVQA.zip`, as the Hub has it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from logramed.eval.benchmarks.hub import image_folder, list_members, locate, refuse_folder, unpack
from logramed.eval.benchmarks.options import collect_options, match_option
from logramed.eval.benchmarks.rows import (
    check_split,
    check_subset,
    collect_image_names,
    describe_count_differences,
    find_image,
    number_repeated_ids,
    read_records,
    read_rows,
    read_text,
    warn_of_differences,
)


TASK = "multiple_choice"
SPLITS = ("test",)
HUB_ID = "foreverbeliever/OmniMedVQA"
QUESTION_FOLDER = "QA_information/Open-access"
ARCHIVE = "OmniMedVQA.zip"
OPTION_FIELDS = ("option_A", "option_B", "option_C", "option_D")
# The file `Chest CT Scan.json` has the second name.
MODALITY_FIELDS = ("modality_type", "modality")
# The whole open-access part. Source: three public repositories that load it count the same (GiovanniCornejo/
# MediVision-OmniMedVQA lists them by question type too); the sizes of single files are not known.
EXPECTED_COUNTS = {"questions": 88996, "images": 82059}
NUM_DATASETS = 42


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    Read the questions of one data set, or of all.

    Options C and D may be missing. `gt_answer` need not be spelled as its option (see `options.match_option`). For all
    data sets together, counts that differ from the known ones give a warning.

    Args:
        data (`str` or `Path`): Folder with `QA_information/Open-access/*.json` and `Images/`, a folder with
            `OmniMedVQA.zip` or a folder `OmniMedVQA` with these; or the Hub id "foreverbeliever/OmniMedVQA" (11 GB).
        split (`str`): "test": it has no other.
        subset (`str`, *optional*): Name of one file, with or without ".json" ("Chest CT Scan"). Without it, all files
            in the order of their names.
        skipped (`list[str]`, *optional*): Bad rows are left out and added here in words (see `read_rows`).

    Returns:
        `list[dict]`: one row a question, with `question_id` (one that several rows share gets "-1", "-2", ...),
        `image` (absolute path), `question`, `options` (2 to 4 texts), `answer` (one of them) and `groups`: `dataset`,
        `modality` and `question_type`.

    Raises:
        ValueError: If `split` or `subset` is unknown, there are no files, an image is missing, or a row is not of its
            form; with file and row.
    """
    check_split(split, SPLITS)
    folder = locate(data, "OmniMedVQA", HUB_ID, (ARCHIVE,))
    root, paths = _find_question_files(folder)
    stems = sorted(path.stem for path in paths)
    if subset is not None:
        subset = subset.removesuffix(".json")
        check_subset(subset, stems, "omnimedvqa")
        paths = [path for path in paths if path.stem == subset]
    records = [located for path in paths for located in read_records(path)]
    names = collect_image_names((record for _, record in records), "image_path")
    images = image_folder(root, (".", "OmniMedVQA"), names, archives=(ARCHIVE,))
    rows = read_rows(records, lambda record, where: _question_row(record, images, where), skipped, "question_id")
    questions = number_repeated_ids(rows)
    warn_of_differences(
        "OmniMedVQA", split, count_differences(questions, split, subset), "Use all open-access files of the release."
    )
    return questions


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """What differs from the known size of the whole, in words; `[]` for a single data set."""
    if subset is not None:
        return []
    differences = describe_count_differences(questions, EXPECTED_COUNTS)
    num_datasets = len({question["groups"]["dataset"] for question in questions})
    if num_datasets != NUM_DATASETS:
        differences.append(f"{num_datasets} data sets instead of {NUM_DATASETS}")
    return differences


def _find_question_files(folder: Path) -> tuple[Path, list[Path]]:
    """The folder that image paths are seen from, and the question files in the order of their names."""
    for root in (folder, folder / "OmniMedVQA"):
        paths = sorted((root / QUESTION_FOLDER).glob("*.json"))
        if paths:
            return root, paths
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise refuse_folder(folder, (f"{QUESTION_FOLDER}/*.json", ARCHIVE), "OmniMedVQA")
    members = [PurePosixPath(member) for member in list_members(archive)]
    names = [
        f"{QUESTION_FOLDER}/{member.name}"
        for member in members
        if member.suffix == ".json" and str(member.parent).endswith(QUESTION_FOLDER)
    ]
    if not names:
        raise ValueError(f"{archive} holds no {QUESTION_FOLDER}/*.json.")
    unpacked = unpack(archive, names)
    return folder, sorted(unpacked / name for name in names)


def _question_row(record: dict, images: Path, where: str) -> dict:
    options = collect_options((_read_option(record, field, where) for field in OPTION_FIELDS), where, "option_A to D")
    return {
        "question_id": read_text(record, "question_id", where),
        "image": find_image(images, record.get("image_path"), where, "image_path"),
        "question": read_text(record, "question", where),
        "options": options,
        "answer": match_option(read_text(record, "gt_answer", where), options, where, "gt_answer"),
        "groups": {
            "dataset": read_text(record, "dataset", where),
            "modality": _read_modality(record, where),
            "question_type": read_text(record, "question_type", where),
        },
    }


def _read_option(record: Mapping[str, Any], field: str, where: str) -> str | None:
    value = record.get(field)
    return None if value is None or value == "" else read_text(record, field, where)


def _read_modality(record: Mapping[str, Any], where: str) -> str:
    field = next((field for field in MODALITY_FIELDS if record.get(field) is not None), MODALITY_FIELDS[0])
    return read_text(record, field, where)
