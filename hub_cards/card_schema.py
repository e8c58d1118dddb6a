"""Cards checked before an upload: their metadata against a schema, their text for what was not filled in."""

import json
import re
from functools import cache
from pathlib import Path

import jsonschema
import yaml


SCHEMAS = {
    "model": "model",
    "adapter": "adapter",
    "extended_answers": "dataset",
    "predictions": "dataset",
    "metric": "space",
    "demo": "space",
}
# What templates and other programs leave where nobody filled something in.
PLACEHOLDERS = re.compile(
    r"(?i:\[?more information needed\]?|lorem ipsum|your[-_ ]?(?:user)?name|\borg/name\b)|\b(?:TODO|TBD|FIXME)\b"
    # A value that is none; in the midst of a sentence these are words.
    r"|\{\{|\}\}|\{%|(?:\||:|\(|\[)\s*(?:None|nan|NaN|null|undefined)\s*(?:\||\)|\]|$)"
)
CODE_BLOCK = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
NOTICE = "not for clinical use"


def check_card(card: str, kind: str) -> None:
    """
    Refuse a card that is not finished.

    Args:
        card (`str`): `README.md`, with its metadata.
        kind (`str`): `"model"`, `"adapter"`, `"extended_answers"`, `"predictions"`, `"metric"` or `"demo"`.

    Raises:
        ValueError: Naming the key of the metadata, or the line, that is wrong.
    """
    pieces = card.split("---\n", 2)
    if len(pieces) != 3 or pieces[0]:
        raise ValueError("The card does not begin with metadata between two lines of `---`.")
    metadata = yaml.safe_load(pieces[1])
    errors = sorted(_validator(SCHEMAS[kind]).iter_errors(metadata), key=lambda error: list(map(str, error.path)))
    if errors:
        place = ".".join(map(str, errors[0].path)) or "as a whole"
        raise ValueError(f"The metadata of the card are wrong, {place}: {errors[0].message}.")
    front_matter = find_placeholder(pieces[1])
    if front_matter:
        raise ValueError(f"The metadata of the card have a placeholder: {front_matter!r}.")
    body = CODE_BLOCK.sub("", pieces[2])
    placeholder = find_placeholder(body)
    if placeholder:
        raise ValueError(f"The card has a placeholder: {placeholder!r}.")
    if kind != "metric" and NOTICE not in body.lower():
        raise ValueError("The card does not say that it is not for clinical use.")


def find_placeholder(text: str) -> str | None:
    """
    The first line with something that was not filled in, or None.

    Example:
        >>> find_placeholder("- license: mit\\n- data: [More Information Needed]")
        '- data: [More Information Needed]'
    """
    return next((line.strip() for line in text.splitlines() if PLACEHOLDERS.search(line)), None)


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    path = Path(__file__).parent / "schemas" / f"{name}.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))
