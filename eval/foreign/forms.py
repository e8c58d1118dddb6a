"""
Reads answer files of other systems into rows of one format.

Sources of the formats, as these scripts write them: microsoft/LLaVA-Med `llava/eval/model_vqa_med.py` (v1.0) and
`llava/eval/model_vqa.py` (v1.5), duyhominhnguyen/Exgra-Med `exgra_med/llava/eval/model_vqa_med.py` and
`model_omnimed_vqa_eval.py`, chaoyi-wu/RadFM `src/test.py`, taokz/BiomedGPT `utils/eval_utils.py`.
"""

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.rows import read_file, read_records
from logramed.eval.text_values import to_text


@dataclass(frozen=True)
class Form:
    """
    A file format of a system. `columns` maps `answer` and, if present, `question_id`, `question` and `reference` to
    column names; each row must have them. With `alone`, a file with additional columns does not fit.
    """

    name: str
    columns: dict[str, str]
    alone: bool = False

    def fits(self, columns: Sequence[str]) -> bool:
        """Whether a file with `columns` may have this format."""
        own = set(self.columns.values())
        return own == set(columns) if self.alone else own <= set(columns)


@dataclass(frozen=True)
class ForeignRow:
    """
    One answer of another system, stripped (`None` if missing), and the question's fields in its file, `None` if the
    format has no such column.
    """

    where: str
    answer: str | None
    question_id: str | None = None
    question: str | None = None
    reference: str | None = None


TABLE = {"answer": "prediction", "question_id": "question_id"}
# The first one that fits is used.
FORMS = (
    Form("LLaVA-Med or ExGra-Med answers", {"answer": "text", "question_id": "question_id", "question": "prompt"}),
    Form(
        "ExGra-Med answers to OmniMedVQA",
        {"answer": "model_pred", "question_id": "question_id", "question": "question", "reference": "gt_answer"},
    ),
    Form("RadFM outputs", {"answer": "Pred", "question": "Question", "reference": "Ground Truth"}),
    Form("BiomedGPT answers", {"answer": "answer", "question_id": "question_id"}, alone=True),
    Form("LoGra-Med answers", TABLE | {"question": "question", "reference": "answer"}),
    Form("table with questions", TABLE | {"question": "question"}),
    Form("table", TABLE),
)


def read_rows(path: str | Path) -> tuple[Form, list[ForeignRow]]:
    """
    Detect the format of a file of answers (JSON lines, a JSON list, or CSV with a header); returns it with the rows.
    Raises `ValueError`, with file and row, if the file is missing, empty, broken or in an unknown format, or if a row
    lacks a column or has a value other than text or a number.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    kind = {"[": ".json", "{": ".jsonl"}.get(read_file(path).lstrip()[:1], ".csv")
    records = read_records(path, kind)
    if kind == ".csv":
        records = [(where, {name: cell or None for name, cell in row.items()}) for where, row in records]
    if not records:
        raise ValueError(f"{path} holds no answers.")
    columns = list(records[0][1])
    form = next((form for form in FORMS if form.fits(columns)), None)
    if form is None:
        known = "; ".join(f"{form.name} ({', '.join(form.columns.values())})" for form in FORMS)
        raise ValueError(f"{path} is of no known form: it has the columns {', '.join(columns[:20])}. Known: {known}.")
    return form, [_to_row(form, record, where) for where, record in records]


def _to_row(form: Form, record: dict[str, Any], where: str) -> ForeignRow:
    texts = {}
    for name, column in form.columns.items():
        if column not in record:
            raise ValueError(f"{where} has no `{column}`, unlike the rows before it.")
        texts[name] = _read_cell(record[column], column, where)
    if "question_id" in texts:
        if not texts["question_id"]:
            raise ValueError(f"{where} has no value in `{form.columns['question_id']}`.")
        texts["question_id"] = re.sub(r"^(\d+)\.0$", r"\1", texts["question_id"])  # ids that pandas turned into floats
    if texts["answer"] is not None and texts["answer"].lower() == "nan":  # how pandas writes a missing value
        texts["answer"] = None
    texts |= {name: texts[name] or "" for name in ("question", "reference") if name in texts}
    return ForeignRow(where, **texts)


def _read_cell(value: Any, column: str, where: str) -> str | None:
    """The text of a cell, `None` if missing. RadFM writes batches of one: a Python list with one text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if column in ("Pred", "Question", "Ground Truth") and str(value).startswith("["):
        try:
            (value,) = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{where}, `{column}`: expected a list of one text, got {value!r:.100}.") from error
    try:
        return to_text(value)  # pandas turns 2 into 2.0 if the column has a missing value
    except ValueError as error:
        raise ValueError(f"{where}, `{column}`: {error}.") from error
