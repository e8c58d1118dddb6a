"""
The files in which other systems write their answers, read into rows of one form.

Sources of the forms, as their scripts write them: microsoft/LLaVA-Med `llava/eval/model_vqa_med.py` (v1.0) and
`llava/eval/model_vqa.py` (v1.5), duyhominhnguyen/Exgra-Med `exgra_med/llava/eval/model_vqa_med.py` and
`model_omnimed_vqa_eval.py`, chaoyi-wu/RadFM `src/test.py`, taokz/BiomedGPT `utils/eval_utils.py`.
"""

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logramed.eval.text_values import to_text


@dataclass(frozen=True)
class Form:
    """
    In which columns a system writes what.

    Args:
        name (`str`): What users call it.
        columns (`tuple[str, ...]`): The columns it is known by. Each row must have them.
        answer (`str`): The column of the system's answers.
        question_id, image, question, reference, dataset (`str`): Columns of what they say, where there are such.
        alone (`bool`): Other columns make it another form.
        note (`str`): What the figures of such a file must mind.
    """

    name: str
    columns: tuple[str, ...]
    answer: str
    question_id: str | None = None
    image: str | None = None
    question: str | None = None
    reference: str | None = None
    dataset: str | None = None
    alone: bool = False
    note: str | None = None

    def fits(self, columns: Sequence[str]) -> bool:
        """Whether a file with `columns` may be of this form."""
        return set(self.columns) <= set(columns) and not (self.alone and len(columns) > len(self.columns))


@dataclass(frozen=True)
class ForeignRow:
    """
    One answer of another system and what its file says of the question.

    Args:
        where (`str`): File and line or row, for errors.
        answer (`str`, *optional*): Without blanks around it. `None` if the file holds none.
        question_id, image, question, reference, dataset (`str`, *optional*): `None` where the form has no such column.
    """

    where: str
    answer: str | None
    question_id: str | None = None
    image: str | None = None
    question: str | None = None
    reference: str | None = None
    dataset: str | None = None


OFFICIAL_FORMS = (
    Form(
        "LLaVA-Med or ExGra-Med answers",
        columns=("question_id", "prompt", "text"),
        answer="text",
        question_id="question_id",
        question="prompt",
    ),
    Form(
        "ExGra-Med answers to OmniMedVQA",
        columns=("question_id", "question", "gt_answer", "model_pred"),
        answer="model_pred",
        question_id="question_id",
        question="question",
        reference="gt_answer",
    ),
    Form(
        "RadFM outputs",
        columns=("Question", "Ground Truth", "Pred"),
        answer="Pred",
        question="Question",
        reference="Ground Truth",
        dataset="belong_to",
    ),
    Form(
        "BiomedGPT answers",
        columns=("question_id", "answer"),
        answer="answer",
        question_id="question_id",
        alone=True,
    ),
    Form(
        "BiomedGPT classes",
        columns=("uniq_id", "answer"),
        answer="answer",
        question_id="uniq_id",
        alone=True,
    ),
    Form(
        "BiomedGPT captions",
        columns=("image_id", "caption"),
        answer="caption",
        image="image_id",
        alone=True,
        note="BiomedGPT writes captions without punctuation: figures that count it as words come out lower.",
    ),
    Form(
        "LoGra-Med predictions",
        columns=("question_id", "question", "answer", "prediction", "groups"),
        answer="prediction",
        question_id="question_id",
        question="question",
        reference="answer",
    ),
)
# `answer` and `text` are not among them: in question files they are the right answer and the question.
TABLE_ANSWERS = ("prediction", "pred", "response")
TABLE_QUESTIONS = ("question", "prompt")


