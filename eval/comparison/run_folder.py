"""Reads the output folder of `eval/run.py` for `eval/compare.py`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from logramed.eval.benchmarks.rows import parse_json, read_records


MAIN_FIGURES = {
    "vqa": ("open_recall", "closed_accuracy"),
    "multiple_choice": ("accuracy",),
    "chat": ("relative_score",),
    "report": ("rouge_l",),
}
AVERAGE = "average"  # of open recall and closed accuracy, as in the papers' tables
BINARY_FIGURES = ("closed_accuracy", "open_exact_match", "accuracy")  # 0 or 100 for each question
SAME_SETTINGS = ("benchmark", "split", "subset", "limit", "data_fingerprint")  # in all runs of one comparison
SAME_JUDGE = ("model", "prompt_fingerprint")  # scores of different judges cannot be compared


@dataclass(frozen=True)
class RunFolder:
    """The questions, answers and scores of one run."""

    path: Path
    metrics: dict  # content of `metrics.json`
    rows: dict[str, dict]  # question rows with `prediction`, by question id, in the benchmark's order
    # The figures of each question in percent, strict protocol, without those that do not apply to it.
    scores: dict[str, dict[str, float]]
    blank_scores: dict[str, dict[str, float]] | None = None  # the same with blank images
    images: dict[str, list[str]] = field(default_factory=dict)  # paths on this machine
    image_ids: dict[str, str] = field(default_factory=dict)  # empty for reports: the bootstrap draws single reports

    @property
    def run(self) -> dict:
        """The settings."""
        return self.metrics["run"]

    @property
    def task(self) -> str:
        return self.metrics["task"]

    @property
    def system(self) -> str:
        """`system` in the settings, or the name of the model (and adapter) or of the predictions file."""
        if self.run.get("system"):
            return self.run["system"]
        if self.run["model"]:
            return " + ".join(last_part(name) for name in (self.run["model"], self.run.get("adapter")) if name)
        return PurePath(self.run["predictions"]).stem

    @property
    def overall(self) -> dict:
        """The figures under the strict protocol."""
        return self.metrics["overall"]

    @property
    def blank(self) -> dict | None:
        """The same with blank images; `None` if these were not asked about."""
        return self.metrics["blank_images"].get("overall")

    @property
    def release_protocol(self) -> dict | None:
        """The figures under the research release's protocol, in the form of `overall`; `None` if there are none."""
        figures = self.metrics.get("release_protocol", {"missing": ""})
        return None if "missing" in figures else figures

    @property
    def main_figures(self) -> list[str]:
        """The main figures of the task that this run has, including the average of open and closed."""
        return [name for name in (*MAIN_FIGURES[self.task], AVERAGE) if name in self.overall]


def last_part(name: str) -> str:
    """
    The last part of a path (in any OS format) or Hub id.

    Example:
        >>> last_part("/home/someone/models/logramed-7b/"), last_part("org/llava-med"), last_part("C:\\\\runs\\\\a")
        ('logramed-7b', 'llava-med', 'a')
    """
    return PurePath(name.replace("\\", "/")).name


def drawn_units(metrics: dict) -> str:
    """
    The units that the bootstrap for the intervals of `metrics.json` drew, with the number of images.

    Example:
        >>> drawn_units({"interval_unit": "image", "overall": {"num_clusters": 203}})
        '203 images'
    """
    number = metrics["overall"].get("num_clusters")
    return f"{number:,} images" if number else f"{metrics['interval_unit']}s"


def read_run_folder(path: str | Path) -> RunFolder:
    """
    Read `metrics.json`, `predictions.jsonl` and `scores.jsonl`; also `scores.blank_images.jsonl` and
    `local_paths.json` if they exist. Raises `ValueError` if a file is missing or broken, or their questions differ.
    """
    path = Path(path)
    metrics = _read_json(path / "metrics.json")
    if "interval_unit" not in metrics:
        raise ValueError(f"{path / 'metrics.json'} lacks `interval_unit`: an older version wrote it. Run it again.")
    rows = _read_lines(path / "predictions.jsonl")
    scored = _read_scored(path / "scores.jsonl", rows)
    blank, images = path / "scores.blank_images.jsonl", path / "local_paths.json"
    blank_scored = _read_scored(blank, rows) if blank.is_file() else None
    by_image = metrics["interval_unit"] == "image"
    paths = _read_json(images)["images"] if images.is_file() else {}
    return RunFolder(
        path=path,
        metrics=metrics,
        rows=rows,
        scores={key: row["scores"] for key, row in scored.items()},
        blank_scores=blank_scored and {key: row["scores"] for key, row in blank_scored.items()},
        images={key: names if isinstance(names, list) else [names] for key, names in paths.items()},
        image_ids={key: row["image_id"] for key, row in scored.items()} if by_image else {},
    )


def _read_json(path: Path) -> dict:
    return parse_json(path, _require(path).read_text(encoding="utf-8"))


def _require(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the run is not finished. Run logramed-eval again with this folder.")
    return path


def _read_lines(path: Path) -> dict[str, dict]:
    return {row["question_id"]: row for _, row in read_records(_require(path))}


def _read_scored(path: Path, rows: dict[str, dict]) -> dict[str, dict]:
    """The lines of a file of scores, in the order of `rows`."""
    scored = _read_lines(path)
    different = sorted(scored.keys() ^ rows.keys())
    if different:
        raise ValueError(
            f"{path} and predictions.jsonl are not about the same questions: {len(different)} are in only one of "
            f"them, such as {different[:3]}. Run logramed-eval again."
        )
    return {key: scored[key] for key in rows}


def check_same_questions(runs: Sequence[RunFolder]) -> None:
    """
    Raise `ValueError` if two runs differ in task, benchmark, split, subset, limit, judge, or the fingerprint of
    questions, answers and images.
    """
    first = _what_must_agree(runs[0])
    for run in runs[1:]:
        for name, found in _what_must_agree(run).items():
            if found != first[name]:
                raise ValueError(
                    f"{run.path} cannot be compared with {runs[0].path}: `{name}` is {found!r} there and "
                    f"{first[name]!r} here. Compare runs over the same questions, scored in the same way."
                )


def _what_must_agree(run: RunFolder) -> dict:
    judge = run.metrics.get("judge", {})
    return {
        "task": run.task,
        **{name: run.run.get(name) for name in SAME_SETTINGS},
        **{f"judge.{name}": judge.get(name) for name in SAME_JUDGE},
    }


def name_runs(runs: Sequence[RunFolder]) -> list[str]:
    """A unique name for each run: its system, followed by the folder name and then a number if needed."""
    endings = (
        [f" ({run.path.resolve().name})" for run in runs],
        [f", run {number}" for number in range(1, len(runs) + 1)],
    )
    names = [run.system for run in runs]
    for ending in endings:
        counts = Counter(names)
        names = [name + more if counts[name] > 1 else name for name, more in zip(names, ending, strict=True)]
    return names
