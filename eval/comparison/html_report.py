"""
A comparison, or a single run, as one HTML file that opens without a network: no script, nothing loaded.

Everything that was asked or answered is escaped: an answer cannot become part of the page.
"""

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from logramed.eval.comparison.plots import MARKERS, make_looks, to_svg
from logramed.eval.comparison.report_plots import Plot, draw_plots
from logramed.eval.comparison.report_tables import report_tables, why_no_published
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import Comparison, compare_runs
from logramed.eval.comparison.summary import headlines, remarks
from logramed.eval.comparison.tables import (
    capitalize,
    constant_lines,
    format_p,
    leakage_table,
    missing_leakage,
    missing_sight,
    protocol_lines,
    sight_table,
)
from logramed.eval.comparison.worst_questions import question_sections
from logramed.eval.files import write_whole


SECTIONS_WITH_PLOTS = ("figures", "sight", "groups", "curves", "published")
MAP_PICTURE = "grounding.png"
TEMPLATES = Path(__file__).with_name("templates")
BENCHMARK_TITLES = {
    "vqa_rad": "VQA-RAD",
    "slake": "SLAKE",
    "path_vqa": "PathVQA",
    "pmc_vqa": "PMC-VQA",
    "omnimedvqa": "OmniMedVQA",
    "chat": "Visual chat",
    "report": "Report writing",
}
# The markers of the plots, in a square of 12.
MARKER_PATHS = dict(
    zip(
        MARKERS,
        (
            "M6 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z",
            "M2 2h8v8h-8z",
            "M6 .5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
            "M6 1l5.5 9.5h-11z",
            "M6 11l-5.5-9.5h11z",
            "M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
            "M3.2 .8l2.8 2.8l2.8-2.8l2.4 2.4l-2.8 2.8l2.8 2.8l-2.4 2.4l-2.8-2.8l-2.8 2.8l-2.4-2.4l2.8-2.8l-2.8-2.8z",
        ),
        strict=True,
    )
)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, **options)
    environment.filters["code"] = _mark_code
    return environment


def _mark_code(text: str) -> Markup:
    """Escaped text, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def write_run_report(folder: str | Path, images: bool = True) -> Path:
    """
    Write `report.html` of a single finished run into its folder.

    Args:
        folder (`str` or `Path`): With `metrics.json`, `predictions.jsonl` and `scores.jsonl`.
        images (`bool`, *optional*, defaults to `True`): Embed small images of the worst questions, where their files
            lie on this machine.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If the folder is not that of a finished run (see `read_run_folder`).
    """
    comparison = compare_runs([read_run_folder(folder)])
    return write_whole(Path(folder) / "report.html", render_html(comparison, draw_plots(comparison), images=images))


def report_title(comparison: Comparison) -> str:
    """
    The benchmark, its subset and split in words, such as "SLAKE (en), test split".
    """
    run = comparison.runs[0].run
    subset = f" ({run['subset']})" if run.get("subset") else ""
    return f"{BENCHMARK_TITLES.get(run['benchmark'], run['benchmark'])}{subset}, {run['split']} split"


def render_html(comparison: Comparison, plots: Sequence[Plot], images: bool = True) -> str:
    """
    The page of a comparison.

    Args:
        comparison ([`Comparison`]): From `compare_runs`.
        plots (`Sequence[Plot]`): From `draw_plots`.
        images (`bool`, *optional*, defaults to `True`): Whether to embed the images of the worst questions.
    """
    return _environment().get_template("report.html.jinja").render(_page(comparison, plots, images))


def _page(comparison: Comparison, plots: Sequence[Plot], images: bool) -> dict:
    """What the template fills in."""
    looks = make_looks(comparison.names, [run.system for run in comparison.runs])
    questions = question_sections(comparison.runs, images)
    map_pictures = _map_pictures(comparison) if images else []
    return {
        "title": report_title(comparison),
        "comparison": comparison,
        "num_questions": len(comparison.runs[0].rows),
        "marks": [_mark_svg(look) for look in looks],
        "headlines": headlines(comparison),
        "remarks": remarks(comparison),
        "tables": report_tables(comparison),
        "plots": {section: _svgs(plots, section) for section in SECTIONS_WITH_PLOTS},
        "sight_lines": _sight_lines(comparison),
        "why_no_published": why_no_published(comparison),
        "questions": questions,
        "map_pictures": map_pictures,
        "embeds_images": bool(map_pictures)
        or any(image["address"] for section in questions for card in section["cards"] for image in card["images"]),
        "protocol_lines": protocol_lines(comparison),
        "capitalize": capitalize,
        "format_p": format_p,
    }


def _sight_lines(comparison: Comparison) -> list[str]:
    """What one answer to all would score, and why tables that are not there are missing."""
    lines = constant_lines(comparison)
    if sight_table(comparison) is None:
        lines += missing_sight(comparison)
    if leakage_table(comparison) is None:
        lines += missing_leakage(comparison)
    return lines


def _map_pictures(comparison: Comparison) -> list[str]:
    """The pictures of maps in the folders of runs that measured grounding, as data addresses."""
    paths = [run.path / MAP_PICTURE for run in comparison.runs if "grounding" in run.metrics]
    return [
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in paths if path.is_file()
    ]


def _svgs(plots: Sequence[Plot], section: str) -> list[Markup]:
    return [Markup(to_svg(plot.figure, plot.key, plot.label)) for plot in plots if plot.section == section]


def _mark_svg(look) -> Markup:
    return Markup('<svg class="mark" viewBox="0 0 12 12" aria-hidden="true"><path d="{}" fill="{}"/></svg>').format(
        MARKER_PATHS[look.marker], look.color
    )
