"""Read and check the DICOM tags that are needed to read pixels."""

import math
import os
import zlib
from typing import Any

from .errors import VolumeError, import_optional, reading
from .windows import FUNCTIONS, LookupTable, Mapping, Window


# Most values per frame (float copies take a few times 4 bytes each), and most slices or frames per volume.
MOST_FRAME_VALUES, MOST_SLICES = 1 << 25, 8192
# Most bytes of a file with compressed frames, and of a deflated file after unpacking.
LARGEST_COMPRESSED, LARGEST_INFLATED = 512 << 20, 256 << 20

# Tags needed to decode frames.
PIXEL_KEYWORDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
# No other tags are kept: no names, dates or places.
IMAGE_KEYWORDS = (
    "SOPClassUID",
    "Modality",
    *PIXEL_KEYWORDS,
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
)
# Tags that may also be in the functional groups of each frame.
FRAME_KEYWORDS = (
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
)
GROUP_KEYWORDS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
SERIES_KEYWORDS = ("SeriesInstanceUID",)
KEYWORDS = [*IMAGE_KEYWORDS, *FRAME_KEYWORDS, *GROUP_KEYWORDS, *SERIES_KEYWORDS]

SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_RCT": 3,
    "YBR_ICT": 3,
}
# SOP classes with pixels that are not pictures to ask a model about.
NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.481.2": "a grid of radiation doses (RT Dose)",
    "1.2.840.10008.5.1.4.1.1.66.4": "a mask (Segmentation)",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "the tiles of a whole slide",
}
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"


def read_header(path: str) -> Any:
    """
    Read the tags in `KEYWORDS` as a `pydicom.Dataset` with `file_meta`, and check that they describe an image.

    Raises:
        VolumeError: If the file is damaged or holds no image, or tags are missing, impossible or contradictory.
    """
    pydicom = import_optional("pydicom")
    with reading(path):
        _check_inflated(path)
        with open(path, "rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=KEYWORDS)
            pixels_start = file.tell()
        for keyword in KEYWORDS:  # read now, one by one, so that the error names the tag with an impossible value
            with reading(path, f"its {keyword}"):
                header.get(keyword)
        check_kind(path, header)
        num_bytes = check_pixels(path, header)
        check_storage(path, header, num_bytes, os.path.getsize(path) - pixels_start)
    return header


def _check_inflated(path: str) -> None:
    """Raise `VolumeError` if a deflated file unpacks to more than `LARGEST_INFLATED`, before pydicom unpacks it."""
    meta = import_optional("pydicom.filereader").read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DEFLATED:
        return
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)  # after the preamble and the group length itself
    with open(path, "rb") as file:
        file.seek(start)
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        size, rest = 0, file.read(LARGEST_COMPRESSED)
        while rest and size <= LARGEST_INFLATED:
            size += len(inflate.decompress(rest, 1 << 24))
            rest = inflate.unconsumed_tail
    if size > LARGEST_INFLATED:
        raise VolumeError(f"{path}: it unpacks to more than {LARGEST_INFLATED >> 20} MiB")


def check_kind(path: str, header: Any) -> None:
    """Raise `VolumeError` for lists of files, plans, reports, curves, doses and masks."""
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == DICOMDIR:
        raise VolumeError(f"{path}: it is a DICOMDIR (a list of files), not an image; name the folder of one series")
    if kind in NO_PICTURES:
        raise VolumeError(f"{path}: it holds {NO_PICTURES[kind]}, not an image")
    if header.get("Rows") is None and header.get("Columns") is None:
        registered = import_optional("pydicom.uid").UID_dictionary.get(kind)
        what = f"it is of the kind {registered[0]}" if registered else "it is of unknown kind"
        raise VolumeError(f"{path}: {what} and has no Rows and Columns, so it is not an image")


def get_number(path: str, header: Any, keyword: str, least: int = 0, default: int | None = None) -> int:
    """Value of an integer tag."""
    value = header.get(keyword)
    if value is None or value == "":
        if default is None:
            raise VolumeError(f"{path}: its {keyword} is missing")
        return default
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least or number != value:
        raise VolumeError(f"{path}: its {keyword} is not a whole number of {least} or more")
    return number


def get_floats(path: str, header: Any, keyword: str, count: int | None = None) -> list[float]:
    """Finite numbers in a tag; empty if it is missing or empty."""
    value = header.get(keyword)
    if value is None or value == "":
        return []
    values = [value] if isinstance(value, str | int | float) else list(value)
    try:
        numbers = [float(one) for one in values]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or (count is not None and numbers and len(numbers) != count):
        raise VolumeError(f"{path}: its {keyword} is not {count or 'only'} finite number(s)")
    return numbers


def check_pixels(path: str, header: Any) -> int:
    """Unpacked size of the pixels in bytes. Raises `VolumeError` if their tags are impossible or it is too large."""
    rows, columns = (get_number(path, header, keyword, least=1) for keyword in ("Rows", "Columns"))
    frames = get_number(path, header, "NumberOfFrames", least=1, default=1)
    samples = get_number(path, header, "SamplesPerPixel", least=1)
    allocated, stored = (get_number(path, header, keyword, least=1) for keyword in ("BitsAllocated", "BitsStored"))
    interpretation = header.get("PhotometricInterpretation")
    if interpretation not in SAMPLES:
        known = ", ".join(SAMPLES)
        raise VolumeError(f"{path}: its PhotometricInterpretation is not one of {known}")
    if samples != SAMPLES[interpretation]:
        raise VolumeError(f"{path}: its SamplesPerPixel and PhotometricInterpretation contradict each other")
    if allocated not in (8, 16, 32):
        raise VolumeError(f"{path}: its BitsAllocated is not 8, 16 or 32")
    if stored > allocated:
        raise VolumeError(f"{path}: its BitsStored is more than its BitsAllocated")
    if get_number(path, header, "PixelRepresentation") > 1:
        raise VolumeError(f"{path}: its PixelRepresentation is not 0 or 1")
    if rows * columns * samples > MOST_FRAME_VALUES or frames > MOST_SLICES:
        raise VolumeError(
            f"{path}: its Rows, Columns and NumberOfFrames are too large; frames have at most {MOST_FRAME_VALUES} "
            f"values, and there are at most {MOST_SLICES}"
        )
    return rows * columns * samples * frames * allocated // 8


