"""
OmniMedVQA, open-access part: multiple-choice questions about images of many classification data sets.

Source: Hu et al. 2024, arXiv:2402.09181. Read from the official folders `QA_information/Open-access/` and `Images/`,
or from `OmniMedVQA.zip`, as on the Hub.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from logramed.eval.benchmarks.hub import locate, read_questions, refuse_folder, unpack
from logramed.eval.benchmarks.options import collect_options, match_option
from logramed.eval.benchmarks.rows import (
    check_split,
    check_subset,
    describe_count_differences,
    find_image,
    number_repeated_ids,
    read_records,
    read_text,
    warn_of_differences,
)


TASK = "multiple_choice"
SPLITS = ("test",)
HUB_ID = "foreverbeliever/OmniMedVQA"
QUESTION_FOLDER = "QA_information/Open-access"
ARCHIVE = "OmniMedVQA.zip"
OPTION_FIELDS = ("option_A", "option_B", "option_C", "option_D")
# The file `Chest CT Scan.json` uses the second name.
MODALITY_FIELDS = ("modality_type", "modality")
# The whole open-access part. Source: three public repositories that load it have the same counts (GiovanniCornejo/
# MediVision-OmniMedVQA also by question type); the sizes of single files are unknown.
EXPECTED_COUNTS = {"questions": 88996, "images": 82059}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The questions of one data set (`subset`, a file name such as "Chest CT Scan") or of all; `groups`: `dataset`,
    `modality` and `question_type`. Options C and D may be missing. `gt_answer` may be spelled differently.
    """
    check_split(split, SPLITS)
    folder = locate(data, "OmniMedVQA", HUB_ID, (ARCHIVE,))
    root, paths = _find_question_files(folder)
    if subset is not None:
        subset = subset.removesuffix(".json")
        check_subset(subset, sorted(path.stem for path in paths), "omnimedvqa")
        paths = [path for path in paths if path.stem == subset]
    rows = read_questions(
        [located for path in paths for located in read_records(path)],
        _question_row,
        skipped,
        image_fields=("image_path",),
        image_folders=(".", "OmniMedVQA"),
        archives=(ARCHIVE,),
        folder=root,
        id_field="question_id",
    )
    questions = number_repeated_ids(rows)
    warn_of_differences("OmniMedVQA", split, count_differences(questions, split, subset))
    return questions


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """Describe differences from the known total size; `[]` for a single data set."""
    return [] if subset is not None else describe_count_differences(questions, EXPECTED_COUNTS)


def _find_question_files(folder: Path) -> tuple[Path, list[Path]]:
    """The folder that image paths are relative to, and the question files sorted by name."""
    for root in (folder, folder / "OmniMedVQA"):
        paths = sorted((root / QUESTION_FOLDER).glob("*.json"))
        if paths:
            return root, paths
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise refuse_folder(folder, (f"{QUESTION_FOLDER}/*.json", ARCHIVE), "OmniMedVQA")
    with zipfile.ZipFile(archive) as opened:
        members = [PurePosixPath(member) for member in opened.namelist() if "__MACOSX" not in member]
    names = [
        f"{QUESTION_FOLDER}/{member.name}"
        for member in members
        if member.suffix == ".json" and str(member.parent).endswith(QUESTION_FOLDER)
    ]
    if not names:
        raise ValueError(f"{archive} holds no {QUESTION_FOLDER}/*.json.")
    unpacked = unpack(archive, names)
    return folder, sorted(unpacked / name for name in names)


def _question_row(record: Mapping, where: str, images: Path) -> dict:
    given = [field for field in OPTION_FIELDS if record.get(field) not in (None, "")]
    options = collect_options((read_text(record, field, where) for field in given), where, "option_A to D")
    modality = next((field for field in MODALITY_FIELDS if record.get(field) is not None), MODALITY_FIELDS[0])
    return {
        "question_id": read_text(record, "question_id", where),
        "image": find_image(images, record.get("image_path"), where, "image_path"),
        "question": read_text(record, "question", where),
        "options": options,
        "answer": match_option(read_text(record, "gt_answer", where), options, where, "gt_answer"),
        "groups": {
            "dataset": read_text(record, "dataset", where),
            "modality": read_text(record, modality, where),
            "question_type": read_text(record, "question_type", where),
        },
    }
