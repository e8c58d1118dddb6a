"""DICOM images and series as volumes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .dicom_header import (
    MOST_SLICES,
    SAMPLES,
    find_rescale,
    find_voi,
    get_floats,
    get_number,
    header_of_frame,
    read_header,
)
from .dicom_pixels import read_frame
from .errors import VolumeError, import_optional, reading
from .volume import Volume, find_orientation, reorder
from .windows import Mapping, Range


PREAMBLE, MARK = 128, b"DICM"
# Largest difference of direction cosines, and largest relative difference of pixel spacings.
DIRECTION_TOLERANCE, SPACING_TOLERANCE = 1e-2, 1e-3
# Slices closer than `SAME_PLACE` millimetres are at the same place; above `GAP` usual distances, one is missing.
SAME_PLACE, GAP = 1e-3, 1.5


@dataclass(frozen=True)
class Slice:
    """One frame of a file, and its place: `None` if the file does not say."""

    path: str
    frame: int
    header: Any
    mapping: Mapping | None
    directions: np.ndarray | None = None  # (2, 3): of increasing column and row, in DICOM coordinates (LPS+)
    corner: np.ndarray | None = None  # (3,): center of the first pixel, in millimetres
    pixel_spacing: tuple[float, float] | None = None  # between rows, and between columns

    def read(self) -> np.ndarray:
        return read_frame(self.path, self.header, self.frame)


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file say that it is DICOM."""
    return head[PREAMBLE : PREAMBLE + len(MARK)] == MARK


def open_file(path: str) -> Volume:
    """
    Open a DICOM file; frames are sorted by their places, or stay in file order if they have none.

    Raises:
        VolumeError: If it cannot be used.
    """
    slices = read_slices(path)
    if slices[0].corner is not None and len(slices) > 1:
        return arrange(path, slices)
    first = slices[0]
    mapping = _common([one.mapping for one in slices])
    if mapping is None and first.header.BitsAllocated == 8 and _is_plain(first):
        mapping = Range(0, 2**first.header.BitsStored - 1)  # the pixels are grey levels already
    size = (len(slices), first.header.Rows, first.header.Columns)
    return Volume(path, size, lambda number: slices[number].read(), mapping=mapping, **_nature(first))


def open_folder(path: str) -> Volume:
    """
    Open the slices of one series, one DICOM file each, in spatial order. Ignores a DICOMDIR, other files, and
    subfolders.

    Raises:
        VolumeError: If there are none, or they are not one series that can be ordered in space (see `arrange`).
    """
    with reading(path):
        names = sorted(entry.path for entry in os.scandir(path) if entry.is_file() and entry.name != "DICOMDIR")
    if len(names) > MOST_SLICES:
        raise VolumeError(f"{path}: it holds more than {MOST_SLICES} files")
    with reading(path):
        names = [name for name in names if has_mark(name)]
    if not names:
        raise VolumeError(f"{path}: the folder holds no DICOM file")
    slices = [one for name in names for one in read_slices(name, several=len(names) > 1)]
    if len({one.header.get("SeriesInstanceUID") for one in slices}) > 1:
        raise VolumeError(f"{path}: its files are of several series (SeriesInstanceUID); put each in its own folder")
    if len(slices) == 1:
        return replace(open_file(names[0]), path=path)
    return arrange(path, slices)


def has_mark(path: str) -> bool:
    with open(path, "rb") as file:
        return is_dicom(file.read(PREAMBLE + len(MARK)))


def read_slices(path: str, several: bool = False) -> list[Slice]:
    """The frames of a file. With `several` files, raises `VolumeError` if this one has more than one frame."""
    header = read_header(path)
    num_frames = get_number(path, header, "NumberOfFrames", default=1)
    if several and num_frames > 1:
        raise VolumeError(f"{path}: its NumberOfFrames is above 1, but it is one of several files; pass it by itself")
    with reading(path):
        return [read_slice(path, header, frame) for frame in range(num_frames)]


def read_slice(path: str, header: Any, frame: int) -> Slice:
    own = header_of_frame(header, frame)
    is_color = SAMPLES[header.PhotometricInterpretation] == 3 or header.PhotometricInterpretation == "PALETTE COLOR"
    if not is_color:
        find_rescale(path, own)  # raises early
    return Slice(path, frame, header, None if is_color else find_voi(path, own), *read_place(path, own))


def read_place(path: str, header: Any) -> tuple:
    """Directions, corner and pixel spacing of a frame, each `None` if one is missing."""
    directions = get_floats(path, header, "ImageOrientationPatient", 6)
    corner = get_floats(path, header, "ImagePositionPatient", 3)
    spacing = get_floats(path, header, "PixelSpacing", 2)
    if directions:
        products = np.reshape(directions, (2, 3)) @ np.reshape(directions, (2, 3)).T
        if np.abs(products - np.eye(2)).max() > DIRECTION_TOLERANCE:
            raise VolumeError(f"{path}: its ImageOrientationPatient is not two perpendicular directions")
    if spacing and min(spacing) <= 0:
        raise VolumeError(f"{path}: its PixelSpacing is not above 0")
    if not (directions and corner and spacing):
        return None, None, None
    return np.reshape(directions, (2, 3)), np.array(corner), tuple(spacing)


