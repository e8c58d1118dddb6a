"""NIfTI volumes."""

from functools import cache
from typing import Any

import numpy as np

from .errors import VolumeError, import_optional, reading
from .volume import Volume, find_orientation, reorder


ENDINGS = (".nii", ".nii.gz")
LARGEST_VOLUME = 512 << 20  # bytes of the voxels as they are stored
MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


def is_nifti(path: str) -> bool:
    """Whether a path has the ending of a NIfTI volume."""
    return path.lower().endswith(ENDINGS)


def open_nifti(path: str) -> Volume:
    """
    The volume of a NIfTI file, laid out as `PLANES` has it whatever way it is stored: the same anatomy gives the same
    slices.

    Its voxels are read at once when the first slice is asked for. Those that are not finite get the lowest finite
    value.

    Raises:
        VolumeError: If it is damaged, has several volumes, no orientation, colours, or too many voxels.
    """
    nibabel = import_optional("nibabel")
    with reading(path):
        image = nibabel.load(path)
        check_header(path, image.header)
        affine = image.header.get_best_affine()
        affine[:3] *= MILLIMETRES[image.header.get_xyzt_units()[0]]
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise VolumeError(f"{path}: its sform or qform is no affine that can be inverted")
        plane, transform = find_orientation(affine)
        spacing = reorder(nibabel.affines.voxel_sizes(affine).tolist(), transform)
        size = reorder(image.shape[:3], transform)

    @cache
    def read_voxels() -> np.ndarray:
        values = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
        finite = np.isfinite(values)
        if not finite.any():
            raise VolumeError(f"{path}: none of its voxels is finite")
        if not finite.all():
            values[~finite] = values[finite].min()
        return nibabel.orientations.apply_orientation(values, transform)

    def read_slice(number: int) -> np.ndarray:
        with reading(path, "its voxels"):
            return np.ascontiguousarray(read_voxels()[number])

    positions = tuple(number * spacing[0] for number in range(size[0]))
    return Volume(path, size, read_slice, spacing, positions, plane)


def check_header(path: str, header: Any) -> None:
    shape = header.get_data_shape()
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise VolumeError(f"{path}: its dim has not three dimensions; save one volume of it")
    if min(shape) < 1:
        raise VolumeError(f"{path}: its dim has a length below 1")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise VolumeError(f"{path}: its datatype is neither whole nor real numbers")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > LARGEST_VOLUME:
        raise VolumeError(f"{path}: its dim asks for more than {LARGEST_VOLUME >> 20} MiB")
    if not header["sform_code"] and not header["qform_code"]:
        raise VolumeError(f"{path}: its sform_code and qform_code are 0, so its orientation is not known")
    if header.get_xyzt_units()[0] not in MILLIMETRES:
        raise VolumeError(f"{path}: its xyzt_units is unknown")
