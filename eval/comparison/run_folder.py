"""A run folder as `eval/run.py` writes it, read back with checks: what `eval/compare.py` compares."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np


MAIN_FIGURES = {
    "vqa": ("open_recall", "closed_accuracy"),
    "multiple_choice": ("accuracy",),
    "chat": ("relative_score",),
    "report": ("rouge_l",),
}
AVERAGE = "average"  # of open recall and closed accuracy, as the papers' tables have it
BINARY_FIGURES = ("closed_accuracy", "open_exact_match", "accuracy")  # 0 or 100 for each question
SAME_SETTINGS = ("benchmark", "split", "subset", "limit", "data_fingerprint")  # in all runs of one comparison
SAME_JUDGE = ("model", "prompt_fingerprint")  # scores of another judge do not compare
SAME_TEXTS = ("question", "answer", "image", "images")
# Figures in metrics.json and their means over scores.jsonl may differ by rounding only.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class RunFolder:
    """
    One run: what was asked, what was answered and how it scored.

    Attributes:
        path (`Path`): The folder.
        metrics (`dict`): Content of `metrics.json`.
        rows (`dict[str, dict]`): Question rows with `prediction`, by question id, in the benchmark's order.
        scores (`dict[str, dict[str, float]]`): The figures of each question in percent, strict protocol, by question
            id. A figure that does not apply to a question is absent.
        blank_scores (`dict[str, dict[str, float]]`, *optional*): The same of the run without sight.
        images (`dict[str, list[str]]`): Where the images of a question lie on this machine, by question id.
        image_ids (`dict[str, str]`): Which image, or list of images, a question is about, by question id. Empty if
            intervals are not by image.
    """

    path: Path
    metrics: dict
    rows: dict[str, dict]
    scores: dict[str, dict[str, float]]
    blank_scores: dict[str, dict[str, float]] | None = None
    images: dict[str, list[str]] = field(default_factory=dict)
    image_ids: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> dict:
        """The settings."""
        return self.metrics["run"]

    @property
    def task(self) -> str:
        return self.metrics["task"]

    @property
    def system(self) -> str:
        """
        The name of what answered: `system` of the settings, else the last part of the model's folder or Hub id (and
        of the adapter's), or the name of the file of predictions.
        """
        if self.run.get("system"):
            return self.run["system"]
        model, predictions = self.run.get("model"), self.run.get("predictions")
        if model:
            return " + ".join(last_part(name) for name in (model, self.run.get("adapter")) if name)
        return PurePath(last_part(predictions)).stem if predictions else self.path.resolve().name

    @property
    def release_protocol(self) -> dict | None:
        """The figures under the research release's protocol, in the form of `overall`; `None` if there are none."""
        figures = self.metrics.get("release_protocol", {"missing": ""})
        return None if "missing" in figures else figures

    @property
    def training_data_share(self) -> float | None:
        """In percent, or `None` where the user did not give it."""
        return self.run.get("training_data_share")

    @cached_property
    def main_figures(self) -> tuple[str, ...]:
        """The figures this run has of those that count for its task; with both parts, the average too."""
        figures = tuple(name for name in MAIN_FIGURES[self.task] if self.scores_of(name))
        return (*figures, AVERAGE) if self.task == "vqa" and len(figures) == 2 else figures

    def scores_of(self, figure: str) -> dict[str, float]:
        """The score of each question that has this figure, by question id."""
        return {key: scores[figure] for key, scores in self.scores.items() if figure in scores}


def last_part(name: str) -> str:
    """
    The last part of a path or Hub id, whichever machine it comes from.

    Example:
        >>> last_part("/home/someone/models/logramed-7b/"), last_part("org/llava-med"), last_part("C:\\\\runs\\\\a")
        ('logramed-7b', 'llava-med', 'a')
    """
    return PurePath(name.replace("\\", "/")).name


def parts_of(figure: str) -> tuple[str, ...]:
    """
    The figures of single questions that a figure is the mean of: itself, or open recall and closed accuracy.

    Example:
        >>> parts_of("average"), parts_of("accuracy")
        (('open_recall', 'closed_accuracy'), ('accuracy',))
    """
    return MAIN_FIGURES["vqa"] if figure == AVERAGE else (figure,)


def strata_of(scores: dict[str, dict[str, float]], figure: str) -> list[np.ndarray]:
    """
    The scores that a figure is made of: one array for a plain mean, two for the average of open and closed.

    Raises:
        ValueError: If no question has the figure, or one of its two parts.
    """
    strata = [np.array([row[part] for row in scores.values() if part in row]) for part in parts_of(figure)]
    for part, values in zip(parts_of(figure), strata, strict=True):
        if not len(values):
            raise ValueError(f"No question has the figure {part!r}.")
    return strata


