"""Draw weights of image regions on the image, for reports, training and the demo (its Space has a copy)."""

import numpy as np
from PIL import Image


COLOR = (255, 140, 0)
STRONGEST_TINT = 0.7  # of the region with the largest weight; others are proportional


def tint(
    image: Image.Image,
    weights: np.ndarray,
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    largest: float | None = None,
) -> Image.Image:
    """
    Tint the regions of an image in proportion to their weights.

    Args:
        image (`PIL.Image.Image`): The image given to the processor, of mode L or RGB.
        weights (`np.ndarray` of shape `(num_rows, num_columns)`): Non-negative weights of regions.
        window (`tuple`): Left, top, width and height of the area of the regions, in fractions of the image's sides;
            larger than the image if that was padded.
        largest (`float`, *optional*): The weight with the strongest tint, such as the largest of several images to
            compare; by default the largest of `weights`.

    Returns:
        `PIL.Image.Image`: RGB, of the image's size.
    """
    largest = weights.max() if largest is None else largest
    strength = np.asarray(weights) / largest if largest > 0 else np.zeros_like(weights)
    regions = Image.fromarray(np.round(255 * STRONGEST_TINT * strength).astype(np.uint8))
    left, top, right, bottom = (
        round(share * side)
        for share, side in zip(
            (*window[:2], window[0] + window[2], window[1] + window[3]), image.size * 2, strict=True
        )
    )
    mask = Image.new("L", image.size)
    mask.paste(regions.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return Image.composite(Image.new("RGB", image.size, COLOR), image.convert("RGB"), mask)
