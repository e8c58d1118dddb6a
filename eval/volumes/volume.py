"""Volumes of slices in space, and images of one slice or the mean of neighbours."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from .errors import VolumeError, import_optional
from .windows import AUTO, ROBUST_PERCENTILES, ROBUST_RANGE, Mapping, Range, check_named, parse_window


# Most bytes of all slices in one array.
LARGEST_ARRAY = 768 << 20
# Slices, and values in total, from which the robust range of a volume is computed: evenly spaced, so that large
# volumes take no more time or memory.
RANGE_SLICES, RANGE_VALUES = 32, 1 << 20
# Orientation of slices as radiologists see them: directions of the patient's body (L, R, A, P, I, S) in which slices,
# rows and columns increase. DICOM's usual axial, coronal and sagittal images are stored like this.
PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "RIP"}
WORLD_AXES = ("sagittal", "coronal", "axial")  # the plane perpendicular to each axis of RAS+ coordinates
FRAMES = "frames"  # frames without places, as in ultrasound

# Texts of `describe`, and the line break after the last one.
POSITION_TEXT = re.compile(r"(Slice|Frame) \d+ of \d+(, \d+\.\d mm)?\n?", re.ASCII)

UNIFORM, SLABS = "uniform", "slabs"
Selection = tuple[int, int]  # first and last slice, counted from 1


@dataclass(frozen=True)
class Volume:
    """
    Slices in order, read when requested.

    Args:
        path (`str`): File or folder.
        size (`tuple[int, int, int]`): Number of slices, height and width in pixels.
        read (`Callable`): Returns the slice at an index from 0: `(height, width)` float32, or
            `(height, width, 3)` uint8 for colour images.
        spacing (`tuple[float, float, float]`, *optional*): Distances of slices, rows and columns in millimetres;
            `None` for frames without places.
        positions (`tuple[float, ...]`, *optional*): Of slices along the axis, in millimetres from the first.
        orientation (`str`): "axial", "coronal" or "sagittal" (the nearest one), or "frames".
        mapping (*optional*): The file's mapping from values to grey levels, if all slices share it.
        is_hounsfield (`bool`, *optional*): Whether the values are Hounsfield units; `None` if unknown.
        inverted (`bool`): Whether the lowest value is white.
    """

    path: str
    size: tuple[int, int, int]
    read: Callable[[int], np.ndarray] = field(repr=False)
    spacing: tuple[float, float, float] | None = None
    positions: tuple[float, ...] | None = None
    orientation: str = FRAMES
    mapping: Mapping | None = None
    is_hounsfield: bool | None = None
    inverted: bool = False

    @property
    def num_slices(self) -> int:
        return self.size[0]

    @cached_property
    def values(self) -> np.ndarray:
        """
        All slices, `(num_slices, height, width)` float32, or `(num_slices, height, width, 3)` uint8.

        Raises:
            VolumeError: If they are too large for one array.
        """
        first = self.read(0)
        if first.nbytes * self.num_slices > LARGEST_ARRAY:
            raise VolumeError(f"{self.path}: all its slices in one array would take more than {LARGEST_ARRAY} bytes")
        values = np.empty((self.num_slices, *first.shape), first.dtype)
        for number in range(self.num_slices):
            values[number] = self.read(number)
        return values

    @cached_property
    def robust_range(self) -> Range:
        """Percentiles of the values of the whole volume (see `ROBUST_PERCENTILES`), one range for all slices."""
        numbers = sorted({round(number) for number in np.linspace(0, self.num_slices - 1, RANGE_SLICES)})
        per_slice = RANGE_VALUES // len(numbers)
        sampled = []
        for number in numbers:
            values = self.read(number).ravel()
            sampled.append(values[:: -(-len(values) // per_slice)])
        return Range(*(float(value) for value in np.percentile(np.concatenate(sampled), ROBUST_PERCENTILES)))

    def find_mapping(self, window: str = AUTO) -> Mapping:
        """
        The mapping to grey levels, the same for all slices.

        Args:
            window (`str`): See `parse_window`.

        Raises:
            VolumeError: If `window` is in Hounsfield units and the values are not.
        """
        check_named(self.path, window, self.is_hounsfield)
        chosen = parse_window(window)
        if chosen == AUTO:
            return self.mapping or self.robust_range
        return self.robust_range if chosen == ROBUST_RANGE else chosen

    def image(self, selection: Selection, window: str = AUTO) -> Image.Image:
        """
        The image of a slice, or of the mean of neighbouring slices, in mode L or RGB.

        Raises:
            VolumeError: If the slices do not exist.
        """
        first, last = selection
        if not 1 <= first <= last <= self.num_slices:
            raise VolumeError(f"{self.path}: it has no slices {first} to {last}, only 1 to {self.num_slices}")
        mean = self.read(first - 1)
        if last > first:
            total = mean.astype(np.float64)
            for number in range(first, last):
                total += self.read(number)
            mean = (total / (last - first + 1)).astype(np.float32)
        if mean.ndim == 3:
            return Image.fromarray(np.round(mean).astype(np.uint8))
        grey = self.find_mapping(window)(mean)
        return Image.fromarray(255 - grey if self.inverted else grey)

    def describe(self, selections: list[Selection]) -> list[str]:
        """
        Say where each shown image lies: "Slice 3 of 8, 42.5 mm", counted among those shown, in millimetres from the
        volume's first slice along the axis (the mean for several slices); "Frame 3 of 8" if there are no places.
        """
        if self.positions is None:
            return [f"Frame {number} of {len(selections)}" for number in range(1, len(selections) + 1)]
        places = [(self.positions[first - 1] + self.positions[last - 1]) / 2 for first, last in selections]
        return [
            f"Slice {number} of {len(selections)}, {place + 0.0:.1f} mm"
            for number, place in enumerate(places, start=1)
        ]


def find_orientation(affine: np.ndarray, slice_axis: int | None = None) -> tuple[str, np.ndarray]:
    """
    The plane of slices, and the transform that orients an array to slices, rows and columns as in `PLANES`.

    Args:
        affine (`np.ndarray` of shape `(4, 4)`): From voxels to RAS+ coordinates in millimetres.
        slice_axis (`int`, *optional*): Axis of the array. By default the one with the largest spacing, along which
            slices were taken; that of axial slices unless another spacing is more than one percent larger.

    Returns:
        `tuple`: the plane and the transform for `nibabel.orientations.apply_orientation`.
    """
    nibabel = import_optional("nibabel")
    stored = nibabel.orientations.io_orientation(affine)
    planes = [WORLD_AXES[int(axis)] for axis in stored[:, 0]]
    if slice_axis is None:
        spacing = dict(zip(planes, nibabel.affines.voxel_sizes(affine), strict=True))
        plane = max(sorted(spacing), key=lambda name: spacing[name] * (1.01 if name == "axial" else 1))
    else:
        plane = planes[slice_axis]
    shown = nibabel.orientations.axcodes2ornt(tuple(PLANES[plane]))
    return plane, nibabel.orientations.ornt_transform(stored, shown)


def reorder(sizes: Iterable[float], transform: np.ndarray) -> tuple:
    """Reorder one number per axis, such as its length, to the axes after `apply_orientation`."""
    ordered = [None] * len(transform)
    for size, (axis, _) in zip(sizes, transform, strict=True):
        ordered[int(axis)] = size
    return tuple(ordered)


def split_evenly(num_slices: int, count: int) -> Iterator[Selection]:
    """Split all slices into `count` consecutive parts, at most one per slice, whose sizes differ by at most one."""
    count = min(count, num_slices)
    for part in range(count):
        yield part * num_slices // count + 1, (part + 1) * num_slices // count


def select(num_slices: int, count: int, slices: str = UNIFORM) -> list[Selection]:
    """
    The slices or slabs to show.

    Args:
        num_slices (`int`): Slices of the volume.
        count (`int`): Most images to show.
        slices (`str`): "uniform" for the middle slice of each of `count` equal parts, "slabs" for the mean of each
            part, or a list of numbers and ranges, each one image: "3,10-12" is slice 3 and the mean of 10 to 12.

    Raises:
        ValueError: If `slices` is none of these, gives more than `count` images, or names missing slices.

    Example:
        >>> select(8, 4), select(8, 3, "slabs"), select(8, 4, "3,5-6")
        ([(1, 1), (3, 3), (5, 5), (7, 7)], [(1, 2), (3, 5), (6, 8)], [(3, 3), (5, 6)])
    """
    if slices == SLABS:
        return list(split_evenly(num_slices, count))
    if slices == UNIFORM:
        middles = [(first + last) // 2 for first, last in split_evenly(num_slices, count)]
        return [(middle, middle) for middle in middles]
    selections = parse_slices(slices)
    if len(selections) > count:
        raise ValueError(
            f"`slices` {slices} are {len(selections)} images, but `volume_tokens` has room for {count}: raise it, "
            "name fewer slices, or name ranges."
        )
    last = max(last for _, last in selections)
    if last > num_slices:
        raise ValueError(f"`slices` names slice {last}, but there are only {num_slices}.")
    return selections


def parse_slices(text: str) -> list[Selection]:
    """
    Parse comma-separated numbers and ranges of slices, counted from 1.

    Raises:
        ValueError: If `text` is something else.
    """
    selections = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), flags=re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                f"`slices` must be {UNIFORM}, {SLABS}, or numbers and ranges from 1 such as 3,10-12; got {text!r}."
            )
        selections.append((first, last))
    return selections
