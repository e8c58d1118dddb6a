"""Loads training rows from JSON files, `datasets` folders and Hub ids, or the folders of VQA-RAD and SLAKE."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, List, Sequence, load_dataset, load_from_disk
from datasets import Image as ImageFeature
from datasets import config as datasets_config
from transformers.utils import logging

from logramed.eval.volumes import VolumeOptions

from .official import find_official_files, open_official
from .records import FIELDS, RecordReader, find_images, index_by_id
from .reports import find_report_file, open_reports
from .rows import (
    BadRows,
    ImageFolder,
    OnBadRow,
    ReadRow,
    RowError,
    RowLocation,
    TrainingRows,
    finish,
    read_records,
    with_progress,
)


logger = logging.get_logger(__name__)

JSON_SUFFIXES = (".json", ".jsonl")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

Records = Iterable[tuple[RowLocation, dict[str, Any]]]


def load_training_rows(
    source: str | Path | Dataset,
    *,
    image_folder: str | Path | None = None,
    extended: str | Path | None = None,
    split: str = "train",
    require_extended: bool = True,
    rows_without_image: str | None = None,
    require_questions: bool = False,
    check_images: bool = True,
    on_bad_row: OnBadRow = "raise",
    volumes: VolumeOptions | None = None,
    report_section: str | None = None,
) -> TrainingRows:
    """
    Read and check training rows.

    Args:
        source (`str`, `Path` or `datasets.Dataset`):
            A file (`.json` list or `.jsonl` lines), a folder written by `save_to_disk`, a folder or Hub id for
            `datasets.load_dataset`, or a `Dataset`, with rows in a form of `RecordReader`; the VQA-RAD or SLAKE folder
            with its own files; or a folder of reports in R2Gen's or Kaggle's layout. A row without `id` gets its
            position as id.
        image_folder (`str` or `Path`, *optional*):
            Must contain all images, also after resolving `..` and symbolic links. Defaults to the folder `images` next
            to a JSON file (without one, to the JSON file's own folder), to VQA-RAD's `images`, SLAKE's `imgs`, a
            `datasets` folder itself, and for a Hub id to the Hugging Face cache.
        extended (`str` or `Path`, *optional*):
            A second JSON file, merged by id, with the extended answers. Both files need ids.
        split (`str`):
            Split of a `datasets` source, of reports, or of the own files of SLAKE ("train", "validation", "fold_0",
            "without_fold_0", ...) or VQA-RAD ("train", "by_image_train", "by_image_validation").
        require_extended (`bool`): Treat rows without extended answers as bad rows.
        rows_without_image, require_questions: See `RecordReader`.
        check_images (`bool`): Decode every image that no earlier run has decoded; otherwise only check that it exists.
        on_bad_row (`"raise"` or `"skip"`):
            Stop at the first bad row, or skip bad rows and list them in `TrainingRows.skipped`.
        volumes (`VolumeOptions`, *optional*): How volumes are shown: by default eight slices, evenly spaced.
        report_section (`str`, *optional*):
            For reports: "findings", "impression" or "both". By default the whole report, or for tables the findings.

    Returns:
        `TrainingRows`: the rows as a `datasets.Dataset`, the skipped ones, and a fingerprint.

    Raises:
        RowError: (a `ValueError`) For the first bad row, if `on_bad_row="raise"`; names file, row, id and field.
        ValueError: If a source cannot be read at all, or no row is left.
        FileNotFoundError: If a file or folder is missing.
    """
    bad_rows = BadRows(on_bad_row)
    path = _as_existing_path(source)
    reports = find_report_file(source, path, report_section)
    official = None if path is None else find_official_files(path)
    if official is not None:
        if extended is not None:
            raise ValueError(f"{official.name}'s own files take no `extended`: it is {official.extended_file}.")
        images = ImageFolder(image_folder or path / official.image_folder)
        records = open_official(official, path, split, images, require_extended, bad_rows)
    elif reports is not None:
        records, images = open_reports(reports, split, report_section, image_folder, bad_rows)
    else:
        images = ImageFolder(image_folder or default_image_folder(source, path))
        if path is not None and path.is_file():
            records = read_records(_check_suffix(path), bad_rows)
        else:
            records = _read_dataset(_open_dataset(source, path, split), source, split)
    reader = RecordReader(images, require_extended, rows_without_image, require_questions, volumes)
    extensions = None
    if extended is not None:
        extensions = index_by_id(read_records(_check_suffix(Path(extended)), bad_rows), bad_rows)
    name = "the given dataset" if isinstance(source, Dataset) else str(source)
    return finish(_read_rows(records, extensions, reader, bad_rows, name, extended), bad_rows, name, check_images)


def _read_rows(
    records: Records,
    extensions: dict[str, tuple[RowLocation, dict[str, Any]]] | None,
    reader: RecordReader,
    bad_rows: BadRows,
    name: str,
    extended: str | Path | None,
) -> list[ReadRow]:
    by_id = index_by_id(records, bad_rows, make_ids=extensions is None)
    unnamed = [row_id for row_id, (_, record) in by_id.items() if record.get("id") is None]
    if unnamed:
        logger.warning(f"{name}: {len(unnamed)} row(s) without `id` use their position as id, such as {unnamed[0]!r}.")
    read = []
    for row_id, (location, record) in with_progress(by_id.items()):
        try:
            extension = (extensions or {}).get(row_id)
            without_node = reader.rows_without_image == "language_only" and not find_images(location, record)[1]
            if extensions is not None and extension is None and reader.require_extended and not without_node:
                raise location.error("id", f"no row with this id in {extended}, the file of extended answers")
            read.append(reader.read(location, record, extension))
        except RowError as error:
            bad_rows.add(error)
    for row_id, (location, _) in (extensions or {}).items():
        if row_id not in by_id:
            bad_rows.add(location.error("id", f"no row with this id in {name}, which this file extends"))
    return read


def _as_existing_path(source: str | Path | Dataset) -> Path | None:
    """`source` as a path if it is an existing file or folder, `None` for a `Dataset` or a Hub id."""
    if isinstance(source, Dataset):
        return None
    path = Path(source).expanduser()
    if path.exists():
        return path
    if isinstance(source, Path) or path.suffix in JSON_SUFFIXES or not HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"There is no file or folder {source}.")
    return None


def default_image_folder(source: str | Path | Dataset, path: Path | None) -> Path | None:
    """The default folder for the images of a source (see `load_training_rows`)."""
    if isinstance(source, Dataset):
        return None
    if path is None:
        return Path(datasets_config.HF_CACHE_HOME)
    if path.is_dir():
        return path
    return path.parent / "images" if (path.parent / "images").is_dir() else path.parent


def _check_suffix(path: Path) -> Path:
    if path.suffix not in JSON_SUFFIXES:
        raise ValueError(f"{path} must end in .json (a list of rows) or .jsonl (one row per line).")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return path


def _open_dataset(source: str | Path | Dataset, path: Path | None, split: str) -> Dataset:
    if isinstance(source, Dataset):
        return source
    saved = path is not None and any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    dataset = load_from_disk(str(path)) if saved else load_dataset(str(path or source), split=split)
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ValueError(f"{source} has no split {split!r}; it has {', '.join(map(repr, dataset))}.")
        dataset = dataset[split]
    return dataset


def _read_dataset(dataset: Dataset, source: str | Path | Dataset, split: str) -> Records:
    """Rows of a dataset with their locations."""
    name = "the given dataset" if isinstance(source, Dataset) else f"{source} (split {split})"
    for number, record in enumerate(leave_encoded(dataset)):
        yield RowLocation(name, f"row {number}"), record


def leave_encoded(dataset: Dataset) -> Dataset:
    """Selects the columns that are read, with images as `{"bytes", "path"}`: reading rows then decodes none."""
    dataset = dataset.select_columns([column for column in dataset.column_names if column in FIELDS])
    for column, feature in dataset.features.items():
        if isinstance(feature, ImageFeature):
            dataset = dataset.cast_column(column, ImageFeature(decode=False))
        elif isinstance(feature, List | Sequence) and isinstance(feature.feature, ImageFeature):
            dataset = dataset.cast_column(column, List(ImageFeature(decode=False)))
    return dataset
