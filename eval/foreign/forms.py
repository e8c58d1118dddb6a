"""
The files in which other systems write their answers, read into rows of one form.

Sources of the forms, as their scripts write them: microsoft/LLaVA-Med `llava/eval/model_vqa_med.py` (v1.0) and
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
    In which `columns` a system writes what: that of `answer` and, where there are such, of `question_id`, `question`
    and `reference`; each row must have them. Other columns make it another form if these stand `alone`.
    """

    name: str
    columns: dict[str, str]
    alone: bool = False

    def fits(self, columns: Sequence[str]) -> bool:
        """Whether a file with `columns` may be of this form."""
        own = set(self.columns.values())
        return own == set(columns) if self.alone else own <= set(columns)


@dataclass(frozen=True)
class ForeignRow:
    """
    One answer of another system, without blanks around it (`None` if there is none), and what its file says of the
    question, `None` where the form has no such column.
    """

    where: str
    answer: str | None
    question_id: str | None = None
    question: str | None = None
    reference: str | None = None


TABLE = {"answer": "prediction", "question_id": "question_id"}
# The first that fits is taken.
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
    The rows of a file of answers (JSON lines, a JSON list, or CSV with a header), in whichever known form it is, and
    that form. Raises `ValueError`, with file and row, if the file is missing, empty, broken or of no known form, or if
    a row lacks a column or holds what is no text or number.
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
        texts["question_id"] = re.sub(r"^(\d+)\.0$", r"\1", texts["question_id"])  # ids that pandas made numbers of
    if texts["answer"] is not None and texts["answer"].lower() == "nan":  # pandas' word for a missing value
        texts["answer"] = None
    texts |= {name: texts[name] or "" for name in ("question", "reference") if name in texts}
    return ForeignRow(where, **texts)


def _read_cell(value: Any, column: str, where: str) -> str | None:
    """The text of a cell, `None` for a missing value. RadFM writes batches of one: a Python list of one text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if column in ("Pred", "Question", "Ground Truth") and str(value).startswith("["):
        try:
            (value,) = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{where}, `{column}`: expected a list of one text, got {value!r:.100}.") from error
    try:
        return to_text(value)  # pandas makes 2.0 of 2 when another row of the column has no value
    except ValueError as error:
        raise ValueError(f"{where}, `{column}`: {error}.") from error
