"""
Multi-slice and full-depth medical images: DICOM files, folders of DICOM slices, and NIfTI volumes.

A reference names an image in them: a string used in place of an image path (see `references`).
Needs `pip install 'logramed[volumes]'`.
"""

from .errors import VolumeError
from .options import VolumeOptions, count_image_tokens
from .references import (
    expand_volume,
    find_kind,
    hash_image,
    image_exists,
    image_status,
    is_volume,
    open_if_volume,
    open_image_reference,
    open_volume,
    parse_reference,
    position_texts,
    without_position_texts,
)


__all__ = [
    "VolumeError",
    "VolumeOptions",
    "count_image_tokens",
    "expand_volume",
    "find_kind",
    "hash_image",
    "image_exists",
    "image_status",
    "is_volume",
    "open_if_volume",
    "open_image_reference",
    "open_volume",
    "parse_reference",
    "position_texts",
    "without_position_texts",
]
