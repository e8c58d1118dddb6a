"""
The tables of IU X-Ray as Kaggle has them: `indiana_reports.csv`, a study a row, and `indiana_projections.csv`, an
image a row.

Read from "Chest X-rays (Indiana University)" on Kaggle; images lie in `images/images_normalized/`. The tables have no
split; `draw_split` makes one. It is not R2Gen's, whose ids are others.
"""

import hashlib
from pathlib import Path

from logramed.eval.benchmarks.rows import Located, read_records, read_text, require_columns
from logramed.eval.metrics.medical_report.report_scoring import SECTIONS


REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
SEED = 42
# Shares of the studies, as R2Gen's split has them.
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def read_indiana(path: Path) -> list[Located]:
    """
    The studies of the tables that have images, each behind its place in words: records with `id` (the uid),
    `image_path` (frontal images first, then in the order of the table), `findings`, `impression` (`""` where the study
    has none) and `split`. `indiana_projections.csv` lies beside `path`. Raises `ValueError` with file and line if a
    table or column is missing, a field is empty, or a uid occurs twice.
    """
    projections = path.with_name(PROJECTIONS)
    if not projections.is_file():
        raise ValueError(f"There is no {projections}: IU X-Ray's {REPORTS} and {PROJECTIONS} belong together.")
    images: dict[str, list[tuple[bool, str]]] = {}
    projected, reports = read_records(projections), read_records(path)
    require_columns(projections, projected, ("uid", "filename", "projection"))
    require_columns(path, reports, ("uid", *SECTIONS))
    for where, row in projected:
        is_other = read_text(row, "projection", where).lower() != "frontal"
        images.setdefault(read_text(row, "uid", where), []).append((is_other, read_text(row, "filename", where)))
    studies: dict[str, Located] = {}
    for where, row in reports:
        uid = read_text(row, "uid", where)
        if uid in studies:
            raise ValueError(f"{where}, `uid`: {uid} is that of {studies[uid][0]} too.")
        names = [name for _, name in sorted(images.get(uid, ()), key=lambda entry: entry[0])]
        sections = {name: (row.get(name) or "").strip() for name in SECTIONS}
        studies[uid] = (where, {"id": uid, "image_path": names, "split": draw_split(uid), **sections})
    return [study for study in studies.values() if study[1]["image_path"]]


def draw_split(uid: str) -> str:
    """
    The split of a study, by its uid alone.

    Example:
        >>> [draw_split(str(uid)) for uid in range(1, 6)]
        ['train', 'test', 'train', 'train', 'train']
    """
    digest = hashlib.sha256(f"{SEED}:{uid}".encode()).digest()
    place, bound = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for split, share in SHARES.items():
        bound += share
        if place < bound:
            return split
    return "test"  # 0.7 + 0.1 + 0.2 may round to less than 1
