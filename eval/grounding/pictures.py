"""Draw weights on images: one line of images per question."""

import textwrap
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from logramed.eval.grounding.boxes import Box
from logramed.eval.question_images import in_turns


NUM_SHOWN = 6
NUM_COLUMNS = 4
CELL_INCHES, TITLE_INCHES, LINE_INCHES = 2.1, 0.25, 0.16
BOX_COLOR = "#00c853"
CAPTION_WIDTH = 110  # characters per line


@dataclass(frozen=True)
class Cell:
    """An image to show, with a title and boxes to outline."""

    image: Image.Image
    title: str = ""
    boxes: Sequence[Box] = ()


def choose_shown(groups: Sequence[Hashable]) -> list[int]:
    """Indices of questions to draw: the first of each group, then the second; not selected by their figures."""
    return in_turns(groups)[:NUM_SHOWN]


def draw_lines(lines: Sequence[tuple[str, Sequence[Cell]]], path: Path) -> Path:
    """Draw captions, such as questions, each above its images, at most four per row, as PNG."""
    captions = [textwrap.fill(caption, CAPTION_WIDTH) for caption, _ in lines]
    num_rows = [-(-len(cells) // NUM_COLUMNS) for _, cells in lines]
    # Height of the tallest image; images taller than wide become narrower.
    tallest = [min(1, max(cell.image.height / cell.image.width for cell in cells)) for _, cells in lines]
    heights = [
        (CELL_INCHES * of_image + TITLE_INCHES) * rows + LINE_INCHES * (2 + caption.count("\n"))
        for of_image, rows, caption in zip(tallest, num_rows, captions, strict=True)
    ]
    figure = Figure(figsize=(CELL_INCHES * NUM_COLUMNS, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(lines), height_ratios=heights, squeeze=False)[:, 0]
    for part, caption, rows, (_, cells) in zip(parts, captions, num_rows, lines, strict=True):
        part.suptitle(caption, fontsize=8, x=0.01, ha="left", weight="bold", parse_math=False)
        axes = part.subplots(rows, NUM_COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, cell in zip(axes, cells, strict=False):
            _draw_cell(axis, cell)
    figure.savefig(path, dpi=100, facecolor="white")
    return path


def _draw_cell(axis, cell: Cell) -> None:
    width, height = cell.image.size
    axis.imshow(cell.image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(cell.title, fontsize=7, parse_math=False)
    for box in cell.boxes:
        corner, size = (box.x * width - 0.5, box.y * height - 0.5), (box.width * width, box.height * height)
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=BOX_COLOR, linewidth=1.2))
