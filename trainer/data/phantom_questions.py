"""Questions about phantoms, with short and extended answers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from logramed.trainer.data.phantom_images import MODALITIES, ORGANS, Lesion, Phantom


NUMBER_WORDS = ("none", "one", "two", "three")


@dataclass(frozen=True)
class Attribute:
    """
    An attribute of a phantom that can be asked about, with closed and open questions.

    `closed` maps each question to a function that returns one of its two answers for a phantom; `fact` returns the
    clause from which the extended answer is built.
    """

    question_type: str
    applies: Callable[[Phantom], bool]
    closed: dict[str, Callable[[Phantom], str]]
    open_questions: tuple[str, ...]
    open_answer: Callable[[Phantom], str]
    fact: Callable[[Phantom], str]
    is_about_the_lesion: bool = False


@dataclass(frozen=True)
class Turn:
    """One question about one phantom, with its short and its extended answer."""

    question: str
    answer: str
    extended_answer: str
    answer_type: str
    question_type: str


def _always(phantom: Phantom) -> bool:
    return True


def _has_one_lesion(phantom: Phantom) -> bool:
    return len(phantom.lesions) == 1


def _yes_if(condition: Callable[[Phantom], bool]) -> Callable[[Phantom], str]:
    return lambda phantom: "yes" if condition(phantom) else "no"


def _with_article(modality: str) -> str:
    return f"an {modality}" if modality in ("MRI", "X-ray", "ultrasound") else f"a {modality}"


def _is_question(values: Iterable[str], field: str, template: str) -> dict[str, Callable[[Phantom], str]]:
    """Yes-or-no questions for every value of a field of the phantom."""
    return {
        template.format(value=value, an_image=f"{_with_article(value)} image"): _yes_if(
            lambda phantom, value=value: getattr(phantom, field) == value
        )
        for value in values
    }


def _lesion_attribute(
    question_type: str,
    field: str,
    closed: dict[str, str | None],
    open_questions: tuple[str, ...],
    fact: Callable[[Lesion], str],
) -> Attribute:
    """An attribute of a single lesion; `closed` maps a question to the value it names, or `None` if it names both."""

    def value(phantom: Phantom) -> str:
        return getattr(phantom.lesions[0], field)

    return Attribute(
        question_type=question_type,
        applies=_has_one_lesion,
        closed={
            question: value if asked is None else _yes_if(lambda phantom, asked=asked: value(phantom) == asked)
            for question, asked in closed.items()
        },
        open_questions=open_questions,
        open_answer=value,
        fact=lambda phantom: fact(phantom.lesions[0]),
        is_about_the_lesion=True,
    )


def _count_fact(phantom: Phantom) -> str:
    num_lesions = len(phantom.lesions)
    if num_lesions == 0:
        return "there is no lesion"
    brightness = phantom.lesions[0].brightness
    if num_lesions == 1:
        return f"there is one {phantom.lesions[0].size} {brightness} lesion"
    return f"there are {NUMBER_WORDS[num_lesions]} {brightness} lesions"


def _describe(phantom: Phantom) -> str:
    if not phantom.lesions:
        finding = "no lesion"
    elif len(phantom.lesions) == 1:
        lesion = phantom.lesions[0]
        finding = f"one {lesion.size} {lesion.brightness} lesion {lesion.half} {lesion.side}"
    else:
        finding = f"{NUMBER_WORDS[len(phantom.lesions)]} {phantom.lesions[0].brightness} lesions"
    return f"{phantom.modality} of the {phantom.organ}, {finding}, {'a' if phantom.has_tube else 'no'} tube"


ATTRIBUTES = {
    "modality": Attribute(
        "MODALITY",
        _always,
        _is_question(MODALITIES, "modality", "Is this {an_image}?"),
        ("Which modality is this?", "How was this image taken?"),
        lambda phantom: phantom.modality,
        lambda phantom: f"the modality is {phantom.modality}",
    ),
    "organ": Attribute(
        "ORGAN",
        _always,
        _is_question(ORGANS, "organ", "Does this image show the {value}?"),
        ("Which part of the body is shown?", "What body part is this?"),
        lambda phantom: phantom.organ,
        lambda phantom: f"the part of the body shown is the {phantom.organ}",
    ),
    "lesions": Attribute(
        "PRES",
        _always,
        {
            "Is there a lesion?": _yes_if(lambda phantom: len(phantom.lesions) > 0),
            "Is any lesion visible?": _yes_if(lambda phantom: len(phantom.lesions) > 0),
            "Does the image show a lesion?": _yes_if(lambda phantom: len(phantom.lesions) > 0),
            "Is there more than one lesion?": _yes_if(lambda phantom: len(phantom.lesions) > 1),
        },
        ("How many lesions are there?", "What is the number of lesions?"),
        lambda phantom: NUMBER_WORDS[len(phantom.lesions)],
        _count_fact,
    ),
    "tube": Attribute(
        "PRES",
        _always,
        {
            "Is there a tube?": _yes_if(lambda phantom: phantom.has_tube),
            "Is a tube visible?": _yes_if(lambda phantom: phantom.has_tube),
        },
        ("Which device is visible?", "What device does the image show?"),
        lambda phantom: "a tube" if phantom.has_tube else "no device",
        lambda phantom: "a tube is visible" if phantom.has_tube else "no tube is visible",
    ),
    "side": _lesion_attribute(
        "POS",
        "side",
        {
            "Is the lesion on the left side of the image?": "left",
            "Is the lesion on the right side of the image?": "right",
            "Is the lesion on the left or on the right side?": None,
        },
        ("On which side of the image is the lesion?", "Which side is the lesion on?"),
        lambda lesion: f"the {lesion.size} {lesion.brightness} lesion lies on the {lesion.side} side",
    ),
    "half": _lesion_attribute(
        "POS",
        "half",
        {
            "Is the lesion in the upper half of the image?": "upper",
            "Is the lesion in the lower half of the image?": "lower",
            "Is the lesion in the upper or in the lower half?": None,
        },
        ("In which half of the image is the lesion?", "Which half is the lesion in?"),
        lambda lesion: f"the {lesion.size} {lesion.brightness} lesion lies in the {lesion.half} half",
    ),
    "size": _lesion_attribute(
        "SIZE",
        "size",
        {
            "Is the lesion large?": "large",
            "Is the lesion small?": "small",
            "Is the lesion small or large?": None,
        },
        ("How big is the lesion?", "What is the size of the lesion?"),
        lambda lesion: f"the lesion at the {lesion.half} {lesion.side} is {lesion.size}",
    ),
    "brightness": _lesion_attribute(
        "ATTRIB",
        "brightness",
        {
            "Is the lesion bright?": "bright",
            "Is the lesion dark?": "dark",
            "Is the lesion bright or dark?": None,
        },
        ("How does the lesion look?", "What is the brightness of the lesion?"),
        lambda lesion: f"the lesion at the {lesion.half} {lesion.side} looks {lesion.brightness}",
    ),
    "description": Attribute(
        "OTHER",
        _always,
        {},
        ("Describe the image.", "What does the image show?"),
        _describe,
        lambda phantom: f"the findings are: {_describe(phantom)}",
    ),
}
DESCRIBED_SHARE = 0.25  # of the conversations begin with a description
CLOSED_SHARE = 0.8  # of the questions that have a closed form, at most, since both answers are paired
EXTENDED_TEMPLATES = (
    "in this {modality} image of the {organ}, {fact}.",
    "{fact}, as the {modality} image of the {organ} shows.",
    "looking at the {organ} in this {modality} image, {fact}.",
)


def ask_questions(phantoms: list[Phantom], generator: np.random.Generator) -> list[list[Turn]]:
    """
    Write one conversation for each phantom, four to seven turns long.

    Args:
        phantoms (`list[Phantom]`): The phantoms of one split.
        generator (`np.random.Generator`): Draws questions, their forms and their order.

    Returns:
        `list[list[Turn]]`: the conversations, in the order of `phantoms`. For every closed question, both answers are
        equally frequent.
    """
    asked = [_choose_attributes(phantom, generator) for phantom in phantoms]
    questions: dict[tuple[int, str], str] = {}
    for name, attribute in ATTRIBUTES.items():
        indices = [index for index, names in enumerate(asked) if name in names]
        closed = _pair_closed_questions(attribute, phantoms, indices, generator)
        for index in indices:
            open_question = attribute.open_questions[generator.integers(len(attribute.open_questions))]
            questions[index, name] = closed.get(index, open_question)
    return [
        [_write_turn(ATTRIBUTES[name], questions[index, name], phantom, generator) for name in asked[index]]
        for index, phantom in enumerate(phantoms)
    ]


def describe_phantoms(phantoms: list[Phantom], generator: np.random.Generator) -> list[Turn]:
    """
    Ask for one description of each phantom.

    A model from scratch learns to see from descriptions in a minute, but only slowly from "yes" and "no", so they are
    meant for a first stage of training.
    """
    attribute = ATTRIBUTES["description"]
    return [
        _write_turn(attribute, generator.choice(attribute.open_questions).item(), phantom, generator)
        for phantom in phantoms
    ]


def _choose_attributes(phantom: Phantom, generator: np.random.Generator) -> list[str]:
    """
    The attributes to ask about, in their order.

    A description gives away later answers, which then need no look at the image, so few turns follow it.
    """
    names = [name for name, attribute in ATTRIBUTES.items() if attribute.applies(phantom) and name != "description"]
    if _has_one_lesion(phantom):
        # "The lesion" in a question gives the count away, so the count is often left out, or else asked first.
        dropped = {"lesions"} if generator.random() < 0.4 else set()
        dropped.update(generator.permutation(("modality", "organ", "tube"))[: generator.integers(1, 3)].tolist())
        names = [name for name in names if name not in dropped]
    names = generator.permutation(names).tolist()
    about_the_lesion = [place for place, name in enumerate(names) if ATTRIBUTES[name].is_about_the_lesion]
    if "lesions" in names and about_the_lesion and about_the_lesion[0] < names.index("lesions"):
        first, count = about_the_lesion[0], names.index("lesions")
        names[first], names[count] = names[count], names[first]
    return ["description", *names[:3]] if generator.random() < DESCRIBED_SHARE else names


def _pair_closed_questions(
    attribute: Attribute, phantoms: list[Phantom], indices: list[int], generator: np.random.Generator
) -> dict[int, str]:
    """Give closed questions to about `CLOSED_SHARE` of the phantoms, always to pairs with different answers."""
    waiting = generator.permutation(indices)[: round(CLOSED_SHARE * len(indices))].tolist()
    texts = generator.permutation(list(attribute.closed)).tolist()
    chosen: dict[int, str] = {}
    while texts:
        for text in list(texts):
            first_with_answer: dict[str, int] = {}
            for index in waiting:
                first_with_answer.setdefault(attribute.closed[text](phantoms[index]), index)
            if len(first_with_answer) < 2:
                texts.remove(text)
                continue
            for index in first_with_answer.values():
                chosen[index] = text
                waiting.remove(index)
    return chosen


def _write_turn(attribute: Attribute, question: str, phantom: Phantom, generator: np.random.Generator) -> Turn:
    is_closed = question in attribute.closed
    answer = attribute.closed[question](phantom) if is_closed else attribute.open_answer(phantom)
    template = EXTENDED_TEMPLATES[generator.integers(len(EXTENDED_TEMPLATES))]
    sentence = template.format(modality=phantom.modality, organ=phantom.organ, fact=attribute.fact(phantom))
    extended = f"{answer}, {sentence}" if answer in ("yes", "no") else sentence
    return Turn(
        question=question,
        answer=answer,
        extended_answer=extended[0].upper() + extended[1:],
        answer_type="CLOSED" if is_closed else "OPEN",
        question_type=attribute.question_type,
    )