def read_rows(path: str | Path) -> tuple[Form, list[ForeignRow]]:
    """
    Read a file of answers, in whichever known form it is.

    If `answers.jsonl` is not there but `answers-chunk0.jsonl`, `answers-chunk1.jsonl`, ... are (as LLaVA-Med's batch
    script leaves them when stopped before it joins them), these are read in the order of their numbers.

    Args:
        path (`str` or `Path`): JSON lines, a JSON list, or CSV with a header; UTF-8, byte order mark or not.

    Returns:
        `tuple[Form, list[ForeignRow]]`: the form, and the rows in the order of the file. Rows of CSV files are
        counted as spreadsheets do, from 1 for the header.

    Raises:
        ValueError: If the file is missing, empty, broken or of no known form, if its answers may stand in more than
            one column, or if a row lacks a column or holds what is no text or number; with file and row.
    """
    records = [record for file in find_files(Path(path)) for record in read_records(file)]
    if not records:
        raise ValueError(f"{path} holds no answers.")
    form = detect_form(list(records[0][1]), records[0][0])
    return form, [_to_row(form, record, where) for where, record in records]


def find_files(path: Path) -> list[Path]:
    """`path`, or the chunk files that stand for it (see `read_rows`)."""
    if path.is_file():
        return [path]
    name = re.compile(rf"{re.escape(path.stem)}-chunk(\d+){re.escape(path.suffix)}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    chunks = {int(found[1]): file for file in siblings if (found := name.fullmatch(file.name))}
    if not chunks:
        raise ValueError(f"There is no file {path}.")
    missing = sorted(set(range(max(chunks) + 1)) - set(chunks))
    if missing:
        raise ValueError(f"{path} is there in chunks only, and {path.stem}-chunk{missing[0]}{path.suffix} is missing.")
    return [chunks[number] for number in sorted(chunks)]


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects or table rows of a file, each with its place in words. CSV cells are texts, empty ones `None`."""
    try:
        # Not `read_text`, which would make "\n" of the "\r\n" inside quoted cells.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    if not text.strip():
        return []
    return list(_read_json(text, path) if text.lstrip()[0] in "[{" else _read_csv(text, path))


def _read_json(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, value in _parse_json(text, path):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object with fields, got {type(value).__name__}.")
        yield where, value


def _parse_json(text: str, path: Path) -> list[tuple[str, Any]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return _parse_json_lines(text, path)
    if isinstance(content, dict) and isinstance(content.get("pred_dict"), list):
        content = content["pred_dict"]  # ExGra-Med's summary of an OmniMedVQA file: the list stands inside
    if isinstance(content, dict):
        return [(f"{path}, line 1", content)]
    return [(f"{path}, row {number}", value) for number, value in enumerate(content, start=1)]


def _parse_json_lines(text: str, path: Path) -> list[tuple[str, Any]]:
    values = []
    # Not `splitlines`: answers may hold other line separators than "\n".
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}. It begins {line[:40]!r}.") from error
    return values


def _read_csv(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # `strict` refuses a quote that is never closed; otherwise it would swallow all rows after it.
    rows = enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1)
    number = 1
    try:
        header = [name.strip() for name in next(rows)[1]]
        names = [name for name in header if name]  # pandas writes its row numbers under no name
        if len(set(names)) < len(names):
            raise ValueError(f"{path} names a column twice in its header: {', '.join(header)}.")
        for number, cells in rows:
            if not cells:
                continue  # a blank line
            if len(cells) != len(header):
                raise ValueError(f"{path}, row {number} has {len(cells)} cells, but the header has {len(header)}.")
            yield (
                f"{path}, row {number}",
                {name: cell or None for name, cell in zip(header, cells, strict=True) if name},
            )
    except csv.Error as error:
        raise ValueError(f"{path} is broken after row {number}: {error}.") from error


def detect_form(columns: Sequence[str], where: str) -> Form:
    """
    The form of a file whose rows have `columns`.

    Raises:
        ValueError: If there is none, or if the answers may stand in more than one column.

    Example:
        >>> detect_form(["question_id", "prompt", "text", "answer_id", "model_id"], "a.jsonl, line 1").answer
        'text'
        >>> detect_form(["question_id", "prediction", "response"], "a.csv, row 2")
        Traceback (most recent call last):
        ValueError: a.csv, row 2: the answers may stand in `prediction` or `response`. Leave one of these columns.
    """
    official = [form for form in OFFICIAL_FORMS if form.fits(columns)]
    tables = [_table_form(columns, name) for name in TABLE_ANSWERS if {"question_id", name} <= set(columns)]
    forms = {form.answer: form for form in (*tables, *official)}  # of two with one answer column, the official one
    if len(forms) > 1:
        named = " or ".join(f"`{name}`" for name in sorted(forms))
        raise ValueError(f"{where}: the answers may stand in {named}. Leave one of these columns.")
    if not forms:
        known = "; ".join(f"{form.name} ({', '.join(form.columns)})" for form in OFFICIAL_FORMS)
        raise ValueError(
            f"{where} is of no known form: it has the columns {', '.join(columns[:20])}. Known are {known}; and any "
            f"table with `question_id` and one of {', '.join(TABLE_ANSWERS)}."
        )
    return next(iter(forms.values()))


def _table_form(columns: Sequence[str], answer: str) -> Form:
    question = next((name for name in TABLE_QUESTIONS if name in columns), None)
    required = ("question_id", answer) if question is None else ("question_id", answer, question)
    return Form("table", required, answer, question_id="question_id", question=question)


def _to_row(form: Form, record: Mapping[str, Any], where: str) -> ForeignRow:
    lacking = [name for name in form.columns if name not in record]
    if lacking:
        raise ValueError(f"{where} has no {', '.join(f'`{name}`' for name in lacking)}, unlike the rows before it.")
    if form.dataset:
        record = unwrap(record, (*form.columns, form.dataset), where)
    columns = {"question_id": form.question_id, "image": form.image, "question": form.question}
    columns |= {"reference": form.reference, "dataset": form.dataset}
    return ForeignRow(
        where,
        read_answer(record, form.answer, where),
        **{
            name: _read_key(record, name, column, where)
            for name, column in columns.items()
            if column is not None and column in record
        },
    )


def unwrap(record: Mapping[str, Any], columns: Sequence[str], where: str) -> dict[str, Any]:
    """
    The texts in cells that hold Python lists of one text, as RadFM writes its batches of one.

    A row whose question is not wrapped is taken as it stands.

    Example:
        >>> unwrap({"Question": "['Side?']", "Pred": "['']"}, ["Question", "Pred"], "a.csv, row 2")
        {'Question': 'Side?', 'Pred': ''}
    """
    unwrapped = {name: _text_in_list(record[name]) for name in columns if name in record}
    if unwrapped["Question"] is None:
        return dict(record)
    for name, text in unwrapped.items():
        if text is None:
            raise ValueError(
                f"{where}, `{name}`: expected a list of one text, as in `Question` of the row, got "
                f"{record[name]!r:.100}."
            )
    return dict(record) | unwrapped


def _text_in_list(cell: Any) -> str | None:
    if not isinstance(cell, str) or not cell.startswith("["):
        return None
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return None
    one_text = isinstance(values, list) and len(values) == 1 and isinstance(values[0], str)
    return values[0] if one_text else None


def read_answer(record: Mapping[str, Any], column: str, where: str) -> str | None:
    """
    The text of a cell, `None` for a missing value: null, NaN, an empty CSV cell, and the "nan" that pandas writes.

    Example:
        >>> [read_answer({"text": value}, "text", "line 1") for value in (" yes\\n", 2, 2.0, 2.5, "", "nan", None)]
        ['yes', '2', '2', '2.5', '', None, None]
        >>> read_answer({"text": ["yes"]}, "text", "a.jsonl, line 1")
        Traceback (most recent call last):
        ValueError: a.jsonl, line 1, `text`: expected a text, got ['yes'].
    """
    text = _cell_text(record[column], column, where)
    return None if text is None or text.lower() == "nan" else text


def _read_key(record: Mapping[str, Any], name: str, column: str, where: str) -> str:
    text = _cell_text(record[column], column, where) or ""
    if name not in ("question_id", "image"):
        return text
    if not text:
        raise ValueError(f"{where} has no value in `{column}`.")
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text  # ids that pandas made numbers of


def _cell_text(value: Any, column: str, where: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return to_text(value)  # pandas makes 2.0 of 2 when another row of the column has no value
    except ValueError as error:
        raise ValueError(f"{where}, `{column}`: {error}.") from error
