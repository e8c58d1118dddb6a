"""The page of this metric's Space, `python app.py`: a table to fill in, the figures of its rows, and the card."""

from pathlib import Path

import evaluate


FOLDER = Path(__file__).parent
COLUMNS = ["predictions", "references"]
EXAMPLE = [
    ["The heart is enlarged. No effusion.", "Cardiomegaly. No pleural effusion or pneumothorax."],
    ["The lungs are clear.", "Small left pleural effusion. The lungs are otherwise clear."],
    ["Endotracheal tube in place.", "The endotracheal tube has been removed."],
]


def score(rows: list[list]) -> dict:
    """The metric's result for a table of `COLUMNS`. Rows without any text are left out, empty reports are not."""
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    columns = list(zip(*(row for row in rows if any(row)), strict=True)) or [()] * len(COLUMNS)
    inputs = {name: list(column) for name, column in zip(COLUMNS, columns, strict=True)}
    return evaluate.load(str(FOLDER / "medical_report.py")).compute(**inputs, return_items=True)


def build_page():
    """The page as `gradio.Blocks`. The Space brings gradio in the `sdk_version` of the card; nothing else needs it."""
    import gradio

    def score_or_say_why_not(rows: list[list]) -> dict:
        try:
            return score(rows)
        except (TypeError, ValueError) as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="medical_report") as page:
        table = gradio.Dataframe(EXAMPLE, headers=COLUMNS, type="array", interactive=True, label="One row a report")
        button = gradio.Button("Score", variant="primary")
        result = gradio.JSON(label="Result")
        button.click(score_or_say_why_not, [table], result, api_name="score")
        gradio.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    return page


if __name__ == "__main__":
    build_page().launch()
