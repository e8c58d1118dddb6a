"""Answers written by another system, joined to the questions of a benchmark so that our code can score them."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.foreign.forms import ForeignRow, read_rows
from logramed.eval.foreign.keys import (
    IMAGE_PLACEHOLDERS,
    Keys,
    choose_keys,
    comparable_answer,
    comparable_question,
    question_check,
    question_key,
    text_key,
)


CHUNK_NAME = re.compile(r"-chunk\d+(?=\.\w+$)")
NUM_SHOWN = 5

Pair = tuple[ForeignRow, dict]


def read_predictions(
    path: str | Path, questions: Sequence[dict], task: str, *, missing_as_empty: bool = False
) -> tuple[dict[str, str], dict]:
    """
    Read another system's answers to `questions`: exactly one for each, or an error that names the rows.

    Forms (see `forms`): answers of LLaVA-Med and ExGra-Med, RadFM's CSV, BiomedGPT's result JSON, our own
    `predictions.jsonl`, and tables of `question_id` and `prediction`. Rows are joined by their ids or images, or by
    the texts of question and right answer. Where a file says what was asked, it must be what the benchmark asks:
    option hints, image placeholders, role words, blanks and case aside.

    Args:
        path (`str` or `Path`): The file.
        questions: All question rows of the benchmark's split (see `eval/benchmarks`).
        task (`str`): "vqa", "multiple_choice", "chat" or "report". The prompts of reports are not compared: each
            system has its own, one for all images. Those of multiple choice may hold more than the question.
        missing_as_empty (`bool`): Count what the file does not answer as an empty, so wrong, answer.

    Returns:
        `tuple[dict[str, str], dict]`: the answers by `question_id`, in the order of `questions`; and what was read,
        ready for JSON: `file`, `form`, `num_rows`, `joined_by`, `num_missing_as_empty`, and in `notes` what a reader
        of the figures must know.

    Raises:
        ValueError: If the file is of no known form; if rows hold no answer, or answer what was not asked, another
            question than the benchmark's, or one question differently; or if questions have no answer.

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
    notes = [form.note] if form.note else []
    description = {"file": Path(path).name, "form": form.name, "num_rows": len(rows)}
    rows = keep_own_data_set(rows, questions, task, notes)
    if not missing_as_empty:
        check_answers(rows)
    joined_by, pairs = join(rows, questions, task, notes)
    check_texts(pairs, task)
    answers = {question["question_id"]: row.answer for row, question in pairs if row.answer is not None}
    num_missing = len(questions) - len(answers)
    if not missing_as_empty:
        check_complete(answers, questions, Path(path))
    note_all_right(answers, questions, notes)
    description |= {"joined_by": joined_by, "num_missing_as_empty": num_missing, "notes": notes}
    return {question["question_id"]: answers.get(question["question_id"], "") for question in questions}, description


def check_answers(rows: Sequence[ForeignRow]) -> None:
    """Refuse rows that hold no answer: null, NaN or an empty CSV cell, which may be an empty answer or none."""
    empty = [row.where for row in rows if row.answer is None]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(rows)} rows hold no answer: {_shown(empty)}. Pass `missing_as_empty` to count "
            "them as wrong answers."
        )


def check_complete(answers: Mapping[str, str], questions: Sequence[dict], path: Path) -> None:
    """Refuse to go on with questions that have no answer: they would leave the denominator."""
    missing = [question["question_id"] for question in questions if question["question_id"] not in answers]
    if missing:
        whole = CHUNK_NAME.sub("", path.name)
        hint = f" It is one chunk of several: name {whole}, without its number." if whole != path.name else ""
        raise ValueError(
            f"{path} answers {len(answers)} of {len(questions)} questions. It lacks {_shown(missing)}.{hint} "
            "Pass `missing_as_empty` to count these as wrong answers."
        )


