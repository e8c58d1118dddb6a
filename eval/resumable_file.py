"""
A JSON lines file that is written line by line and completed by a later run after an interruption, and a file of the
settings that its lines depend on.
"""

import json
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from logramed.eval.files import to_json_line, write_json, write_json_lines, write_whole


def check_settings(
    path: Path, settings: dict[str, Any], files: Sequence[Path], may_change: Collection[str] = ()
) -> bool:
    """
    If `files` have no lines yet, write the `settings` they depend on to `path`. Returns whether it did.

    Raises:
        ValueError: If existing lines depend on other settings, except those in `may_change`, or on unknown ones.
    """
    written = [file for file in files if file.is_file() and file.stat().st_size]
    if not written:
        write_json(path, settings)
        return True
    advice = "Choose another `--output`, or delete that file to start over."
    if not path.is_file():
        raise ValueError(f"{written[0]} exists, but not {path.name}, which has its settings. {advice}")
    former = json.loads(path.read_text(encoding="utf-8"))
    differences = {
        name: f"`{name}` was {former.get(name)!r} and now is {value!r}"
        for name, value in settings.items()
        if former.get(name) != value
    }
    if differences.keys() - may_change:
        raise ValueError(f"{written[0]} holds answers of another run: {'; '.join(differences.values())}. {advice}")
    return False


class ResumableFile:
    """
    One JSON object per line, each with a unique key (from `key_of`, which raises `KeyError` or `TypeError` for a bad
    line); `keys` are the unique keys of all lines, in their final order. `kind` names a line in errors: "answer".

    Lines are appended in any order; `finish` sorts them by `keys`, so that the finished file is the same whether or
    not the run was interrupted.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> file = ResumableFile(path, ["1", "2"], key_of=lambda row: row["id"], kind="answer")
        >>> with file.open_for_append() as write_line:
        ...     write_line({"id": "2", "answer": "left"})
        >>> file.missing(), list(file.finish())
        (['1'], ['2'])
    """

    def __init__(self, path: Path, keys: Sequence[Hashable], key_of: Callable[[dict], Hashable], kind: str):
        self.path = path
        self.keys = keys
        self._key_of = key_of
        self._kind = kind

    def missing(self) -> list:
        """
        The keys without a line in the file. A last line that was cut off while being written is removed.

        Raises:
            ValueError: If a line is malformed, or its key is unknown or repeated.
        """
        written = self.path.read_bytes() if self.path.is_file() else b""
        # Bytes, as a character may be cut off in the middle.
        whole_lines = written[: written.rfind(b"\n") + 1].decode()
        if len(whole_lines.encode()) < len(written):
            write_whole(self.path, whole_lines)
        there = self._read(whole_lines)
        return [key for key in self.keys if key not in there]

    @contextmanager
    def open_for_append(self) -> Iterator[Callable[[dict], None]]:
        """Yields a thread-safe function that appends a line to the file and flushes it."""
        lock = threading.Lock()
        with self.path.open("a", encoding="utf-8") as file:

            def write_line(row: dict) -> None:
                with lock:
                    file.write(to_json_line(row))
                    file.flush()

            yield write_line

    def finish(self) -> dict:
        """Sort the lines of the file by the order of the keys, and return their objects by key."""
        there = self._read(self.path.read_text(encoding="utf-8") if self.path.is_file() else "")
        rows = {key: there[key] for key in self.keys if key in there}
        write_json_lines(self.path, rows.values())
        return rows

    def _read(self, text: str) -> dict:
        asked, there = set(self.keys), {}
        # Not `splitlines`: answers may hold other line separators than "\n".
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            where = f"{self.path}, line {number}"
            try:
                row = json.loads(line)
                key = self._key_of(row)
                was_asked = key in asked
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{where} is not a valid {self._kind}: {line[:80]!r}. Delete the line to ask again."
                ) from error
            if not was_asked:
                raise ValueError(f"{where} is about question {key!r}, which was not asked. Delete the line.")
            if key in there:
                raise ValueError(f"{where} is about question {key!r} a second time. Delete one of the lines.")
            there[key] = row
        return there
