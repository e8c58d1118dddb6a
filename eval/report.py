"""The figures of a run, and a text table of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from logramed.eval.comparison.grounding_tables import format_grounding_figure
from logramed.eval.comparison.run_folder import MAIN_FIGURES, drawn_units
from logramed.eval.comparison.summary import baseline_lines, question_lines
from logramed.eval.comparison.tables import figure_title, format_figure
from logramed.eval.leakage import without_leaked_triplets
from logramed.eval.metrics.medical_vqa.vqa_scoring import yes_or_no
from logramed.eval.scoring import has_release_protocol, have_sections, score_rows, score_sections


GROUNDING_TITLES = {"pointing_accuracy": "pointing", "energy_over_area": "energy over area", "auc": "AUC"}


def compute_metrics(rows: Sequence[dict], task: str, candidates: Sequence | Mapping | None = None) -> dict:
    """
    The figures of answered questions.

    Args:
        rows: Question rows with the model's `prediction`; at least one. Those with `image_id` get intervals by image.
        task (`str`): "vqa", "multiple_choice" or "report".
        candidates (*optional*): Answers to choose from, for `open_accuracy`.

    Returns:
        `dict`: `overall`, the figures of the task's metric under its strict protocol; `groups`, the same for each
        value of each group, without `open_accuracy` (of reports with findings and impression, group `section` has
        those of each); where there is such a protocol `release_protocol`, those of all
        rows as the scripts behind published figures compute them; for closed questions `constant_answer`, the best
        closed accuracy that one answer to all of them can have; and `items`, the figures of each question by itself.
    """
    overall = score_rows(rows, task, candidates=candidates, return_items=True)
    metrics = {"items": overall.pop("items"), "overall": overall, "groups": score_groups(rows, task)}
    if task == "report" and have_sections(rows):
        metrics["groups"]["section"] = score_sections(rows)
    if has_release_protocol(rows, task):
        metrics["release_protocol"] = score_rows(rows, task, "release", candidates)
    if metrics["overall"].get("num_closed"):
        metrics["constant_answer"] = best_constant_answer(rows)
    return metrics


def score_groups(rows: Sequence[dict], task: str) -> dict:
    """The figures of the rows of each value of each group, by group and value."""
    groups = {}
    for name in rows[0]["groups"]:
        by_value: dict[str, list[dict]] = {}
        for row in rows:
            by_value.setdefault(row["groups"][name], []).append(row)
        groups[name] = {value: score_rows(by_value[value], task) for value in sorted(by_value)}
    return groups


def figures_without_leakage(rows: Sequence[dict], task: str, leakage: dict) -> dict | None:
    """The figures of the rows whose triplet does not stand in training; `None` if that is all of them or none."""
    clean = without_leaked_triplets(rows, leakage)
    return score_rows(clean, task) if 0 < len(clean) < len(rows) else None


def best_constant_answer(rows: Sequence[dict]) -> dict:
    """
    The most frequent answer to the closed questions, and the closed accuracy in percent of giving it always.

    Example:
        >>> rows = [{"answer_type": "CLOSED", "answer": answer} for answer in ("No", "no", "left", "yes")]
        >>> best_constant_answer(rows)
        {'answer': 'no', 'closed_accuracy': 50.0}
    """
    answers = [row["answer"] for row in rows if row["answer_type"] == "CLOSED"]
    counts = Counter(yes_or_no(answer) or answer.strip().lower() for answer in answers)
    answer, count = counts.most_common(1)[0]
    return {"answer": answer, "closed_accuracy": 100 * count / len(answers)}


def format_table(metrics: dict) -> str:
    """
    A text table of the main figures, each with its 95% interval and number of questions.

    Args:
        metrics (`dict`): As `eval/run.py` writes them.
    """
    figures = MAIN_FIGURES[metrics["task"]]
    rows = [["", *map(figure_title, figures)]]
    for label, values in _labelled_figures(metrics):
        rows.append([label, *(format_figure(values, name) for name in figures)])
    return "\n".join([*_headline(metrics), "", *_align(rows), "", *_footnotes(metrics)])


def format_grounding(grounding: dict) -> str:
    """
    A text table of where the model looks, over all questions that name a boxed thing.

    Args:
        grounding (`dict`): Of `metrics.json`.
    """
    overall = grounding["overall"]
    rows = [["", *GROUNDING_TITLES.values()]]
    for name, figures in overall["maps"].items():
        cells = (format_grounding_figure(figures.get(metric), ".2f") for metric in GROUNDING_TITLES)
        rows.append([name.replace("_", " "), *cells])
    counts = f"{overall['num_questions']} questions that name a boxed thing, about {overall['num_images']} images"
    return "\n".join(["", f"Where the model looks: {counts}", "", *_align(rows), ""])


def _labelled_figures(metrics: dict) -> Iterator[tuple[str, dict | None]]:
    yield "all", metrics["overall"]
    if "overall" in metrics["blank_images"]:
        yield "all, blank images", metrics["blank_images"]["overall"]
    for name, values in metrics["groups"].items():
        for value, figures in values.items():
            yield f"{name.replace('_', ' ')}: {value}", figures
    if "overall_without_triplets" in metrics["leakage"]:
        yield "all, not in training", metrics["leakage"]["overall_without_triplets"]
    if "release_protocol" in metrics:
        yield "all, release protocol", metrics["release_protocol"]


def _headline(metrics: dict) -> list[str]:
    run = metrics["run"]
    subset = f" ({run['subset']})" if run["subset"] else ""
    asked = f"model {run['model']}" if run["model"] else f"answers of {run['predictions']}"
    title = f"{run['benchmark']}{subset}, {run['split']} split, {run['num_questions']} questions, {asked}"
    return [title, *question_lines(metrics)]


def _footnotes(metrics: dict) -> list[str]:
    unit = "Percent of the reference answer's score" if metrics["task"] == "chat" else "Percent"
    lines = [f"{unit} (95% interval, bootstrap over {drawn_units(metrics)}) of so many questions, strict protocol."]
    blank, leakage = metrics["blank_images"], metrics["leakage"]
    if "missing" in blank:
        lines.append(f"No figures without sight: {blank['missing']}.")
    lines += baseline_lines(metrics)
    if "missing" in leakage:
        lines.append(f"Leakage was not looked for: {leakage['missing']}.")
    else:
        lines.append(
            f"{leakage['num_test_images_in_training']} of {leakage['num_test_images']} test images and "
            f"{leakage['num_triplets_in_training']} of {metrics['run']['num_questions']} triplets of image, question "
            f"and answer also stand in training ({leakage['compared_with']})."
        )
    for problem in metrics.get("not_judged", []):
        lines.append(f"Not judged: question {problem['question_id']}, {problem['order']}: {problem['reason']}")
    return lines + list(metrics["run"].get("notes", []))


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
