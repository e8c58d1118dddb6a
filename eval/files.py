"""Atomic file writes, file hashes, and folders that only one process at a time writes to."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def write_whole(path: Path, text: str) -> Path:
    """
    Write `text` to `path` atomically: until all of it is written, the file keeps its old content.

    Example:
        >>> import tempfile
        >>> write_whole(Path(tempfile.mkdtemp()) / "a.txt", "text").read_text()
        'text'
    """
    return write_bytes_whole(path, text.encode())


def write_bytes_whole(path: Path, content: bytes) -> Path:
    """Like `write_whole`, for bytes. Creates the folder; several processes may write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(content)
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, argument: str = "--output") -> Iterator[Path]:
    """
    A temporary folder to write to. It is renamed to `folder` at the end, or deleted on an error. Raises `ValueError`
    like `require_empty`.
    """
    require_empty(folder, argument)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-unfinished-") as unfinished:
        written = Path(unfinished) / "written"
        written.mkdir()
        yield written
        if folder.exists():
            folder.rmdir()
        written.rename(folder)


def require_empty(folder: Path, argument: str = "--output") -> None:
    """Raise `ValueError` if `folder`, the value of `argument`, exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{argument} {folder} is not empty")


def hash_file(path: str | Path) -> bytes:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_json(path: Path, content: dict) -> Path:
    """Write a JSON object (see `write_whole`)."""
    return write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[dict]) -> Path:
    """Write one JSON object per line (see `write_whole`)."""
    return write_whole(path, "".join(to_json_line(row) for row in rows))


def to_json_line(row: dict) -> str:
    """
    Example:
        >>> to_json_line({"answer": "lung"})
        '{"answer": "lung"}\\n'
    """
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextmanager
def only_one_writer(folder: Path) -> Iterator[None]:
    """
    Raise `ValueError` if another process holds the lock on `folder`. A killed process leaves no lock behind.
    """
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"Another run is writing to {folder}. Wait until it has ended, or choose another `--output`."
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
