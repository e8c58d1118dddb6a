"""
A comparison or a single run as one self-contained HTML file, and as Markdown.

Questions and answers are escaped: an answer cannot inject HTML.
"""

import base64
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from logramed.eval.benchmarks import BENCHMARKS
from logramed.eval.comparison.grounding_tables import grounding_tables
from logramed.eval.comparison.plots import draw_figures
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import Comparison, compare_runs
from logramed.eval.comparison.summary import baseline_lines, protocol_lines, remarks, summary_sentences
from logramed.eval.comparison.tables import (
    Table,
    all_figures_table,
    bootstrap_table,
    capitalize,
    figures_table,
    group_tables,
    judge_table,
    leakage_table,
    mcnemar_table,
    not_judged_table,
    release_table,
    settings_table,
    sight_table,
)
from logramed.eval.comparison.worst_questions import question_sections
from logramed.eval.files import write_whole


MAP_PICTURE, MATCHED_PICTURE = "grounding.png", "matched_images.png"
MAP_TEXT = "maps of some questions over their images, with the boxes of the things they name"
MATCHED_TEXT = (
    "image regions of some questions, coloured by weight: for the state before the answer, on one scale for all "
    "images of a question (their weights sum to 100%); for a single image also for the question itself"
)
CURVES_PICTURE, CURVES_TEXT = "curves.png", "losses and figures on the validation data, by training step"
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Section:
    """A part of a report: its unique `key`, title, sentences, tables, and pairs of picture and alternative text."""

    key: str
    title: str
    lines: list[str]
    tables: list[Table]
    pictures: list[tuple[str, str]]


def write_run_report(folder: str | Path, images: bool = True) -> Path:
    """
    Write `report.html` for a finished run into its folder. With `images`, it has thumbnails for the worst questions if
    the files are on this machine. Raises `ValueError` like `read_run_folder`.
    """
    comparison = compare_runs([read_run_folder(folder)])
    return write_whole(Path(folder) / "report.html", render_html(comparison, images=images))


def report_title(comparison: Comparison) -> str:
    """Benchmark, subset and split, such as "SLAKE (en), test split"."""
    run = comparison.runs[0].run
    subset = f" ({run['subset']})" if run["subset"] else ""
    return f"{capitalize(BENCHMARKS[run['benchmark']])}{subset}, {run['split']} split"


def report_facts(comparison: Comparison) -> str:
    """The number of questions and the names of the systems."""
    return f"{len(comparison.runs[0].rows)} questions, strict protocol: {', '.join(comparison.names)}"


def report_sections(comparison: Comparison, images: bool) -> list[Section]:
    """The non-empty parts of a report, in order; pictures of the data only with `images`."""
    pictures = {"training": _curves(comparison)}
    if images:
        pictures["grounding"] = _pictures(comparison, "grounding", MAP_PICTURE, MAP_TEXT)
        pictures["matched"] = _pictures(comparison, "matched_images", MATCHED_PICTURE, MATCHED_TEXT)
    to_mind = [*remarks(comparison), *baseline_lines(comparison.runs[0].metrics)]
    tests, sight = (bootstrap_table, mcnemar_table), (sight_table, leakage_table)
    parts = [
        ("summary", "Summary", summary_sentences(comparison), []),
        ("remarks", "Before you quote a figure", to_mind, []),
        ("figures", "Figures", [], [figures_table(comparison)]),
        ("judge", "The judge, and what it did not judge", [], [judge_table(comparison), not_judged_table(comparison)]),
        ("tests", "Are the differences more than chance?", [], [table(comparison) for table in tests]),
        ("sight", "With and without sight, and leakage", [], [table(comparison) for table in sight]),
        ("groups", "Groups", [], group_tables(comparison)),
        ("grounding", "Where the model looks", [], grounding_tables(comparison)),
        ("matched", "What questions are matched to", [], []),
        ("release", "Release protocol and published figures", [], [release_table(comparison)]),
        ("training", "How the model was trained", [], []),
        ("others", "All other figures", [], [all_figures_table(comparison)]),
        ("made", "How the figures were made", protocol_lines(comparison), [settings_table(comparison)]),
    ]
    sections = [
        Section(key, title, lines, [table for table in tables if table], pictures.get(key, []))
        for key, title, lines, tables in parts
    ]
    return [section for section in sections if section.lines or section.tables or section.pictures]


def _curves(comparison: Comparison) -> list[tuple[str, str]]:
    """Training curves of models trained by `trainer/train.py`, if their folders are on this machine."""
    runs = zip(comparison.names, comparison.runs, strict=True)
    folders = [(name, Path(run.run["model"])) for name, run in runs if run.run["model"]]
    return [
        _embed(folder / CURVES_PICTURE, f"{name}: {CURVES_TEXT}")
        for name, folder in folders
        if (folder / CURVES_PICTURE).is_file()
    ]


def _embed(path: Path, text: str) -> tuple[str, str]:
    """A picture as a `data:` URL, and its text."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), text


def _pictures(comparison: Comparison, figure: str, name: str, text: str) -> list[tuple[str, str]]:
    """The pictures `name` of runs that have a `figure`, as `data:` URLs, each with its text."""
    runs = zip(comparison.names, comparison.runs, strict=True)
    paths = [(run_name, run.path / name) for run_name, run in runs if figure in run.metrics]
    return [_embed(path, f"{run_name}: {text}") for run_name, path in paths if path.is_file()]


def render_html(comparison: Comparison, images: bool = True) -> str:
    """The HTML page of a comparison, with or without the images of the worst questions."""
    questions = question_sections(comparison.runs, images)
    sections = report_sections(comparison, images)
    shown = [image["address"] for kind in questions for card in kind["cards"] for image in card["images"]]
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), **options)
    return environment.get_template("report.html.jinja").render(
        title=report_title(comparison),
        facts=report_facts(comparison),
        names=comparison.names,
        sections=sections,
        plot=Markup(draw_figures(comparison)),
        questions=questions,
        embeds_images=any([*shown, *(part.pictures for part in sections if part.key != "training")]),
    )


def render_markdown(comparison: Comparison, keys: Collection[str] | None = None) -> str:
    """The comparison in Markdown, without questions and pictures; only the sections in `keys`, if given."""
    parts = [f"# {escape(report_title(comparison))}", escape(report_facts(comparison))]
    for section in report_sections(comparison, images=False):
        if keys is not None and section.key not in keys:
            continue
        parts += [f"## {section.title}", "\n".join(f"- {escape(line)}" for line in section.lines)]
        parts += [format_table(table) for table in section.tables]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_table(table: Table) -> str:
    """
    A table with its caption as heading and its notes below.

    Example:
        >>> print(format_table(Table("Figures", ["system", "recall"], [["A|B", "5.0 of 2"]])))
        ### Figures
        <BLANKLINE>
        | system | recall |
        | --- | --- |
        | A\\|B | 5.0 of 2 |
    """
    lines = [table.columns, *table.rows]
    text = ["| " + " | ".join(map(escape, line)) + " |" for line in lines]
    text.insert(1, "| " + " | ".join(["---"] * len(table.columns)) + " |")
    return "\n\n".join([f"### {escape(table.caption)}", "\n".join(text), *map(escape, table.notes)])


def escape(text: str) -> str:
    """
    Escape text for Markdown, on one line.

    Example:
        >>> escape("<b>a_b|c*\\nd")
        '&lt;b>a\\\\_b\\\\|c\\\\* d'
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\`*_[]|":
        text = text.replace(character, "\\" + character)
    return text
