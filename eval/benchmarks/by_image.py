"""
Splits of VQA-RAD by image.

The split used in the field is by question: each of its test images is also trained on. These share no image and, as
far as the release tells, no case. `vqa_rad_by_image.json` holds the names of the images, without ending, that
`draw_image_splits` gives.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path


SEED = 42
# Shares of the images; the first ones drawn go to the first split, the rest to the last.
SHARES = {"by_image_test": 0.2, "by_image_validation": 0.1, "by_image_train": 0.7}
FILE = Path(__file__).with_name("vqa_rad_by_image.json")


@cache
def read_image_splits() -> dict[str, frozenset[str]]:
    """The images of each split, as committed."""
    return {split: frozenset(images) for split, images in json.loads(FILE.read_text(encoding="utf-8")).items()}


def draw_image_splits(cases: Mapping[str, Collection[str]], seed: int = SEED) -> dict[str, list[str]]:
    """
    Divide images by `SHARES`. Images of one case, or of cases linked by an image, stay together.

    Args:
        cases (mapping of `str` to a collection of `str`): The cases of each image.
        seed (`int`): Of the draw; neither the order of `cases` nor the machine matters.

    Returns:
        `dict[str, list[str]]`: images of each split, sorted.

    Example:
        >>> splits = draw_image_splits({str(number): [f"case {number // 2}"] for number in range(10)})
        >>> splits["by_image_test"], splits["by_image_validation"]
        (['0', '1'], ['6', '7'])
    """
    groups = sorted(group_by_case(cases), key=lambda images: hashlib.sha256(f"{seed}:{min(images)}".encode()).digest())
    splits: dict[str, list[str]] = {split: [] for split in SHARES}
    for images in groups:
        unfilled = (name for name in SHARES if len(splits[name]) < round(SHARES[name] * len(cases)))
        splits[next(unfilled, "by_image_train")] += images
    return {split: sorted(images) for split, images in splits.items()}


def group_by_case(cases: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Sets of images, of which no two share a case."""
    groups: list[tuple[set[str], set[str]]] = []
    for image, of_image in cases.items():
        linked = [group for group in groups if not group[1].isdisjoint(of_image)]
        images, joined = {image}, set(of_image)
        for group in linked:
            groups.remove(group)
            images |= group[0]
            joined |= group[1]
        groups.append((images, joined))
    return [images for images, _ in groups]
