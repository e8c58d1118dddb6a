"""The study's table: one row per run and split, made from the files that training and evaluation wrote."""

import json
import os
import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from logramed.eval.files import to_json_line, write_whole
from logramed.trainer.study.arms import Run
from logramed.trainer.study.settings import Settings


FIGURES = ("all", "closed", "open")
SIGHTS = {"with_sight": ".jsonl", "without_sight": ".blank_images.jsonl"}
SCORE_NAMES = {"CLOSED": "closed_accuracy", "OPEN": "open_recall"}
# Figures taken from the training log; only runs with an alignment loss log the gradient ratio.
LOGGED = ("gradient_ratio", "alignment_weight", "recall_at_1")
RowKey = tuple[str, str]


class Table:
    """
    Rows as JSON lines in `path`, which need not exist. Thread-safe. Drops an incomplete last line, left by a kill.
    Raises `ValueError` if a run has two rows.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        written = path.read_bytes() if path.is_file() else b""
        whole = written[: written.rfind(b"\n") + 1].decode()
        if len(whole.encode()) < len(written):
            write_whole(path, whole)
        self.rows: dict[RowKey, dict] = {}
        for line in whole.split("\n")[:-1]:  # not `splitlines`, which also splits at other characters
            row = json.loads(line)
            if row_key(row) in self.rows:
                raise ValueError(f"{path} has two rows of {row['run']} ({row['split']}). Delete one of the lines.")
            self.rows[row_key(row)] = row

    def append(self, row: dict) -> None:
        """Write a row to the disk at once; does nothing if the table has it."""
        with self._lock:
            if row_key(row) in self.rows:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_json_line(row))
                file.flush()
                os.fsync(file.fileno())
            self.rows[row_key(row)] = row


def row_key(row: dict) -> RowKey:
    return row["run"], row["split"]


def make_row(
    run: Run,
    split: str,
    settings: Settings,
    record: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Path,
) -> dict[str, Any]:
    """
    The row of a trained and evaluated run, made from its folder's `record`, its `train_metrics.json` (`training`) and
    the folder that `logramed-eval` wrote (`evaluation`).
    """
    scores = {sight: read_scores(evaluation / f"scores{ending}") for sight, ending in SIGHTS.items()}
    images = json.loads((evaluation / "local_paths.json").read_text(encoding="utf-8"))["images"]
    return {
        "run": run.name,
        **{("settings_of" if name == "settings" else name): value for name, value in asdict(run).items()},
        "split": split,
        **{sight: None if found is None else mean_figures(found) for sight, found in scores.items()},
        "by_content": {sight: content_scores(found or []) for sight, found in scores.items()},
        "image_scores": {sight: image_scores(found or [], images) for sight, found in scores.items()},
        **asdict(settings),
        "seconds_per_step": seconds_per_step(training["log_history"]),
        "logged": summarize_log(training["log_history"]),
        **record,
    }


def read_scores(path: Path) -> list[dict] | None:
    """`question_id`, `answer_type` and `score` in percent for each question; `None` if the file does not exist."""
    if not path.is_file():
        return None
    rows = map(json.loads, filter(None, path.read_text(encoding="utf-8").split("\n")))
    return [
        {**row, "score": row["scores"][SCORE_NAMES[row["answer_type"]]]}
        for row in rows
        if SCORE_NAMES[row["answer_type"]] in row["scores"]
    ]


def mean_figures(scores: Sequence[Mapping]) -> dict[str, float | int]:
    """Means over questions in percent, and the number of questions: all, closed (accuracy) and open (recall)."""
    figures: dict[str, float | int] = {}
    for kind in FIGURES:
        found = [row["score"] for row in scores if kind in ("all", row["answer_type"].lower())]
        figures[f"num_{kind}"] = len(found)
        if found:
            figures[kind] = statistics.fmean(found)
    return figures


def image_scores(scores: Sequence[Mapping], images: Mapping[str, str]) -> dict[str, dict[str, list[float]]]:
    """
    For closed and for open questions: the sum of the scores, in percent, and their number for each image, to compute
    intervals. Image names include their folder, since all of SLAKE's are called "source.jpg".
    """
    return {
        kind.lower(): sum_scores(
            ("/".join(Path(images[row["question_id"]]).parts[-2:]), row["score"])
            for row in scores
            if row["answer_type"] == kind
        )
        for kind in SCORE_NAMES
    }


def content_scores(scores: Sequence[Mapping]) -> dict[str, list[float]]:
    """Sum of scores and their number for each content type; empty if the data has none."""
    name = "content_type"
    return sum_scores((row["groups"][name], row["score"]) for row in scores if name in row.get("groups", {}))


def sum_scores(scores: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """The sum and number of scores for each name."""
    sums: dict[str, list[float]] = {}
    for name, score in scores:
        total = sums.setdefault(name, [0.0, 0])
        total[0] += score
        total[1] += 1
    return {name: [round(total, 3), count] for name, (total, count) in sorted(sums.items())}


def seconds_per_step(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean time of a training step, as transformers reports it at the end."""
    ends = [entry for entry in log if "train_runtime" in entry]
    return ends[-1]["train_runtime"] / ends[-1]["step"] if ends and ends[-1]["step"] else None


def summarize_log(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """First, mean and last value of each logged figure whose name holds one of `LOGGED`."""
    values: dict[str, list[float]] = {}
    for entry in log:
        for name, value in entry.items():
            if any(part in name for part in LOGGED) and isinstance(value, int | float):
                values.setdefault(name, []).append(float(value))
    return {
        name: {"first": found[0], "mean": statistics.fmean(found), "last": found[-1]} for name, found in values.items()
    }
