"""The images of a question: one, or several anywhere in its text."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from logramed.eval.volumes import VolumeError, VolumeOptions, is_volume, parse_reference, position_texts


IMAGE_PLACEHOLDER = "<image>"


def list_images(question: Mapping[str, Any]) -> list[str]:
    """
    The image paths of a question row, in order.

    Example:
        >>> list_images({"image": "/a.png"}), list_images({"images": ["/a.png", "/b.png"]})
        (['/a.png'], ['/a.png', '/b.png'])
    """
    if "images" not in question:
        return [question["image"]]
    images = question["images"]
    if not isinstance(images, list) or not images or None in images:
        raise ValueError(f"{_name(question)}, `images`: expected a list of at least one path, got {images!r}.")
    return images


def all_images(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The unique image paths of several questions, in order."""
    return list(dict.fromkeys(image for question in questions for image in list_images(question)))


def list_sources(question: Mapping[str, Any]) -> list[str]:
    """
    The files that a question row's images were read from; the path of a volume once for all its slices.

    Example:
        >>> list_sources({"image": "/a.nii#slices=2&window=auto"}), list_sources({"images": ["/a.png", "/a.png"]})
        (['/a.nii'], ['/a.png', '/a.png'])
    """
    sources = [parse_reference(image).path for image in list_images(question)]
    if "position_texts" not in question:
        return sources
    ends = accumulate(len(texts) for texts in question["position_texts"])
    return [sources[end - 1] for end in ends]


def all_sources(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The unique files that the images of several questions were read from (see `list_sources`), in order."""
    return list(dict.fromkeys(source for question in questions for source in list_sources(question)))


def show_volumes(questions: Sequence[dict], options: VolumeOptions) -> tuple[list[dict], dict[str, str]]:
    """
    Question rows that show the slices of volumes (DICOM, NIfTI), and errors by path for volumes that cannot be shown;
    their paths are kept.

    In `images`, a volume's path is replaced by a reference for each slice. `position_texts` has a list of texts for
    each image or volume of the row ("" for none). Rows without such texts lack that field.
    """
    shown, problems = {}, {}
    for image in filter(is_volume, all_images(questions)):
        try:
            shown[image] = options.show(image)
        except VolumeError as error:
            problems[image] = str(error)
    return [_show_slices(question, shown) for question in questions], problems


def _show_slices(question: dict, shown: Mapping[str, tuple[list[str], list[dict]]]) -> dict:
    images = list_images(question)
    if shown.keys().isdisjoint(images):
        return question
    found = [shown.get(image, ([image], [{"type": "image"}])) for image in images]
    names = [name for references, _ in found for name in references]
    texts = [position_texts(content) for _, content in found]
    if all(of_image == [""] for of_image in texts):
        return question | ({"images": names} if "images" in question else {"image": names[0]})
    rest = {key: value for key, value in question.items() if key != "image"}
    return rest | {"images": names, "position_texts": texts}


def in_turns(groups: Sequence[Hashable]) -> list[int]:
    """
    Indices that take turns between groups: the first item of each group, then the second of each, and so on.

    Example:
        >>> in_turns(["liver", "liver", "lung", "liver"])
        [0, 2, 1, 3]
    """
    seen: Counter = Counter()
    turns = []
    for group in groups:
        turns.append(seen[group])
        seen[group] += 1
    return sorted(range(len(groups)), key=turns.__getitem__)


def name_images(question: Mapping[str, Any]) -> dict[str, Any]:
    """
    The image field of a question row, with file names instead of paths.

    Example:
        >>> name_images({"image": "/data/a.png"}), name_images({"images": ["/data/a.png", "/data/b.png"]})
        ({'image': 'a.png'}, {'images': ['a.png', 'b.png']})
    """
    names = [Path(image).name for image in list_images(question)]
    return {"images": names} if "images" in question else {"image": names[0]}


def split_placeholders(text: str) -> list[dict[str, str]]:
    """
    Content parts of a text in which `<image>` marks image positions.

    Example:
        >>> split_placeholders("What is this?\\n<image>")
        [{'type': 'text', 'text': 'What is this?'}, {'type': 'image'}]
    """
    parts: list[dict[str, str]] = []
    for number, segment in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if number > 0:
            parts.append({"type": "image"})
        if segment.strip():
            parts.append({"type": "text", "text": segment.strip()})
    return parts


def question_content(question: Mapping[str, Any]) -> list[dict[str, str]]:
    """
    Content of the user message for a question row: text parts, and image parts with their `path`, in order.

    `images` replace the placeholders of the question, or come before its text if it has none; any other number of
    placeholders raises `ValueError`. A single `image` comes before the text, which is not changed. With
    `position_texts` (see `show_volumes`), a place has several images, each followed by its text.

    Example:
        >>> row = {"question": "<image> Then <image> Has it grown?", "images": ["/a.png", "/b.png"]}
        >>> [part.get("path") or part["text"] for part in question_content(row)]
        ['/a.png', 'Then', '/b.png', 'Has it grown?']
    """
    paths, text = list_images(question), question["question"]
    places = question.get("position_texts") or [[""] for _ in paths]
    parts = split_placeholders(text) if "images" in question else []
    num_placeholders = sum(part["type"] == "image" for part in parts)
    if num_placeholders == 0:
        parts = [*({"type": "image"} for _ in places), {"type": "text", "text": text}]
    elif num_placeholders != len(places):
        raise ValueError(f"{_name(question)}, `question`: {describe_mismatch(num_placeholders, len(places))}.")
    rest, shown = iter(paths), iter(places)
    found = (_image_parts(next(shown), rest) if part["type"] == "image" else [part] for part in parts)
    return [part for of_place in found for part in of_place]


def _image_parts(texts: Sequence[str], paths: Iterator[str]) -> list[dict[str, str]]:
    """The parts of the images at one place: an image for each text, followed by the text if it is not empty."""
    parts = []
    for text in texts:
        parts.append({"type": "image", "path": next(paths)})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def describe_mismatch(num_placeholders: int, num_images: int) -> str:
    """The error for a text whose number of placeholders differs from the number of images."""
    return f"{num_placeholders} {IMAGE_PLACEHOLDER} placeholder(s) for {num_images} image(s) in `images`"


def _name(question: Mapping[str, Any]) -> str:
    return f"Question {question.get('question_id')!r}"
