"""What the rows of another system's answers and the questions of a benchmark have in common."""

import re
import unicodedata
from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath

from logramed.eval.foreign.forms import ForeignRow
from logramed.eval.question_images import list_sources


IMAGE_PLACEHOLDERS = re.compile(r"</?image\d*>|<im_(?:start|end|patch)>", re.IGNORECASE)
# What the scripts of LLaVA-Med and ExGra-Med add to a question that has options.
OPTION_HINTS = re.compile(
    r"\(answer with either\b.*\)\s*\.?\s*$"
    r"|please choose from the following \w+ options:.*$"
    r"|here are \d+ candidate answers:.*$",
    re.IGNORECASE | re.DOTALL,
)
ROLE_BEFORE = re.compile(r"^\s*#*\s*(?:user|human|question|q)\s*:", re.IGNORECASE)
ROLE_AFTER = re.compile(r"(?:^|(?<=\W))#*\s*(?:assistant|answer|a)\s*:\s*$", re.IGNORECASE)
# What pandas reads as a missing value, and RadFM then writes as "nan": right answers of that text among them.
MISSING_TO_PANDAS = ("none", "n/a", "na", "null")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm")
NUMBER_OF_ID = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Keys:
    """What rows and questions are joined by: its name, and the two functions that give it."""

    fields: str
    of_row: Callable[[ForeignRow], Hashable]
    of_question: Callable[[dict], Hashable]


def choose_keys(rows: Sequence[ForeignRow], questions: Sequence[dict], task: str) -> Keys | None:
    """
    The keys that fit a file, `None` if nothing but the order of rows can join them.

    Ids, where they are the benchmark's. Ids and questions, where the benchmark numbers an id that several questions
    share (see `benchmarks.rows.number_repeated_ids`); images and questions, where ids name images, as those of PathVQA
    files do. Without ids, images, or questions and right answers. The order, where ids are unknown, or where they are
    partly known but row after row asks the same question as the benchmark.
    """
    if rows[0].image is not None:
        depth = _depth(rows[0].image)
        return Keys(
            "image", lambda row: image_name(row.image, depth), lambda row: image_name(list_sources(row)[0], depth)
        )
    if rows[0].question_id is None:
        fields = "right answer" if task == "report" else "question and right answer"
        return Keys(
            fields, lambda row: text_key(row.question, row.reference, task), lambda row: question_key(row, task)
        )
    by_id = Keys("question_id", lambda row: row.question_id, lambda row: row["question_id"])
    given, known = {row.question_id for row in rows}, {question["question_id"] for question in questions}
    if given <= known or rows[0].question is None or task == "report":
        return by_id
    depth = _depth(rows[0].question_id)
    for keys in (_numbered_id_and_question(given), _image_and_question(depth)):
        if {keys.of_row(row)[0] for row in rows} <= {keys.of_question(question)[0] for question in questions}:
            return keys
    return None if not given & known or asks_in_order(rows, questions, task) else by_id


def _numbered_id_and_question(given: Set[str]) -> Keys:
    def name(question: dict) -> str:
        question_id = question["question_id"]
        return question_id if question_id in given else NUMBER_OF_ID.sub("", question_id)

    return Keys(
        "question_id and question",
        lambda row: (row.question_id, comparable_question(row.question)),
        lambda question: (name(question), comparable_question(question["question"])),
    )


def _image_and_question(depth: int) -> Keys:
    return Keys(
        "image and question",
        lambda row: (image_name(row.question_id, depth), comparable_question(row.question)),
        lambda question: (image_name(list_sources(question)[0], depth), comparable_question(question["question"])),
    )


def asks_in_order(rows: Sequence[ForeignRow], questions: Sequence[dict], task: str) -> bool:
    """Whether row after row asks the same question as the benchmark."""
    same = question_check(task)
    return len(rows) == len(questions) and all(
        same(row.question, question["question"]) for row, question in zip(rows, questions, strict=True)
    )


def question_check(task: str) -> Callable[[str, str], bool]:
    """Whether a prompt asks a question: it is the question or, of multiple choice, holds it beside the options."""

    def asks(prompt: str, question: str) -> bool:
        prompt, question = comparable_question(prompt), comparable_question(question)
        return question in prompt if task == "multiple_choice" else question == prompt

    return asks


def comparable_question(text: str) -> str:
    """
    What of a prompt is the question: no option hint, image placeholder, role word, blank or capital letter.

    Example:
        >>> comparable_question('Is there a mass? (Answer with either "Yes" or "No").\\n<image>')
        'isthereamass?'
        >>> comparable_question("Is there a mass ? Please choose from the following two options: [yes, no]")
        'isthereamass?'
        >>> comparable_question("USER: Is there a mass<image><image0></image>? ASSISTANT:")
        'isthereamass?'
    """
    text = IMAGE_PLACEHOLDERS.sub("", text)
    text = ROLE_AFTER.sub("", ROLE_BEFORE.sub("", text))
    return "".join(unicodedata.normalize("NFKC", OPTION_HINTS.sub("", text)).casefold().split())


def comparable_answer(text: str) -> str:
    """
    A right answer without blanks, capital letters and what RadFM takes out of it.

    Example:
        >>> comparable_answer("Left  lung"), comparable_answer("None"), comparable_answer("nan")
        ('leftlung', 'nan', 'nan')
    """
    text = IMAGE_PLACEHOLDERS.sub("", text).replace("•", "")
    text = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return "nan" if text in MISSING_TO_PANDAS else text


def image_name(path: str, depth: int = 1) -> str:
    """
    The last `depth` parts of a path, without the suffix of an image.

    Example:
        >>> image_name("/data/test/test_0273.jpg"), image_name("test_0273"), image_name("CXR1_1/0.png", 2)
        ('test_0273', 'test_0273', 'CXR1_1/0')
    """
    pure = PurePosixPath(path)
    pure = pure.with_suffix("") if pure.suffix.lower() in IMAGE_SUFFIXES else pure
    return "/".join(pure.parts[-depth:])


def _depth(name: str) -> int:
    return len(PurePosixPath(name).parts)


def text_key(question: str, reference: str, task: str) -> Hashable:
    """What question and right answer are joined by; of reports, the right answer alone."""
    # RadFM draws the prompt for a report from a list: it says nothing about which report.
    return ("" if task == "report" else comparable_question(question), comparable_answer(reference))


def question_key(question: dict, task: str) -> Hashable:
    """The `text_key` of a benchmark's question row."""
    return text_key(question["question"], question["answer"], task)
