"""Read the pixels of a DICOM file frame by frame."""

from typing import Any

import numpy as np

from .dicom_header import PIXEL_KEYWORDS, SAMPLES, find_rescale, header_of_frame
from .errors import VolumeError, import_optional, reading
from .windows import LookupTable, Range, by_parts


# Markers after which a compressed frame states its size: JPEG and JPEG-LS frames, and JPEG 2000.
JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
STORED_KEYWORDS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData")
NO_DECODER = (
    "its transfer syntax needs a decoder that is not installed; the one for lossless JPEG is under the GPL: pip "
    "install 'logramed[volumes-gpl]'"
)


def read_frame(path: str, header: Any, frame: int) -> np.ndarray:
    """
    Read one frame of a file whose `header` has been checked.

    Returns:
        `np.ndarray`: for a monochrome image, modality values (Hounsfield units for CT), `(height, width)` float32;
        for a colour image, `(height, width, 3)` uint8.

    Raises:
        VolumeError: If its pixels cannot be decoded.
    """
    with reading(path, "its PixelData"):
        stored = decode(path, header, frame)
        if stored.shape[:2] != (header.Rows, header.Columns):
            raise VolumeError(f"{path}: its PixelData does not match its Rows and Columns")
    if header.PhotometricInterpretation == "PALETTE COLOR":
        with reading(path, "its palette"):
            colors = import_optional("pydicom.pixels.processing").apply_color_lut(stored, header)
            return Range(0, np.iinfo(colors.dtype).max)(colors[..., :3])
    if SAMPLES[header.PhotometricInterpretation] == 3:
        return stored if header.BitsStored == 8 else Range(0, 2**header.BitsStored - 1)(stored)
    return rescale(path, stored, header_of_frame(header, frame))


def rescale(path: str, stored: np.ndarray, header: Any) -> np.ndarray:
    """Convert stored values to modality values, float32."""
    transform = find_rescale(path, header)
    if isinstance(transform, LookupTable):
        return transform.look_up(stored)
    processing = import_optional("pydicom.pixels.processing")
    return by_parts(lambda part: processing.apply_modality_lut(part, header), stored, np.float32)


def decode(path: str, header: Any, frame: int) -> np.ndarray:
    """Decode one frame: stored values `(rows, columns)`, or RGB `(rows, columns, 3)`."""
    pydicom, pixels = import_optional("pydicom"), import_optional("pydicom.pixels")
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated and not syntax.is_deflated:
        return next(pixels.iter_pixels(path, indices=[frame]))
    if syntax.is_encapsulated and not pixels.get_decoder(syntax).is_available:
        raise VolumeError(f"{path}: {NO_DECODER}")
    dataset = pydicom.dcmread(path, specific_tags=[*PIXEL_KEYWORDS, *STORED_KEYWORDS])
    if syntax.is_encapsulated:
        num_frames = int(header.get("NumberOfFrames") or 1)
        encoded = pydicom.encaps.get_frame(dataset.PixelData, frame, number_of_frames=num_frames)
        if find_encoded_size(encoded) not in (None, (header.Rows, header.Columns)):
            raise VolumeError(f"{path}: its PixelData does not match its Rows and Columns")
    return next(pixels.iter_pixels(dataset, indices=[frame]))


def find_encoded_size(encoded: bytes) -> tuple[int, int] | None:
    """
    Height and width in the header of a compressed frame, or `None` if there are none.

    Decoders reserve memory for this size, whatever Rows and Columns say.
    """
    start = encoded[:4096].find(JPEG_2000_START)
    if start >= 0:
        numbers = [int.from_bytes(encoded[place : place + 4], "big") for place in range(start + 8, start + 24, 4)]
        return numbers[1] - numbers[3], numbers[0] - numbers[2]
    if not encoded.startswith(JPEG_START):
        return None
    place = 2
    while place + 9 <= len(encoded):
        if encoded[place] != 0xFF:
            place += 1
        elif encoded[place + 1] in JPEG_FRAMES:
            return tuple(int.from_bytes(encoded[place + step : place + step + 2], "big") for step in (5, 7))
        elif encoded[place + 1] == 0xFF:
            place += 1
        else:
            place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return None
