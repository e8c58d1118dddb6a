"""
Plots of a comparison, as matplotlib figures narrow enough to be read on a phone, and as SVG that fits a page.

All are made of lines of text and marks in one column: labels stand above their marks, so that long names have room.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory


# Okabe and Ito's colors that stand out on white and on black, told apart by color-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # one more than colors: only the 43rd run looks like another
PUBLISHED_COLOR = "#808080"
# Text and axes are drawn in it, and the page puts its own text color in its place. No plot uses it otherwise.
TEXT_COLOR = "#010203"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
} | {f"{name}.color": TEXT_COLOR for name in ("text", "xtick", "ytick")}
STYLE |= {
    "axes.edgecolor": TEXT_COLOR,
    "axes.labelcolor": TEXT_COLOR,
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

# Lengths in inches.
WIDTH, SIDE, BOTTOM = 4.0, 0.14, 0.32
TITLE_HEIGHT, SUBTITLE_HEIGHT = 0.38, 0.2
LABEL_HEIGHT, BAR_HEIGHT, DOT_HEIGHT, LINE_HEIGHT, GAP = 0.22, 0.2, 0.13, 0.2, 0.12
CURVE_HEIGHT = 2.9
LONGEST_LABEL = 46  # characters that fit a line
NAME_SHARE, LONGEST_NAME, LONGEST_BOLD_NAME = 0.48, 22, 19  # of the width, and characters, of names at the left
FEW = 20  # a group of fewer questions is marked
MOST_GROUPS = 30
LOGARITHMIC_FROM = 20  # largest share of training data over the smallest from which the axis is logarithmic


@dataclass(frozen=True)
class Look:
    """How a run is drawn: the color of its system, a marker of its own, and its name."""

    name: str
    color: str
    marker: str


@dataclass(frozen=True)
class Mark:
    """
    A value with its interval.

    Attributes:
        value (`float`): In percent.
        interval (`tuple[float, float]`, *optional*): Its 95% interval.
        num_items (`int`, *optional*): Questions it is over.
    """

    value: float
    interval: tuple[float, float] | None = None
    num_items: int | None = None


def make_looks(names: Sequence[str], systems: Sequence[str]) -> list[Look]:
    """
    The looks of runs called `names`, of which `systems` says the system of each: runs of one system share its color.

    Example:
        >>> [(look.color, look.marker) for look in make_looks(["A, 10%", "A, 40%", "B"], ["A", "A", "B"])]
        [('#0072b2', 'o'), ('#0072b2', 's'), ('#d55e00', 'D')]
    """
    order = list(dict.fromkeys(systems))
    return [
        Look(name, COLORS[order.index(system) % len(COLORS)], MARKERS[place % len(MARKERS)])
        for place, (name, system) in enumerate(zip(names, systems, strict=True))
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Plots
# ---------------------------------------------------------------------------------------------------------------------


@matplotlib.rc_context(STYLE)
def draw_bars(title: str, looks: Sequence[Look], marks: Sequence[Mark | None]) -> Figure:
    """
    A bar with its 95% interval for each run.

    Args:
        title (`str`): The figure's name, with its unit; a second line is smaller (so in all plots here).
        looks (`Sequence[Look]`): Of the runs.
        marks (`Sequence[Mark | None]`): One for each run; a run without is left out.

    Raises:
        ValueError: If there is no mark at all (so do all plots here).
    """
    shown = [(look, mark) for look, mark in zip(looks, marks, strict=True) if mark is not None]
    height = len(shown) * (LABEL_HEIGHT + BAR_HEIGHT + GAP)
    figure, axis = _new_sheet(title, height, [mark for _, mark in shown])
    for place, (look, mark) in enumerate(shown):
        top = place * (LABEL_HEIGHT + BAR_HEIGHT + GAP)
        middle = top + LABEL_HEIGHT + BAR_HEIGHT / 2
        _write_label(axis, top, look.name, f"{mark.value:.1f}")
        axis.barh(middle, mark.value, BAR_HEIGHT, color=look.color)
        if mark.interval:
            _draw_interval(axis, middle, mark, TEXT_COLOR)
    return figure


@matplotlib.rc_context(STYLE)
def draw_groups(
    title: str, looks: Sequence[Look], groups: dict[str, Sequence[Mark | None]], marks_few: bool = True
) -> Figure:
    """
    A dot with its 95% interval for each run in each group; every group carries its number of questions.

    Args:
        title (`str`): What is grouped by what.
        looks (`Sequence[Look]`): Of the runs.
        groups (`dict[str, Sequence[Mark | None]]`): By name of the group, a mark for each run, with `num_items`. The
            largest 30 are drawn, largest first, and the title says so where there are more.
        marks_few (`bool`, *optional*, defaults to `True`): Whether groups below 20 questions say "few".
    """
    sizes = {name: max((mark.num_items for mark in marks if mark), default=0) for name, marks in groups.items()}
    largest = sorted((name for name, size in sizes.items() if size), key=lambda name: -sizes[name])
    if len(largest) > MOST_GROUPS:
        title = f"{title}\nthe largest {MOST_GROUPS} of {len(largest)} groups"
    largest = largest[:MOST_GROUPS]
    group_height = LABEL_HEIGHT + len(looks) * DOT_HEIGHT + GAP
    marks = [mark for name in largest for mark in groups[name] if mark]
    figure, axis = _new_sheet(title, len(largest) * group_height, marks, looks)
    for place, name in enumerate(largest):
        top = place * group_height
        few = " (few)" if marks_few and sizes[name] < FEW else ""
        _write_label(axis, top, name, f"n = {sizes[name]}{few}")
        for line, (look, mark) in enumerate(zip(looks, groups[name], strict=True)):
            if mark:
                _draw_dot(axis, top + LABEL_HEIGHT + (line + 0.5) * DOT_HEIGHT, mark, look)
    return figure


@matplotlib.rc_context(STYLE)
def draw_sight(
    title: str,
    looks: Sequence[Look],
    sighted: Sequence[Mark | None],
    blank: Sequence[Mark | None],
    constant: Mark | None = None,
) -> Figure:
    """
    For each run its figure with the images (filled) and with blank ones (hollow), joined by a line.

    Args:
        title (`str`): The figure's name, with its unit.
        looks (`Sequence[Look]`): Of the runs.
        sighted, blank (`Sequence[Mark | None]`): One for each run; runs that lack one of both are left out.
        constant ([`Mark`], *optional*): The figure of the best constant answer, drawn as a dashed line.
    """
    shown = [entry for entry in zip(looks, sighted, blank, strict=True) if None not in entry]
    height = len(shown) * (LABEL_HEIGHT + BAR_HEIGHT + GAP)
    marks = [mark for _, *pair in shown for mark in pair] + ([constant] if constant else [])
    figure, axis = _new_sheet(title, height, marks)
    for place, (look, seen, unseen) in enumerate(shown):
        top = place * (LABEL_HEIGHT + BAR_HEIGHT + GAP)
        middle = top + LABEL_HEIGHT + BAR_HEIGHT / 2
        _write_label(axis, top, look.name, f"{unseen.value:.1f} → {seen.value:.1f}")
        axis.plot([unseen.value, seen.value], [middle, middle], color=look.color, linewidth=2.2, alpha=0.6)
        _draw_point(axis, unseen.value, middle, look, hollow=True)
        _draw_point(axis, seen.value, middle, look)
        if constant:
            ends = [middle - BAR_HEIGHT / 2, middle + BAR_HEIGHT / 2]
            axis.plot([constant.value] * 2, ends, color=TEXT_COLOR, linewidth=1.2, linestyle=(0, (2, 1)))
    return figure


@matplotlib.rc_context(STYLE)
def draw_published(
    title: str, looks: Sequence[Look], marks: Sequence[Mark], published: Sequence[tuple[str, float, bool]]
) -> Figure:
    """
    Our runs (filled) above published figures (grey; hollow circles, or crosses where the protocol is not known).

    Args:
        title (`str`): The figure's name, with its unit and protocol.
        looks, marks: Of our runs.
        published (`Sequence[tuple[str, float, bool]]`): Name and figure of each, and whether its protocol is known to
            be that of our runs; drawn highest first.
    """
    rows = list(zip(looks, marks, strict=True))
    for name, value, is_same_protocol in sorted(published, key=lambda entry: -entry[1]):
        rows.append((Look(name, PUBLISHED_COLOR, "o" if is_same_protocol else "x"), Mark(value)))
    figure, axis = _new_sheet(title, len(rows) * LINE_HEIGHT, [mark for _, mark in rows])
    left, bottom, width, height = axis.get_position().bounds
    axis.set_position((left + NAME_SHARE * width, bottom, (1 - NAME_SHARE) * width - 0.12, height))
    for place, (look, mark) in enumerate(rows):
        middle, is_ours = (place + 0.5) * LINE_HEIGHT, place < len(looks)
        text = {"va": "center_baseline", "weight": "bold" if is_ours else "normal"}
        where = blended_transform_factory(figure.transFigure, axis.transData)
        name = _shorten(look.name, LONGEST_BOLD_NAME if is_ours else LONGEST_NAME)
        axis.text(left, middle, name, transform=where, **text)
        axis.text(left + width, middle, f"{mark.value:.1f}", ha="right", transform=where, **text)
        _draw_dot(axis, middle, mark, look, hollow=not is_ours)
    return figure


@matplotlib.rc_context(STYLE)
def draw_curves(
    title: str,
    looks: dict[str, Look],
    curves: dict[str, Sequence[tuple[float, Mark]]],
    published: dict[str, dict[float, float]] | None = None,
) -> Figure:
    """
    A figure against the share of training data, a line for each system; published points hollow and dotted.

    The horizontal axis is logarithmic where the largest share is at least 20 times the smallest.

    Args:
        title (`str`): The figure's name, with its unit.
        looks (`dict[str, Look]`): By system.
        curves (`dict[str, Sequence[tuple[float, Mark]]]`): By system, pairs of share of training data in percent and
            mark. The line goes through the mean of marks of one share.
        published (`dict[str, dict[float, float]]`, *optional*): By method, figures by share in percent.
    """
    published = published or {}
    lines = [(looks[system], sorted(points, key=lambda point: point[0])) for system, points in curves.items()]
    for place, (method, points) in enumerate(published.items()):
        look = Look(f"{method} (published)", PUBLISHED_COLOR, MARKERS[place % len(MARKERS)])
        lines.append((look, [(share, Mark(value)) for share, value in sorted(points.items())]))
    shares = sorted({share for _, points in lines for share, _ in points})
    if not shares:
        raise ValueError(f"There is nothing to draw for {title!r}.")
    figure = Figure(figsize=(WIDTH, CURVE_HEIGHT + _title_height(title) + len(lines) * LINE_HEIGHT))
    height = figure.get_figheight()
    axis = figure.add_axes((0.1, 0.42 / height, 0.86, (CURVE_HEIGHT - 0.45) / height))
    _write_head(figure, title, [(look, place >= len(curves)) for place, (look, _) in enumerate(lines)])
    for place, (look, points) in enumerate(lines):
        _draw_curve(axis, look, points, is_published=place >= len(curves))
    if shares[-1] >= LOGARITHMIC_FROM * shares[0]:
        axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:g}" for share in shares], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("share of the training data (%)")
    axis.grid(alpha=0.2, color=TEXT_COLOR, linewidth=0.6)
    axis.tick_params(length=0)
    axis.set_axisbelow(True)
    return figure


def _draw_curve(axis, look: Look, points: Sequence[tuple[float, Mark]], is_published: bool) -> None:
    by_share = defaultdict(list)
    for share, mark in points:
        by_share[share].append(mark.value)
        if mark.interval:
            axis.plot([share, share], mark.interval, color=look.color, linewidth=1.4, alpha=0.7)
        _draw_point(axis, mark.value, share, look, hollow=is_published, swapped=True)
    line = {"linestyle": ":", "linewidth": 1.2} if is_published else {"linestyle": "-", "linewidth": 1.8}
    means = [sum(values) / len(values) for values in by_share.values()]
    axis.plot(list(by_share), means, color=look.color, **line)


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def _new_sheet(title: str, height: float, marks: Sequence[Mark], looks: Sequence[Look] = ()) -> tuple:
    """A figure with a title, a legend of `looks`, and an axis of percent below; one vertical unit is one inch."""
    if not marks:
        raise ValueError(f"There is nothing to draw for {title!r}.")
    head = _title_height(title) + (len(looks) * LINE_HEIGHT + 0.06 if len(looks) > 1 else 0)
    whole = head + height + BOTTOM
    figure = Figure(figsize=(WIDTH, whole))
    axis = figure.add_axes((SIDE / WIDTH, BOTTOM / whole, 1 - 2 * SIDE / WIDTH, height / whole))
    _write_head(figure, title, [(look, False) for look in looks] if len(looks) > 1 else [])
    largest = max(max(mark.value, *(mark.interval or (0,))) for mark in marks)
    axis.set(xlim=(0, 100 if largest <= 100 else 1.05 * largest), ylim=(height, 0), yticks=[])
    axis.grid(axis="x", alpha=0.2, color=TEXT_COLOR, linewidth=0.6)
    axis.tick_params(length=0)
    axis.set_axisbelow(True)
    return figure, axis


def _title_height(title: str) -> float:
    return TITLE_HEIGHT + SUBTITLE_HEIGHT * title.count("\n")


def _write_head(figure: Figure, title: str, entries: Sequence[tuple[Look, bool]]) -> None:
    """The title, its first line in bold, and below it a line for each look, hollow where published."""
    height = figure.get_figheight()
    for place, line in enumerate(title.split("\n")):
        weight, size = ("normal", 9.5) if place else ("bold", 11)
        figure.text(
            SIDE / WIDTH, (height - 0.08 - SUBTITLE_HEIGHT * place) / height, line, weight=weight, size=size, va="top"
        )
    for place, (look, hollow) in enumerate(entries):
        level = (height - _title_height(title) - (place + 0.3) * LINE_HEIGHT) / height
        figure.add_artist(
            Line2D([(SIDE + 0.06) / WIDTH], [level], linestyle="", **_marker_style(look, hollow), zorder=3)
        )
        figure.text((SIDE + 0.2) / WIDTH, level, _shorten(look.name, LONGEST_LABEL), va="center_baseline")


def _shorten(text: str, length: int) -> str:
    """
    `text`, its middle left out where it is too long: names often differ at their end.

    Example:
        >>> _shorten("logramed-7b-vqa-rad-checkpoint-1200", 20)
        'logramed-…point-1200'
    """
    if len(text) <= length:
        return text
    kept = length - 1
    return text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]


def _write_label(axis, top: float, left: str, right: str) -> None:
    """A name at the left and a value at the right of a line, whatever the axis shows."""
    place = {"transform": axis.get_yaxis_transform(), "va": "center_baseline"}
    middle = top + 0.55 * LABEL_HEIGHT
    axis.text(0, middle, _shorten(left, LONGEST_LABEL - len(right) - 4), **place)
    axis.text(1, middle, right, ha="right", **place)


def _draw_interval(axis, middle: float, mark: Mark, color: str) -> None:
    low, high = mark.interval
    axis.plot([low, high], [middle, middle], color=color, linewidth=1.3, solid_capstyle="butt")
    for end in (low, high):
        axis.plot([end, end], [middle - 0.035, middle + 0.035], color=color, linewidth=1.3)


def _draw_dot(axis, middle: float, mark: Mark, look: Look, hollow: bool = False) -> None:
    if mark.interval:
        axis.plot(mark.interval, [middle, middle], color=look.color, linewidth=1.6, alpha=0.55)
    _draw_point(axis, mark.value, middle, look, hollow)


def _draw_point(axis, value: float, place: float, look: Look, hollow: bool = False, swapped: bool = False) -> None:
    x, y = (place, value) if swapped else (value, place)
    axis.plot([x], [y], linestyle="", clip_on=False, zorder=3, **_marker_style(look, hollow))


def _marker_style(look: Look, hollow: bool) -> dict:
    return {
        "marker": look.marker,
        "markersize": 5.5,
        "markeredgewidth": 1.5,
        "markeredgecolor": look.color,
        "markerfacecolor": "none" if hollow else look.color,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def to_svg(figure: Figure, key: str, label: str) -> str:
    """
    The figure as an `<svg>` element for a page: no fixed size, text in the page's font and color, nothing external.

    Args:
        figure (`matplotlib.figure.Figure`): From one of the functions above.
        key (`str`): Unique on the page; its ids begin with it.
        label (`str`): What the picture shows, for readers who do not see it.
    """
    file = StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": key}), warnings.catch_warnings():
        # The page's font has glyphs that matplotlib's has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escape_attribute(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]+)"', rf' id="{key}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{key}-", svg).replace("xlink:href=", "href=")
    return svg.replace(TEXT_COLOR, "currentColor")


def _escape_attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def save_png(figure: Figure, path: str | Path) -> None:
    """Write the figure as PNG on white, for documents that show no SVG."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=200, facecolor="white")
