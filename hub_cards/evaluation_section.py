"""What a card says of an evaluation, every figure noted with its place."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult

from logramed.eval.comparison.run_folder import MAIN_FIGURES, count_of, interval_unit
from logramed.hub_cards.results import Evaluation, Figures, ResultFile


LABELS = {
    "open_recall": "open recall",
    "closed_accuracy": "closed accuracy",
    "accuracy": "accuracy",
    "relative_score": "score relative to the reference",
    "rouge_l": "ROUGE-L",
}


@cache
def data_sets() -> dict[str, dict[str, Any]]:
    """What cards call the benchmarks."""
    return yaml.safe_load((Path(__file__).parent / "data_sets.yaml").read_text(encoding="utf-8"))


def list_results(evaluation: Evaluation) -> list[EvalResult]:
    """The main figures, as `model-index` has them, with counts and protocol."""
    run, metrics = evaluation.run.run, evaluation.results
    known = data_sets()[run["benchmark"]]
    results = []
    for figure in figure_names(evaluation):
        low, high = metrics.get("overall", "intervals", figure)
        results.append(
            EvalResult(
                task_type=known["task"],
                dataset_type=run["benchmark"],
                dataset_name=known["name"],
                dataset_split=run["split"],
                dataset_config=run.get("subset"),
                dataset_args={"num_questions": run["num_questions"], "data_fingerprint": run["data_fingerprint"]},
                metric_type=figure,
                metric_name=f"{LABELS[figure]} (percent)",
                metric_value=round(metrics.get("overall", figure), 2),
                metric_args={
                    "protocol": metrics.get("protocol"),
                    "num_items": count_of(metrics.get("overall"), figure),
                    "interval_95": [round(low, 2), round(high, 2)],
                    "max_new_tokens": run["max_new_tokens"],
                },
            )
        )
    return results


def figure_names(evaluation: Evaluation) -> list[str]:
    """The main figures of the task that this evaluation has."""
    task = evaluation.results.get("task")
    return [name for name in MAIN_FIGURES[task] if evaluation.results.has("overall", name)]


def describe_evaluation(evaluation: Evaluation, figures: Figures) -> dict[str, Any]:
    """What the card says of one evaluation, every figure noted."""
    results, run = evaluation.results, evaluation.run.run
    known = data_sets()[run["benchmark"]]
    has_blank = results.has("blank_images", "overall")
    rows = []
    for figure in figure_names(evaluation):
        low, high = (figures.show(results, ["overall", "intervals", figure, end], "{:.1f}") for end in (0, 1))
        blank = ""
        if has_blank:
            blank = figures.show(results, ["blank_images", "overall", figure], "{:.1f}")
        rows.append(
            {
                "label": LABELS[figure],
                "value": figures.show(results, ["overall", figure], "{:.1f}"),
                "interval": f"{low} to {high}",
                "count": figures.show(results, count_keys(results, figure)),
                "blank": blank,
            }
        )
    count = figures.show(results, ["run", "num_questions"])
    subset = f", {run['subset']}" if run.get("subset") else ""
    said = f"{count} questions of {known['name']}{subset}, {run['split']} split, {results.get('protocol')} protocol"
    return {
        "title": known["name"],
        "said": f"{said} of `logramed-eval`, answered by greedy decoding.",
        "rows": rows,
        "has_blank": has_blank,
        "notes": list_notes(results, figures),
        "file": results.name,
    }


def count_keys(results: ResultFile, figure: str) -> list[str]:
    """Where the number of questions behind a figure stands."""
    if results.has("overall", "counts", figure):
        return ["overall", "counts", figure]
    kind = figure.split("_")[0]
    return ["overall", f"num_{kind}" if kind in ("open", "closed") else "num_items"]


def list_notes(results: ResultFile, figures: Figures) -> list[str]:
    """What a reader of the figures has to know."""
    notes = [f"95% interval: bootstrap over {interval_unit(results.content)}s."]
    if results.has("overall", "num_clusters"):
        count = figures.show(results, ["overall", "num_clusters"])
        notes[0] = f"95% interval: bootstrap over {count} images, each with all its questions."
    if results.has("run", "limit"):
        limit = figures.show(results, ["run", "limit"])
        notes.append(f"Only the first {limit} questions were asked: these are not the benchmark's figures.")
    for difference in results.content.get("differences", []):
        notes.append(f"The questions differ from the known split: {difference}.")
    if results.has("blank_images", "overall"):
        notes.append('"With blank images": the same model, shown an evenly grey image in place of each.')
    if results.has("constant_answer"):
        constant = figures.show(results, ["constant_answer", "closed_accuracy"], "{:.1f}")
        answer = results.get("constant_answer", "answer")
        notes.append(f'The constant answer "{answer}" has a closed accuracy of {constant}.')
    if results.has("leakage", "num_triplets_in_training"):
        images = figures.show(results, ["leakage", "num_test_images_in_training"])
        of_images = figures.show(results, ["leakage", "num_test_images"])
        triplets = figures.show(results, ["leakage", "num_triplets_in_training"])
        notes.append(
            f"{images} of {of_images} test images and {triplets} triplets of image, question and answer also stand in "
            "the benchmark's training split."
        )
    return notes
