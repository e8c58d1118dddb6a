"""
The tables of IU X-Ray as Kaggle has them: `indiana_reports.csv`, a study a row, and `indiana_projections.csv`, an
image a row.

Read from "Chest X-rays (Indiana University)" on Kaggle: reports have `uid`, `findings` and `impression`, projections
`uid`, `filename` and `projection` ("Frontal" or "Lateral"); images lie in `images/images_normalized/`. The tables have
no split; `draw_split` makes one. It is not R2Gen's, whose ids are others.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
REPORT_COLUMNS = ("uid", "findings", "impression")
PROJECTION_COLUMNS = ("uid", "filename", "projection")
SEED = 42
# Shares of the studies, as R2Gen's split has them.
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def read_indiana(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """
    The studies of the tables that have images, each with its place in words.

    Args:
        path (`Path`): `indiana_reports.csv`; `indiana_projections.csv` lies beside it.

    Returns:
        `list[tuple[str, dict]]`: records with `id` (the uid), `image_path` (frontal images first, then in the order of
        the table), `findings`, `impression` (`""` where the study has none) and `split`.

    Raises:
        ValueError: If a table is missing, not UTF-8 or lacks a column, or a uid or filename is empty, or a uid occurs
            twice among the reports; with file and line.
    """
    images: dict[str, list[tuple[bool, str]]] = {}
    for where, row in _read_table(path.with_name(PROJECTIONS), PROJECTION_COLUMNS):
        uid, filename = _required(row, "uid", where), _required(row, "filename", where)
        is_other = (row["projection"] or "").strip().lower() != "frontal"
        images.setdefault(uid, []).append((is_other, filename))
    studies: dict[str, str] = {}
    records = []
    for where, row in _read_table(path, REPORT_COLUMNS):
        uid = _required(row, "uid", where)
        if uid in studies:
            raise ValueError(f"{where}, `uid`: {uid} stands at {studies[uid]} already.")
        studies[uid] = where
        if uid in images:
            names = [name for _, name in sorted(images[uid], key=lambda entry: entry[0])]
            sections = {name: (row[name] or "").strip() for name in REPORT_COLUMNS[1:]}
            records.append((where, {"id": uid, "image_path": names, "split": draw_split(uid), **sections}))
    return records


def draw_split(uid: str, seed: int = SEED) -> str:
    """
    The split of a study, by its uid and the seed alone.

    Example:
        >>> [draw_split(str(uid)) for uid in range(1, 6)]
        ['train', 'test', 'train', 'train', 'train']
    """
    digest = hashlib.sha256(f"{seed}:{uid}".encode()).digest()
    place, bound = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for split, share in SHARES.items():
        bound += share
        if place < bound:
            return split
    return "test"  # 0.7 + 0.1 + 0.2 may round to less than 1


def _read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"There is no {path}: IU X-Ray's {REPORTS} and {PROJECTIONS} belong together.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            missing = [name for name in columns if name not in names]
            if missing:
                raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}.")
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    yield from rows


def _required(row: dict[str, Any], column: str, where: str) -> str:
    value = (row[column] or "").strip()
    if not value:
        raise ValueError(f"{where}, `{column}` is empty.")
    return value
