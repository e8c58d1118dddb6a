"""
Read the pixels of image files at full bit depth and upright, even if other parts of a file are damaged.

Pillow keeps the upper 8 of 16 bits of multi-channel images, so 12-bit pixels come out nearly black.
"""

import io
import re
import sys
import traceback
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError


# Bits per pixel that scanners write, usually into 16-bit files.
USUAL_BIT_DEPTHS = (8, 10, 12, 14, 16)
ORIENTATION_TAG = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Keys of `Image.info` from which Pillow reads the orientation.
EXIF_NAMES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# Pillow's raw modes with 16 bits per channel: big-endian, little-endian or native byte order.
DEEP_CHANNELS = re.compile(r"(RGB|RGBA|RGBX|LA);16([BLN])")
# TIFF tags: bits per sample, meaning of 0, and whether channels are stored separately.
BITS_TAG, PHOTOMETRIC_TAG, PLANAR_TAG = 258, 262, 284
WHITE_IS_ZERO, CHANNELS_APART = 0, 2


# Files that Pillow does not read: offset and bytes of their signature, what they are and what to do.
EXPORT = "export its slices as PNG or TIFF, whose 16 bits are kept"
OTHER_FILES = (
    (128, b"DICM", f"a DICOM file; {EXPORT}, after rescaling and windowing (pydicom)"),
    (344, b"n+1\0", f"a NIfTI volume; {EXPORT} (nibabel)"),
    (344, b"ni1\0", f"the header of a NIfTI volume; {EXPORT} (nibabel)"),
    (4, b"ftyphe", "a HEIC photograph; convert it to PNG or JPEG"),
    (4, b"ftypmif1", "a HEIF photograph; convert it to PNG or JPEG"),
    (0, b"%PDF", "a PDF; convert its pages to PNG"),
    (0, b"version https://git-lfs", "a Git LFS pointer instead of the image; fetch it with `git lfs pull`"),
    (0, b"<!doctype html", "a web page, perhaps of a download that failed"),
    (0, b"<html", "a web page, perhaps of a download that failed"),
)
LONGEST_HEAD = 512


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """
    Scale integers of any bit depth to 0..255, linearly and without clipping.

    The range is 0 to the largest value of the smallest usual bit depth (8, 10, 12, 14 or 16) that holds the image:
    12-bit pixels in a 16-bit file keep their contrast, 8-bit pixels their values, and black stays black. If values are
    below 0 or above 65535 (CT in Hounsfield units), the range is the image's own minimum to maximum.

    Example:
        >>> scale_to_8_bits(np.array([[0, 2047, 4095]], dtype=np.uint16))
        array([[  0, 127, 255]], dtype=uint8)
    """
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < 2 ** USUAL_BIT_DEPTHS[-1]:
        low, high = 0, next(2**depth - 1 for depth in USUAL_BIT_DEPTHS if high < 2**depth)
    return scale_range_to_8_bits(values, low, high)


def scale_range_to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale `low`..`high` to 0..255; all black if they are equal."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.round((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def open_pixels(content: bytes) -> Image.Image:
    """
    Open an image from the bytes of a file (see `read_pixels`).

    Raises:
        ValueError: If Pillow cannot read it. For some kinds of files, the message says what it is and what to do.
    """
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        head = content[:LONGEST_HEAD]
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(wbits=31).decompress(content[: 1 << 16], LONGEST_HEAD)
        for place, mark, what in OTHER_FILES:
            if head[place : place + len(mark)].lower() == mark.lower():
                raise ValueError(f"it is {what}") from error
        raise ValueError("it is not an image in a known format" if content else "it is empty") from error
    return read_pixels(image)


