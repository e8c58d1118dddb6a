"""Images that people upload: checked by their content, and brought to a size that a page can show."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image


try:
    from logramed.image_files_logramed import read_pixels, scale_to_8_bits
except ImportError:  # in a Space, where a copy lies beside this file
    from image_files_logramed import read_pixels, scale_to_8_bits


FORMATS = {"PNG": ".png", "JPEG": ".jpg"}
MAX_PIXELS = 100_000_000
SHOWN_SIDE = 2048  # pixels; far more than a vision tower sees


class UploadError(ValueError):
    """An upload that cannot be used; the words are for the person who sent it."""


def read_upload(path: str | Path) -> Image.Image:
    """
    An uploaded image, upright, as 8-bit grey or RGB of at most `SHOWN_SIDE` pixels a side. Deep pixels are scaled from
    the smallest usual bit depth that holds them, so that 12-bit images in 16-bit files are not black. Transparent
    parts become black. Raises `UploadError`, naming the file, if it is no PNG or JPEG, is damaged, or has more than
    `MAX_PIXELS` pixels.
    """
    name = Path(path).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is another
            with Image.open(path, formats=list(FORMATS)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UploadError(
                        f"{name} has {image.width} x {image.height} pixels. The largest image that can be shown has "
                        f"{MAX_PIXELS // 1_000_000} million."
                    )
                image.draft("RGB", (SHOWN_SIDE, SHOWN_SIDE))  # a large JPEG is decoded small at once
                shown = convert(read_pixels(image))
                shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)  # a smaller one stays
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
    """An image of mode L or RGB."""
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
