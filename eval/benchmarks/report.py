"""
Report generation: (image, report) pairs, from the layouts of IU X-Ray and MIMIC-CXR or from a table of one's own.

Read from

- `annotation.json` as R2Gen (Chen et al. 2020, arXiv:2010.16056) distributes it: `{"train": [...], "val": [...],
  "test": [...]}` of rows with `id`, `image_path` (a list) and `report`, images in `images/`;
- a copy of its IU X-Ray on the Hub: `test.jsonl` with `images` (a list) and `response`, images in `image.zip`;
- IU X-Ray's tables on Kaggle: `indiana_reports.csv` with `indiana_projections.csv` (see `indiana`);
- LLaVA-Med's conversations: `test.json` with `id`, `image` and `conversations`;
- a table of one's own: `test.json`, `test.jsonl` or `test.csv` with `image` and `report` and, if you like, `id`; or
  `reports.json`, `.jsonl` or `.csv` with a column `split` as well.

A subset is a section: "findings" or "impression" alone, or "both" below their headings. They are read from columns of
these names, or from a report by its headings; a report without headings is all findings, as R2Gen's are. By default a
report is taken as it stands, and of tables with columns the findings.

A model is shown all images of a report, in the order of the file; published figures on IU X-Ray are of both views.
R2Gen's MIMIC-CXR has a row for each image, so that a report of two views occurs twice.
"""