def read_pixels(image: Image.Image) -> Image.Image:
    """
    Read the pixels of an image that Pillow has opened, and turn it upright.

    16-bit channels are scaled by `scale_to_8_bits`, all colours alike; deep greyscale TIFF whose 0 is white is
    inverted. Damaged metadata (EXIF, colour profile, data after the pixels) is ignored: a readable orientation is
    applied, and readable pixels are used.

    Raises:
        ValueError: If a 16-bit TIFF stores its channels separately, which Pillow would read wrongly.
        Exception: Of many types, whatever Pillow raises for unreadable pixels.
    """
    tags = dict(getattr(image, "tag_v2", {}))  # only in TIFF, which Pillow turns itself
    bits = tags.get(BITS_TAG) or (8,)
    if tags.get(PLANAR_TAG) == CHANNELS_APART and len(bits) > 1 and max(bits) > 8:
        raise ValueError("its 16-bit channels are stored separately (planar TIFF); save it with interleaved channels")
    read = deep = read_deep_channels(image)
    if deep is None:
        load(image)
        read = image
        if tags.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO and image.mode.startswith("I;16"):
            read = Image.fromarray(255 - scale_to_8_bits(np.asarray(image)))
    orientation = None if tags and deep is not None else read_orientation(image)
    if orientation not in TRANSPOSITIONS:
        return read
    upright = read.transpose(TRANSPOSITIONS[orientation])
    upright.info = {name: value for name, value in upright.info.items() if name not in EXIF_NAMES}
    return upright


def read_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an image, 1 to 8, or `None` if there is none or it cannot be read."""
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:  # Pillow raises a dozen types on damaged metadata
        return None


def load(image: Image.Image) -> None:
    """Read the pixels of an image, ignoring errors in the rest of the file after them."""
    try:
        image.load()
    except Exception as error:
        behind = any(frame.name == "load_end" for frame in traceback.extract_tb(error.__traceback__))
        if not behind:
            raise
        image.load()  # the pixels are there; raises if they are not


def read_deep_channels(image: Image.Image) -> Image.Image | None:
    """
    8-bit RGB, RGBA or LA from 16-bit channels; `None` for any other image, or if its file is not open.

    Pillow's decoders unpack only one byte of each number, depending on the byte order: the file is read twice, in its
    own order for the upper bytes and in the opposite order for the lower ones.
    """
    modes = {name_of_channels(tile) for tile in getattr(image, "tile", None) or ()}
    found = DEEP_CHANNELS.fullmatch(modes.pop()) if len(modes) == 1 else None
    file = getattr(image, "fp", None)
    if found is None or file is None:
        return None
    channels, order = found.groups()
    frame = image.tell()
    file.seek(0)
    content = file.read()
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    if channels == "LA":  # always big-endian PNG; its four bytes per pixel are read as four channels
        bytes_of_pixels = read_with(content, frame, "RGBA").astype(np.uint16)
        upper, lower = bytes_of_pixels[..., 0::2], bytes_of_pixels[..., 1::2]
    else:
        upper, lower = (
            read_with(content, frame, f"{channels};16{way}").astype(np.uint16) for way in ("BL" if big else "LB")
        )
    values = upper << 8 | lower
    return to_8_bits(values, image.info.get("transparency"), has_alpha=channels in ("LA", "RGBA"))


def name_of_channels(tile: tuple) -> str:
    """The raw mode with which Pillow unpacks a tile of a file, such as "RGB;16B"."""
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def read_with(content: bytes, frame: int, channels: str) -> np.ndarray:
    """The pixels of a file, unpacked as `channels`."""
    with Image.open(io.BytesIO(content)) as image:
        image.seek(frame)
        image.tile = [
            tile._replace(args=(channels, *tile.args[1:]) if isinstance(tile.args, tuple) else channels)
            for tile in image.tile
        ]
        load(image)
        return np.asarray(image)


def to_8_bits(values: np.ndarray, transparent: tuple | None, has_alpha: bool) -> Image.Image:
    """
    Image from 16-bit channels `(height, width, num_channels)`; pixels of the colour `transparent` get alpha 0.
    All colours are scaled by the bit depth that holds them, alpha by the bit depth that holds colours and alpha.
    """
    colors = values[..., :-1] if has_alpha else values[..., :3]
    scaled = scale_to_8_bits(colors)
    if has_alpha:
        top = next(2**bits - 1 for bits in USUAL_BIT_DEPTHS if int(values.max()) < 2**bits)
        scaled = np.concatenate([scaled, scale_range_to_8_bits(values[..., -1:], 0, top)], axis=-1)
    elif isinstance(transparent, tuple) and len(transparent) == colors.shape[-1]:
        visible = (colors != np.array(transparent)).any(-1, keepdims=True)
        scaled = np.concatenate([scaled, np.where(visible, 255, 0).astype(np.uint8)], axis=-1)
    return Image.fromarray(scaled)