def count_of(figures: dict, figure: str) -> int:
    """
    How many questions a figure of `metrics.json` is over.

    Args:
        figures (`dict`): `overall`, or the same form of a group.
        figure (`str`): Its name.

    Raises:
        ValueError: If it has no count.

    Example:
        >>> count_of({"open_recall": 50.0, "num_open": 4}, "open_recall"), count_of({"counts": {"cider": 7}}, "cider")
        (4, 7)
    """
    counts = figures.get("counts", {})
    if figure in counts:
        return counts[figure]
    kind = figure.split("_")[0]
    name = f"num_{kind}" if kind in ("open", "closed") else "num_items"
    if name not in figures:
        raise ValueError(f"The figure {figure!r} has no count: neither `counts` nor `{name}`.")
    return figures[name]


def interval_unit(metrics: dict) -> str:
    """
    What the bootstrap behind the intervals of `metrics.json` drew: "image", "report", or "question" in older files.

    Example:
        >>> interval_unit({"task": "vqa", "interval_unit": "image"}), interval_unit({"task": "vqa"})
        ('image', 'question')
    """
    return metrics.get("interval_unit", "report" if metrics["task"] == "report" else "question")


def drawn_units(metrics: dict) -> str:
    """
    The same in words, with its number where it is not that of the questions.

    Example:
        >>> drawn_units({"task": "vqa", "interval_unit": "image", "overall": {"num_clusters": 203}})
        '203 images'
    """
    number = metrics["overall"].get("num_clusters")
    return f"{number:,} images" if number else f"{interval_unit(metrics)}s"


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_run_folder(path: str | Path) -> RunFolder:
    """
    Read `metrics.json`, `predictions.jsonl` and `scores.jsonl`; `scores.blank_images.jsonl` and `local_paths.json` if
    they are there.

    Raises:
        ValueError: If a file is missing or malformed, or the files do not belong together; with file and line.
    """
    path = Path(path)
    metrics = _read_metrics(path / "metrics.json")
    rows = _read_rows(path / "predictions.jsonl")
    scores = _read_scores(path / "scores.jsonl", rows)
    blank = path / "scores.blank_images.jsonl"
    run = RunFolder(
        path=path,
        metrics=metrics,
        rows=rows,
        scores={key: scores[key] for key in rows},
        blank_scores=_read_scores(blank, rows) if blank.is_file() else None,
        images=_read_images(path / "local_paths.json"),
        image_ids=_read_image_ids(path / "scores.jsonl") if interval_unit(metrics) == "image" else {},
    )
    _check_means(run)
    return run


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a finished run of eval/run.py has it. Run it again there.")
    return path.read_text(encoding="utf-8")


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def _read_metrics(path: Path) -> dict:
    metrics = _read_json(path)
    for name in ("run", "task", "overall"):
        if name not in metrics:
            raise ValueError(f"{path} lacks `{name}`: it is not of this version of eval/run.py. Run it again.")
    if metrics["task"] not in MAIN_FIGURES:
        raise ValueError(f"{path}: `task` must be one of {', '.join(MAIN_FIGURES)}, got {metrics['task']!r}.")
    share = metrics["run"].get("training_data_share")
    if share is not None and not (_is_number(share) and 0 < share <= 100):
        raise ValueError(f"{path}: `training_data_share` must be a percentage above 0 and up to 100, got {share!r}.")
    return metrics


