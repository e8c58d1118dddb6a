"""
Page of a metric's Space: an editable table, the scores of its rows, and the card.

A metric's folder is published with this file as its `app.py`. Its `example.json` holds the initial table, with column
names in the first row. Cells of list columns have `|` between their parts.
"""

import json
from pathlib import Path

import datasets
import evaluate


FOLDER = Path(__file__).parent


def score(folder: Path, columns: list[str], rows: list[list]) -> dict:
    """
    Score a table with the metric in `folder`. Rows without any text are skipped, empty answers are not.

    Args:
        folder (`Path`): Folder of the metric, with one module `medical_*.py` for `evaluate` to load.
        columns (`list[str]`), rows (`list[list]`): Names of the metric's inputs, and their values.
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
    """Build the page as a `gradio.Interface`. The Space has gradio in the `sdk_version` of the card."""
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