def keep_own_data_set(
    rows: Sequence[ForeignRow], questions: Sequence[dict], task: str, notes: list[str]
) -> Sequence[ForeignRow]:
    """
    The rows of the benchmark in a RadFM file of several data sets: those of the one with most of its questions.

    Raises:
        ValueError: If no data set, or more than one, has most of the questions.
    """
    if len({row.dataset for row in rows}) == 1:
        return rows
    asked = {question_key(question, task) for question in questions}
    hits = Counter(row.dataset for row in rows if text_key(row.question, row.reference, task) in asked)
    ranked = hits.most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        found = ", ".join(f"{name} ({hits[name]})" for name in sorted({row.dataset for row in rows}))
        raise ValueError(
            f"The data set of the benchmark cannot be told from `belong_to`; rows that ask its questions: {found}. "
            "Keep the rows of one data set."
        )
    own = ranked[0][0]
    kept = [row for row in rows if row.dataset == own]
    notes.append(f"Of several data sets in the file, {own} was read; {len(rows) - len(kept)} rows of others were not.")
    return kept


def join(rows: Sequence[ForeignRow], questions: Sequence[dict], task: str, notes: list[str]) -> tuple[str, list[Pair]]:
    """
    The rows beside the questions that they answer, and what they were joined by: keys, or the order as a last resort.

    Raises:
        ValueError: If rows cannot be joined.
    """
    keys = choose_keys(rows, questions, task)
    if keys is None:
        return "order, checked by question", _join_by_order(rows, questions, task, notes)
    if keys.fields == "question_id" and rows[0].question is None:
        notes.append("The file does not say what was asked: nothing but the ids says that they are the benchmark's.")
    if keys.fields == "image":
        check_one_question_an_image(questions, keys)
    return keys.fields, pair(rows, questions, keys, notes)


def _join_by_order(rows: Sequence[ForeignRow], questions: Sequence[dict], task: str, notes: list[str]) -> list[Pair]:
    ids = f"{rows[0].question_id!r} and {questions[0]['question_id']!r}, say"
    if len(rows) != len(questions):
        raise ValueError(
            f"{rows[0].where} and all other rows have ids that are not the benchmark's ({ids}), and {len(rows)} rows "
            f"for {len(questions)} questions cannot be joined by order. Is the file of another split, subset or copy "
            "of the data?"
        )
    pairs = list(zip(rows, questions, strict=True))
    check_texts(pairs, task)
    counts = Counter(comparable_question(question["question"]) for question in questions)
    num_alike = sum(count for count in counts.values() if count > 1)
    notes.append(
        f"The ids are not the benchmark's ({ids}): rows were joined by order, and each asks its question. {num_alike} "
        "questions are asked more than once: for these nothing but the order says which is which."
    )
    return pairs


def check_one_question_an_image(questions: Sequence[dict], keys: Keys) -> None:
    """Refuse to join by image alone if several questions are about one."""
    counts = Counter(keys.of_question(question) for question in questions)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"The rows name images, but the benchmark asks more than one question about {_shown(repeated)}: which of "
            "them a row answers cannot be told."
        )


def pair(rows: Sequence[ForeignRow], questions: Sequence[dict], keys: Keys, notes: list[str]) -> list[Pair]:
    """
    Join by keys. Rows and questions of one key are paired in their orders, which is noted where it matters.

    Raises:
        ValueError: If a key of rows is none of the questions', or has more rows than questions, unless all of these
            give the same answer.
    """
    asked, given = _group(questions, keys.of_question), _group(rows, keys.of_row)
    surplus = [row for key, group in given.items() if key not in asked for row in group]
    if surplus:
        names = _shown([f"{row.where} ({_name(row)})" for row in surplus])
        raise ValueError(
            f"{len(surplus)} of {len(rows)} rows answer what the benchmark does not ask, joined by {keys.fields}: "
            f"{names}. Is the file of another split or subset?"
        )
    for key, group in given.items():
        if len(group) > len(asked[key]):
            _check_repeated(group, len(asked[key]), keys.fields)
    note_repeated(given, asked, keys.fields, notes)
    return [both for key, group in given.items() for both in zip(group, asked[key], strict=False)]