def _read_lines(path: Path, needed: Iterable[str]) -> dict[str, dict]:
    """The objects of a file of JSON lines by their `question_id`."""
    rows = {}
    # Not `splitlines`: answers may hold other line separators than "\n".
    lines = _read_text(path).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON: {line[:80]!r}.") from error
        missing = [name for name in ("question_id", *needed) if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{where} lacks `{missing[0]}`: {line[:80]!r}.")
        if row["question_id"] in rows:
            raise ValueError(f"{where} holds question {row['question_id']!r} a second time.")
        rows[row["question_id"]] = row
    return rows


def _read_rows(path: Path) -> dict[str, dict]:
    return _read_lines(path, ("question", "answer", "prediction"))


def _read_scores(path: Path, rows: dict[str, dict]) -> dict[str, dict[str, float]]:
    scores = {key: row["scores"] for key, row in _read_lines(path, ("scores",)).items()}
    different = sorted(scores.keys() ^ rows.keys())
    if different:
        raise ValueError(
            f"{path} and predictions.jsonl are not about the same questions: {len(different)} stand in one of them "
            f"only, among them {different[:3]}. Run eval/run.py again."
        )
    for key, figures in scores.items():
        for figure, score in figures.items():
            _check_score(f"{path}, question {key!r}", figure, score)
    return scores


def _read_image_ids(path: Path) -> dict[str, str]:
    return {key: row["image_id"] for key, row in _read_lines(path, ("image_id",)).items()}


def _check_score(where: str, figure: str, score: object) -> None:
    if not _is_number(score) or score < 0:
        raise ValueError(f"{where}: `{figure}` must be a number from 0 on, in percent, got {score!r}.")
    if figure in BINARY_FIGURES and score not in (0, 100):
        raise ValueError(f"{where}: `{figure}` must be 0 or 100, got {score!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_images(path: Path) -> dict[str, list[str]]:
    images = _read_json(path).get("images", {}) if path.is_file() else {}
    return {key: paths if isinstance(paths, list) else [paths] for key, paths in images.items()}


def _check_means(run: RunFolder) -> None:
    """The main figures of metrics.json are the means of the scores, or the files are not of one run."""
    for figure in dict.fromkeys((*MAIN_FIGURES[run.task], *run.main_figures)):
        has_scores = figure in run.main_figures
        stated = run.metrics["overall"].get(figure)
        if not has_scores and stated is None:
            continue
        mean = float(np.mean([values.mean() for values in strata_of(run.scores, figure)])) if has_scores else None
        if stated is None or mean is None or abs(stated - mean) > TOLERANCE:
            raise ValueError(
                f"{run.path}: `{figure}` is {stated} in metrics.json, but the mean of scores.jsonl is {mean}. The "
                "files are not of one run: run eval/run.py again."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Several runs
# ---------------------------------------------------------------------------------------------------------------------


def check_same_questions(runs: Sequence[RunFolder]) -> None:
    """
    Refuse runs that cannot be compared.

    Raises:
        ValueError: If a folder is given twice, or two runs differ in task, protocol, benchmark, split, subset, limit,
            data or judge, or in a question, its reference or its image.
    """
    first = runs[0]
    for number, run in enumerate(runs):
        if any(run.path.resolve() == other.path.resolve() for other in runs[:number]):
            raise ValueError(f"{run.path} is given twice.")
        pairs = [(name, first.metrics.get(name), run.metrics.get(name)) for name in ("task", "protocol")]
        pairs += [(name, first.run.get(name), run.run.get(name)) for name in SAME_SETTINGS]
        judges = [one.metrics.get("judge", {}) for one in (first, run)]
        pairs += [(f"judge.{name}", *(judge.get(name) for judge in judges)) for name in SAME_JUDGE]
        for name, expected, found in pairs:
            if expected != found:
                raise ValueError(
                    f"{run.path} cannot be compared with {first.path}: `{name}` is {found!r} there and {expected!r} "
                    "here. Compare runs over the same questions, scored in the same way."
                )
        _check_texts(first, run)


def _check_texts(first: RunFolder, run: RunFolder) -> None:
    different = sorted(first.rows.keys() ^ run.rows.keys())
    if different:
        raise ValueError(
            f"{run.path} cannot be compared with {first.path}: {len(different)} questions stand in one of them only, "
            f"among them {different[:3]}."
        )
    for key, row in first.rows.items():
        for name in SAME_TEXTS:
            if row.get(name) != run.rows[key].get(name):
                raise ValueError(
                    f"{run.path} cannot be compared with {first.path}: `{name}` of question {key!r} is "
                    f"{run.rows[key].get(name)!r} there and {row.get(name)!r} here."
                )


def name_runs(runs: Sequence[RunFolder]) -> list[str]:
    """
    A name for each run, unique: its system; with the share of training data where runs of one system differ in it;
    with the folder's name, and then a number, where that is not enough.
    """
    names = [run.system for run in runs]
    if has_several_shares(runs):
        shares = [run.training_data_share for run in runs]
        names = [
            name if share is None else f"{name}, {share:g}% of the data"
            for name, share in zip(names, shares, strict=True)
        ]
    counts = Counter(names)
    names = [
        f"{name} ({run.path.resolve().name})" if counts[name] > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]
    counts = Counter(names)
    return [f"{name}, run {number}" if counts[name] > 1 else name for number, name in enumerate(names, start=1)]


def has_several_shares(runs: Sequence[RunFolder]) -> bool:
    """Whether runs of one system were trained on different shares of the training data."""
    shares = defaultdict(set)
    for run in runs:
        if run.training_data_share is not None:
            shares[run.system].add(run.training_data_share)
    return any(len(values) > 1 for values in shares.values())
