"""Find the boxed things a question names: organs and findings with synonyms, plurals and sides (`names.json`)."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from logramed.eval.metrics.medical_vqa.vqa_scoring import yes_or_no


FILE = Path(__file__).with_name("names.json")
SIDES = ("left", "right")
SEVERAL = "several"  # the group of questions that name more than one thing
# Before a name: "left lung", "upper left of the lung", "left lobe of lung", "left or right lung", "left side of lung".
SIDE_BEFORE = re.compile(
    r"\b(?P<side>left|right)(?: (?:and|or|and/or) (?:the )?(?P<other>left|right))?"
    r"(?:(?: (?:side|lobe|part))? of(?: the)?)? $"
)


@dataclass(frozen=True)
class Thing:
    """
    Something with boxes that a question can name: `name`, its key in `names.json`; the group by which figures are
    broken down; whether it is a finding or an organ; the labels of its boxes, one or two ("Left Lung", "Right Lung");
    and the names that questions use, in lower case singular.
    """

    name: str
    group: str
    is_finding: bool
    labels: tuple[str, ...]
    names: tuple[str, ...]

    def of_side(self, sides: Collection[str]) -> tuple[str, ...]:
        """The labels of these sides; all labels without sides, or if the thing has none."""
        chosen = tuple(label for label in self.labels if label.split()[0].lower() in sides)
        return chosen or self.labels


@dataclass(frozen=True)
class Mention:
    """A thing that a question names, with the labels of the named sides."""

    thing: Thing
    labels: tuple[str, ...]


@cache
def read_things() -> tuple[Thing, ...]:
    """The things of `names.json`."""
    entries = _read_table()["things"].items()
    return tuple(
        Thing(
            name, entry.get("group", name), entry["kind"] == "finding", tuple(entry["labels"]), tuple(entry["names"])
        )
        for name, entry in entries
    )


@cache
def _read_table() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


@cache
def _pattern() -> re.Pattern:
    """Matches any name and its plural, longest first, so that "liver cancer" does not name the liver."""
    names = sorted({name for thing in read_things() for name in thing.names}, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")(?:s|es)?\b")


def find_mentions(question: str) -> list[Mention]:
    """
    The things that a question names, each once, in order of first mention.

    If it names a finding, organs only say where it is and are left out. Sides are the patient's, as in SLAKE's boxes.
    A name after "the organ on the left of" is a landmark, not what is asked about.

    Example:
        >>> [mention.labels for mention in find_mentions("Can pneumonia be observed on the lower left lung?")]
        [('Pneumonia',)]
        >>> [mention.labels for mention in find_mentions("Which is bigger, liver or right kidney?")]
        [('Liver',), ('Right Kidney',)]
    """
    found: dict[Thing, set[str]] = {}
    for thing, sides in _find_names(question):
        found.setdefault(thing, set()).update(sides or SIDES)
    if any(thing.is_finding for thing in found):
        found = {thing: sides for thing, sides in found.items() if thing.is_finding}
    return [Mention(thing, thing.of_side(sides)) for thing, sides in found.items()]


def _find_names(question: str) -> Iterator[tuple[Thing, set[str]]]:
    """Yield each name in a question with the sides before it."""
    text = " ".join(question.lower().split())
    by_name = {name: thing for thing in read_things() for name in thing.names}
    landmark = re.compile(rf"\b(?:{'|'.join(_read_table()['landmarks'])})(?: the)?(?: left| right)? $")
    for match in _pattern().finditer(text):
        before = text[: match.start()]
        if landmark.search(before):
            continue
        side = SIDE_BEFORE.search(before)
        yield by_name[match[1]], {name for name in (side.groups() if side else ()) if name}


def names_a_place(question: str) -> bool:
    """
    Whether a question names a finding and also a place to look for it, such as an organ.

    Example:
        >>> names_a_place("Can mass be observed on the left lung?"), names_a_place("Where is the mass?")
        (True, False)
    """
    kinds = {thing.is_finding for thing, _ in _find_names(question)}
    has_place = False in kinds or any(
        re.search(rf"\b{place}\b", question.lower()) for place in _read_table()["places"]
    )
    return True in kinds and has_place


def resolve_labels(question: str, answer: str, boxed: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """
    The group of a question, and the labels of the boxes that it is about, in its order; `None` if it does not count.

    Everything that it names must be among the labels `boxed` of its image, with at least one side: if a question
    compares liver and spleen and only the liver has a box, weight on the spleen would be wrong. A question whether a
    finding is at a place, answered "no", does not count: its box, if any, is elsewhere. Answers are not searched for
    names: the model reads a question such as "What is the largest organ?" before it has found the organ.

    Example:
        >>> resolve_labels("How many kidneys in this image?", "2", {"Liver", "Right Kidney"})
        ('kidney', ('Right Kidney',))
        >>> resolve_labels("Which is bigger, kidney or spleen?", "Spleen", {"Liver", "Right Kidney"}) is None
        True
    """
    mentions = find_mentions(question)
    labels = [[label for label in mention.labels if label in boxed] for mention in mentions]
    if not mentions or not all(labels):
        return None
    if yes_or_no(answer) == "no" and names_a_place(question):
        return None
    groups = {mention.thing.group for mention in mentions}
    chosen = dict.fromkeys(label for of_mention in labels for label in of_mention)
    return groups.pop() if len(groups) == 1 else SEVERAL, tuple(chosen)
