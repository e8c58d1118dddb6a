"""
The page of a metric's Space: a table to fill in, the figures of its rows, and the card.

A metric's folder travels to the Hub with this file as its `app.py`. `example.json` there holds the table to begin
with; its first row names the columns. Cells of a column of lists have `|` between their parts.
"""

import inspect
import json
from pathlib import Path

import datasets
import evaluate


FOLDER = Path(__file__).parent


def score(folder: Path, columns: list[str], rows: list[list], **options) -> dict:
    """
    The result of the metric in `folder` for a table. Rows without any text are left out, empty answers are not.

    Args:
        folder (`Path`): Of the metric, whose card begins with its name: `# Metric: medical_vqa`.
        columns (`list[str]`), rows (`list[list]`): Inputs of the metric, and their values.
        options: Further arguments of the metric's `compute`.
    """
    metric = load_metric(folder)
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    values = list(zip(*(row for row in rows if any(row)), strict=True)) or [()] * len(columns)
    inputs = {name: list(column) for name, column in zip(columns, values, strict=True)}
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    for name in columns:
        if not isinstance(features[name], datasets.Value):
            inputs[name] = [[part.strip() for part in cell.split("|") if part.strip()] for cell in inputs[name]]
    return metric.compute(**inputs, return_items=True, **options)


def load_metric(folder: Path) -> evaluate.Metric:
    name = read_card(folder).partition("# Metric: ")[2].split()[0]
    return evaluate.load(str(folder / f"{name}.py"))


def read_card(folder: Path) -> str:
    """The card's text, without its metadata."""
    return (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]


def build_page(folder: Path = FOLDER):
    """The page as `gradio.Blocks`. The Space brings gradio in the `sdk_version` of the card; nothing else needs it."""
    import gradio

    columns, *example = json.loads((folder / "example.json").read_text(encoding="utf-8"))
    options = inspect.signature(load_metric(folder).compute).parameters

    def score_or_say_why_not(rows: list[list], *protocol: str) -> dict:
        try:
            return score(folder, columns, rows, **dict(zip(["protocol"], protocol, strict=False)))
        except (TypeError, ValueError) as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks() as page:
        table = gradio.Dataframe(example, headers=columns, type="array", interactive=True, label="One row an answer")
        choices = [gradio.Radio(["strict", "release"], value="strict", label="protocol")] * ("protocol" in options)
        button = gradio.Button("Score", variant="primary")
        result = gradio.JSON(label="Result")
        button.click(score_or_say_why_not, [table, *choices], result, api_name="score")
        gradio.Markdown(read_card(folder))
    return page


if __name__ == "__main__":
    build_page().launch()
