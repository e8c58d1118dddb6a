"""Questions held out of the training data, and the accuracy on them during training."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from logramed.eval.answering import answer_questions
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers


def score_answers(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, float]:
    """
    Answer `questions` and score the answers by the strict protocol of the `medical_vqa` metric.

    Returns:
        `dict[str, float]`: `closed_accuracy` and `open_recall`, in percent, each only where there are such questions.
    """
    asked = answer_questions(
        model, processor, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=False
    )
    rows, answers = zip(*asked, strict=True)
    scores = evaluate_answers(
        predictions=list(answers),
        references=[row["answer"] for row in rows],
        answer_types=[row["answer_type"] for row in rows],
    )
    return {name: scores[name] for name in ("closed_accuracy", "open_recall") if name in scores}


def questions_of_rows(rows: Iterable[dict]) -> list[dict]:
    """
    Each question of each training row with exactly one image, as a question row of its own.

    An answer of "yes" or "no" makes the question closed, any other open.
    """
    questions = []
    for row in rows:
        if len(row["images"]) != 1:
            continue
        turns = [message for message in row["messages"] if message["role"] != "system"]
        for number, (question, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
            text = _text(answer)
            questions.append(
                {
                    "question_id": f"{row['id']}#{number}",
                    "image": row["images"][0],
                    "question": _text(question),
                    "answer": text,
                    "answer_type": "CLOSED" if text.strip(" .").lower() in ("yes", "no") else "OPEN",
                    "groups": {},
                }
            )
    return questions


def hold_out_turns(rows: Sequence[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """
    Divide the turns (a question and its answer) of training rows into two sets of rows.

    Every row keeps at least one turn for training; an image stays where it is asked about. Same rows, share and seed:
    same division.

    Args:
        rows (`Sequence[dict]`): Training rows.
        share (`float`): Share of all turns that is held out, 0 to 1.
        seed (`int`): Of the draw.

    Returns:
        `tuple[list[dict], list[dict]]`: the rows for training, and the rows of the turns held out, which have the same
        ids, images and system text.
    """
    generator = random.Random(seed)
    candidates = [(number, turn) for number, row in enumerate(rows) for turn in range(_num_turns(row))]
    generator.shuffle(candidates)
    num_wanted = round(share * len(candidates))
    held_out: dict[int, set[int]] = {}
    for number, turn in candidates:
        if sum(map(len, held_out.values())) == num_wanted:
            break
        if len(held_out.get(number, ())) + 1 < _num_turns(rows[number]):
            held_out.setdefault(number, set()).add(turn)
    training = [
        _with_turns(row, [turn for turn in range(_num_turns(row)) if turn not in held_out.get(number, ())])
        for number, row in enumerate(rows)
    ]
    return training, [_with_turns(rows[number], sorted(turns)) for number, turns in sorted(held_out.items())]


def _num_turns(row):
    return sum(message["role"] == "assistant" for message in row["messages"])


def _with_turns(row, turns):
    """`row` with only `turns`; the images, wherever they stood, come first in the first of them."""
    system = [message for message in row["messages"] if message["role"] == "system"]
    dialogue = [message for message in row["messages"] if message["role"] != "system"]
    messages = [
        {"role": message["role"], "content": [part for part in message["content"] if part["type"] != "image"]}
        for turn in turns
        for message in dialogue[2 * turn : 2 * turn + 2]
    ]
    images = [{"type": "image", "text": None} for _ in row["images"]]
    messages[0] = {"role": "user", "content": images + messages[0]["content"]}
    extended = row["extended_answers"]
    return {
        **row,
        "messages": system + messages,
        "extended_answers": None if extended is None else [extended[turn] for turn in turns],
    }


def _text(message):
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")
