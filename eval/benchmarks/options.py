"""Options of multiple-choice questions and the correct one."""

from collections.abc import Iterable


def collect_options(texts: Iterable[str | None], where: str, field: str) -> list[str]:
    """
    The unique non-empty texts, stripped, in order. Raises `ValueError` if there are fewer than two.

    Example:
        >>> collect_options([" CT", "MRI ", None, "CT"], "a.json, row 0", "option_A")
        ['CT', 'MRI']
    """
    options = list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))
    if len(options) < 2:
        raise ValueError(f"{where}, `{field}`: expected two options or more, got {options!r}.")
    return options


def match_option(answer: str, options: list[str], where: str, field: str) -> str:
    """
    The option that equals an answer or, if none does, that differs only in whitespace, case or final full stop. Raises
    `ValueError` if no option matches, or several do.

    Example:
        >>> match_option("ct ", ["CT.", "MRI."], "a.json, row 0", "gt_answer")
        'CT.'
    """
    if answer.strip() in options:
        return answer.strip()
    matching = [option for option in options if _normalize(option) == _normalize(answer)]
    if len(matching) != 1:
        raise ValueError(
            f"{where}, `{field}`: {answer!r} is {'more than one' if matching else 'none'} of {options!r}."
        )
    return matching[0]


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(". ")
