"""The page of this metric's Space, `python app.py`: a table to fill in, the figures of its rows, and the card."""

from pathlib import Path

import evaluate


FOLDER = Path(__file__).parent
COLUMNS = ["predictions", "references", "answer_types"]
EXAMPLE = [
    ["Yes, there is a mass.", "yes", "CLOSED"],
    ["The heart is abnormal", "no", "CLOSED"],
    ["left lung", "left upper lung", "OPEN"],
]


def score(rows: list[list], protocol: str) -> dict:
    """The metric's result for a table of `COLUMNS`. Rows without any text are left out, empty answers are not."""
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    columns = list(zip(*(row for row in rows if any(row)), strict=True)) or [()] * len(COLUMNS)
    inputs = {name: list(column) for name, column in zip(COLUMNS, columns, strict=True)}
    return evaluate.load(str(FOLDER / "medical_vqa.py")).compute(**inputs, protocol=protocol, return_items=True)


def build_page():
    """The page as `gradio.Blocks`. The Space brings gradio in the `sdk_version` of the card; nothing else needs it."""
    import gradio

    def score_or_say_why_not(rows: list[list], protocol: str) -> dict:
        try:
            return score(rows, protocol)
        except (TypeError, ValueError) as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="medical_vqa") as page:
        table = gradio.Dataframe(EXAMPLE, headers=COLUMNS, type="array", interactive=True, label="One row a question")
        protocol = gradio.Radio(["strict", "release"], value="strict", label="protocol")
        button = gradio.Button("Score", variant="primary")
        result = gradio.JSON(label="Result")
        button.click(score_or_say_why_not, [table, protocol], result, api_name="score")
        gradio.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    return page


if __name__ == "__main__":
    build_page().launch()
