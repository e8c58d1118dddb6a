"""
References to images in volumes, used in place of image paths.

`scan.nii.gz#slices=4-6&window=lung` is the mean of slices 4 to 6 of that file, counted from 1 in the order of
`volume`, in the lung window; `#slices=4&window=auto` is slice 4 in the file's own window. A string that is an existing
path is always read as that path; otherwise only the last `#slices=...` of a string is parsed.
"""

import hashlib
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from logramed.eval.files import hash_file

from . import nifti
from .dicom import is_dicom, open_file, open_folder
from .errors import VolumeError
from .volume import POSITION_TEXT, UNIFORM, Selection, Volume, select
from .windows import AUTO, check_named, parse_window


REFERENCE = re.compile(r"(.+)#slices=(\d{1,6})(?:-(\d{1,6}))?&window=([a-z_]+|-?[\d.]+,[\d.]+)", re.DOTALL | re.ASCII)
HEAD_SIZE = 4096  # bytes
DICOM, FOLDER, NIFTI = "DICOM file", "folder of DICOM files", "NIfTI file"


class Reference(NamedTuple):
    """A parsed reference; `selection` is `None` for a path only."""

    path: str
    selection: Selection | None = None
    window: str = AUTO

    def __str__(self) -> str:
        first, last = self.selection
        return f"{self.path}#slices={first}{'' if last == first else f'-{last}'}&window={self.window}"


def parse_reference(text: str) -> Reference:
    """
    Parse a reference; any other string is taken as a path.

    Example:
        >>> parse_reference("a#b.nii#slices=4-6&window=lung")
        Reference(path='a#b.nii', selection=(4, 6), window='lung')
        >>> parse_reference("a.png")
        Reference(path='a.png', selection=None, window='auto')
    """
    found = REFERENCE.fullmatch(text)
    if found is None or os.path.lexists(text):
        return Reference(text)
    path, first, last, window = found.groups()
    return Reference(path, (int(first), int(last or first)), window)


