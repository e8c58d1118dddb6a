"""The canonical training row: its content, the checks a row must pass, and the handling of bad rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from tqdm.auto import tqdm
from transformers.utils import logging

from logramed.eval.image_check import find_unreadable, image_key
from logramed.eval.question_images import IMAGE_PLACEHOLDER
from logramed.eval.text_values import to_text
from logramed.eval.volumes import VolumeError, VolumeOptions, find_kind, is_volume, parse_reference


logger = logging.get_logger(__name__)

OnBadRow = Literal["raise", "skip"]


class RowError(ValueError):
    """
    A training row that cannot be used: `file` (or folder, or Hub id), `position` (`"row 3"`, counted from 0, or for
    JSON lines `"line 4"`, counted from 1), `row_id` (`None` if there is no usable id), `field` and `reason`.
    """

    def __init__(self, file: str, position: str, row_id: str | None, field: str, reason: str):
        super().__init__(file, position, row_id, field, reason)
        self.file, self.position, self.row_id, self.field, self.reason = file, position, row_id, field, reason

    def __str__(self) -> str:
        row_id = "no id" if self.row_id is None else f"id {self.row_id!r}"
        return f"{self.file}: {self.position} ({row_id}), field `{self.field}`: {self.reason}"


@dataclass(frozen=True)
class RowLocation:
    """Location of a row, for error messages."""

    file: str
    position: str
    row_id: str | None = None

    def error(self, field: str, reason: str) -> RowError:
        return RowError(self.file, self.position, self.row_id, field, reason)

    def with_id(self, row_id: Any, field: str = "id") -> "RowLocation":
        """This location with the row's id; `RowError` if the id is neither text nor a whole number."""
        try:
            text = to_text(row_id) if isinstance(row_id, str | int) else ""
        except ValueError:
            text = ""
        if not text:
            raise self.error(field, f"expected a text or a whole number, got {row_id!r}")
        return replace(self, row_id=text)


class Turn(NamedTuple):
    """One unchecked message: its role, its content parts and the field it was read from."""

    role: str
    parts: list[dict[str, str]]
    field: str

    @property
    def text(self) -> str:
        return " ".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def num_images(self) -> int:
        return sum(part["type"] == "image" for part in self.parts)


class BadRows:
    """Raises each `RowError` passed to `add`, or with `on_bad_row="skip"` keeps it in `skipped`."""

    def __init__(self, on_bad_row: OnBadRow):
        if on_bad_row not in ("raise", "skip"):
            raise ValueError(f'`on_bad_row` must be "raise" or "skip", got {on_bad_row!r}.')
        self.on_bad_row = on_bad_row
        self.skipped: list[RowError] = []

    def add(self, error: RowError) -> None:
        if self.on_bad_row == "raise":
            raise error
        self.skipped.append(error)


@dataclass
class TrainingRows:
    """
    Checked training rows, and the rows that were skipped.

    Attributes:
        dataset (`datasets.Dataset`):
            Columns `id`, `images` (absolute paths, or images if the source embeds them), `messages` (each with `role`
            and `content` parts; Arrow gives image parts a `text` of `None`) and `extended_answers` (one per assistant
            turn, or `None`).
        skipped (`list[RowError]`): Bad rows skipped under `on_bad_row="skip"`.
        fingerprint (`str`): SHA-256 of ids, texts and image names as written in the source.
    """

    dataset: Dataset
    skipped: list[RowError] = field(default_factory=list)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.dataset)

    def write_skipped(self, path: str | Path) -> None:
        """Write the skipped rows to `path` as JSON lines: `file`, `position`, `row_id`, `field`, `reason`."""
        lines = [json.dumps(vars(error), ensure_ascii=False) + "\n" for error in self.skipped]
        Path(path).write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


