"""
The tables of IU X-Ray on Kaggle: `indiana_reports.csv`, with one study per row, and `indiana_projections.csv`, with
one image per row.

Source: "Chest X-rays (Indiana University)" on Kaggle, with images in `images/images_normalized/`. The tables have no
split; `draw_split` makes one. It differs from R2Gen's, which uses other ids.
"""

import hashlib
from pathlib import Path

from logramed.eval.benchmarks.rows import Located, read_records, read_text, require_columns
from logramed.eval.metrics.medical_report.report_scoring import SECTIONS


REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
SEED = 42
# Shares of the studies, as in R2Gen's split.
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def read_indiana(path: Path) -> list[Located]:
    """
    The studies with images, as pairs of location and record. A record has `id` (the uid), `image_path` (frontal images
    first, then in table order), `findings`, `impression` (`""` if the study has none) and `split`.
    `indiana_projections.csv` must be in the folder of `path`. Raises `ValueError` with file and line if a table or
    column is missing, a field is empty, or a uid occurs twice.
    """
    projections = path.with_name(PROJECTIONS)
    if not projections.is_file():
        raise ValueError(f"{projections} is missing: IU X-Ray needs {REPORTS} and {PROJECTIONS}.")
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
            raise ValueError(f"{where}, `uid`: {uid} is already used by {studies[uid][0]}.")
        names = [name for _, name in sorted(images.get(uid, ()), key=lambda entry: entry[0])]
        sections = {name: (row.get(name) or "").strip() for name in SECTIONS}
        studies[uid] = (where, {"id": uid, "image_path": names, "split": draw_split(uid), **sections})
    return [study for study in studies.values() if study[1]["image_path"]]


def draw_split(uid: str) -> str:
    """
    The split of a study, from its uid only.

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
