"""
Map values of any bit depth to the 256 grey levels of an image: windows, lookup tables and ranges.

Source of the named windows: Murphy et al., "Windowing (CT)", Radiopaedia.org, https://doi.org/10.53347/rID-52108,
its table of typical widths and levels: brain (head), lungs and mediastinum (chest), soft tissues (abdomen) and bone
(spine). Institutions and vendors use other values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import VolumeError, import_optional


# In Hounsfield units.
NAMED_WINDOWS = {
    "lung": {"center": -600, "width": 1500},
    "bone": {"center": 400, "width": 1800},
    "brain": {"center": 40, "width": 80},
    "soft_tissue": {"center": 50, "width": 400},
    "mediastinum": {"center": 50, "width": 350},
}
# `AUTO`: the file's own window if all its slices share one, else the robust range. `ROBUST_RANGE`: always the latter.
AUTO, ROBUST_RANGE = "auto", "range"
# Percentiles of the values shown as black and white. nnU-Net (arXiv:1809.10486) clips CT at the same ones.
ROBUST_PERCENTILES = (0.5, 99.5)
# Values mapped at a time: in double precision, a whole large image would take several times its size.
PART_SIZE = 1 << 20
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def by_parts(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray, dtype: type) -> np.ndarray:
    """Apply `function` to some rows of `values` at a time; returns an array of `dtype`."""
    result = np.empty(values.shape, dtype)
    num_rows = max(1, PART_SIZE // max(1, values[:1].size))
    for start in range(0, len(values), num_rows):
        result[start : start + num_rows] = function(values[start : start + num_rows])
    return result


@dataclass(frozen=True)
class Window:
    """
    DICOM's windowing (PS3.3, C.11.2.1): `width` values around `center` are spread over 0 to 255.

    Example:
        >>> Window(40, 80)(np.array([[0.0, 40.0, 79.0]])).tolist()
        [[0, 129, 255]]
    """

    center: float
    width: float
    function: str = "LINEAR"

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """`(height, width)` uint8."""
        pydicom = import_optional("pydicom")
        processing = import_optional("pydicom.pixels.processing")
        dataset = pydicom.Dataset()
        # An unsigned 8-bit image: white is 255.
        dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 8, 0
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = self.center, self.width, self.function
        return by_parts(lambda part: np.round(processing.apply_windowing(part, dataset)), values, np.uint8)


@dataclass(frozen=True)
class Range:
    """
    Maps `low` to `high` linearly to 0 to 255 and clips values outside; all black if they are equal.

    Example:
        >>> Range(0, 100)(np.array([[-5.0, 20.0, 100.0, 300.0]])).tolist()
        [[0, 51, 255, 255]]
    """

    low: float
    high: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """`(height, width)` uint8."""
        if not self.high > self.low:
            return np.zeros(values.shape, np.uint8)
        factor = 255 / (float(self.high) - float(self.low))
        return by_parts(
            lambda part: np.round((np.clip(part, self.low, self.high).astype(np.float64) - self.low) * factor),
            values,
            np.uint8,
        )


@dataclass(frozen=True)
class LookupTable:
    """
    DICOM's lookup table (PS3.3, C.11.1 and C.11.2): each value's entry, the first or last one outside.

    Needed because pydicom's `apply_voi` wraps values of 8-bit tables at 256, and its `apply_modality_lut` knows only
    depths 8 and 16 (both 3.0.2).
    """

    first: int
    entries: tuple[int, ...]
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entry of each value, in the shape of `values`, float32."""
        entries = np.asarray(self.entries, np.float32)
        return by_parts(
            lambda part: entries[np.clip(np.round(part).astype(np.int64) - self.first, 0, len(entries) - 1)],
            values,
            np.float32,
        )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """`(height, width)` uint8."""
        return Range(0, 2**self.bits - 1)(self.look_up(values))


Mapping = Window | Range | LookupTable


def parse_window(text: str) -> str | Window:
    """
    Parse `window`: "auto", "range", the name of a window, or "center,width".

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_window("brain"), parse_window("-600,1500")
        (Window(center=40, width=80, function='LINEAR'), Window(center=-600.0, width=1500.0, function='LINEAR'))
    """
    if text in (AUTO, ROBUST_RANGE):
        return text
    if text in NAMED_WINDOWS:
        return Window(**NAMED_WINDOWS[text])
    try:
        center, width = (float(number) for number in text.split(","))
    except ValueError:
        center = width = math.nan
    if not (math.isfinite(center) and math.isfinite(width) and width >= 1):
        names = ", ".join((AUTO, ROBUST_RANGE, *NAMED_WINDOWS))
        raise ValueError(
            f"`window` must be one of {names}, or `center,width` with a width of 1 or more, got {text!r}."
        )
    return Window(center, width)


def check_named(path: str, window: str, is_hounsfield: bool | None) -> None:
    """Raise `VolumeError` for a window in Hounsfield units if the values are known to be in another unit."""
    if window in NAMED_WINDOWS and is_hounsfield is False:
        raise VolumeError(
            f"{path}: the window {window} is in Hounsfield units, but this is not CT (Modality); use {AUTO} or "
            f"{ROBUST_RANGE}"
        )
