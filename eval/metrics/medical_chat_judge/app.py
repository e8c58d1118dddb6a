"""The page of this metric's Space, `python app.py`: a table of replies to fill in, the figures, and the card."""

from pathlib import Path

import evaluate


FOLDER = Path(__file__).parent
COLUMNS = ["predictions", "question_ids", "question_types", "domains", "orders"]
EXAMPLE = [
    ["8 7", "1", "conversation", "chest_xray", "reference_first"],
    ["7 8", "1", "conversation", "chest_xray", "model_first"],
    ["Assistant 1: 9\nAssistant 2: 6", "2", "detailed_description", "histology, gross", "reference_first"],
    ["7/10 8/10", "2", "detailed_description", "histology, gross", "model_first"],
]


def score(rows: list[list], protocol: str) -> dict:
    """The metric's result for a table of `COLUMNS`, domains with commas between. Rows without text are left out."""
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    columns = list(zip(*(row for row in rows if any(row)), strict=True)) or [()] * len(COLUMNS)
    inputs = {name: list(column) for name, column in zip(COLUMNS, columns, strict=True)}
    inputs["domains"] = [[name.strip() for name in cell.split(",") if name.strip()] for cell in inputs["domains"]]
    metric = evaluate.load(str(FOLDER / "medical_chat_judge.py"))
    return metric.compute(**inputs, protocol=protocol, return_items=True)


def build_page():
    """The page as `gradio.Blocks`. The Space brings gradio in the `sdk_version` of the card; nothing else needs it."""
    import gradio

    def score_or_say_why_not(rows: list[list], protocol: str) -> dict:
        try:
            return score(rows, protocol)
        except (TypeError, ValueError) as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="medical_chat_judge") as page:
        table = gradio.Dataframe(EXAMPLE, headers=COLUMNS, type="array", interactive=True, label="One row a reply")
        protocol = gradio.Radio(["strict", "release"], value="strict", label="protocol")
        button = gradio.Button("Score", variant="primary")
        result = gradio.JSON(label="Result")
        button.click(score_or_say_why_not, [table, protocol], result, api_name="score")
        gradio.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    return page


if __name__ == "__main__":
    build_page().launch()