import csv
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.converted import CONVERSATION_FIELDS
from logramed.eval.benchmarks.hub import find_file, image_folder, locate, refuse_folder
from logramed.eval.benchmarks.indiana import REPORTS as INDIANA_FILE
from logramed.eval.benchmarks.indiana import read_indiana
from logramed.eval.benchmarks.rows import (
    check_split,
    check_subset,
    collect_image_names,
    describe_count_differences,
    find_image,
    find_image_list,
    number_repeated_ids,
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
QUESTION = "Write the findings of a radiology report on this image."
SECTION_NAMES = {None: "findings", "findings": "findings", "impression": "impression", BOTH: "findings and impression"}
SPLIT_NAMES = {"test": ("test",), "train": ("train",), "validation": ("validation", "val", "valid", "validate")}
ENDINGS = ("json", "jsonl", "csv")
ANNOTATION_FILES = ("annotation.json", "mimic_annotation.json", "iu_annotation.json")
IMAGE_FOLDERS = ("images", "image", ".", "images/images_normalized", "images_normalized")
IMAGE_ARCHIVES = ("image.zip", "images.zip")
IMAGE_FIELDS = ("image_path", "images", "image")
REPORT_FIELDS = ("report", "response")
# Rows of R2Gen's files, which leave out studies without images or findings; the table of its paper counts more.
# Source: issue 1 of github.com/zhjohnchan/R2Gen and issues 1 and 16 of github.com/cuhksz-nlp/R2Gen, with the author's
# answers.
EXPECTED_REPORTS = {
    "IU X-Ray": {"test": 590, "train": 2069, "validation": 296},
    "MIMIC-CXR": {"test": 3858, "train": 270790, "validation": 2130},
}
IMAGE_PATHS = {"IU X-Ray": re.compile(r"/CXR\d+_IM-"), "MIMIC-CXR": re.compile(r"/p\d{8}/s\d{8}/")}
# The Hub's copy writes "/iu_xray/image/CXR1_IM-0001/0.png" for what its archive holds under other folders.
PREFIX = re.compile(r"^/?iu_xray/images?/")


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    Read the reports of one split.

    For IU X-Ray and MIMIC-CXR, row counts that differ from R2Gen's files give a warning that says so.

    Args:
        data (`str` or `Path`): A file or folder in one of the layouts above, or the Hub id "dz-osamu/IU-Xray".
        split (`str`): "test", "train" or "validation". A file that knows no splits is taken whole.
        subset (`str`, *optional*): "findings", "impression" or "both". Reports that lack what is asked for are left
            out, with a warning that counts them.
        skipped (`list[str]`, *optional*): Bad rows are left out and added here in words (see `read_rows`).

    Returns:
        `list[dict]`: one row a report, in the order of the file, with `question_id` (its id, or the number of the row;
        an id that occurs more than once is numbered), `image` (absolute path) or, of several, `images`, `question`
        (an instruction of the section, the same for all reports on one image, and for all on several), `answer` (the
        report, or the section), `num_images` (of the report), with a subset `section`, and `groups`, which are none.

    Raises:
        ValueError: If `split` or `subset` is unknown, the file, the split or an image is missing, or a row has no
            image or report; with file, row and field.
    """
    check_split(split, SPLITS)
    check_subset(subset, SUBSETS, "report")
    path = _find(data, split)
    records = read_reports(path, split, subset, skipped)
    names = collect_image_names((fields for _, (_, _, fields) in records), "images")
    images = image_folder(path.parent, IMAGE_FOLDERS, names, IMAGE_ARCHIVES).resolve()
    questions = read_rows(records, lambda row, where: _question_row(*row, images, where, subset), skipped)
    questions = number_repeated_ids(questions)
    warn_of_differences("report", split, count_differences(questions, split), "Compare runs over the same rows only.")
    return questions


def read_reports(
    path: Path, split: str, section: str | None = None, skipped: list[str] | None = None
) -> list[tuple[str, tuple[int, dict[str, Any], dict[str, Any]]]]:
    """
    The reports of one split of a file, whose images may be missing.

    Args:
        path (`Path`): A file in one of the layouts above.
        split (`str`), section (`str`, *optional*), skipped (`list[str]`, *optional*): As for `load_questions`, section
            being its subset.

    Returns:
        `list[tuple[str, tuple[int, dict, dict]]]`: for each its place in words, number, record and fields: `report`
        (the section), `images` (all) and `image_field`.
    """
    numbered = [(where, (number, record)) for number, (where, record) in enumerate(_read_split(path, split))]
    read = read_rows(numbered, lambda row, where: (where, (*row, _read_fields(row[1], where, section))), skipped)
    records = [(where, row) for where, row in read if row[2]["report"] is not None]
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
    """The file of R2Gen's or Kaggle's layout in a folder, if it has one."""
    return find_file(folder, (*ANNOTATION_FILES, INDIANA_FILE))


def write_question(section: str | None, num_images: int = 1) -> str:
    """
    The instruction to write a report.

    Args:
        section (`str`, *optional*): One of `SUBSETS`.

    Example:
        >>> write_question("impression")
        'Write the impression of a radiology report on this image.'
        >>> write_question("both", num_images=2)
        'Write the findings and impression of a radiology report on these images.'
    """
    shown = "this image" if num_images == 1 else "these images"
    return f"Write the {SECTION_NAMES[section]} of a radiology report on {shown}."


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """What differs from R2Gen's files, in words; nothing of other data."""
    differences = []
    for name, pattern in IMAGE_PATHS.items():
        if questions and all(pattern.search(list_images(question)[0]) for question in questions):
            expected = {"questions": EXPECTED_REPORTS[name][split]}
            differences += [f"{text} ({name})" for text in describe_count_differences(questions, expected)]
    return differences


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _find(data: str | Path, split: str) -> Path:
    path = Path(data).expanduser()
    if path.is_file():
        return path.resolve()
    of_split = [f"{name}.{ending}" for name in SPLIT_NAMES[split] for ending in ENDINGS]
    files = [*ANNOTATION_FILES, INDIANA_FILE, *of_split, *(f"reports.{ending}" for ending in ENDINGS)]
    folder = locate(data, "report", HUB_ID, [*of_split, IMAGE_ARCHIVES[0]])
    found = find_file(folder, files)
    if found is None:
        raise refuse_folder(folder, files, "report")
    return found


def _read_split(path: Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a split, each with its place in words."""
    if path.name == INDIANA_FILE:
        records = _select_split(read_indiana(path), split, path)
    elif path.suffix == ".csv":
        records = _select_split(_read_csv(path), split, path)
    elif path.suffix == ".json" and isinstance(content := _parse_json(path), dict):
        records = _read_annotation(path, content, split)
    else:
        records = _select_split(read_records(path), split, path)
    if not records:
        raise ValueError(f"{path} holds no report of the {split} split.")
    return records


def _select_split(
    records: list[tuple[str, dict[str, Any]]], split: str, path: Path
) -> list[tuple[str, dict[str, Any]]]:
    """The rows whose `split` is the asked one; all of them if no row has one."""
    names = [str(record.get("split") or "").strip().lower() for _, record in records]
    if not any(names):
        return records
    chosen = [record for record, name in zip(records, names, strict=True) if name in SPLIT_NAMES[split]]
    if not chosen:
        raise ValueError(f"{path} holds no row with `split` {split!r}; it has {', '.join(sorted(set(names)))}.")
    return chosen


def _read_annotation(path: Path, content: dict[str, Any], split: str) -> list[tuple[str, dict[str, Any]]]:
    name = next((name for name in SPLIT_NAMES[split] if name in content), None)
    if name is None:
        raise ValueError(f"{path} has no {' or '.join(SPLIT_NAMES[split])}; it has {', '.join(content) or 'nothing'}.")
    if not isinstance(content[name], list) or not all(isinstance(record, dict) for record in content[name]):
        raise ValueError(f"{path}, {name}: expected a list of rows.")
    return [(f"{path}, {name}, row {number}", record) for number, record in enumerate(content[name])]


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def _read_csv(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            # The header is line 1; a report may run over several lines, and the number is that of its last.
            return [(f"{path}, line {reader.line_num}", record) for record in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def _question_row(
    number: int,
    record: Mapping[str, Any],
    fields: Mapping[str, Any],
    images: Path,
    where: str,
    section: str | None,
) -> dict[str, Any]:
    names, field = fields["images"], fields["image_field"]
    if len(names) == 1:
        shown = {"image": find_image(images, names[0], where, field)}
    else:
        shown = {"images": find_image_list(images, names, where, field)}
    return {
        "question_id": read_id(record, number, where),
        **shown,
        "question": write_question(section, len(names)),
        "answer": fields["report"],
        "num_images": len(names),
        **({} if section is None else {"section": section}),
        "groups": {},
    }


def _read_fields(record: Mapping[str, Any], where: str, section: str | None) -> dict[str, Any]:
    """`images`, `image_field` and `report` of a row in any of the layouts."""
    image_field = next((field for field in IMAGE_FIELDS if record.get(field)), None)
    if image_field is None:
        raise ValueError(f"{where} has no image: expected one of {', '.join(IMAGE_FIELDS)}.")
    names = record[image_field] if isinstance(record[image_field], list) else [record[image_field]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}, `{image_field}`: expected a path or a list of paths, got {names!r}.")
    return {
        "images": [PREFIX.sub("", name.strip()) for name in names],
        "image_field": image_field,
        "report": _read_section(record, where, section),
    }


def _read_section(record: Mapping[str, Any], where: str, section: str | None) -> str | None:
    """What a row holds of a section; `None` if it does not have all that is asked for."""
    if any(name in record for name in SECTIONS):
        sections = {name: str(record.get(name) or "").strip() for name in SECTIONS}
        section = section or "findings"
    else:
        report = _read_report(record, where)
        if section is None:
            return report
        sections = split_sections(report)
    if section != BOTH:
        return sections.get(section) or None
    return join_sections(sections) if all(sections.get(name) for name in SECTIONS) else None


def _read_report(record: Mapping[str, Any], where: str) -> str:
    for field in CONVERSATION_FIELDS:
        if field in record:
            turns = record[field]
            if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
                raise ValueError(
                    f"{where}, `{field}`: expected two turns, an instruction and a report, got {turns!r}."
                )
            return read_text(turns[1], "value", f"{where}, `{field}`, turn 1")
    field = next((field for field in REPORT_FIELDS if field in record), REPORT_FIELDS[0])
    return read_text(record, field, where)


def read_id(record: Mapping[str, Any], number: int, where: str) -> str:
    """The id of a report, or the number of its row."""
    return str(number) if record.get("id") in (None, "") else read_text(record, "id", where)