def _group(items: Sequence, key_of: Callable[[Any], Hashable]) -> dict[Hashable, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key_of(item)].append(item)
    return groups


def _check_repeated(group: Sequence[ForeignRow], num_asked: int, fields: str) -> None:
    first = group[0]
    other = next((row for row in group if row.answer != first.answer), None)
    if other is not None:
        raise ValueError(
            f"{other.where} answers {other.answer!r:.100} to what {first.where} answers {first.answer!r:.100} "
            f"({_name(first)}); told apart by {fields}, the benchmark has {num_asked} such. Keep as many rows."
        )


def note_repeated(given: dict, asked: dict, fields: str, notes: list[str]) -> None:
    """Note what was dropped as said twice, and what was paired by order alone although that may matter."""
    num_dropped = sum(max(0, len(group) - len(asked[key])) for key, group in given.items())
    if num_dropped:
        notes.append(f"{num_dropped} rows repeat an answer word for word and were left out.")
    by_order = [key for key, group in given.items() if len(asked[key]) > 1 and len({row.answer for row in group}) > 1]
    if not by_order:
        return
    num_rows = sum(len(given[key]) for key in by_order)
    note = (
        f"{num_rows} rows in {len(by_order)} groups are not told apart by {fields} and were paired in the order of "
        "the file: figures of groups and paired comparisons may depend on it."
    )
    unlike = sum(len({_what_counts(question) for question in asked[key]}) > 1 for key in by_order)
    if unlike:
        note += f" In {unlike} of these the right answers, their types or options differ: overall figures may, too."
    notes.append(note)


def _what_counts(question: dict) -> tuple:
    return comparable_answer(question["answer"]), question.get("answer_type"), tuple(question.get("options", ()))


def check_texts(pairs: Sequence[Pair], task: str) -> None:
    """
    Refuse rows whose question or right answer is not that of the benchmark's question they were joined to.

    Raises:
        ValueError: With the first such row, both texts, and how many rows differ.
    """
    if task != "report":
        texts = [(row, row.question, question, question["question"]) for row, question in pairs]
        _refuse_unlike("question", texts, question_check(task))
    if task != "multiple_choice":  # there the right answer may be spelled otherwise than its option, or be a letter
        texts = [(row, row.reference, question, question["answer"]) for row, question in pairs]
        _refuse_unlike("right answer", texts, _same_reference)


def _refuse_unlike(name: str, texts: Sequence[tuple], same: Callable[[str, str], bool]) -> None:
    unlike = [told for told in texts if told[1] is not None and not same(told[1], told[3])]
    if unlike:
        row, text, question, expected = unlike[0]
        raise ValueError(
            f"{row.where} has another {name} than the benchmark's question {question['question_id']!r}: {text!r:.200} "
            f"instead of {expected!r:.200}. So have {len(unlike)} of {len(texts)} rows. Is the file shuffled, or "
            "of another split?"
        )


def _same_reference(reference: str, answer: str) -> bool:
    return comparable_answer(reference) == comparable_answer(answer)


def note_all_right(answers: dict[str, str], questions: Sequence[dict], notes: list[str]) -> None:
    """Note that every answer is the right one, word for word: then the file may be that of the right answers."""
    answered = [question for question in questions if question["question_id"] in answers]
    if len(answered) > 1 and all(answers[question["question_id"]] == question["answer"] for question in answered):
        notes.append("Every answer is the right one, letter for letter: is this the file of the right answers?")


def _name(row: ForeignRow) -> str:
    if row.question_id is not None:
        return f"question {row.question_id!r}"
    if row.image is not None:
        return f"image {row.image!r}"
    return f"{IMAGE_PLACEHOLDERS.sub('', row.question)!r}, right answer {row.reference!r:.100}"


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return "; ".join(names[:NUM_SHOWN]) + more
