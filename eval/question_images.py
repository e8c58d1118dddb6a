"""The images of a question: one, or several at any place in its text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


IMAGE_PLACEHOLDER = "<image>"


def list_images(question: Mapping[str, Any]) -> list[str]:
    """
    The paths of the images of a question row, in their order.

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
    """The different paths of the images of several questions, in their order."""
    return list(dict.fromkeys(image for question in questions for image in list_images(question)))


def name_images(question: Mapping[str, Any]) -> dict[str, Any]:
    """
    The field of a question row that holds its images, with file names for paths.

    Example:
        >>> name_images({"image": "/data/a.png"}), name_images({"images": ["/data/a.png", "/data/b.png"]})
        ({'image': 'a.png'}, {'images': ['a.png', 'b.png']})
    """
    names = [Path(image).name for image in list_images(question)]
    return {"images": names} if "images" in question else {"image": names[0]}


def split_placeholders(text: str) -> list[dict[str, str]]:
    """
    Content parts of a text in which `<image>` marks the places of images.

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
    What a user's message about a question row holds: text parts, and image parts with their `path`, in their order.

    `images` stand where the question has its placeholders, or before its text if it has none. The one `image` of a
    row stands before the text, which is shown as it is.

    Raises:
        ValueError: If there are another number of placeholders than of images, naming the question.

    Example:
        >>> row = {"question": "<image> Then <image> Has it grown?", "images": ["/a.png", "/b.png"]}
        >>> [part.get("path") or part["text"] for part in question_content(row)]
        ['/a.png', 'Then', '/b.png', 'Has it grown?']
    """
    paths, text = list_images(question), question["question"]
    parts = split_placeholders(text) if "images" in question else []
    num_placeholders = sum(part["type"] == "image" for part in parts)
    if num_placeholders == 0:
        parts = [*({"type": "image"} for _ in paths), {"type": "text", "text": text}]
    elif num_placeholders != len(paths):
        raise ValueError(f"{_name(question)}, `question`: {describe_mismatch(num_placeholders, len(paths))}.")
    rest = iter(paths)
    return [part | {"path": next(rest)} if part["type"] == "image" else part for part in parts]


def describe_mismatch(num_placeholders: int, num_images: int) -> str:
    """What is wrong with a text that has placeholders, but not one for each image."""
    return f"{num_placeholders} {IMAGE_PLACEHOLDER} placeholder(s) for {num_images} image(s) in `images`"


def _name(question: Mapping[str, Any]) -> str:
    return f"Question {question.get('question_id')!r}"