class ImageFolder:
    """
    Turns image names into absolute paths of existing files: inside `folder` after resolving `..` and symbolic links,
    or anywhere, given as absolute paths, without a folder.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder).expanduser().resolve()
        self._existing: set[Path] = set()

    def find(self, name: Any, location: RowLocation, field: str) -> str:
        """
        The absolute path of image `name`, which may be a folder of DICOM files, or refer to slices of a volume;
        `RowError` if it is missing or outside the folder.
        """
        if not isinstance(name, str) or not name.strip():
            raise location.error(field, f"expected the name of an image file, got {name!r}")
        reference = parse_reference(name)
        path = self._resolve(reference.path, location, field)
        try:
            if path not in self._existing and not path.is_file() and find_kind(str(path)) is None:
                raise location.error(field, f"missing image: there is no file {path}")
        except (OSError, ValueError) as error:  # name too long or invalid
            if isinstance(error, RowError):
                raise
            raise location.error(field, f"cannot look up image {str(path)!r}: {error}") from error
        self._existing.add(path)
        return str(path if reference.selection is None else reference._replace(path=path))

    def _resolve(self, name: str, location: RowLocation, field: str) -> Path:
        if self.folder is None and not Path(name).is_absolute():
            raise location.error(field, f"{name!r} is a relative path; pass `image_folder`")
        try:
            path = ((self.folder or Path()) / name).resolve()
            # The name may begin with the folder's own name: it is then relative to the parent folder.
            if self.folder is not None and Path(name).parts[:1] == (self.folder.name,) and not path.exists():
                path = (self.folder.parent / name).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # null bytes, loops of symbolic links
            raise location.error(field, f"{name!r} is not a usable path: {error}") from error
        if self.folder is not None and not path.is_relative_to(self.folder):
            raise location.error(field, f"{name!r} leads to {path}, outside the image folder {self.folder}")
        return path


def read_text(value: Any, location: RowLocation, field: str, what: str) -> str:
    """`to_text(value)`; `RowError` if that fails, or for null or empty text."""
    try:
        text = "" if value is None else to_text(value)
    except ValueError as error:
        raise location.error(field, str(error)) from error
    if not text:
        raise location.error(field, f"empty {what}")
    return text


def show_volumes(
    location: RowLocation, images: list[Any], turns: list[Turn], options: VolumeOptions, image_field: str
) -> tuple[list[Any], list[Turn]]:
    """Images and turns in which each volume (DICOM, NIfTI) is replaced by its slices and their positions."""
    shown: list[Any] = []
    remaining = iter(images)

    def show(part: dict[str, str]) -> list[dict[str, str]]:
        if part["type"] != "image":
            return [part]
        image = next(remaining)
        try:
            is_one = isinstance(image, str | Path) and is_volume(image)
            names, parts = options.show(str(image)) if is_one else ([image], [part])
        except VolumeError as error:
            raise location.error(image_field, f"unreadable image {error}") from error
        shown.extend(names)
        return parts

    turns = [turn._replace(parts=[new for part in turn.parts for new in show(part)]) for turn in turns]
    return [*shown, *remaining], turns


def check_alternation(location: RowLocation, turns: list[Turn], turns_field: str) -> None:
    """Raise `RowError` unless turns alternate, after at most one system turn."""
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    if not dialogue:
        raise location.error(turns_field, "no turns")
    for number, turn in enumerate(dialogue):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise location.error(
                turn.field, f"odd turns: turn {number} must come from the {expected}, got {turn.role!r}"
            )
    if len(dialogue) % 2:
        raise location.error(dialogue[-1].field, f"odd turns: the last of {len(dialogue)} turns has no answer")


def check_contents(
    location: RowLocation, turns: list[Turn], num_images: int, turns_field: str, image_field: str
) -> None:
    """Raise `RowError` for empty turns, or if the numbers of image placeholders and images differ."""
    for turn in turns:
        if turn.role != "user" and turn.num_images:
            raise location.error(turn.field, f"an image placeholder in a turn of the {turn.role}")
        if turn.role == "assistant" and not turn.text:
            raise location.error(turn.field, "empty answer")
        if not turn.parts:
            raise location.error(turn.field, "empty turn")
        if any(IMAGE_PLACEHOLDER in part.get("text", "") for part in turn.parts):
            raise location.error(turn.field, f"a text part holds {IMAGE_PLACEHOLDER}; use an image part instead")
        if "<img>" in turn.text:  # Qwen-VL's
            raise location.error(
                turn.field, f"<img> would be read as text: write {IMAGE_PLACEHOLDER}, and the name in `images`"
            )
    num_placeholders = sum(turn.num_images for turn in turns)
    if num_placeholders != num_images:
        raise location.error(
            turns_field,
            f"{num_placeholders} {IMAGE_PLACEHOLDER} placeholder(s) for {num_images} image(s) in `{image_field}`",
        )


def check_questions(location: RowLocation, turns: list[Turn]) -> None:
    """Raise `RowError` for a question without words, which nodes of turns need."""
    words = ""
    for turn in turns:
        if turn.role == "user":
            words += turn.text
        elif turn.role == "assistant":
            if not words.strip():
                raise location.error(turn.field, "its question has no words, which alignment of turns needs")
            words = ""


def check_extended(location: RowLocation, extended_answers: Any, num_answers: int, extended_field: str) -> list:
    if not isinstance(extended_answers, list):
        raise location.error(extended_field, f"expected a list, got {type(extended_answers).__name__}")
    if len(extended_answers) != num_answers:
        raise location.error(extended_field, f"{len(extended_answers)} extended answer(s) for {num_answers} answer(s)")
    return [
        read_text(answer, location, f"{extended_field}[{number}]", "extended answer")
        for number, answer in enumerate(extended_answers)
    ]


def read_records(path: Path, bad_rows: BadRows) -> Iterator[tuple[RowLocation, dict[str, Any]]]:
    """
    The objects of a JSON list (`.json`) or of JSON lines (`.jsonl`), each with its location. Lines that are not JSON
    and entries that are not objects are bad rows; a `.json` file that is not a list raises a plain `ValueError`.
    """
    for position, record in _read_json_lines(path, bad_rows) if path.suffix == ".jsonl" else _read_json_list(path):
        location = RowLocation(str(path), position)
        if isinstance(record, dict):
            yield location, record
        else:
            bad_rows.add(location.error("(row)", f"expected an object, got {type(record).__name__}"))


def _read_json_list(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. One object per line needs the ending .jsonl.") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold a JSON list of rows, got {type(records).__name__}.")
    for number, record in enumerate(records):
        yield f"row {number}", record


def _read_json_lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                bad_rows.add(RowLocation(str(path), f"line {number}").error("(line)", f"not valid JSON: {error}"))


def with_progress(items: Iterable[Any]) -> Iterable[Any]:
    """`items` with a progress bar on a terminal."""
    return tqdm(items, desc="Checking training rows", unit="row", leave=False, disable=None)


class ReadRow(NamedTuple):
    """A canonical row, its location, and its images as the source writes them, with the field that holds them."""

    location: RowLocation
    row: dict[str, Any]
    image_field: str
    images: list[Any]


def finish(read: list[ReadRow], bad_rows: BadRows, source: str, check_images: bool = True) -> TrainingRows:
    """
    Builds `TrainingRows` from the rows `read`; with `check_images`, rows with an unreadable image are bad rows. Warns
    about skipped rows. Raises `ValueError` if no row is left.
    """
    if check_images:
        read = leave_out_unreadable(read, bad_rows)
    skipped = bad_rows.skipped
    if skipped:
        logger.warning(f"{source}: skipped {len(skipped)} bad row(s), the first: {skipped[0]}")
    if not read:
        raise ValueError(f"{source} has no usable training rows ({len(skipped)} skipped).")
    rows = [one.row for one in read]
    dataset = Dataset.from_list(rows, features=get_features(rows))
    return TrainingRows(dataset, skipped, compute_fingerprint(read))


def leave_out_unreadable(read: list[ReadRow], bad_rows: BadRows) -> list[ReadRow]:
    """Keeps the rows whose images can all be decoded; the others are bad rows."""
    problems = find_unreadable(image for one in read for image in one.row["images"])
    kept = []
    for one in read:
        for image in one.row["images"] if problems else ():
            if (problem := problems.get(image_key(image))) is not None:
                where = "" if isinstance(image, dict) else f" {image}"
                bad_rows.add(one.location.error(one.image_field, f"unreadable image{where}: {problem}"))
                break
        else:
            kept.append(one)
    return kept


def get_features(rows: list[dict[str, Any]]) -> Features:
    embedded = any(isinstance(image, dict) for row in rows for image in row["images"])
    return Features(
        {
            "id": Value("string"),
            "images": List(ImageFeature() if embedded else Value("string")),
            "messages": List(
                {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
            ),
            "extended_answers": List(Value("string")),
        }
    )


def compute_fingerprint(read: list[ReadRow]) -> str:
    digest = hashlib.sha256()
    for _, row, _, images in read:
        content = [row["id"], [*map(str, images)], row["messages"], row["extended_answers"]]
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
