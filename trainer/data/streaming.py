"""Streams training rows from data larger than a disk: JSON lines, WebDataset shards or a Hub id."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset
from transformers.utils import logging

from logramed.eval.volumes import VolumeOptions

from .records import RecordReader, locate
from .rows import BadRows, ImageFolder, OnBadRow, RowError, RowLocation
from .sources import JSON_SUFFIXES, default_image_folder


logger = logging.get_logger(__name__)

SHARD_SUFFIX = ".tar"
# Rows in the shuffle buffer. A larger buffer mixes better and takes longer to fill.
BUFFER_SIZE = 1000


def open_stream(
    source: str | Path,
    *,
    split: str = "train",
    image_folder: str | Path | None = None,
    require_extended: bool = True,
    rows_without_image: str | None = None,
    require_questions: bool = False,
    on_bad_row: OnBadRow = "raise",
    seed: int = 0,
    volumes: VolumeOptions | None = None,
) -> IterableDataset:
    """
    Endless training rows: reads the source again and again, in an order that depends only on the seed and the number
    of the pass.

    Args:
        source (`str` or `Path`):
            A `.json` or `.jsonl` file, a folder of WebDataset shards (`.tar`) or a pattern of such files, or a folder
            or Hub id for `datasets.load_dataset`. A sample of a shard has a `json` part, in the form of a row of
            LLaVA-Med, and its images (`jpg`, `png`) in the order of their names.
        on_bad_row (`"raise"` or `"skip"`): Stop at a bad row, or skip it with a warning that names it.
        seed (`int`): Seed of the order.
        split, image_folder, require_extended, rows_without_image, require_questions, volumes:
            As for `load_training_rows`. Images are decoded only when they are used.

    Raises:
        RowError: While reading, at a bad row; names its shard and key, or its number.
        ValueError: While reading, if a whole pass has no usable row.
    """
    bad_rows = BadRows(on_bad_row)
    if image_folder is None and Path(source).suffix in JSON_SUFFIXES:
        image_folder = default_image_folder(source, Path(source))
    reader = RecordReader(ImageFolder(image_folder), require_extended, rows_without_image, require_questions, volumes)
    return IterableDataset.from_generator(partial(read_rows, str(source), split, reader, bad_rows, seed))


def read_rows(source: str, split: str, reader: RecordReader, bad_rows: BadRows, seed: int) -> Iterator[dict[str, Any]]:
    examples = open_examples(source, split)
    for number_of_pass in count():
        num_rows = 0
        shuffled = examples.shuffle(seed=seed + number_of_pass, buffer_size=BUFFER_SIZE)
        for number, example in enumerate(shuffled):
            record, location = read_example(example, RowLocation(source, f"row {number} of the stream"))
            try:
                yield reader.read(locate(location, record), record).row
                num_rows += 1
            except RowError as error:
                bad_rows.add(error)
                logger.warning(f"Skipped a bad row: {error}")
        if not num_rows:
            raise ValueError(f"{source} has no usable training rows.")


def open_examples(source: str, split: str) -> IterableDataset:
    """
    The raw examples of a source (see `open_stream`), images not decoded; `FileNotFoundError` if a file is missing.
    """
    path = Path(source)
    if path.suffix in JSON_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {source}.")
        return load_dataset("json", data_files=source, split="train", streaming=True)
    shards = sorted(str(shard) for shard in path.glob(f"*{SHARD_SUFFIX}")) if path.is_dir() else []
    if path.suffix == SHARD_SUFFIX:
        shards = source
    if shards:
        return load_dataset("webdataset", data_files={"train": shards}, split="train", streaming=True).decode(False)
    return load_dataset(source, split=split, streaming=True).decode(False)


def read_example(example: dict[str, Any], location: RowLocation) -> tuple[dict[str, Any], RowLocation]:
    """The record of a raw example, and its location: for a shard's sample, the shard and key."""
    if "__key__" not in example:
        return example, location
    location = RowLocation(str(example.get("__url__", location.file)), f"key {example['__key__']}")
    content = example.get("json")
    if isinstance(content, bytes | str):
        content = json.loads(content)
    if not isinstance(content, dict):
        raise location.error("json", "missing; a sample of a shard needs a `json` part with its row")
    images = [
        value for name, value in sorted(example.items()) if isinstance(value, dict) and value.get("bytes") is not None
    ]
    record = {name: value for name, value in content.items() if name not in ("image", "images")}
    return {"id": example["__key__"], **record, "images": images}, location
