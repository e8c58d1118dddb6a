"""
Report generation: (image, report) pairs, in the layouts of IU X-Ray and MIMIC-CXR or in your own table.

Formats:

- `annotation.json` as R2Gen (Chen et al. 2020, arXiv:2010.16056) distributes it: `{"train": [...], "val": [...],
  "test": [...]}` of rows with `id`, `image_path` (a list) and `report`, images in `images/`;
- a copy of its IU X-Ray on the Hub: `test.jsonl` with `images` (a list) and `response`, images in `image.zip`;
- IU X-Ray's tables on Kaggle: `indiana_reports.csv` with `indiana_projections.csv` (see `indiana`);
- your own table: `test.json`, `test.jsonl` or `test.csv` with `image`, `report` and optionally `id`; or
  `reports.json`, `.jsonl` or `.csv` with an additional column `split`.

A subset is a section: "findings", "impression", or "both" below their headings. Sections are read from columns of
these names, or from a report by its headings; a report without headings counts as findings, as in R2Gen's files. By
default the whole report is used, or the findings of tables with section columns.

A model is shown all images of a report, in file order; published figures on IU X-Ray use both views.
R2Gen's MIMIC-CXR has one row per image, so that a report with two views occurs twice.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.hub import find_file, locate, read_questions, require_file
from logramed.eval.benchmarks.indiana import REPORTS as INDIANA_FILE
from logramed.eval.benchmarks.indiana import read_indiana
from logramed.eval.benchmarks.rows import (
    Located,
    check_split,
    check_subset,
    describe_count_differences,
    find_image,
    find_image_list,
    list_rows,
    number_repeated_ids,
    parse_json,
    read_file,
    read_records,
    read_rows,
    read_text,
    warn_of_differences,
)
from logramed.eval.metrics.medical_report.report_scoring import SECTIONS, join_sections, split_sections
from logramed.eval.question_images import list_images


TASK = "report"
SPLITS = ("test", "train", "validation")
BOTH = "both"
SUBSETS = (*SECTIONS, BOTH)
HUB_ID = "dz-osamu/IU-Xray"
SECTION_NAMES = {None: "findings", "findings": "findings", "impression": "impression", BOTH: "findings and impression"}
SPLIT_NAMES = {"test": ("test",), "train": ("train",), "validation": ("validation", "val", "valid", "validate")}
ENDINGS = ("json", "jsonl", "csv")
ANNOTATION_FILES = ("annotation.json", "mimic_annotation.json", "iu_annotation.json")
IMAGE_FOLDERS = ("images", "image", ".", "images/images_normalized", "images_normalized")
IMAGE_ARCHIVES = ("image.zip", "images.zip")
IMAGE_FIELDS = ("image_path", "images", "image")
# Rows of R2Gen's files, which leave out studies without images or findings; its paper's table has more.
# Source: the author's answers in issue 1 of github.com/zhjohnchan/R2Gen and issues 1 and 16 of
# github.com/cuhksz-nlp/R2Gen.
EXPECTED_REPORTS = {
    "IU X-Ray": {"test": 590, "train": 2069, "validation": 296},
    "MIMIC-CXR": {"test": 3858, "train": 270790, "validation": 2130},
}
IMAGE_PATHS = {"IU X-Ray": re.compile(r"/CXR\d+_IM-"), "MIMIC-CXR": re.compile(r"/p\d{8}/s\d{8}/")}
# The Hub's copy writes "/iu_xray/image/CXR1_IM-0001/0.png", but its archive uses other folders.
PREFIX = re.compile(r"^/?iu_xray/images?/")


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The reports of one split of a file or folder in one of the formats above, or of the Hub's copy. All reports of a
    file without splits are used. `question` is an instruction, `num_images` the number of images of the report. With a
    subset ("findings", "impression" or "both"), also stored in `section`, reports without that section are left out,
    with a warning that counts them.
    """
    check_split(split, SPLITS)
    check_subset(subset, SUBSETS, "report")
    path = _find(data, split)

    def question_row(fields: dict[str, Any], where: str, images: Path) -> dict[str, Any]:
        names, field = fields["images"], fields["image_field"]
        if len(names) == 1:
            shown = {"image": find_image(images, names[0], where, field)}
        else:
            shown = {"images": find_image_list(images, names, where, field)}
        return {
            "question_id": fields["id"],
            **shown,
            "question": write_question(subset, len(names)),
            "answer": fields["report"],
            "num_images": len(names),
            **({} if subset is None else {"section": subset}),
            "groups": {},
        }

    questions = read_questions(
        read_reports(path, split, subset, skipped),
        question_row,
        skipped,
        image_fields=("images",),
        image_folders=IMAGE_FOLDERS,
        archives=IMAGE_ARCHIVES,
        folder=path.parent,
    )
    warn_of_differences("report", split, count_differences(questions, split))
    return number_repeated_ids(questions)


