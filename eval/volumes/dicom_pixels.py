"""The pixels of a DICOM file, frame by frame."""

from typing import Any

import numpy as np

from .dicom_header import KEYWORDS, SAMPLES, header_of_frame
from .errors import VolumeError, import_optional, reading
from .windows import Range, by_parts


NO_DECODER = (
    "its transfer syntax needs a decoder that is not installed; that of lossless JPEG is under the GPL: pip install "
    "'logramed[volumes-gpl]'"
)
PIXEL_KEYWORDS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData")


def read_frame(path: str, header: Any, frame: int) -> np.ndarray:
    """
    One frame of a file whose `header` has been checked.

    Returns:
        `np.ndarray`: of a monochrome image the values of the modality (of CT Hounsfield units), `(height, width)`
        float32; of a colour image `(height, width, 3)` uint8.

    Raises:
        VolumeError: If its pixels cannot be decoded.
    """
    with reading(path, "its PixelData"):
        stored = decode(path, header, frame)
        if stored.shape[:2] != (header.Rows, header.Columns):
            raise VolumeError(f"{path}: its PixelData has another size than its Rows and Columns say")
    if header.PhotometricInterpretation == "PALETTE COLOR":
        with reading(path, "its palette"):
            colors = import_optional("pydicom.pixels.processing").apply_color_lut(stored, header)
            return Range(0, np.iinfo(colors.dtype).max)(colors[..., :3])
    if SAMPLES[header.PhotometricInterpretation] == 3:
        return stored if header.BitsStored == 8 else Range(0, 2**header.BitsStored - 1)(stored)
    processing, own = import_optional("pydicom.pixels.processing"), header_of_frame(header, frame)
    with reading(path, "its ModalityLUTSequence"):
        return by_parts(lambda part: processing.apply_modality_lut(part, own), stored, np.float32)


def decode(path: str, header: Any, frame: int) -> np.ndarray:
    """One frame as it is stored, but colours as RGB: `(rows, columns)` or `(rows, columns, 3)`."""
    pixels, syntax = import_optional("pydicom.pixels"), header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not pixels.get_decoder(syntax).is_available:
        raise VolumeError(f"{path}: {NO_DECODER}")
    if not syntax.is_encapsulated and not syntax.is_deflated:
        return next(pixels.iter_pixels(path, indices=[frame]))
    dataset = import_optional("pydicom").dcmread(path, specific_tags=[*KEYWORDS, *PIXEL_KEYWORDS])
    return next(pixels.iter_pixels(dataset, indices=[frame]))