def check_storage(path: str, header: Any, num_bytes: int, num_left: int) -> None:
    """Raise `VolumeError` for unknown pixel storage, or if the file is too short for its pixels."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_transfer_syntax:
        raise VolumeError(f"{path}: its TransferSyntaxUID is missing or unknown")
    if syntax.is_encapsulated or syntax.is_deflated:
        if os.path.getsize(path) > LARGEST_COMPRESSED:
            raise VolumeError(f"{path}: it is compressed and larger than {LARGEST_COMPRESSED >> 20} MiB")
        return
    if get_number(path, header, "HighBit", default=header.BitsStored - 1) != header.BitsStored - 1:
        raise VolumeError(f"{path}: its HighBit and BitsStored contradict each other")
    if header.PhotometricInterpretation == "YBR_FULL_422":
        num_bytes = num_bytes * 2 // 3
    if num_left < num_bytes + (8 if syntax.is_implicit_VR else 12):  # tag, VR and length
        raise VolumeError(f"{path}: its PixelData is shorter than Rows, Columns and NumberOfFrames say")


def header_of_frame(header: Any, frame: int) -> Any:
    """Tags of one frame: those of the file, updated from the functional groups of all frames and of this one."""
    pydicom = import_optional("pydicom")
    merged = pydicom.Dataset()
    for keyword in FRAME_KEYWORDS:
        if keyword in header:
            merged[keyword] = header[keyword]
    for keyword in GROUP_KEYWORDS:
        groups = header.get(keyword) or []
        place = frame if keyword == GROUP_KEYWORDS[1] else 0
        if place < len(groups):
            for element in groups[place]:
                for item in (element.value or [])[:1] if element.VR == "SQ" else []:
                    for inner in item:
                        if inner.keyword in FRAME_KEYWORDS:
                            merged[inner.tag] = inner
    merged.file_meta = header.file_meta
    return merged


def find_voi(path: str, header: Any) -> Mapping | None:
    """
    The file's mapping to grey levels (the first of several), or `None` if it has none.

    Raises:
        VolumeError: If the window is impossible.
    """
    if header.get("VOILUTSequence"):
        return read_table(path, header, "VOILUTSequence")
    centers, widths = (get_floats(path, header, keyword) for keyword in ("WindowCenter", "WindowWidth"))
    if not centers and not widths:
        return None
    if len(centers) != len(widths):
        raise VolumeError(f"{path}: its WindowCenter and WindowWidth contradict each other")
    function = header.get("VOILUTFunction") or "LINEAR"
    if function not in FUNCTIONS:
        raise VolumeError(f"{path}: its VOILUTFunction is not one of {', '.join(FUNCTIONS)}")
    if not (widths[0] >= 1 or (widths[0] > 0 and function != "LINEAR")):
        raise VolumeError(f"{path}: its WindowWidth is too small")
    return Window(centers[0], widths[0], function)


def find_rescale(path: str, header: Any) -> LookupTable | None:
    """
    The lookup table from stored to modality values, or `None` if there is none (slope and intercept may be used).

    Raises:
        VolumeError: If only one of slope and intercept is given, the slope is 0, or there is a table as well.
    """
    slope, intercept = (get_floats(path, header, keyword, 1) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if len(slope) != len(intercept):
        raise VolumeError(f"{path}: its {'RescaleIntercept' if slope else 'RescaleSlope'} is missing")
    if header.get("ModalityLUTSequence"):
        if slope:
            raise VolumeError(f"{path}: its ModalityLUTSequence and RescaleSlope contradict each other")
        return read_table(path, header, "ModalityLUTSequence")
    if slope == [0.0]:
        raise VolumeError(f"{path}: its RescaleSlope is 0")
    return None


def read_table(path: str, header: Any, keyword: str) -> LookupTable:
    """The first lookup table of a sequence."""
    with reading(path, f"its {keyword}"):
        item = header[keyword].value[0]
        count, first, bits = (int(number) for number in item.LUTDescriptor)
        entries = item.LUTData
        if isinstance(entries, bytes):
            order = "little" if header.file_meta.TransferSyntaxUID.is_little_endian else "big"
            entries = [int.from_bytes(entries[place : place + 2], order) for place in range(0, len(entries), 2)]
        entries, count = [int(entry) for entry in entries], count or 1 << 16
        if bits > 8 or len(entries) >= count:
            entries = entries[:count]
        else:  # each word holds two 8-bit entries
            entries = [part for entry in entries for part in (entry & 255, entry >> 8)][:count]
        if len(entries) < count or not 8 <= bits <= 16 or max(entries) >= 1 << bits:
            raise VolumeError(f"{path}: the LUTDescriptor of its {keyword} does not fit its LUTData")
    return LookupTable(first, tuple(entries), bits)
