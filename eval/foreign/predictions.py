"""Joins the answers of another system to the questions of a benchmark, so that our code can score them."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path, PurePosixPath

from logramed.eval.foreign.forms import ForeignRow, read_rows
from logramed.eval.question_images import list_sources


NUM_SHOWN = 5
IMAGE_PLACEHOLDERS = re.compile(r"</?image\d*>|<im_(?:start|end|patch)>", re.IGNORECASE)
# Texts that the scripts of LLaVA-Med and ExGra-Med add to questions with options.
OPTION_HINTS = re.compile(
    r"\(answer with either\b.*\)\s*\.?\s*$"
    r"|please choose from the following \w+ options:.*$"
    r"|here are \d+ candidate answers:.*$",
    re.IGNORECASE | re.DOTALL,
)
ROLE_BEFORE = re.compile(r"^\s*#*\s*(?:user|human|question|q)\s*:", re.IGNORECASE)
ROLE_AFTER = re.compile(r"(?:^|(?<=\W))#*\s*(?:assistant|answer|a)\s*:\s*$", re.IGNORECASE)
# Texts that pandas reads as a missing value and RadFM then writes as "nan", even if they are correct answers.
MISSING_TO_PANDAS = ("none", "n/a", "na", "null")

Pair = tuple[ForeignRow, dict]


def read_predictions(
    path: str | Path, questions: Sequence[dict], task: str, *, missing_as_empty: bool = False
) -> tuple[dict[str, str], dict]:
    """
    Read another system's answers to `questions`: exactly one for each, or an error that names the rows.

    Formats (see `forms`): answers of LLaVA-Med and ExGra-Med, RadFM's CSV, BiomedGPT's result JSON, and tables of
    `question_id` and `prediction`, such as our `predictions.jsonl`. Rows are joined by id, or by the texts of question
    and correct answer. If a file has the questions, they must match the benchmark's, ignoring option hints, image
    placeholders, role words, whitespace and case. Report prompts are not compared: each system has its own, one for
    all images. Multiple-choice prompts may contain more than the question.

    Returns the answers by `question_id`, in the order of `questions`, and a JSON-serializable description: `file`,
    `form`, `num_rows`, `joined_by`, `num_missing_as_empty` (unanswered questions, counted as empty and thus wrong
    answers) and `notes` for readers of the figures. Raises `ValueError` if the format is unknown; if rows have no
    answer, answer a question that is not in the benchmark or worded differently, or give different answers to one
    question; or if questions have no answer.

    Example:
        >>> import json, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> row = {"question_id": 7, "prompt": "Side?\\n<image>", "text": "Assistant: left"}
        >>> _ = path.write_text(json.dumps(row))
        >>> question = {"question_id": "7", "image": "/data/a.jpg", "question": "Side?", "answer": "left"}
        >>> answers, description = read_predictions(path, [question], "vqa")
        >>> answers, description["joined_by"]
        ({'7': 'Assistant: left'}, 'question_id')
    """
    form, rows = read_rows(path)
    empty = [row.where for row in rows if row.answer is None]
    if empty and not missing_as_empty:
        raise ValueError(
            f"{len(empty)} of {len(rows)} rows have no answer: {_shown(empty)}. Pass `missing_as_empty` to count them "
            "as wrong answers."
        )
    joined_by, of_row, of_question = choose_keys(rows, questions, task)
    pairs, notes = join(rows, questions, joined_by, of_row, of_question)
    if rows[0].question is None:
        notes.append("The file has no questions: only the ids show that its answers are to the benchmark's questions.")
    check_texts(pairs, task)
    answers = {question["question_id"]: row.answer for row, question in pairs if row.answer is not None}
    missing = [question["question_id"] for question in questions if question["question_id"] not in answers]
    if missing and not missing_as_empty:
        raise ValueError(
            f"{path} answers {len(answers)} of {len(questions)} questions. It lacks {_shown(missing)}. Pass "
            "`missing_as_empty` to count these as wrong answers."
        )
    description = {"file": Path(path).name, "form": form.name, "num_rows": len(rows), "joined_by": joined_by}
    description |= {"num_missing_as_empty": len(missing), "notes": notes}
    return {question["question_id"]: answers.get(question["question_id"], "") for question in questions}, description


def choose_keys(
    rows: Sequence[ForeignRow], questions: Sequence[dict], task: str
) -> tuple[str, Callable[[ForeignRow], Hashable], Callable[[dict], Hashable]]:
    """
    Choose the key that joins rows and questions. Returns its name and functions from a row and a question to the key.

    Ids, if they are the benchmark's. Ids and questions, if several questions share an id and the benchmark numbers
    them ("7-1", "7-2"), or if ids are image names, as in PathVQA files. Without ids, questions and correct answers;
    for reports, whose prompts say nothing about the report, only correct answers.
    """
    if rows[0].question_id is None:

        def text_key(question: str, reference: str) -> Hashable:
            return "" if task == "report" else comparable_question(question), comparable_answer(reference)

        return (
            "right answer" if task == "report" else "question and right answer",
            lambda row: text_key(row.question, row.reference),
            lambda question: text_key(question["question"], question["answer"]),
        )
    given = {row.question_id for row in rows}
    if not given <= {question["question_id"] for question in questions} and rows[0].question is not None:
        for kind, name in (("question_id", _unnumbered), ("image", _image_name)):
            if given <= {name(question) for question in questions}:
                return (
                    f"{kind} and question",
                    lambda row: (row.question_id, comparable_question(row.question)),
                    lambda question, name=name: (name(question), comparable_question(question["question"])),
                )
    return "question_id", lambda row: row.question_id, lambda question: question["question_id"]


def _unnumbered(question: dict) -> str:
    return re.sub(r"-\d+$", "", question["question_id"])


def _image_name(question: dict) -> str:
    return PurePosixPath(list_sources(question)[0]).stem


def join(
    rows: Sequence[ForeignRow], questions: Sequence[dict], joined_by: str, of_row: Callable, of_question: Callable
) -> tuple[list[Pair], list[str]]:
    """
    Pair rows and questions with the same key, in order, and note where the order matters. Raises `ValueError` if a row
    has no question, or a key has more rows than questions and their answers differ.
    """
    asked, given = _group(questions, of_question), _group(rows, of_row)
    surplus = [f"{row.where} ({_name(row)})" for key, group in given.items() if key not in asked for row in group]
    if surplus:
        raise ValueError(
            f"{len(surplus)} of {len(rows)} rows answer questions that the benchmark lacks, joined by {joined_by}: "
            f"{_shown(surplus)}. Is the file of another split, subset or copy of the data?"
        )
    num_dropped = num_by_order = 0
    for key, group in given.items():
        other = next((row for row in group if row.answer != group[0].answer), None)
        num_over = len(group) - len(asked[key])
        if num_over > 0 and other is not None:
            raise ValueError(
                f"{other.where} answers {other.answer!r:.100}, but {group[0].where} answers "
                f"{group[0].answer!r:.100} ({_name(other)}). Keep one of them."
            )
        num_dropped += max(0, num_over)
        num_by_order += len(group) if other is not None else 0
    notes = []
    if num_dropped:
        notes.append(f"{num_dropped} rows repeat an answer word for word and were left out.")
    if num_by_order:
        notes.append(
            f"{num_by_order} rows are ambiguous by {joined_by} and were paired in file order: figures of groups and "
            "paired comparisons may depend on it."
        )
    return [both for key, group in given.items() for both in zip(group, asked[key], strict=False)], notes


def _group(items: Sequence, key_of: Callable) -> dict[Hashable, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key_of(item)].append(item)
    return groups


def check_texts(pairs: Sequence[Pair], task: str) -> None:
    """
    Raise `ValueError`, with the first such row, if the question or correct answer of a row differs from that of the
    benchmark's question it was joined to.
    """

    def asks(prompt: str, question: str) -> bool:
        prompt, question = comparable_question(prompt), comparable_question(question)
        return question in prompt if task == "multiple_choice" else question == prompt

    def is_right(reference: str, answer: str) -> bool:
        return comparable_answer(reference) == comparable_answer(answer)

    if task != "report":
        texts = [(row, row.question, question, question["question"]) for row, question in pairs]
        _require_same("question", texts, asks)
    if task != "multiple_choice":  # its correct answer may be a letter or spelled differently from its option
        texts = [(row, row.reference, question, question["answer"]) for row, question in pairs]
        _require_same("right answer", texts, is_right)


def _require_same(name: str, texts: Sequence[tuple], same: Callable[[str, str], bool]) -> None:
    unlike = [told for told in texts if told[1] is not None and not same(told[1], told[3])]
    if unlike:
        row, text, question, expected = unlike[0]
        raise ValueError(
            f"{row.where} has another {name} than the benchmark's question {question['question_id']!r}: {text!r:.200} "
            f"instead of {expected!r:.200}. {len(unlike)} of {len(texts)} rows differ. Is the file shuffled, or from "
            "another split?"
        )


def comparable_question(text: str) -> str:
    """
    The question in a prompt, without option hint, image placeholders, role words, whitespace and case.

    Example:
        >>> comparable_question('Is there a mass? (Answer with either "Yes" or "No").\\n<image>')
        'isthereamass?'
        >>> comparable_question("USER: Is there a mass<image><image0></image>? ASSISTANT:")
        'isthereamass?'
    """
    text = IMAGE_PLACEHOLDERS.sub("", text)
    text = ROLE_AFTER.sub("", ROLE_BEFORE.sub("", text))
    return "".join(unicodedata.normalize("NFKC", OPTION_HINTS.sub("", text)).casefold().split())


def comparable_answer(text: str) -> str:
    """
    A correct answer without whitespace, case and the characters that RadFM removes.

    Example:
        >>> comparable_answer("Left  lung"), comparable_answer("None"), comparable_answer("nan")
        ('leftlung', 'nan', 'nan')
    """
    text = IMAGE_PLACEHOLDERS.sub("", text).replace("•", "")
    text = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return "nan" if text in MISSING_TO_PANDAS else text


def _name(row: ForeignRow) -> str:
    if row.question_id is not None:
        return f"question {row.question_id!r}"
    return f"{IMAGE_PLACEHOLDERS.sub('', row.question)!r}, right answer {row.reference!r:.100}"


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return "; ".join(names[:NUM_SHOWN]) + more
