"""
The page of a metric's Space: a table to fill in, the figures of its rows, and the card.

A metric's folder travels to the Hub with this file as its `app.py`. `example.json` there holds the table to begin
with; its first row names the columns. Cells of a column of lists have `|` between their parts.
"""

import json
from pathlib import Path

import datasets
import evaluate


FOLDER = Path(__file__).parent


def score(folder: Path, columns: list[str], rows: list[list]) -> dict:
    """
    The result of the metric in `folder` for a table. Rows without any text are left out, empty answers are not.

    Args:
        folder (`Path`): Of the metric, with the one module `medical_....py` that `evaluate` loads.
        columns (`list[str]`), rows (`list[list]`): Inputs of the metric, and their values.
    """
    (module,) = folder.glob("medical_*.py")
    metric = evaluate.load(str(module))
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise ValueError("There is nothing to score: all rows are empty.")
    inputs = {name: list(column) for name, column in zip(columns, zip(*rows, strict=True), strict=True)}
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    for name in columns:
        if not isinstance(features[name], datasets.Value):
            inputs[name] = [[part.strip() for part in cell.split("|") if part.strip()] for cell in inputs[name]]
    return metric.compute(**inputs, return_items=True)


def build_page(folder: Path = FOLDER):
    """The page as `gradio.Interface`. The Space brings gradio in the `sdk_version` of the card."""
    import gradio

    columns, *example = json.loads((folder / "example.json").read_text(encoding="utf-8"))
    return gradio.Interface(
        lambda rows: score(folder, columns, rows),
        gradio.Dataframe(example, headers=columns, type="array", interactive=True, label="One row per answer"),
        gradio.JSON(label="Result"),
        article=(folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2],
        api_name="score",
        flagging_mode="never",
    )


if __name__ == "__main__":
    build_page().launch(show_error=True)
