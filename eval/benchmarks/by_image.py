"""
Splits of VQA-RAD by image.

The split used in the field is by question: each of its test images is also in training. These random splits (drawn by
seed) share no image and, according to the release, no case. `vqa_rad_by_image.json` has image names without extension.
"""

import json
from functools import cache
from pathlib import Path


IMAGE_SPLITS = ("by_image_test", "by_image_validation", "by_image_train")
FILE = Path(__file__).with_name("vqa_rad_by_image.json")


@cache
def read_image_splits() -> dict[str, frozenset[str]]:
    """The image names of each split, from the committed file."""
    return {split: frozenset(images) for split, images in json.loads(FILE.read_text(encoding="utf-8")).items()}
