"""The answers from which `open_accuracy` tells an open answer apart."""

from collections.abc import Sequence


# VQA-RAD's questions made from a pattern are left out, as the recipe of LLaVA-Med's conversion does.
PHRASE_TYPES = ("freeform", "para")


def training_candidates(training: Sequence[dict]) -> list[str] | None:
    """
    The distinct open answers of training rows in small letters, in their order; `None` if there are none.

    For VQA-RAD these are the 403 of LLaVA-Med's recipe, whose own file was never published.

    Example:
        >>> rows = [{"answer": answer, "answer_type": "OPEN"} for answer in ("Left lung", "left lung", "Liver")]
        >>> training_candidates([*rows, {"answer": "yes", "answer_type": "CLOSED"}])
        ['left lung', 'liver']
    """
    answers = [
        row["answer"].lower()
        for row in training
        if row.get("answer_type") == "OPEN" and row.get("phrase_type", "freeform") in PHRASE_TYPES
    ]
    return list(dict.fromkeys(answers)) or None
