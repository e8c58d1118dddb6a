"""Training rows from data larger than a disk: JSON lines, WebDataset shards or a Hub id, read as they are needed."""

import glob
import hashlib
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset, load_dataset_builder
from transformers.utils import logging

from logramed.eval.volumes import VolumeOptions

from .records import RecordReader, locate, open_embedded
from .rows import BadRows, ImageFolder, OnBadRow, RowError, RowLocation
from .sources import JSON_SUFFIXES, default_image_folder


logger = logging.get_logger(__name__)

SHARD_SUFFIX = ".tar"
# Rows among which the next one is drawn. More mix better and take longer to fill.
BUFFER_SIZE = 1000
# Bytes at the beginning and at the end of a file that its fingerprint takes in, beside its name and size.
FINGERPRINTED_SIZE = 1 << 20


class RowStream:
    """
    Endless training rows: the source is read again and again, in another order each time.

    Shards come in a random order and rows are drawn from a buffer, both by the seed and the number of the pass alone,
    so that a resumed run reads what the uninterrupted one does. Each row is checked as `load_training_rows` does,
    except that images are decoded, and duplicated ids noticed, only as far as reading goes.

    Args:
        source (`str` or `Path`):
            A `.json` or `.jsonl` file, a folder of WebDataset shards (`.tar`) or a pattern of such files, or a folder
            or Hub id for `datasets.load_dataset`. A sample of a shard has a `json` part, in the form of a row of
            LLaVA-Med, and its images (`jpg`, `png`) in the order of their names.
        image_folder (`str` or `Path`, *optional*):
            Where images lie that rows name; by default the folder of a JSON file, or `images` in it.
        require_extended (`bool`): Refuse rows without extended answers.
        on_bad_row (`"raise"` or `"skip"`): Stop at a bad row, or leave it out with a warning that names it.
        seed (`int`): Of the order.
        num_skipped (`int`): Rows that an earlier run has had already.
        buffer_size (`int`): Rows among which the next one is drawn.
        split (`str`): Split of a `datasets` source.
        rows_without_image, require_questions: What alignment needs of rows beside that (see `RecordReader`).
        volumes (`VolumeOptions`, *optional*): How DICOM and NIfTI volumes are shown.

    Raises:
        RowError: While reading, naming the shard and key, or the number of the row, of a bad row.
        ValueError: While reading, if a whole pass has no usable row.
    """

    def __init__(
        self,
        source: str | Path,
        image_folder: str | Path | None = None,
        require_extended: bool = True,
        on_bad_row: OnBadRow = "raise",
        seed: int = 0,
        num_skipped: int = 0,
        buffer_size: int = BUFFER_SIZE,
        split: str = "train",
        rows_without_image: str | None = None,
        require_questions: bool = False,
        volumes: VolumeOptions | None = None,
    ):
        self.source, self.split, self.seed, self.buffer_size = str(source), split, seed, buffer_size
        self.num_skipped, self.on_bad_row = num_skipped, on_bad_row
        BadRows(on_bad_row)  # refuses another word now
        if image_folder is None and Path(self.source).suffix in JSON_SUFFIXES:
            image_folder = default_image_folder(self.source, Path(self.source))
        images = ImageFolder(image_folder)
        self.reader = RecordReader(images, require_extended, rows_without_image, require_questions, volumes)

    @property
    def fingerprint(self) -> str:
        """
        A digest (64 hexadecimal digits) of what the stream reads: of local files the names, sizes and first and last
        MiB, since reading a whole stream first would defeat it; of others what their host says of their version.
        """
        digest = hashlib.sha256()
        files = list_local_files(self.source)
        for path in files:
            digest.update(json.dumps([path.name, path.stat().st_size]).encode())
            with path.open("rb") as file:
                digest.update(file.read(FINGERPRINTED_SIZE))
                file.seek(max(path.stat().st_size - FINGERPRINTED_SIZE, 0))
                digest.update(file.read())
        if not files:
            data_files = load_dataset_builder(self.source).config.data_files or {}
            versions = {str(split): [[*found], found.origin_metadata] for split, found in data_files.items()}
            digest.update(json.dumps([self.source, versions], sort_keys=True).encode())
        return digest.hexdigest()

    def as_dataset(self) -> IterableDataset:
        """The rows as a `datasets.IterableDataset` without end."""
        return IterableDataset.from_generator(self.__iter__)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        num_seen = 0
        for number_of_pass in count():
            before = num_seen
            for location, row in self.read_once(number_of_pass):
                num_seen += 1
                if num_seen > self.num_skipped:
                    yield {**row, "images": [open_embedded(image, location) for image in row["images"]]}
            if num_seen == before:
                raise ValueError(f"{self.source} holds no usable training row.")

    def read_once(self, number_of_pass: int = 0) -> Iterator[tuple[RowLocation, dict[str, Any]]]:
        """All usable rows in the order of one pass, with their places, images not decoded."""
        examples = open_examples(self.source, self.split)
        examples = examples.shuffle(seed=self.seed + number_of_pass, buffer_size=self.buffer_size)
        bad_rows = BadRows(self.on_bad_row)
        for number, example in enumerate(examples):
            record, location = read_example(example, RowLocation(self.source, f"row {number} of the stream"))
            try:
                location, row, *_ = self.reader.read(locate(location, record), record)
            except RowError as error:
                bad_rows.add(error)
                logger.warning(f"Skipped a bad row: {error}")
                continue
            yield location, row


def list_local_files(source: str) -> list[Path]:
    """The files of a source that lies on this machine: itself, those in it, or those that fit it as a pattern."""
    path = Path(source)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [Path(name) for name in sorted(glob.glob(source)) if Path(name).is_file()]


def open_examples(source: str, split: str) -> IterableDataset:
    """
    The raw examples of a source (see `RowStream`), images not decoded.

    Raises:
        FileNotFoundError: If there is no such file, or no shard in a folder.
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
    """A record of a raw example, and its place: that of a shard's sample is its shard and key."""
    if "__key__" not in example:
        return example, location
    location = RowLocation(str(example.get("__url__", location.file)), f"key {example['__key__']}")
    content = example.get("json")
    if isinstance(content, bytes | str):
        content = json.loads(content)
    if not isinstance(content, dict):
        raise location.error("json", "missing; a sample of a shard needs a `json` part that holds its row")
    images = [
        value for name, value in sorted(example.items()) if isinstance(value, dict) and value.get("bytes") is not None
    ]
    record = {name: value for name, value in content.items() if name not in ("image", "images")}
    return {"id": example["__key__"], **record, "images": images}, location
