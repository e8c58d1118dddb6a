"""Write cards of data sets: extended answers, and a model's answers to a benchmark."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from huggingface_hub import DatasetCardData

from logramed.eval.benchmarks.rows import read_records
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.hub_cards.model_card import Card, describe_evaluation, render
from logramed.hub_cards.results import Evaluation, as_json, hub_ids, read_results


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
    """Write the card of `extended_answers.jsonl` from `logramed-extend`, with the files to publish."""
    rows = read_lines(folder / EXTENDED_NAME)
    answers = [answer for row in rows for answer in list_answers(row)]
    statistics = {
        "num_rows": len(rows),
        "num_answers": len(answers),
        "median_words": median(len(answer.split()) for answer in answers),
        "num_failed_rows": len(read_lines(folder / "extended_answers.failures.jsonl")),
        "settings": read_results(folder / "extended_answers.parts" / "settings.json"),
    }
    text = render(
        "extended_answers_card.md.jinja",
        front_matter=write_metadata(license, language, ["extended-answers"], datasets),
        name=repo_id.rpartition("/")[2],
        datasets=hub_ids(datasets),
        statistics=statistics,
        statistics_file=STATISTICS_NAME,
        file_name=EXTENDED_NAME,
        examples=[" ".join(answer.split()) for row in rows[:NUM_EXAMPLES] for answer in list_answers(row)[:1]],
    )
    files = {EXTENDED_NAME: (folder / EXTENDED_NAME).read_bytes(), STATISTICS_NAME: as_json(statistics)}
    return Card(text, files)


def list_answers(row: dict) -> list[str]:
    return [turn["value"] for turn in row["conversations_long"] if turn["from"] == "gpt"]


def read_lines(path: Path) -> list[dict]:
    """Read the rows of a JSON Lines file; empty if there is no such file."""
    return [row for _, row in read_records(path)] if path.is_file() else []


def write_predictions_card(
    folder: Path, repo_id: str, license: str | None, datasets: Sequence[str] = (), language: str = "en"
) -> Card:
    """
    Write the card of the answers in a folder of `logramed-eval`, with the files to publish: no images, no local paths.
    Raises `ValueError` if the folder is not a finished evaluation.
    """
    run, metrics = read_run_folder(folder), read_results(folder / "metrics.json")
    there = {name: text for name, text in PREDICTION_FILES.items() if (folder / name).is_file()}
    text = render(
        "predictions_card.md.jinja",
        front_matter=write_metadata(license, language, ["predictions", run.run["benchmark"]], datasets),
        name=repo_id.rpartition("/")[2],
        system=run.system,
        evaluation=describe_evaluation(Evaluation(metrics, "metrics.json")),
        files=there,
    )
    files = {name: (folder / name).read_bytes() for name in there}
    return Card(text, files | {"metrics.json": as_json(metrics)})


def write_metadata(license: str | None, language: str, tags: list[str], sources: Sequence[str]) -> str:
    """Front matter of a data set's card."""
    data = DatasetCardData(
        language=language,
        license=license,
        tags=["logramed", "medical", *tags],
        task_categories=["visual-question-answering"],
        source_datasets=hub_ids(sources) or None,
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---"
