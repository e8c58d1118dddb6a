"""Which plots a comparison needs, and what is drawn in each."""

from collections import defaultdict
from dataclasses import dataclass

from matplotlib.figure import Figure

from logramed.eval.comparison.plots import (
    MARKERS,
    Look,
    Mark,
    draw_bars,
    draw_curves,
    draw_groups,
    draw_published,
    draw_sight,
    make_looks,
)
from logramed.eval.comparison.report_tables import published_beside
from logramed.eval.comparison.run_folder import AVERAGE, has_several_shares
from logramed.eval.comparison.runs import Comparison, Value
from logramed.eval.comparison.tables import capitalize, figure_title, group_names, group_values


CURVE_SOURCE, RELEASE = "project_page_figure", "release"  # a source and a protocol of published figures


@dataclass(frozen=True)
class Plot:
    """
    A plot of a report.

    Attributes:
        section (`str`): Where it stands: `"figures"`, `"sight"`, `"groups"`, `"curves"` or `"published"`.
        key (`str`): Unique; the name of its file.
        label (`str`): What it shows.
        figure (`matplotlib.figure.Figure`): The drawing.
    """

    section: str
    key: str
    label: str
    figure: Figure


def draw_plots(comparison: Comparison) -> list[Plot]:
    """All plots of a comparison, in the order of the report."""
    looks = make_looks(comparison.names, [run.system for run in comparison.runs])
    return [
        *_figure_plots(comparison, looks),
        *_sight_plots(comparison, looks),
        *_group_plots(comparison, looks),
        *_curve_plots(comparison, looks),
        *_published_plots(comparison, looks),
    ]


def _mark(value: Value | None) -> Mark | None:
    return None if value is None else Mark(value.value, value.interval, value.num_items)


def _unit(comparison: Comparison) -> str:
    return "% of the reference" if comparison.runs[0].task == "chat" else "%"


def _figure_plots(comparison: Comparison, looks: list[Look]) -> list[Plot]:
    plots = []
    for figure in comparison.figures:
        marks = [_mark(comparison.value(place, figure)) for place in range(len(looks))]
        count = max(mark.num_items for mark in marks if mark)
        title = f"{capitalize(figure_title(figure))} ({_unit(comparison)})\n{count} questions"
        drawing = draw_bars(title, looks, marks)
        plots.append(Plot("figures", f"figure-{figure}", f"{title}, with 95% intervals", drawing))
    return plots


def _sight_plots(comparison: Comparison, looks: list[Look]) -> list[Plot]:
    plots = []
    for figure in comparison.figures:
        sighted = [_mark(comparison.value(place, figure)) for place in range(len(looks))]
        blank = [_mark(comparison.blank_value(place, figure)) for place in range(len(looks))]
        if any(seen and unseen for seen, unseen in zip(sighted, blank, strict=True)):
            constant = _constant(comparison) if figure == "closed_accuracy" else None
            title = f"{capitalize(figure_title(figure))} (%)\nfilled: with images; hollow: blank"
            if constant:
                title += "; dashed: one constant"
            drawing = draw_sight(title, looks, sighted, blank, constant)
            plots.append(Plot("sight", f"sight-{figure}", title, drawing))
    return plots


def _constant(comparison: Comparison) -> Mark | None:
    for run in comparison.runs:
        if "constant_answer" in run.metrics:
            return Mark(run.metrics["constant_answer"]["closed_accuracy"])
    return None


def _group_plots(comparison: Comparison, looks: list[Look]) -> list[Plot]:
    plots = []
    for number, group in enumerate(group_names(comparison)):
        for figure in comparison.figures:
            values = group_values(comparison, group, figure) if figure != AVERAGE else {}
            if values:
                title = f"{capitalize(figure_title(figure))} (%) by {group.replace('_', ' ')}"
                marks = {name: [_mark(value) for value in row] for name, row in values.items()}
                # The number, not the name: a group may be called anything.
                key = f"group-{number + 1}-{figure}"
                plots.append(Plot("groups", key, title, draw_groups(title, looks, marks)))
    return plots


def _curve_plots(comparison: Comparison, looks: list[Look]) -> list[Plot]:
    """A curve per main figure, and of the release's average beside the published curve if there is one."""
    if not has_several_shares(comparison.runs):
        return []
    colors = {run.system: look.color for run, look in zip(comparison.runs, looks, strict=True)}
    system_looks = {
        system: Look(system, colors[system], MARKERS[place % len(MARKERS)])
        for place, system in enumerate(comparison.systems)
    }
    plots = []
    for figure in comparison.figures:
        points = _curve_points(comparison, lambda place, figure=figure: comparison.value(place, figure))
        title = f"{capitalize(figure_title(figure))} ({_unit(comparison)})\nagainst share of training data"
        plots.append(Plot("curves", f"curve-{figure}", title, draw_curves(title, system_looks, points)))
    published = _published_curve(comparison)
    points = _curve_points(comparison, lambda place: comparison.release_value(place, AVERAGE))
    if published and points:
        title = "Average (%), release protocol\nbeside published points"
        drawing = draw_curves(title, system_looks, points, published)
        plots.append(Plot("curves", "curve-release-average", title, drawing))
    return plots


def _curve_points(comparison: Comparison, value_of) -> dict[str, list[tuple[float, Mark]]]:
    points = defaultdict(list)
    for place, run in enumerate(comparison.runs):
        value = value_of(place)
        if run.training_data_share is not None and value is not None:
            points[run.system].append((run.training_data_share, _mark(value)))
    return dict(points)


def _published_curve(comparison: Comparison) -> dict[str, dict[float, float]]:
    curves = defaultdict(dict)
    for row in published_beside(comparison):
        if row.source == CURVE_SOURCE:
            curves[row.method][row.training_data_share] = row.figures[AVERAGE]
    return dict(curves)


def _published_plots(comparison: Comparison, looks: list[Look]) -> list[Plot]:
    plots = []
    for figure in comparison.figures:
        published = [
            (row.name, row.figures[figure], row.protocol == RELEASE)
            for row in published_beside(comparison)
            # The curve has its own plot; two of its points repeat the table's.
            if figure in row.figures and row.source != CURVE_SOURCE
        ]
        ours = [
            (look, _mark(value))
            for place, look in enumerate(looks)
            if (value := comparison.release_value(place, figure)) is not None
        ]
        if published and ours:
            title = f"{capitalize(figure_title(figure))} (%), release protocol\n"
            title += "filled: run here; hollow: published, not run here"
            if not all(is_release for *_, is_release in published):
                title += "\ncrosses: published, protocol not known"
            drawing = draw_published(title, *zip(*ours, strict=True), published)
            plots.append(Plot("published", f"published-{figure}", title, drawing))
    return plots
