"""Turns of training rows: as single questions, or shuffled."""

import random
from collections.abc import Iterable, Sequence

import torch
from transformers import TrainerCallback

from logramed.eval.question_images import IMAGE_PLACEHOLDER
from logramed.eval.volumes import position_texts, without_position_texts
from logramed.trainer.alignment.node_inputs import images_of_turns


def questions_of_rows(rows: Iterable[dict]) -> list[dict]:
    """
    Makes one question row for each question of the training rows with images, with the images that its turn is about
    (see `images_of_turns`).

    A question with the answer "yes" or "no" is closed, any other is open.
    """
    questions = []
    for row in rows:
        if not row["images"]:
            continue
        turns = [message for message in row["messages"] if message["role"] != "system"]
        ranges = images_of_turns(turns)
        places = [text for message in turns for text in position_texts(message["content"])]
        for number, (question, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
            text = read_text(answer)
            questions.append(
                {
                    "question_id": f"{row['id']}#{number}",
                    **_shown(row["images"], question, ranges[number], places),
                    "answer": text,
                    "answer_type": "CLOSED" if text.strip(" .").lower() in ("yes", "no") else "OPEN",
                    "groups": {},
                }
            )
    return questions


def _shown(images: list, question: dict, place: tuple[int, int], places: list[str]) -> dict:
    """
    The images and the text of a question row; with several images, placeholders mark those in the question. `places`
    are the position texts of all images of the row.
    """
    if len(images) == 1 and places == [""]:
        return {"image": images[0], "question": read_text(question)}
    content = without_position_texts(question["content"])
    texts = [IMAGE_PLACEHOLDER if part["type"] == "image" else part["text"] for part in content]
    shown = {"images": images[slice(*place)], "question": "\n".join(texts)}
    return shown | ({"position_texts": [[text] for text in places[slice(*place)]]} if any(places) else {})


def count_turns(row: dict) -> int:
    return sum(message["role"] == "assistant" for message in row["messages"])


def with_turns(row: dict, turns: Sequence[int]) -> dict:
    """A row of one image with only `turns`, in this order; the image moves to the start of the first one."""
    system = [message for message in row["messages"] if message["role"] == "system"]
    dialogue = [message for message in row["messages"] if message["role"] != "system"]
    parts = [part for message in dialogue for part in message["content"]]
    kept = [
        {**dialogue[place], "content": [part for part in dialogue[place]["content"] if part["type"] == "text"]}
        for turn in turns
        for place in (2 * turn, 2 * turn + 1)
    ]
    kept[0]["content"] = [part for part in parts if part["type"] == "image"] + kept[0]["content"]
    extended = row["extended_answers"]
    return {
        **row,
        "messages": system + kept,
        "extended_answers": None if extended is None else [extended[turn] for turn in turns],
    }


def read_text(message: dict) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


class TurnShuffler:
    """
    Shuffles the turns of each row in each epoch, and keeps the first `max_turns`: for `Dataset.with_transform`, if
    the turns of a conversation are questions that do not build on each other. Rows of several images, such as the
    slices of a volume, stay unchanged.

    The order of a row depends only on the seed, the epoch and the row's id, so that a resumed run, or one with data
    workers, sees the same orders.
    """

    def __init__(self, seed: int, max_turns: int | None = None):
        self.seed, self.max_turns = seed, max_turns
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with persistent workers

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        shuffled = []
        for values in zip(*rows.values(), strict=True):
            row = dict(zip(rows, values, strict=True))
            generator = random.Random(f"{self.seed} {int(self._epoch)} {row['id']}")
            order = list(range(count_turns(row)))
            generator.shuffle(order)
            shuffled.append(row if len(row["images"]) > 1 else with_turns(row, order[: self.max_turns]))
        return {name: [row[name] for row in shuffled] for name in rows}


class SetEpochCallback(TrainerCallback):
    """Passes the epoch on to a `TurnShuffler`."""

    def __init__(self, shuffler: TurnShuffler):
        self.shuffler = shuffler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.shuffler.set_epoch(int(state.epoch or 0))
