"""Reads VQA-RAD and SLAKE from their own files: one training sample per image, its questions as turns."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.by_image import read_image_splits
from logramed.eval.benchmarks.folds import FOLD_SPLITS, is_in_fold_split
from logramed.eval.question_images import IMAGE_PLACEHOLDER

from .rows import BadRows, ImageFolder, RowError, RowLocation, read_records, read_text, with_progress


@dataclass(frozen=True)
class OfficialFiles:
    """Layout of the authors' own files of a data set."""

    name: str
    markers: tuple[str, ...]  # a folder with all of these files and folders is taken as this data set
    files: dict[str, tuple[str, ...]]  # for each split, the possible names of the file with its questions
    extended_file: str  # JSON lines of `qid` and `extended`
    image_folder: str
    image_field: str
    kind_field: str  # only questions of these kinds are read
    kinds: tuple[str, ...]
    # Further splits: questions of all files about these images, or about a fold of the images.
    image_splits: dict[str, frozenset[str]] = field(default_factory=dict)
    fold_splits: tuple[str, ...] = ()

    def is_in(self, folder: Path) -> bool:
        return all((folder / marker).exists() for marker in self.markers)

    def find(self, folder: Path) -> dict[str, Path]:
        """The file of each split that `folder` has."""
        found = {split: [folder / name for name in names] for split, names in self.files.items()}
        return {split: path for split, paths in found.items() for path in paths if path.is_file()}


# The literature's 1,797 training questions leave out the `frame` rows, which rephrase others by a fixed pattern. The
# questions of `testset.json` have no extended answers.
VQA_RAD = OfficialFiles(
    name="VQA-RAD",
    markers=("trainset.json",),
    files={"train": ("trainset.json",)},
    extended_file="extended_train.jsonl",
    image_folder="images",
    image_field="image_name",
    kind_field="phrase_type",
    kinds=("freeform", "para"),
    image_splits={name: read_image_splits()[name] for name in ("by_image_train", "by_image_validation")},
)
# Chinese questions have no extended answers, and some are about the images of other splits.
SLAKE = OfficialFiles(
    name="SLAKE",
    markers=("train.json", "imgs"),
    files={"train": ("train.json",), "validation": ("validate.json", "validation.json")},
    extended_file="extended.jsonl",
    image_folder="imgs",
    image_field="img_name",
    kind_field="q_lang",
    kinds=("en",),
    fold_splits=FOLD_SPLITS,
)


def find_official_files(folder: Path) -> OfficialFiles | None:
    """The data set whose own files are in `folder`, if it is a known one."""
    return next((official for official in (VQA_RAD, SLAKE) if official.is_in(folder)), None)


def open_official(
    official: OfficialFiles,
    folder: Path,
    split: str,
    image_folder: ImageFolder,
    require_extended: bool,
    bad_rows: BadRows,
) -> Iterator[tuple[RowLocation, dict[str, Any]]]:
    """
    One split of a data set's own files in `folder` as records with `id`, `images`, `messages` and `extended_answers`.

    The questions about one image become the turns of one record, in the order of the file; its id is the image's name
    without extension, or the image's folder. A bad question is skipped, but its image's other questions stay. Without
    `require_extended` the file of extended answers is not read. Raises `ValueError` for an unknown split.
    """
    splits = (*official.find(folder), *official.image_splits, *official.fold_splits)
    if split not in splits:
        raise ValueError(
            f"{official.name}'s own files in {folder} are for training and validation: their splits are "
            f"{', '.join(splits)}, got {split!r}."
        )
    extended = read_extended_answers(folder / official.extended_file, bad_rows) if require_extended else None
    for name, questions in group_by_image(official, folder, split, image_folder, extended, bad_rows).items():
        record = {"id": Path(name).parent.name or Path(name).stem, "images": [name]}
        record["messages"] = [
            {"role": role, "content": question[part]}
            for question in questions
            for role, part in (("user", "question"), ("assistant", "answer"))
        ]
        if require_extended:
            record["extended_answers"] = [question["extended"] for question in questions]
        yield questions[0]["location"], record


def read_extended_answers(path: Path, bad_rows: BadRows) -> dict[str, tuple[RowLocation, str]]:
    extended: dict[str, tuple[RowLocation, str]] = {}
    for location, record in read_records(path, bad_rows):
        try:
            located = location.with_id(record.get("qid"), "qid")
            if located.row_id in extended:
                raise located.error("qid", f"duplicated id, first at {extended[located.row_id][0].position}")
            extended[located.row_id] = (located, read_text(record.get("extended"), located, "extended", "answer"))
        except RowError as error:
            bad_rows.add(error)
    return extended


def group_by_image(
    official: OfficialFiles,
    folder: Path,
    split: str,
    image_folder: ImageFolder,
    extended: dict[str, tuple[RowLocation, str]] | None,
    bad_rows: BadRows,
) -> dict[str, list[dict[str, Any]]]:
    """Checked questions by image name; bad ones, and extended answers without a question, go to `bad_rows`."""
    samples: dict[str, list[dict[str, Any]]] = {}
    positions: dict[str, str] = {}
    paths = official.find(folder)
    for file_split, path in paths.items():
        for location, record in with_progress(list(read_records(path, bad_rows))):
            if str(record.get(official.kind_field)).strip().lower() not in official.kinds:
                continue
            try:
                located = location.with_id(record.get("qid"), "qid")
                if located.row_id in positions:
                    raise located.error("qid", f"duplicated id, first at {positions[located.row_id]}")
                positions[located.row_id] = located.position
                if is_of_split(official, record, file_split, split):
                    question = read_question(official, located, record, image_folder, extended)
                    samples.setdefault(record[official.image_field], []).append(question)
            except RowError as error:
                bad_rows.add(error)
    if paths.keys() == official.files.keys():  # otherwise they may belong to a missing file
        names, kinds = " or ".join(path.name for path in paths.values()), " or ".join(official.kinds)
        for row_id, (location, _) in (extended or {}).items():
            if row_id not in positions:
                bad_rows.add(location.error("qid", f"no such question of {kinds} in {names}"))
    return samples


def is_of_split(official: OfficialFiles, record: dict[str, Any], file_split: str, split: str) -> bool:
    if split in official.image_splits:
        return Path(str(record.get(official.image_field))).stem in official.image_splits[split]
    if split in official.fold_splits:
        return is_in_fold_split(str(record.get(official.image_field)), split)
    return file_split == split


def read_question(
    official: OfficialFiles,
    location: RowLocation,
    record: dict[str, Any],
    image_folder: ImageFolder,
    extended: dict[str, tuple[RowLocation, str]] | None,
) -> dict[str, Any]:
    question = {
        "location": location,
        "image": image_folder.find(record.get(official.image_field), location, official.image_field),
        "question": read_text(record.get("question"), location, "question", "question"),
        "answer": read_text(record.get("answer"), location, "answer", "answer"),
    }
    for name in ("question", "answer"):
        if IMAGE_PLACEHOLDER in question[name]:
            raise location.error(name, f"holds {IMAGE_PLACEHOLDER}, which stands for an image")
    if extended is not None:
        if location.row_id not in extended:
            raise location.error("extended", f"missing extended answer: {official.extended_file} has no such qid")
        question["extended"] = extended[location.row_id][1]
    return question
