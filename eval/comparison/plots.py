"""The plot of a comparison: main figures of each run with intervals, with the images and with blank ones."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.tables import capitalize, figure_title


# Okabe and Ito's blue, which color-blind readers can distinguish from black.
COLOR = "#0072b2"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "figures",  # reproducible ids
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LONGEST_NAME = 40  # characters


def draw_figures(comparison: Comparison) -> str:
    """
    The main figures with 95% intervals as an `<svg>` element: markers are filled for images and hollow for blank ones.

    Loads nothing external.
    """
    names, num_figures = comparison.names, len(comparison.figures)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * num_figures + 2, 0.4 * len(names) + 1), layout="constrained")
        axes = figure.subplots(1, num_figures, sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, comparison.figures, strict=True):
            axis.set(title=f"{capitalize(figure_title(name))} (%)", ylim=(len(names) - 0.5, -0.5))
            axis.set_yticks(range(len(names)), [_shorten(run_name) for run_name in names])
            axis.grid(axis="x", alpha=0.3)
            for place, run in enumerate(comparison.runs):
                for shift, filling, figures in ((0, COLOR, run.overall), (0.25, "none", run.blank or {})):
                    if name in figures:
                        value, (low, high) = figures[name], figures["intervals"][name]
                        axis.errorbar(
                            value,
                            place + shift,
                            xerr=[[value - low], [high - value]],
                            fmt="o",
                            color=COLOR,
                            markerfacecolor=filling,
                        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    label = "Main figures with 95% intervals; hollow: with blank images"
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', svg[svg.index("<svg") :], count=1)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME // 2]}…{text[-LONGEST_NAME // 2 :]}"
