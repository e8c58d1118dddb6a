"""A comparison as Markdown, with its plots as pictures beside it."""

from collections.abc import Sequence

from logramed.eval.comparison.html_report import report_title
from logramed.eval.comparison.report_plots import Plot
from logramed.eval.comparison.report_tables import report_tables
from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.summary import headlines, remarks, summary_sentences
from logramed.eval.comparison.tables import Cell, Table, constant_lines, protocol_lines


def render_markdown(comparison: Comparison, plots: Sequence[Plot]) -> str:
    """The text of `comparison.md`; plots are taken to lie in `plots/`."""
    num_systems = len(comparison.runs)
    systems = f"{num_systems} systems" if num_systems > 1 else "1 system"
    parts = [
        f"# {escape(report_title(comparison))}",
        f"{len(comparison.runs[0].rows)} questions, {systems}, strict protocol.",
        _bullets(summary_sentences(comparison, headlines(comparison))),
        _bullets([*remarks(comparison), *constant_lines(comparison)]),
        *(format_table(table) for tables in report_tables(comparison).values() for table in tables),
        "## Plots" if plots else "",
        *(f"![{escape(plot.label)}](plots/{plot.key}.png)" for plot in plots),
        "## How the figures were made",
        _bullets(protocol_lines(comparison)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def format_table(table: Table) -> str:
    """
    A table with its caption as heading and its notes below.

    Example:
        >>> rows = [[Cell("A|B"), Cell("5.0", "of 2", is_strong=True)]]
        >>> print(format_table(Table("Figures", ["system", "recall"], rows)))
        ## Figures
        <BLANKLINE>
        | system | recall |
        | --- | --- |
        | A\\|B | **5.0** of 2 |
    """
    lines = [[escape(column) for column in table.columns], ["---"] * len(table.columns)]
    lines += [[_format_cell(cell) for cell in row] + [""] * (len(table.columns) - len(row)) for row in table.rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([f"## {escape(table.caption)}", text, *(escape(note) for note in table.notes)])


def _format_cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = f"**{text}**" if cell.is_strong else text
    return f"{text} {escape(cell.note)}" if cell.note else text


def escape(text: str) -> str:
    """
    Text that Markdown shows as it is, on one line.

    Example:
        >>> escape("<b>a_b|c*\\nd")
        '&lt;b>a\\\\_b\\\\|c\\\\* d'
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\`*_[]|":
        text = text.replace(character, "\\" + character)
    return text
