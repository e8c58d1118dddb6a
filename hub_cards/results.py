"""Result files of training and evaluation, read so that every figure on a card can be traced to its file."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from logramed.eval.comparison.run_folder import RunFolder, last_part, read_run_folder
from logramed.eval.models import fingerprint_model


RUN_RECORD, TRAINING_RESULTS, PLOT = "run.json", "train_metrics.json", "curves.png"
# Endings of names that no id on the Hub has.
DATA_ENDINGS = (".json", ".jsonl", ".yaml", ".yml", ".png", ".jpg", ".parquet", ".tar", ".csv", ".txt")


@dataclass
class Figures:
    """
    The figures that a card shows, each noted with the file and the place in it that it comes from.

    Attributes:
        noted (`list[dict]`): `text` as the card has it, `file` beside the card, `keys` to follow in it, and what its
            value is `multiplied_by` for the text.
    """

    noted: list[dict] = field(default_factory=list)

    def show(self, results: "ResultFile", keys: Iterable[str | int], form: str = "{:,}", factor: float = 1) -> str:
        """
        The value at `keys`, written by `form` and noted.

        Example:
            >>> figures = Figures()
            >>> results = ResultFile("metrics.json", {"overall": {"share": 0.1234}})
            >>> figures.show(results, ["overall", "share"], "{:.1f}", 100)
            '12.3'
            >>> figures.noted[0]["keys"]
            ['overall', 'share']
        """
        keys = list(keys)
        value = results.get(*keys)
        text = form.format(value * factor if factor != 1 else value)
        self.noted.append({"text": text, "file": results.name, "keys": keys, "multiplied_by": factor})
        return text


@dataclass(frozen=True)
class ResultFile:
    """
    A JSON file of results.

    Args:
        name (`str`): Its path in the repository.
        content (`dict`): What it holds there: without paths of this machine.
    """

    name: str
    content: dict

    def get(self, *keys: str | int) -> Any:
        """
        The value that `keys` lead to.

        Raises:
            KeyError: Naming the file and the place, if there is none.
        """
        value = self.content
        for number, key in enumerate(keys):
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise KeyError(f"{self.name} has no {'.'.join(map(str, keys[: number + 1]))}.") from error
        return value

    def has(self, *keys: str | int) -> bool:
        try:
            return self.get(*keys) is not None
        except KeyError:
            return False


def read_results(path: Path, name: str) -> ResultFile:
    """
    A result file as it may travel.

    Raises:
        ValueError: If it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return ResultFile(name, without_local_paths(content))


def without_local_paths(content: Any) -> Any:
    """
    JSON content in which paths of a machine, in values and names, are cut to their last part; ids on the Hub stay.

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
            while short in cut:  # files of one name in different folders
                short, number = f"{without_local_paths(name)} ({number})", number + 1
            cut[short] = without_local_paths(value)
        return cut
    if isinstance(content, list):
        return [without_local_paths(value) for value in content]
    return last_part(content) if isinstance(content, str) and is_local_path(content) else content


def is_local_path(text: str) -> bool:
    """
    Whether a text is a path rather than an id on the Hub or anything else.

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


@dataclass(frozen=True)
class Evaluation:
    """
    One evaluation of the model whose card is made.

    Attributes:
        run (`RunFolder`): As `eval/run.py` wrote it.
        results (`ResultFile`): Its `metrics.json`, in the place where it travels.
    """

    run: RunFolder
    results: ResultFile

    @property
    def benchmark(self) -> str:
        return self.run.run["benchmark"]


def read_evaluations(folders: Iterable[Path], model: Path) -> list[Evaluation]:
    """
    The evaluations in `folders`, which must be of the model as it lies in `model`.

    Raises:
        ValueError: If one is of other weights, is unfinished, or two are of the same questions.
    """
    evaluations: list[Evaluation] = []
    folders = list(folders)
    known = fingerprint_model(str(model)) if folders else ""
    for folder in folders:
        run = read_run_folder(folder)
        fingerprint = run.run.get("model_fingerprint")
        if fingerprint is None or not _is_of_model(fingerprint, known):
            raise ValueError(
                f"{folder} is not an evaluation of the model in {model} as it is now: its `model_fingerprint` is "
                f"{str(fingerprint)[:12]}. Evaluate the model again, or leave this folder out."
            )
        parts = [run.run["benchmark"], run.run.get("subset"), run.run["split"]]
        name = f"evaluation/{'_'.join(part for part in parts if part)}/metrics.json"
        if any(other.results.name == name for other in evaluations):
            raise ValueError(f"{folder} is a second evaluation of {name.split('/')[1]}: name one of them.")
        evaluations.append(Evaluation(run, read_results(Path(folder) / "metrics.json", name)))
    return evaluations


def _is_of_model(fingerprint: str, known: str) -> bool:
    """Whether two fingerprints are of one model, or of one adapter on whatever copy of its base."""
    return fingerprint == known or fingerprint.rpartition("+")[2] == known.rpartition("+")[2]


def find_evaluations(model: Path) -> list[Path]:
    """Folders of finished evaluations in a model's folder or beside it, of that model as it is now."""
    finished = [
        path for parent in (model, model.parent) for path in sorted(parent.glob("evaluation*/**/metrics.json"))
    ]
    if not finished:
        return []
    known = fingerprint_model(str(model))
    runs = {path.parent: json.loads(path.read_text(encoding="utf-8")).get("run", {}) for path in finished}
    return [folder for folder, run in runs.items() if _is_of_model(str(run.get("model_fingerprint")), known)]


def hub_ids(names: Iterable[str]) -> list[str]:
    """Those of `names` that are ids on the Hub, without repetition."""
    ids = [name for name in names if name and PurePath(name).parts[1:] and not is_local_path(name)]
    return list(dict.fromkeys(ids))
