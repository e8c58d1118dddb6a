"""
The pixels of image files at their full depth, upright, whatever else a file holds.

Pillow keeps the upper 8 of 16 bits of an image with several channels, so that 12-bit pixels come out nearly black.
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
# Where Pillow keeps what an orientation is read from.
EXIF_NAMES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# How Pillow reads 16 bits a channel: byte order big, little, or the machine's.
DEEP_CHANNELS = re.compile(r"(RGB|RGBA|RGBX|LA);16([BLN])")
# Of TIFF: bits a sample, what 0 means, and whether channels lie apart.
BITS_TAG, PHOTOMETRIC_TAG, PLANAR_TAG = 258, 262, 284
WHITE_IS_ZERO, CHANNELS_APART = 0, 2


# Files that stand where images should and Pillow does not read: where they say what they are, and what to do.
EXPORT = "export its slices as PNG or TIFF, whose 16 bits are kept"
OTHER_FILES = (
    (128, b"DICM", f"a DICOM file; {EXPORT}, after rescaling and windowing (pydicom)"),
    (344, b"n+1\0", f"a NIfTI volume; {EXPORT} (nibabel)"),
    (344, b"ni1\0", f"the header of a NIfTI volume; {EXPORT} (nibabel)"),
    (4, b"ftyphe", "a HEIC photograph; convert it to PNG or JPEG"),
    (4, b"ftypmif1", "a HEIF photograph; convert it to PNG or JPEG"),
    (0, b"%PDF", "a PDF; convert its pages to PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS in place of the image; fetch it with `git lfs pull`"),
    (0, b"<!doctype html", "a web page, perhaps of a download that failed"),
    (0, b"<html", "a web page, perhaps of a download that failed"),
)
LONGEST_HEAD = 512


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """
    Scale whole numbers of any depth to 0..255, linearly and without clipping.

    The range is 0 to the largest value of the smallest usual bit depth (8, 10, 12, 14 or 16) that holds the image:
    12-bit pixels in a 16-bit file keep their contrast, 8-bit pixels their values, and black stays black. Values below
    0 or above 65535 (CT in Hounsfield units) have no depth: there the image's own minimum and maximum are the range.

    Example:
        >>> scale_to_8_bits(np.array([[0, 2047, 4095]], dtype=np.uint16))
        array([[  0, 127, 255]], dtype=uint8)
    """
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < 2 ** USUAL_BIT_DEPTHS[-1]:
        low, high = 0, next(2**depth - 1 for depth in USUAL_BIT_DEPTHS if high < 2**depth)
    return scale_range_to_8_bits(values, low, high)


def scale_range_to_8_bits(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale `low`..`high` to 0..255; all black where they are equal."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.round((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def open_pixels(content: bytes) -> Image.Image:
    """
    The image that the bytes of a file hold, as `read_pixels` has it.

    Raises:
        ValueError: If they are no image that Pillow reads; of some other kinds of file it says which, and what to do.
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
        raise ValueError("it is no image of a known format" if content else "it is empty") from error
    return read_pixels(image)


def read_pixels(image: Image.Image) -> Image.Image:
    """
    An image that Pillow has opened, with its pixels read and upright.

    Channels of 16 bits are scaled by `scale_to_8_bits`, all colours alike; of TIFF, deep greyscale whose 0 is white is
    inverted. Damaged metadata (EXIF, colour profile, what follows the pixels) costs nothing but itself: an orientation
    that can be read is honoured, and pixels that can be read are used.

    Raises:
        ValueError: If the channels of a 16-bit TIFF lie apart, which Pillow would read wrongly.
        Exception: What Pillow raises for pixels that cannot be read, of many types.
    """
    tags = dict(getattr(image, "tag_v2", {}))  # of TIFF, which Pillow turns itself
    bits = tags.get(BITS_TAG) or (8,)
    if tags.get(PLANAR_TAG) == CHANNELS_APART and len(bits) > 1 and max(bits) > 8:
        raise ValueError("its 16-bit channels lie apart (planar TIFF); save it with interleaved channels")
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
    """The EXIF orientation of an image, 1 to 8; `None` where there is none that can be read."""
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:  # Pillow raises a dozen types on damaged metadata
        return None


def load(image: Image.Image) -> None:
    """Read the pixels of an image; what goes wrong behind them, in the rest of the file, is passed over."""
    try:
        image.load()
    except Exception as error:
        behind = any(frame.name == "load_end" for frame in traceback.extract_tb(error.__traceback__))
        if not behind:
            raise
        image.load()  # the pixels are there; raises if they are not


def read_deep_channels(image: Image.Image) -> Image.Image | None:
    """
    RGB, RGBA or LA of 8 bits from channels of 16; `None` for any other image, or where its file is not at hand.

    Pillow's decoders unpack either byte of each number, as the byte order says that they are asked for: the file is
    read for the upper ones, and with the other order for the lower ones.
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
    if channels == "LA":  # always big-endian PNG, whose four bytes a pixel are read as four channels
        bytes_of_pixels = read_with(content, frame, "RGBA").astype(np.uint16)
        upper, lower = bytes_of_pixels[..., 0::2], bytes_of_pixels[..., 1::2]
    else:
        upper, lower = (
            read_with(content, frame, f"{channels};16{way}").astype(np.uint16) for way in ("BL" if big else "LB")
        )
    values = upper << 8 | lower
    return to_8_bits(values, image.info.get("transparency"), has_alpha=channels in ("LA", "RGBA"))


def name_of_channels(tile: tuple) -> str:
    """How Pillow unpacks the pixels of a part of a file, such as "RGB;16B"."""
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
    An image of channels of 16 bits `(height, width, num_channels)`; pixels of the colour `transparent` get an alpha of
    0. Colours are scaled alike, by the depth that holds them; alpha by the depth that holds colours and alpha.
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
