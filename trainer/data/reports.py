"""Radiology reports as training data: R2Gen's `annotation.json` and IU X-Ray's tables on Kaggle."""

from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.hub import image_folder
from logramed.eval.benchmarks.report import (
    IMAGE_ARCHIVES,
    IMAGE_FOLDERS,
    SPLITS,
    SUBSETS,
    find_reports,
    read_reports,
    write_question,
)
from logramed.eval.benchmarks.rows import check_split, collect_image_names

from .rows import BadRows, ImageFolder, RowLocation


def holds_reports(source: str | Path) -> bool:
    """Whether the training rows of `source` are read as reports."""
    path = Path(source).expanduser()
    return path.is_dir() and find_reports(path) is not None


def find_report_file(source: str | Path, path: Path | None, section: str | None) -> Path | None:
    """
    The file of reports of a folder, if it has one; `ValueError` if `section` is unknown, or given without such a file.
    """
    found = find_reports(path) if path is not None and path.is_dir() else None
    if section not in (None, *SUBSETS):
        raise ValueError(f"`report_section` must be one of {', '.join(SUBSETS)}, got {section!r}.")
    if section is not None and found is None:
        raise ValueError(f"`report_section` is for folders with annotation.json or IU X-Ray's tables, got {source}.")
    return found


def open_reports(
    path: Path, split: str, section: str | None, folder: str | Path | None, bad_rows: BadRows
) -> tuple[list[tuple[RowLocation, dict[str, Any]]], ImageFolder]:
    """
    The reports of one split ("train", "validation" or "test") as records, and the folder of their images, by default
    where the benchmark looks for them. A record has `id`, `images` (all of the study) and `messages`: the images, the
    benchmark's instruction (see `write_question`), and the report or its `section` ("findings", "impression" or
    "both"). Rows without image or report are bad rows. Raises `ValueError` for an unknown split, or if no report is
    left.
    """
    check_split(split, SPLITS)
    skipped: list[str] = []
    reports = read_reports(path, split, section, skipped)
    for words in skipped:
        bad_rows.add(RowLocation(str(path), f"split {split}").error("(row)", words))
    if folder is None:
        names = collect_image_names(({"image": name} for _, row in reports for name in row["images"]), "image")
        folder = image_folder(path.parent, IMAGE_FOLDERS, names, IMAGE_ARCHIVES)
    records = []
    for where, fields in reports:
        images = fields["images"]
        instruction = {"type": "text", "text": write_question(section, len(images))}
        content = [*({"type": "image"} for _ in images), instruction]
        answer = {"role": "assistant", "content": [{"type": "text", "text": fields["report"]}]}
        messages = [{"role": "user", "content": content}, answer]
        location = RowLocation(str(path), where.removeprefix(f"{path}, "))
        records.append((location, {"id": fields["id"], "images": images, "messages": messages}))
    return records, ImageFolder(folder)
