"""Boxes of an image, and the cells that they cover in the grid of image tokens, with padding and cropping undone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


# Rounded to four decimals, position and size may add up to slightly more than 1.
ROUNDING = 1e-3


class Box(NamedTuple):
    """A labelled rectangle: upper left corner and size, as fractions of the image's sides."""

    label: str
    x: float
    y: float
    width: float
    height: float


class Window(NamedTuple):
    """
    The rectangle of an image that the token grid covers, as fractions of the image's sides. It is larger than the
    image if that was padded (`left` below 0, `width` above 1), and smaller if it was cropped.
    """

    left: float
    top: float
    width: float
    height: float


WHOLE_IMAGE = Window(0.0, 0.0, 1.0, 1.0)


def read_box_file(path: Path) -> dict[str, list[Box]]:
    """
    Read boxes by image from a JSON file `{"image": [["Liver", x, y, width, height], ...]}`. Raises
    `FileNotFoundError`, or `ValueError` with image and number if a box is malformed, empty, or leaves its image.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`grounding` needs the boxes of the images, but there is no {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(boxes, list) for boxes in content.values()):
        raise ValueError(f"{path}: expected an object with a list of boxes for each image.")
    return {
        image: [_read_box(box, f"{path}, image {image}, box {number}") for number, box in enumerate(boxes)]
        for image, boxes in content.items()
    }


def _read_box(entry: Any, where: str) -> Box:
    is_box = isinstance(entry, list) and len(entry) == 5 and isinstance(entry[0], str)
    if not is_box or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in entry[1:]):
        raise ValueError(f"{where}: expected [label, x, y, width, height], got {entry!r}.")
    label, x, y, width, height = entry
    is_inside = min(x, y) >= -ROUNDING and max(x + width, y + height) <= 1 + ROUNDING
    if not (is_inside and width > 0 and height > 0):
        raise ValueError(
            f"{where}: expected a box within the image, in fractions of its sides from 0 to 1, got x {x:g}, y {y:g}, "
            f"width {width:g} and height {height:g}."
        )
    return Box(label, x, y, width, height)


def find_window(image_size: tuple[int, int], image_processor: Any) -> Window:
    """
    The part of an image of `(width, height)` pixels that the model sees after padding or cropping. Raises `ValueError`
    if the image processor neither pads to a square, nor crops the center, nor stretches to a fixed size.

    Example:
        >>> from logramed.image_processing_logramed import LoGraMedImageProcessor
        >>> find_window((200, 100), LoGraMedImageProcessor())
        Window(left=0.0, top=-0.5, width=1.0, height=2.0)
    """
    width, height = image_size
    pads = getattr(image_processor, "do_pad_to_square", getattr(image_processor, "do_pad", False))
    if pads or width == height:
        longer = max(width, height)
        left, top = (longer - width) // 2, (longer - height) // 2
        return Window(0.0 - left / width, 0.0 - top / height, longer / width, longer / height)
    size = dict(getattr(image_processor, "size", None) or {})
    if getattr(image_processor, "do_center_crop", False) and "shortest_edge" in size:
        x, y = min(width, height) / width, min(width, height) / height
        return Window((1 - x) / 2, (1 - y) / 2, x, y)
    if size.get("height") and size.get("width"):
        return WHOLE_IMAGE
    raise ValueError(
        f"`grounding` cannot tell which part of an image {type(image_processor).__name__} shows: expected one that "
        "pads to a square, crops a square, or resizes to `height` and `width`."
    )


@dataclass(frozen=True)
class Cells:
    """
    Cells of a grid of image tokens, as arrays `(num_rows, num_columns)`: the fraction of each cell's area `inside` the
    boxes, and the `visible` fraction that is not padding; which cells are positive (the center of the cell lies in a
    box, or the center of a box in the cell, so that small boxes have one too); and which are candidates (at least half
    in the image, or positive).
    """

    inside: np.ndarray
    visible: np.ndarray
    is_positive: np.ndarray
    is_candidate: np.ndarray


def lay_on_grid(boxes: list[Box], grid: tuple[int, int], window: Window = WHOLE_IMAGE) -> Cells:
    """
    Map the union of boxes to the `(rows, columns)` grid of image tokens, which divides `window` into equal cells.

    Example:
        >>> cells = lay_on_grid([Box("Liver", 0.0, 0.0, 0.5, 1.0)], (2, 2))
        >>> cells.inside.tolist(), cells.is_positive.tolist()
        ([[1.0, 0.0], [1.0, 0.0]], [[True, False], [True, False]])
    """
    num_rows, num_columns = grid
    rows = window.top + window.height * np.arange(num_rows + 1) / num_rows
    columns = window.left + window.width * np.arange(num_columns + 1) / num_columns
    visible = _covered_shares([[0.0, 0.0, 1.0, 1.0]], rows, columns)
    edges = [[box.x, box.y, box.x + box.width, box.y + box.height] for box in boxes]
    middles = ((rows[:-1] + rows[1:]) / 2)[:, None], ((columns[:-1] + columns[1:]) / 2)[None]
    is_positive = _is_within(*middles, edges)
    for left, top, right, bottom in edges:
        row, column = (
            int(np.searchsorted(cuts, middle, side="right")) - 1
            for cuts, middle in ((rows, (top + bottom) / 2), (columns, (left + right) / 2))
        )
        if 0 <= row < num_rows and 0 <= column < num_columns:
            is_positive[row, column] = True
    return Cells(
        inside=_covered_shares(edges, rows, columns),
        visible=visible,
        is_positive=is_positive,
        is_candidate=(visible >= 0.5 - ROUNDING) | is_positive,
    )


def _is_within(y: np.ndarray, x: np.ndarray, edges: list[list[float]]) -> np.ndarray:
    """Whether points lie in one of the rectangles `[left, top, right, bottom]`."""
    found = [(left <= x) & (x < right) & (top <= y) & (y < bottom) for left, top, right, bottom in edges]
    return np.logical_or.reduce(found)


def _covered_shares(edges: list[list[float]], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """
    The exact fraction of each cell that the union of rectangles covers.

    All edges together cut the window into small rectangles, each in one cell and either inside or outside the boxes.
    """
    found = np.array(edges)
    ys, xs = (
        np.unique(np.concatenate([cuts, found[:, places].ravel().clip(cuts[0], cuts[-1])]))
        for cuts, places in ((rows, [1, 3]), (columns, [0, 2]))
    )
    y, x = (ys[:-1] + ys[1:]) / 2, (xs[:-1] + xs[1:]) / 2
    areas = np.diff(ys)[:, None] * np.diff(xs)[None] * _is_within(y[:, None], x[None], edges)
    cell_of = (np.searchsorted(rows, y) - 1)[:, None], (np.searchsorted(columns, x) - 1)[None]
    covered = np.zeros((len(rows) - 1, len(columns) - 1))
    np.add.at(covered, np.broadcast_arrays(*cell_of), areas)
    return np.minimum(1.0, covered / (np.diff(rows)[:, None] * np.diff(columns)[None]))
