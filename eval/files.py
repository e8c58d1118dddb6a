"""Files that are written whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """
    Write `text` to `path`, which holds what it held before until all of it is written.

    Example:
        >>> import tempfile
        >>> write_whole(Path(tempfile.mkdtemp()) / "a.txt", "text").read_text()
        'text'
    """
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)


def write_json(path: Path, content: dict) -> Path:
    """Write a JSON object (see `write_whole`)."""
    return write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[dict]) -> Path:
    """Write one JSON object a line (see `write_whole`)."""
    return write_whole(path, "".join(to_json_line(row) for row in rows))


def to_json_line(row: dict) -> str:
    """
    Example:
        >>> to_json_line({"answer": "lung"})
        '{"answer": "lung"}\\n'
    """
    return json.dumps(row, ensure_ascii=False) + "\n"
