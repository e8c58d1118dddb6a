"""
Pool the grounding results of several models per arm, and compare arms:

    python eval/grounding/pool.py --arm plain RUN_FOLDER... --arm aligned RUN_FOLDER... --output FOLDER

Each folder belongs to a run with `--grounding`. A question asked of several models of an arm counts once, with the
mean of their scores.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from logramed.eval.command_line import run_command
from logramed.eval.comparison.grounding_tables import FORMS, TITLES, format_grounding_figure
from logramed.eval.comparison.html_report import format_table
from logramed.eval.comparison.paired_tests import holm_correction
from logramed.eval.comparison.tables import Table
from logramed.eval.files import write_json
from logramed.eval.grounding.figures import describe_mean, summarize
from logramed.eval.grounding.maps import KINDS
from logramed.eval.grounding.measure import FILE
from logramed.eval.grounding.pointing import METRICS


POOLED_FILE = "grounding_of_arms.json"


def read_items(folder: Path) -> list[dict]:
    """Read the questions of a run and their scores. Raises `ValueError` if it did not measure grounding."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}: evaluate that model with `logramed-eval --grounding` first.")
    return json.loads(path.read_text(encoding="utf-8"))["questions"]


def pool_items(runs: Sequence[Sequence[dict]]) -> list[dict]:
    """
    One item per question: that of the first run, with the mean scores of all runs. Raises `ValueError` if runs
    disagree about a question, such as the area of its boxes.

    Example:
        >>> def item(value):
        ...     return {"question_id": "7", "image_id": "a", "area": 0.1, "scores": {"center": {"auc": value}}}
        >>> pool_items([[item(0.5)], [item(1.0)]])[0]["scores"]
        {'center': {'auc': 0.75}}
    """
    by_question: dict[str, list[dict]] = {}
    for item in (item for run in runs for item in run):
        by_question.setdefault(item["question_id"], []).append(item)
    pooled = []
    for question_id, items in by_question.items():
        told = {(item["image_id"], round(item["area"], 6), tuple(item["scores"])) for item in items}
        if len(told) > 1:
            raise ValueError(f"Question {question_id} has other boxes, another image or other maps in another run.")
        scores = {
            name: {metric: _mean([item["scores"][name][metric] for item in items]) for metric in metrics}
            for name, metrics in items[0]["scores"].items()
        }
        pooled.append(items[0] | {"scores": scores})
    return pooled


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def compare_arms(first: Sequence[dict], second: Sequence[dict], num_resamples: int = 10_000) -> dict:
    """
    Scores of the first arm minus the second's over their common questions, images resampled: by kind of map and
    figure, `value`, `interval`, `p_value` and `num_questions`. Raises `ValueError` if they share no question.
    """
    others = {item["question_id"]: item for item in second}
    pairs = [(item, others[item["question_id"]]) for item in first if item["question_id"] in others]
    if not pairs:
        raise ValueError("Two arms have no question in common.")
    images = [item["image_id"] for item, _ in pairs]
    found: dict[str, dict] = {}
    for kind in KINDS:
        for metric in METRICS:
            values = np.array([[item["scores"][kind][metric] for item in pair] for pair in pairs], dtype=float)
            differences = values[:, 0] - values[:, 1]
            if not np.isnan(differences).all():
                found.setdefault(kind, {})[metric] = describe_mean(differences, images, num_resamples)
    return found


def pool_arms(arms: dict[str, Sequence[Path]], num_resamples: int = 10_000) -> dict:
    """
    Pool the runs in the folders of each arm. Returns `arms`, by name the result of `summarize` with `num_runs`, and
    `differences` for each pair of arms, with p-values corrected over all of them (Holm).
    """
    items = {name: pool_items([read_items(folder) for folder in folders]) for name, folders in arms.items()}
    differences = {
        f"{first} minus {second}": compare_arms(items[first], items[second], num_resamples)
        for first, second in combinations(arms, 2)
    }
    tests = [figure for pair in differences.values() for kind in pair.values() for figure in kind.values()]
    for figure, corrected in zip(tests, holm_correction([test["p_value"] for test in tests]), strict=True):
        figure["p_value_holm"] = corrected
    figures = {name: summarize(found, num_resamples) | {"num_runs": len(arms[name])} for name, found in items.items()}
    return {"arms": figures, "differences": differences}


def format_arms(pooled: dict) -> str:
    """The overall figures of each arm and its baselines, and the differences, as a Markdown table."""
    figures = {}
    for arm, of_arm in pooled["arms"].items():
        figures |= {f"{arm}: {name}": values for name, values in of_arm["overall"]["maps"].items()}
    for pair, kinds in pooled["differences"].items():
        for kind, values in kinds.items():
            corrected = {metric: figure | {"p_value": figure["p_value_holm"]} for metric, figure in values.items()}
            figures[f"{pair}: {kind}"] = corrected
    rows = [
        [name.replace("_", " "), *(format_grounding_figure(values.get(metric), FORMS[metric]) for metric in METRICS)]
        for name, values in figures.items()
    ]
    return format_table(Table("Where the models look", ["", *TITLES.values()], rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description="Pool the grounding results of several models per arm, and compare arms.")
    parser.add_argument(
        "--arm", nargs="+", action="append", required=True, metavar=("NAME FOLDER", "FOLDER"), help="name and runs"
    )
    parser.add_argument("--output", type=Path, required=True, help=f"folder for {POOLED_FILE}")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    for name, *folders in arguments.arm:
        if not folders:
            raise ValueError(f"`--arm {name}` needs at least one run folder after the name.")
    names = [name for name, *_ in arguments.arm]
    if len(set(names)) < len(names):
        raise ValueError(f"`--arm` must have a different name each time, got {', '.join(names)}.")
    pooled = pool_arms({name: [Path(folder) for folder in folders] for name, *folders in arguments.arm})
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / POOLED_FILE, pooled)
    print(format_arms(pooled))
    return 0


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