def read_reports(
    path: Path, split: str, section: str | None = None, skipped: list[str] | None = None
) -> list[Located]:
    """
    The reports of one split of a file in one of the formats above; images may be missing. Each is a pair of location
    and fields: `id`, `report` (the section), `images` (all) and `image_field`. Arguments as for `load_questions`, with
    `section` as its subset.
    """
    numbered = [(where, (number, record)) for number, (where, record) in enumerate(_read_split(path, split))]
    read = read_rows(numbered, lambda row, where: (where, _read_fields(*row, where, section)), skipped)
    records = [(where, fields) for where, fields in read if fields["report"] is not None]
    if len(records) < len(read):
        warnings.warn(
            f"{len(read) - len(records):,} of {len(read):,} reports of the {split} split are left out: they have no "
            f"{SECTION_NAMES[section]}.",
            stacklevel=3,
        )
    if not records:
        raise ValueError(f"{path} holds no report of the {split} split with {SECTION_NAMES[section]}.")
    return records


def find_reports(folder: Path) -> Path | None:
    """The file in R2Gen's or Kaggle's format in a folder, or `None`."""
    return find_file(folder, (*ANNOTATION_FILES, INDIANA_FILE))


def write_question(section: str | None, num_images: int = 1) -> str:
    """
    The instruction to write a report or a section of it (one of `SUBSETS`).

    Example:
        >>> write_question("impression")
        'Write the impression of a radiology report on this image.'
        >>> write_question("both", num_images=2)
        'Write the findings and impression of a radiology report on these images.'
    """
    shown = "this image" if num_images == 1 else "these images"
    return f"Write the {SECTION_NAMES[section]} of a radiology report on {shown}."


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """Describe differences from R2Gen's files; `[]` for other data."""
    differences = []
    for name, pattern in IMAGE_PATHS.items():
        if questions and all(pattern.search(list_images(question)[0]) for question in questions):
            expected = {"questions": EXPECTED_REPORTS[name][split]}
            differences += [f"{text} ({name})" for text in describe_count_differences(questions, expected)]
    return differences


def _find(data: str | Path, split: str) -> Path:
    path = Path(data).expanduser()
    if path.is_file():
        return path.resolve()
    of_split = [f"{name}.{ending}" for name in SPLIT_NAMES[split] for ending in ENDINGS]
    files = [*ANNOTATION_FILES, INDIANA_FILE, *of_split, *(f"reports.{ending}" for ending in ENDINGS)]
    folder = locate(data, "report", HUB_ID, [*of_split, IMAGE_ARCHIVES[0]])
    return require_file(folder, files, "report")


def _read_split(path: Path, split: str) -> list[Located]:
    """The rows of a split with their locations; all rows of a file without splits."""
    names = SPLIT_NAMES[split]
    content = parse_json(path, read_file(path)) if path.suffix == ".json" else None
    if isinstance(content, dict):  # R2Gen's
        name = next((name for name in names if name in content), None)
        if name is None:
            raise ValueError(f"{path} has no {' or '.join(names)}; it has {', '.join(content) or 'nothing'}.")
        records = list_rows(f"{path}, {name}", content[name])
    else:
        records = read_indiana(path) if path.name == INDIANA_FILE else read_records(path)
        of_rows = [str(record.get("split") or "").strip().lower() for _, record in records]
        if any(of_rows):
            records = [record for record, name in zip(records, of_rows, strict=True) if name in names]
            if not records:
                known = ", ".join(sorted(set(of_rows)))
                raise ValueError(f"{path} holds no row with `split` {split!r}; it has {known}.")
    if not records:
        raise ValueError(f"{path} holds no report of the {split} split.")
    return records


def _read_fields(number: int, record: Mapping[str, Any], where: str, section: str | None) -> dict[str, Any]:
    """The fields of a row for `read_reports`, in any of the formats. The default id is the row number."""
    image_field = next((field for field in IMAGE_FIELDS if record.get(field)), None)
    if image_field is None:
        raise ValueError(f"{where} has no image: expected one of {', '.join(IMAGE_FIELDS)}.")
    names = record[image_field] if isinstance(record[image_field], list) else [record[image_field]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}, `{image_field}`: expected a path or a list of paths, got {names!r}.")
    return {
        "id": str(number) if record.get("id") in (None, "") else read_text(record, "id", where),
        "images": [PREFIX.sub("", name.strip()) for name in names],
        "image_field": image_field,
        "report": _read_section(record, where, section),
    }


def _read_section(record: Mapping[str, Any], where: str, section: str | None) -> str | None:
    """The text of a section in a row; `None` if the section, or one of "both", is missing."""
    if any(name in record for name in SECTIONS):
        sections = {name: str(record.get(name) or "").strip() for name in SECTIONS}
        section = section or "findings"
    else:
        report = read_text(record, "response" if "response" in record else "report", where)
        if section is None:
            return report
        sections = split_sections(report)
    if section != BOTH:
        return sections.get(section) or None
    return join_sections(sections) if all(sections.get(name) for name in SECTIONS) else None
