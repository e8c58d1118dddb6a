"""Pictures of maps over their images, with the boxes of what the questions name."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from logramed.eval.grounding.boxes import Box, Window
from logramed.image_processing_logramed import convert_to_rgb


NUM_SHOWN = 6
CELL_INCHES, CAPTION_INCHES = 2.1, 0.55
BOX_COLOR, MAP_COLOR, STRONGEST_TINT = "#00c853", "#ff8c00", 0.75
QUESTION_WIDTH = 34  # characters of a line


@dataclass(frozen=True)
class MapPicture:
    """An image, the question, the boxes of what that names, and the maps by kind."""

    image: Image.Image
    question: str
    boxes: list[Box]
    window: Window
    maps: dict[str, np.ndarray]


def choose_shown(groups: Sequence[str], num_shown: int = NUM_SHOWN) -> list[int]:
    """
    Places of the questions to draw: the first of each group, then the second of each, by no figure of theirs.

    Example:
        >>> choose_shown(["liver", "liver", "lung", "liver"], 3)
        [0, 2, 1]
    """
    seen: dict[str, int] = {}
    ranked = []
    for place, group in enumerate(groups):
        ranked.append((seen.get(group, 0), place))
        seen[group] = seen.get(group, 0) + 1
    return [place for _, place in sorted(ranked)[:num_shown]]


def draw_maps(pictures: Sequence[MapPicture], path: Path) -> Path:
    """Draw a row for each question, with the image and each of its maps, as PNG."""
    kinds = list(pictures[0].maps)
    num_columns = 1 + len(kinds)
    size = (CELL_INCHES * num_columns, (CELL_INCHES + CAPTION_INCHES) * len(pictures))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(pictures), num_columns, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        for axis, kind in zip(row, (None, *kinds), strict=True):
            _draw_map(axis, picture, kind)
        row[0].set_title(textwrap.fill(picture.question, QUESTION_WIDTH), fontsize=7, loc="left")
        for axis, kind in zip(row[1:], kinds, strict=True):
            axis.set_title(kind.replace("_", " "), fontsize=7)
    figure.savefig(path, dpi=100, facecolor="white")
    return path


def _draw_map(axis, picture: MapPicture, kind: str | None) -> None:
    """One image, in shares of its sides, with the boxes and, for a `kind`, the map."""
    width, height = picture.image.size
    axis.imshow(np.asarray(convert_to_rgb(picture.image, (0, 0, 0))), extent=(0, 1, 1, 0), cmap="gray")
    if kind is not None:
        window = picture.window
        extent = (window.left, window.left + window.width, window.top + window.height, window.top)
        axis.imshow(_tint(picture.maps[kind]), extent=extent, interpolation="nearest", zorder=2)
    for box in picture.boxes:
        outline = {"fill": False, "edgecolor": BOX_COLOR, "linewidth": 1.2, "zorder": 3}
        axis.add_patch(Rectangle((box.x, box.y), box.width, box.height, **outline))
    axis.set(xlim=(0, 1), ylim=(1, 0), aspect=height / width)
    axis.set_axis_off()


def _tint(weights: np.ndarray) -> np.ndarray:
    """Weights `(num_rows, num_columns)` as one colour that covers more the more they weigh: `(..., 4)` in 0 to 1."""
    strength = STRONGEST_TINT * weights / weights.max()
    return np.dstack([np.broadcast_to(to_rgb(MAP_COLOR), (*weights.shape, 3)), strength])
