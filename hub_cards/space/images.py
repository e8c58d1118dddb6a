"""Check uploaded images by their content, and resize them for the page."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image


try:
    from logramed.image_files_logramed import read_pixels, scale_to_8_bits
except ImportError:  # in a Space, which has a copy in this folder
    from image_files_logramed import read_pixels, scale_to_8_bits


FORMATS = {"PNG": ".png", "JPEG": ".jpg"}
MAX_PIXELS = 100_000_000
SHOWN_SIDE = 2048  # pixels; far more than a vision tower sees


class UploadError(ValueError):
    """Raised for an unusable upload; the message is shown to the user."""


def read_upload(path: str | Path) -> Image.Image:
    """
    Read an uploaded image upright, as 8-bit grey or RGB of at most `SHOWN_SIDE` pixels per side. Deep pixels are
    scaled from the smallest usual bit depth that holds them, so that 12-bit images in 16-bit files are not black.
    Transparent parts become black. Raises `UploadError`, naming the file, if it is not a PNG or JPEG, is damaged, or
    has more than `MAX_PIXELS` pixels.
    """
    name = Path(path).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have our own limit
            with Image.open(path, formats=list(FORMATS)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UploadError(
                        f"{name} has {image.width} x {image.height} pixels. The largest image that can be shown has "
                        f"{MAX_PIXELS // 1_000_000} million."
                    )
                image.draft("RGB", (SHOWN_SIDE, SHOWN_SIDE))  # decodes a large JPEG directly at a smaller size
                shown = convert(read_pixels(image))
                shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)  # smaller images stay as they are
                return shown
    except Image.DecompressionBombError as error:
        raise UploadError(
            f"{name} is too large. The largest image that can be shown has {MAX_PIXELS // 1_000_000} million pixels."
        ) from error
    except UploadError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise UploadError(f"{name} cannot be read as a PNG or JPEG image.") from error


def convert(image: Image.Image) -> Image.Image:
    """Convert to mode L or RGB."""
    if image.mode.startswith("I"):
        return Image.fromarray(scale_to_8_bits(np.asarray(image)))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (0, 0, 0, 255))
        background.alpha_composite(image)
        image = background
    return image.convert("RGB")
