"""Find the questions of a benchmark that name a boxed thing, with its boxes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from logramed.eval.grounding.boxes import Box
from logramed.eval.grounding.names import resolve_labels


@dataclass(frozen=True)
class BoxedQuestion:
    """
    A question row, its group (the thing that it names, or "several"), and the boxes of what it names.
    """

    row: dict
    group: str
    boxes: list[Box] = field(default_factory=list)


def find_boxed_questions(rows: Iterable[dict], boxes: Mapping[str, list[Box]]) -> list[BoxedQuestion]:
    """
    The rows whose question names something with a box in its image; `boxes` are by image path. Raises `ValueError` if
    there is none.
    """
    found = []
    for row in rows:
        of_image = boxes.get(row.get("image", ""), [])  # a row with a list of images has no boxes
        resolved = resolve_labels(row["question"], row["answer"], {box.label for box in of_image})
        if resolved is not None:
            group, labels = resolved
            found.append(BoxedQuestion(row, group, [box for box in of_image if box.label in labels]))
    if not found:
        raise ValueError(
            "`grounding` found no question that names something with a box in its image: names are English, and boxes "
            "come from boxes.json."
        )
    return found