def find_kind(path: str) -> str | None:
    """The kind of a path by its content: DICOM file, NIfTI file, folder with a DICOM file, or `None`."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return (
                FOLDER
                if any(entry.is_file() and is_dicom(read_head(entry.path)) for entry in os.scandir(path))
                else None
            )
        head = read_head(path) if stat.S_ISREG(mode) else b""
    except (OSError, ValueError):  # it does not exist, or is not a valid path
        return None
    if is_dicom(head):
        return DICOM
    return NIFTI if nifti.is_nifti(head) else None


def read_head(path: str) -> bytes:
    """The first bytes of a file, enough to identify it."""
    with open(path, "rb") as file:
        return file.read(HEAD_SIZE)


def is_volume(image: str | Path) -> bool:
    """Whether this package opens the image: a reference, DICOM file, folder of DICOM files, or NIfTI file."""
    reference = parse_reference(str(image))
    return reference.selection is not None or find_kind(reference.path) is not None


def image_exists(image: str) -> bool:
    """Whether the file or folder with a DICOM file exists to which a path or reference leads."""
    path = parse_reference(image).path
    return os.path.isfile(path) or find_kind(path) is not None


def open_if_volume(image: str | Path) -> Image.Image | None:
    """Open a reference or volume (see `open_image_reference`); `None` for any other image."""
    return open_image_reference(str(image)) if is_volume(image) else None


def open_volume(path: str) -> Volume:
    """
    Open a DICOM file, a folder with the DICOM files of one series, or a NIfTI file.

    Headers are read now, slices when requested.

    Raises:
        VolumeError: If it cannot be used, naming file and tag.
        ImportError: If a package of the extra `volumes` is missing.
    """
    kind = find_kind(path)
    if kind is None:
        problem = "it is not a DICOM or NIfTI file" if os.path.lexists(path) else "there is no such file or folder"
        problem = "the folder holds no DICOM file" if os.path.isdir(path) else problem
        raise VolumeError(f"{path}: {problem}")
    return {DICOM: open_file, FOLDER: open_folder, NIFTI: nifti.open_nifti}[kind](path)


def expand_volume(path: str, count: int, slices: str = UNIFORM, window: str = AUTO) -> list[tuple[str, str]]:
    """
    The images to show of a volume, each with a text that says where its slice lies.

    Args:
        path (`str`): A DICOM file, a folder of one series, or a NIfTI file; a reference is returned unchanged.
        count (`int`): Most images.
        slices (`str`): Which slices (see `select`).
        window (`str`): See `parse_window`.

    Returns:
        `list[tuple[str, str]]`: references and texts. A volume of one slice has an empty text, and its path as
        reference if `window` is "auto".

    Raises:
        VolumeError: If it cannot be used, or does not have the requested slices.
    """
    reference = parse_reference(path)
    if reference.selection is not None:
        return [(path, "")]
    parse_window(window)
    volume = _open_cached(path)
    check_named(path, window, volume.is_hounsfield)
    if volume.num_slices == 1:
        return [(path if window == AUTO else str(Reference(path, (1, 1), window)), "")]
    try:
        selections = select(volume.num_slices, count, slices)
    except ValueError as error:
        raise VolumeError(f"{path}: {error}") from None
    references = [str(Reference(path, selection, window)) for selection in selections]
    return list(zip(references, volume.describe(selections), strict=True))


def count_slices(path: str) -> int:
    """Number of slices of the volume at a path."""
    return _open_cached(path).num_slices


def without_position_texts(content: list[dict]) -> list[dict]:
    """
    Remove the texts that say where slices lie from the content parts of a message.

    Example:
        >>> texts = [{"type": "text", "text": text} for text in ("Slice 1 of 2, 0.0 mm", "Mass?")]
        >>> without_position_texts([{"type": "image"}, *texts])
        [{'type': 'image'}, {'type': 'text', 'text': 'Mass?'}]
    """
    return [part for place, part in enumerate(content) if not _is_position_text(content, place)]


def position_texts(content: list[dict]) -> list[str]:
    """
    For each image part of a message, the text after it that says where the slice lies, or "" if there is none.

    Example:
        >>> position_texts([{"type": "image"}, {"type": "text", "text": "Slice 1 of 1, 0.0 mm"}, {"type": "image"}])
        ['Slice 1 of 1, 0.0 mm', '']
    """
    texts: list[str] = []
    for place, part in enumerate(content):
        if part["type"] == "image":
            texts.append("")
        elif _is_position_text(content, place):
            texts[-1] = part["text"]
    return texts


def _is_position_text(content: list[dict], place: int) -> bool:
    part, follows_image = content[place], place > 0 and content[place - 1]["type"] == "image"
    return follows_image and part["type"] == "text" and POSITION_TEXT.fullmatch(part["text"]) is not None


def open_image_reference(reference: str) -> Image.Image:
    """
    Open a reference, or a path to a volume of one slice, as an image of mode L or RGB.

    Each process keeps the last opened volume, so that its next slice does not read the headers again.

    Raises:
        VolumeError: If it cannot be used, or a path without a selection has several slices.
    """
    path, selection, window = parse_reference(str(reference))
    volume = _open_cached(path)
    if selection is None:
        if volume.num_slices > 1:
            raise VolumeError(
                f"{path}: it holds {volume.num_slices} slices where one image is needed; name one by `slices`, or as "
                f"in {Reference('', (1, 1), AUTO)}"
            )
        selection = (1, 1)
    try:
        return volume.image(selection, window)
    except VolumeError:
        raise
    except ValueError as error:
        raise VolumeError(f"{path}: {error}") from None


_last_opened: dict[tuple, Volume] = {}


def _open_cached(path: str) -> Volume:
    """Open a volume, or return the last opened one; it is released before another takes memory."""
    key = (path, _status(path))
    volume = _last_opened.get(key)
    if volume is None:
        _last_opened.clear()
        volume = _last_opened[key] = open_volume(path)
    return volume


def _files_of(path: str) -> list[str]:
    """The file at a path, or the sorted files of a folder."""
    if not os.path.isdir(path):
        return [path]
    return sorted(entry.path for entry in os.scandir(path) if entry.is_file())


def _status(path: str) -> tuple:
    """Sizes and modification times of the files at a path, to notice changes."""
    try:
        statuses = [os.stat(file) for file in _files_of(path)]
    except (OSError, ValueError):
        return ()
    return tuple((status.st_size, status.st_mtime_ns) for status in statuses)


def image_status(image: str) -> tuple[int, int]:
    """Size in bytes and last modification time of the files behind the path or reference of an image."""
    statuses = [os.stat(file) for file in _files_of(parse_reference(image).path)]
    return sum(one.st_size for one in statuses), max((one.st_mtime_ns for one in statuses), default=0)


def hash_image(image: str) -> bytes:
    """
    Hash the content of an image: `hash_file` for a path; a reference adds slices and window, and a folder counts all
    its files.
    """
    path, selection, window = parse_reference(image)
    if selection is None and not os.path.isdir(path):
        return hash_file(path)
    return hashlib.sha256(f"{selection} {window}".encode() + _hash_files(path, _status(path))).digest()


@lru_cache(maxsize=8)
def _hash_files(path: str, status: tuple) -> bytes:
    """Hashes of the files of a volume, read once for all its slices while their `status` does not change."""
    return b"".join(hash_file(file) for file in _files_of(path))
