"""NIfTI volumes."""

import gzip
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from .errors import VolumeError, import_optional, reading
from .volume import Volume, find_orientation, reorder


GZIP = b"\x1f\x8b"
# Size in bytes of the largest header (NIfTI-2), and offsets of the magic strings of single files.
HEADER_SIZE = 540
MARKS = ((344, b"n+1\0"), (4, b"n+2\0"))
# Most bytes of the header with its extensions, and of the voxels.
LARGEST_EXTENSION, LARGEST_VOLUME = 1 << 24, 512 << 20
MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


def open_binary(path: str) -> BinaryIO:
    """Open a file for reading, unpacking gzip."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.open(path, "rb") if packed else open(path, "rb")


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file, gzipped or not, say that it is a NIfTI volume."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEADER_SIZE)
        except zlib.error:
            return False
    return any(head[place : place + len(mark)] == mark for place, mark in MARKS)


def open_nifti(path: str) -> Volume:
    """
    Open a NIfTI file as a volume oriented as in `PLANES`: the same anatomy gives the same slices however it is
    stored.

    Non-finite voxels get the lowest finite value.

    Raises:
        VolumeError: If it is damaged, has several volumes, no orientation, colours, or too many voxels.
    """
    with reading(path):
        header = read_header(path)
        check_header(path, header)
        affine = header.get_best_affine()
        affine[:3] *= MILLIMETRES[header.get_xyzt_units()[0]]
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise VolumeError(f"{path}: its sform or qform is not an invertible affine")
        plane, transform = find_orientation(affine)
        spacing = reorder(import_optional("nibabel").affines.voxel_sizes(affine).tolist(), transform)
        size = reorder(header.get_data_shape()[:3], transform)
    voxels = Voxels(path, transform)
    positions = tuple(number * spacing[0] for number in range(size[0]))
    return Volume(path, size, voxels.read, spacing, positions, plane)


def read_header(path: str) -> Any:
    """Read the header without its extensions, which may claim any size."""
    nibabel = import_optional("nibabel")
    with open_binary(path) as file:
        block = file.read(HEADER_SIZE)
    kind = nibabel.Nifti2Header if block[4:8] == b"n+2\0" else nibabel.Nifti1Header
    if len(block) < kind.template_dtype.itemsize:
        raise VolumeError(f"{path}: its header is cut off")
    return kind(block[: kind.template_dtype.itemsize])


def check_header(path: str, header: Any) -> None:
    shape = header.get_data_shape()
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise VolumeError(f"{path}: its dim is not three-dimensional; save a single volume of it")
    if min(shape) < 1:
        raise VolumeError(f"{path}: its dim has a length below 1")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise VolumeError(f"{path}: its datatype is neither integer nor floating point")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > LARGEST_VOLUME:
        raise VolumeError(f"{path}: its dim needs more than {LARGEST_VOLUME >> 20} MiB")
    if not 0 <= header.get_data_offset() <= LARGEST_EXTENSION:
        raise VolumeError(f"{path}: its vox_offset is impossible")
    if not header["sform_code"] and not header["qform_code"]:
        raise VolumeError(f"{path}: its sform_code and qform_code are 0, so its orientation is unknown")
    if header.get_xyzt_units()[0] not in MILLIMETRES:
        raise VolumeError(f"{path}: its xyzt_units is unknown")


@dataclass
class Voxels:
    """Voxels of a file, all read when the first slice is requested, and kept in the stored dtype."""

    path: str
    transform: np.ndarray = field(repr=False)

    @cached_property
    def stored(self) -> tuple[np.ndarray, float, float]:
        """The oriented array, slope and intercept."""
        nibabel = import_optional("nibabel")
        header = read_header(self.path)
        check_header(self.path, header)
        offset, dtype, shape = header.get_data_offset(), header.get_data_dtype(), header.get_data_shape()[:3]
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        with open_binary(self.path) as file:
            file.seek(offset)
            content = file.read(num_bytes)
        if len(content) < num_bytes:
            raise VolumeError(f"{self.path}: it has fewer voxels than its dim says")
        slope, intercept = header.get_slope_inter()
        array = np.frombuffer(content, dtype).reshape(shape, order="F")
        oriented = nibabel.orientations.apply_orientation(array, self.transform)
        return oriented, 1.0 if slope is None else slope, intercept or 0.0

    @cached_property
    def lowest(self) -> float:
        """The lowest finite value."""
        stored, slope, intercept = self.stored
        finite = [part[np.isfinite(part)] for part in stored]
        ends = [end for part in finite if part.size for end in (part.min(), part.max())]
        if not ends:
            raise VolumeError(f"{self.path}: it has no finite voxels")
        return min(float(end) * slope + intercept for end in ends)

    def read(self, number: int) -> np.ndarray:
        """One slice, `(height, width)` float32."""
        with reading(self.path, "its voxels"):
            stored, slope, intercept = self.stored
            values = (stored[number].astype(np.float64) * slope + intercept).astype(np.float32)
            finite = np.isfinite(values)
            return values if finite.all() else np.where(finite, values, np.float32(self.lowest))
