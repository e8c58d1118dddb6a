"""Cards of data sets: extended answers, and the answers of a model to a benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from huggingface_hub import DatasetCardData

from logramed.eval.comparison.run_folder import read_run_folder
from logramed.hub_cards.evaluation_section import describe_evaluation
from logramed.hub_cards.example_answers import escape_cell
from logramed.hub_cards.model_card import FIGURES_FILE, Card, render
from logramed.hub_cards.results import Evaluation, Figures, ResultFile, hub_ids, read_results, without_local_paths


EXTENDED_NAME, PREDICTIONS_NAME = "extended_answers.jsonl", "predictions.jsonl"
STATISTICS_NAME = "statistics.json"
NUM_EXAMPLES = 3
PREDICTION_FILES = {
    "predictions.jsonl": "the answers",
    "predictions.blank_images.jsonl": "the same model's answers to blank images",
    "scores.jsonl": "the figures of each question",
    "scores.blank_images.jsonl": "the same of the answers to blank images",
    "metrics.json": "the figures over all questions",
}


def write_extended_card(
    folder: Path, repo_id: str, license: str | None, datasets: Sequence[str] = (), language: str = "en"
) -> Card:
    """
    The card of `extended_answers.jsonl` as `logramed-extend` writes it, and what travels with it.

    Raises:
        ValueError: If a line is none of such a file.
    """
    rows = _read_lines(folder / EXTENDED_NAME)
    failures = folder / "extended_answers.failures.jsonl"
    settings = folder / "extended_answers.parts" / "settings.json"
    statistics = count_answers(rows)
    statistics["num_failed_rows"] = len(_read_lines(failures)) if failures.is_file() else 0
    if settings.is_file():
        statistics["settings"] = without_local_paths(json.loads(settings.read_text(encoding="utf-8")))
    results, figures = ResultFile(STATISTICS_NAME, statistics), Figures()
    shown = [
        ("conversations", ["num_rows"]),
        ("extended answers", ["num_answers"]),
        ("words of an answer, median", ["median_words"]),
        ("conversations that failed the checks to the end", ["num_failed_rows"]),
    ]
    model = statistics.get("settings", {}).get("model")
    text = render(
        "extended_answers_card.md.jinja",
        front_matter=_metadata(license, language, ["logramed", "medical", "extended-answers"], len(rows), datasets),
        name=repo_id.rpartition("/")[2],
        data_said=" and ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in hub_ids(datasets))
        or "data that are not named here",
        rows=[{"label": label, "value": figures.show(results, keys)} for label, keys in shown],
        file_name=EXTENDED_NAME,
        examples=[escape_cell(answer) for row in rows[:NUM_EXAMPLES] for answer in _answers(row)[:1]],
        made_by=f"`{model}`" if model else "a model that its record does not name",
        figures_file=FIGURES_FILE,
    )
    files = {EXTENDED_NAME: (folder / EXTENDED_NAME).read_bytes()}
    files[STATISTICS_NAME] = json.dumps(statistics, indent=1).encode() + b"\n"
    files[FIGURES_FILE] = json.dumps(figures.noted, indent=1).encode() + b"\n"
    return Card(text, files)


def count_answers(rows: Sequence[dict]) -> dict:
    """How many rows and answers there are, and how long these are."""
    answers = [answer for row in rows for answer in _answers(row)]
    return {
        "num_rows": len(rows),
        "num_answers": len(answers),
        "median_words": median(len(answer.split()) for answer in answers),
    }


def _answers(row: dict) -> list[str]:
    return [turn["value"] for turn in row["conversations_long"] if turn["from"] == "gpt"]


def _read_lines(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), start=1):
        if not line and number == 1:
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is no JSON: {line[:80]!r}.") from error
        rows.append(row)
    return rows


def write_predictions_card(
    folder: Path, repo_id: str, license: str | None, datasets: Sequence[str] = (), language: str = "en"
) -> Card:
    """
    The card of the answers in a folder of `logramed-eval`, and what travels with it: no image and no local path.

    Raises:
        ValueError: If the folder is not that of a finished evaluation.
    """
    run, figures = read_run_folder(folder), Figures()
    results = read_results(folder / "metrics.json", "metrics.json")
    evaluation = describe_evaluation(Evaluation(run, results), figures)
    there = {name: said for name, said in PREDICTION_FILES.items() if (folder / name).is_file()}
    text = render(
        "predictions_card.md.jinja",
        front_matter=_metadata(
            license, language, ["logramed", "medical", "predictions", run.run["benchmark"]], len(run.rows), datasets
        ),
        name=repo_id.rpartition("/")[2],
        system=f"`{run.system}`",
        evaluation=evaluation,
        files=[{"label": name, "value": said} for name, said in there.items()],
        figures_file=FIGURES_FILE,
    )
    files = {name: (folder / name).read_bytes() for name in there}
    files["metrics.json"] = json.dumps(results.content, indent=2, ensure_ascii=False).encode() + b"\n"
    files[FIGURES_FILE] = json.dumps(figures.noted, indent=1).encode() + b"\n"
    return Card(text, files)


def _metadata(license: str | None, language: str, tags: list[str], num_rows: int, sources: Sequence[str]) -> str:
    size = next(
        name
        for limit, name in ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e12, "n>1M"))
        if num_rows < limit
    )
    data = DatasetCardData(
        language=language,
        license=license,
        tags=tags,
        task_categories=["visual-question-answering"],
        size_categories=size,
        source_datasets=hub_ids(sources) or None,
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---"