def arrange(path: str, slices: Sequence[Slice]) -> Volume:
    """
    Build a volume from slices, sorted along their normal and oriented as in `PLANES`.

    Identical slices at the same place count once. Distances between slices may vary up to `GAP` times the median.

    Raises:
        VolumeError: If slices lack a place, differ in size, orientation, spacing or kind, if different ones are at the
            same place, or if one seems to be missing between two others.
    """
    check_alike(path, slices)
    columns_go, rows_go = slices[0].directions
    normal = np.cross(columns_go, rows_go)
    slices = drop_repeated(path, sorted(slices, key=lambda one: (float(one.corner @ normal), one.path)), normal)
    places = [float(one.corner @ normal) for one in slices]
    step = check_gaps(path, places)
    spacing = (step, *slices[0].pixel_spacing)
    affine = np.eye(4)
    directions = np.stack([normal, rows_go, columns_go]) * [[-1, -1, 1]]  # RAS+
    affine[:3, :3] = directions.T * spacing
    plane, transform = find_orientation(affine, slice_axis=0)
    if transform[0, 1] < 0:
        slices, places = slices[::-1], [-place for place in places[::-1]]
    header = slices[0].header
    return Volume(
        path,
        (len(slices), *reorder((0, header.Rows, header.Columns), transform)[1:]),
        partial(read_laid_out, slices, transform),
        reorder(spacing, transform),
        tuple(place - places[0] for place in places),
        plane,
        _common([one.mapping for one in slices]),
        **_nature(slices[0]),
    )


def read_laid_out(slices: Sequence[Slice], transform: np.ndarray, number: int) -> np.ndarray:
    """Read a slice with rows and columns as in `PLANES`; `slices` are in order already."""
    values, transform = slices[number].read()[None], transform.copy()
    transform[0, 1] = 1
    return np.ascontiguousarray(import_optional("nibabel").orientations.apply_orientation(values, transform)[0])


def check_alike(path: str, slices: Sequence[Slice]) -> None:
    first = slices[0]
    for one in slices:
        if one.corner is None:
            keywords = "ImagePositionPatient, ImageOrientationPatient or PixelSpacing"
            raise VolumeError(f"{one.path}: its {keywords} is missing, which is needed to order slices")
        for keyword in ("Rows", "Columns", "PhotometricInterpretation", "Modality"):
            if one.header.get(keyword) != first.header.get(keyword):
                raise VolumeError(f"{path}: its slices differ in {keyword}; a volume needs slices of one kind")
        if np.abs(one.directions - first.directions).max() > DIRECTION_TOLERANCE:
            raise VolumeError(f"{path}: its slices differ in ImageOrientationPatient, as in a localizer")
        if not np.allclose(one.pixel_spacing, first.pixel_spacing, rtol=SPACING_TOLERANCE):
            raise VolumeError(f"{path}: its slices differ in PixelSpacing")


def drop_repeated(path: str, slices: Sequence[Slice], normal: np.ndarray) -> list[Slice]:
    """Remove slices that repeat the previous one; `slices` are sorted."""
    kept = [slices[0]]
    for one in slices[1:]:
        if (one.corner - kept[-1].corner) @ normal > SAME_PLACE:
            kept.append(one)
        elif not np.array_equal(one.read(), kept[-1].read()):
            raise VolumeError(
                f"{path}: several different slices have the same ImagePositionPatient, as with several times or "
                "echoes; put each in its own folder"
            )
    return kept


def check_gaps(path: str, places: Sequence[float]) -> float:
    """The median distance between slices in millimetres, or 1 if there is only one slice."""
    distances = np.diff(places)
    if not len(distances):
        return 1.0
    usual = float(np.median(distances))
    if distances.max() > GAP * usual:
        number = int(distances.argmax()) + 1
        raise VolumeError(
            f"{path}: a slice seems to be missing between slices {number} and {number + 1} of {len(places)} by "
            f"ImagePositionPatient, {distances.max():.2f} mm apart where {usual:.2f} mm are usual"
        )
    return usual


def _common(mappings: Sequence[Mapping | None]) -> Mapping | None:
    """The mapping of all slices, or `None` if they differ, as MR windows often do."""
    return mappings[0] if all(mapping == mappings[0] for mapping in mappings) else None


def _is_plain(one: Slice) -> bool:
    own = header_of_frame(one.header, one.frame)
    return one.header.PixelRepresentation == 0 and "RescaleSlope" not in own and "ModalityLUTSequence" not in own


def _nature(one: Slice) -> dict[str, bool]:
    header = one.header
    return {
        "is_hounsfield": header.get("Modality") == "CT",
        "inverted": header.PhotometricInterpretation == "MONOCHROME1",
    }
