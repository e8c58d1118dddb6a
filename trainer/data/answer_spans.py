"""Finds the answers in a rendered conversation: the characters that the model has to write."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


# Private-use characters, which occur in no template and no text.
MARK = "\ue000{}\ue001"
MARK_PATTERN = re.compile("\ue000([0-9]+)\ue001")

Messages = list[dict[str, Any]]
Render = Callable[..., str]
"""Renders messages to text; takes `add_generation_prompt`."""


@dataclass(frozen=True)
class Layout:
    """
    The template's own text around the texts of a conversation of one structure (roles, and kinds of content parts).
    """

    literals: list[str]
    text_numbers: list[int]
    answers: list[tuple[int, int, int, int]]


def clean_messages(messages: Messages) -> Messages:
    """The messages with only role and content parts: Arrow gives image parts a `text` of `None`."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def get_structure(messages: Messages) -> tuple:
    return tuple((message["role"], tuple(part["type"] for part in message["content"])) for message in messages)


def find_layout(messages: Messages, render: Render) -> Layout:
    """
    Finds the layout of messages of this structure by rendering them with marks for texts. An answer begins where the
    generation prompt ends, so the model also learns to write a space or tag that the template puts in between (without
    a generation prompt in the template: at the answer's first character). It ends after the text that the template
    writes at the end of every turn, without trailing whitespace. Raises `ValueError` if the template omits an answer
    or writes it more than once.
    """
    marked, text_numbers_by_message = mark_texts(messages)
    literals, text_numbers = split_at_marks(render(marked))
    answers = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        places = [find_place(number, text_numbers) for number in text_numbers_by_message[index]]
        first, last = min(places), max(places)
        num_before = count_before(literals, text_numbers, first, marked[:index], render)
        num_after = count_after(literals[last + 1], render(marked[: index + 1]))
        answers.append((first, last, num_before, num_after))
    return Layout(literals, text_numbers, answers)


def mark_texts(messages: Messages) -> tuple[Messages, list[list[int]]]:
    """The messages with numbered marks instead of texts, and the numbers of each message."""
    marked, numbers, count = [], [], 0
    for message in messages:
        content, own_numbers = [], []
        for part in message["content"]:
            if part["type"] == "text":
                own_numbers.append(count)
                part = {"type": "text", "text": MARK.format(count)}
                count += 1
            content.append(part)
        marked.append({"role": message["role"], "content": content})
        numbers.append(own_numbers)
    return marked, numbers


def split_at_marks(text: str) -> tuple[list[str], list[int]]:
    pieces = MARK_PATTERN.split(text)
    return pieces[::2], [int(number) for number in pieces[1::2]]


def find_place(text_number: int, text_numbers: list[int]) -> int:
    if text_numbers.count(text_number) != 1:
        raise ValueError(
            f"The chat template must write every answer once, but one is written {text_numbers.count(text_number)} "
            "times. Give the processor a template that writes the text parts of assistant messages."
        )
    return text_numbers.index(text_number)


def count_before(literals: list[str], text_numbers: list[int], first: int, earlier: Messages, render: Render) -> int:
    """Characters between the generation prompt and the answer at place `first`; `earlier` are the messages before."""
    if not earlier:
        return 0
    prompt = render(earlier, add_generation_prompt=True)
    if prompt == render(earlier):
        return 0
    prompt_literals, prompt_numbers = split_at_marks(prompt)
    if prompt_numbers != text_numbers[:first] or not literals[first].startswith(prompt_literals[-1]):
        return 0
    return len(literals[first]) - len(prompt_literals[-1])


def count_after(literal: str, rendered_to_here: str) -> int:
    """Characters of the end of turn in `literal`, the text after an answer; `rendered_to_here` ends with its turn."""
    end_here = split_at_marks(rendered_to_here)[0][-1]
    num_common = next((n for n, (a, b) in enumerate(zip(literal, end_here, strict=False)) if a != b), None)
    end_of_turn = literal[: min(len(literal), len(end_here)) if num_common is None else num_common]
    return len(end_of_turn.rstrip()) or len(end_of_turn)


def locate_answers(rendered: str, messages: Messages, layout: Layout) -> list[tuple[int, int]]:
    """
    Start and end of what the model writes for each answer in `rendered`; `ValueError` if the template changed more of
    a text than the whitespace around it.
    """
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    starts, ends = locate_texts(rendered, [texts[number] for number in layout.text_numbers], layout.literals)
    return [
        (starts[first] - num_before, ends[last] + num_after) for first, last, num_before, num_after in layout.answers
    ]


def locate_texts(rendered: str, texts: list[str], literals: list[str]) -> tuple[list[int], list[int]]:
    starts, ends, position = [], [], 0
    for literal, text in zip(literals, texts, strict=False):
        starts.append(position + len(literal))
        ends.append(starts[-1] + len(text))
        position = ends[-1]
    if rendered == "".join(part for pair in zip(literals, [*texts, ""], strict=True) for part in pair):
        return starts, ends
    # The template trims some texts: whitespace around each may be missing.
    pattern = "".join(
        f"{re.escape(literal)}\\s*({re.escape(text.strip())})\\s*"
        for literal, text in zip(literals, texts, strict=False)
    )
    match = re.fullmatch(pattern + re.escape(literals[-1]), rendered)
    if match is None:
        raise ValueError(
            "The chat template changes the text of messages, so the answers cannot be found in it. Give the "
            "processor a template that writes texts unchanged."
        )
    groups = range(1, len(texts) + 1)
    return [match.start(group) for group in groups], [match.end(group) for group in groups]
