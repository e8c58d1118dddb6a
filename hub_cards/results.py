"""Result files of training and evaluation for cards, without local paths."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from logramed.eval.comparison.run_folder import last_part, read_run_folder
from logramed.eval.models import fingerprint_model


# File name endings that no Hub id has.
DATA_ENDINGS = (".json", ".jsonl", ".yaml", ".yml", ".png", ".jpg", ".parquet", ".tar", ".csv", ".txt")


def read_results(path: Path) -> dict[str, Any]:
    """
    Read a JSON file of results without local paths, ready to publish; empty if there is no such file. Raises
    `ValueError` if it does not hold a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return without_local_paths(content)


def as_json(content: Any) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def without_local_paths(content: Any) -> Any:
    """
    Cut local paths in the values and keys of JSON content to their last part; Hub ids stay.

    Example:
        >>> without_local_paths({"output_dir": "/home/someone/runs/a", "data": {"../data/train.json": "ab12"}})
        {'output_dir': 'a', 'data': {'train.json': 'ab12'}}
        >>> without_local_paths(["org/model", "https://example.org/a/b", "left / right", 3])
        ['org/model', 'https://example.org/a/b', 'left / right', 3]
        >>> without_local_paths({"a/b/train.json": 1, "c/d/train.json": 2})
        {'train.json': 1, 'train.json (2)': 2}
    """
    if isinstance(content, dict):
        cut: dict[str, Any] = {}
        for name, value in content.items():
            short, number = without_local_paths(name), 2
            while short in cut:  # files with the same name in different folders
                short, number = f"{without_local_paths(name)} ({number})", number + 1
            cut[short] = without_local_paths(value)
        return cut
    if isinstance(content, list):
        return [without_local_paths(value) for value in content]
    return last_part(content) if isinstance(content, str) and is_local_path(content) else content


def is_local_path(text: str) -> bool:
    """
    Whether a text is a path rather than a Hub id or anything else.

    Example:
        >>> [is_local_path(text) for text in ("runs/a/b", "C:\\\\runs", "data/train.json")]
        [True, True, True]
        >>> [is_local_path(text) for text in ("org/model", "left / right", "mean")]
        [False, False, False]
    """
    slashes = text.replace("\\", "/")
    if "/" not in slashes or "://" in text or any(letter.isspace() for letter in text):
        return False
    is_hub_id = slashes.count("/") == 1 and not slashes.startswith((".", "~", "/")) and ":" not in slashes
    return not is_hub_id or slashes.lower().endswith(DATA_ENDINGS) or Path(text).exists()


def hub_ids(names: Iterable[str | None]) -> list[str]:
    """The Hub ids among `names`, without duplicates."""
    ids = [name for name in names if name and PurePath(name).parts[1:] and not is_local_path(name)]
    return list(dict.fromkeys(ids))


class Evaluation(NamedTuple):
    """`metrics.json` of an evaluation, without local paths, and its path in the repository."""

    metrics: dict[str, Any]
    file: str


def read_evaluations(model: Path, folders: Iterable[Path] | None = None) -> list[Evaluation]:
    """
    Read evaluations of the model in the folder `model`, matched by the fingerprint of its weights, from `folders` of
    `logramed-eval`; by default the matching ones in and next to `model`. Raises `ValueError` if one of `folders` is
    unfinished or has other weights, or two have the same questions.
    """
    found = [
        path.parent for place in (model, model.parent) for path in sorted(place.glob("evaluation*/**/metrics.json"))
    ]
    paths = found if folders is None else list(folders)
    known = fingerprint_model(str(model)) if paths else ""
    evaluations: dict[str, Evaluation] = {}
    for path in paths:
        metrics = read_results(path / "metrics.json")
        settings = metrics.get("run", {})
        if not _is_same_model(str(settings.get("model_fingerprint")), known):
            if folders is None:
                continue
            raise ValueError(
                f"{path} is not an evaluation of the current model in {model}. Evaluate the model again, or leave "
                "this folder out."
            )
        parts = [settings["benchmark"], settings.get("subset"), settings["split"]]
        name = "_".join(part for part in parts if part)
        if name in evaluations:
            raise ValueError(f"{path} is a second evaluation of {name}: name one of them with `--evaluation`.")
        read_run_folder(path)  # raises if it is unfinished
        evaluations[name] = Evaluation(metrics, f"evaluation/{name}/metrics.json")
    return list(evaluations.values())


def _is_same_model(fingerprint: str, known: str) -> bool:
    """Whether two fingerprints belong to the same model, or the same adapter on any copy of its base."""
    return fingerprint.rpartition("+")[2] == known.rpartition("+")[2]
