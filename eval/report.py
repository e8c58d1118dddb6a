"""Figures of answered questions, from the metric for the benchmark's task."""

from collections import Counter
from collections.abc import Sequence

from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices
from logramed.eval.metrics.medical_report.report_scoring import evaluate_reports, score_sections
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers, yes_or_no


def compute_metrics(rows: Sequence[dict], task: str) -> dict:
    """
    Score the answered questions of a task ("vqa", "multiple_choice" or "report"); with `image_id` intervals are by
    image.

    Returns `overall`, the figures of the task's metric under the strict protocol; `groups`, the same for each value of
    each group (for reports with findings and impression, group `section` has both); if the task has that protocol,
    `release_protocol`, the figures of all rows as computed by the scripts behind published figures; for closed
    questions, `constant_answer`, the best closed accuracy of giving one answer to all of them; and `items`, the
    figures of each question.
    """
    overall = score_rows(rows, task, return_items=True)
    metrics = {"items": overall.pop("items"), "overall": overall, "groups": score_groups(rows, task)}
    if task == "report" and all(row.get("section") == "both" for row in rows):
        texts = ([row[name] for row in rows] for name in ("prediction", "answer"))
        metrics["groups"]["section"] = score_sections(*texts, num_resamples=1000, seed=0)
    # The scripts behind published figures score neither likelihoods nor reports.
    if task == "vqa" or (task == "multiple_choice" and "option_scores" not in rows[0]):
        metrics["release_protocol"] = score_rows(rows, task, "release")
    if metrics["overall"].get("num_closed"):
        metrics["constant_answer"] = best_constant_answer(rows)
    return metrics


def score_groups(rows: Sequence[dict], task: str) -> dict:
    """The figures for each value of each group, by group and value."""
    groups = {}
    for name in rows[0]["groups"]:
        by_value: dict[str, list[dict]] = {}
        for row in rows:
            by_value.setdefault(row["groups"][name], []).append(row)
        groups[name] = {value: score_rows(by_value[value], task) for value in sorted(by_value)}
    return groups


def figures_without_leakage(rows: Sequence[dict], task: str, leakage: dict) -> dict | None:
    """The figures of the rows whose triplet is not in training; `None` if that is all or none of them."""
    clean = [row for row in rows if row["question_id"] not in set(leakage["triplet_question_ids"])]
    return score_rows(clean, task) if 0 < len(clean) < len(rows) else None


def best_constant_answer(rows: Sequence[dict]) -> dict:
    """
    The most frequent answer to the closed questions, and the closed accuracy in percent of always giving it.

    Example:
        >>> rows = [{"answer_type": "CLOSED", "answer": answer} for answer in ("No", "no", "left", "yes")]
        >>> best_constant_answer(rows)
        {'answer': 'no', 'closed_accuracy': 50.0}
    """
    answers = [row["answer"] for row in rows if row["answer_type"] == "CLOSED"]
    counts = Counter(yes_or_no(answer) or answer.strip().lower() for answer in answers)
    answer, count = counts.most_common(1)[0]
    return {"answer": answer, "closed_accuracy": 100 * count / len(answers)}


def images_of(rows: Sequence[dict]) -> list[str] | None:
    """The `image_id` of each row, for intervals by image; `None` if the rows have none."""
    return [row["image_id"] for row in rows] if rows and "image_id" in rows[0] else None


def score_rows(rows: Sequence[dict], task: str, protocol: str = "strict", return_items: bool = False) -> dict:
    """
    Score question rows with `prediction` by the metric of their task (chat answers are scored by a judge, see
    `judging`), under the protocol "strict" or, if the task has it, "release"; with `image_id` intervals are by image.
    With `return_items`, `items` has the figures of each question in percent, without those that do not apply to it.

    Example:
        >>> row = {"prediction": "Yes", "answer": "yes", "answer_type": "CLOSED"}
        >>> result = score_rows([row], "vqa", return_items=True)
        >>> result["closed_accuracy"], result["items"]
        (100.0, [{'closed_accuracy': 100.0}])
    """
    predictions, references = ([row[name] for row in rows] for name in ("prediction", "answer"))
    options = {"protocol": protocol, "clusters": images_of(rows), "return_items": return_items}
    if task == "report":  # one protocol, and the bootstrap draws reports
        figures = evaluate_reports(predictions, references, return_items)
    elif task == "multiple_choice":
        chosen = [row.get("option_scores", row["prediction"]) for row in rows]
        figures = evaluate_choices(chosen, references, [row["options"] for row in rows], **options)
    else:
        kinds = [row["answer_type"] for row in rows]
        figures = evaluate_answers(predictions, references, kinds, **options)
    if return_items:
        figures["items"] = [
            {name: value for name, value in item.items() if isinstance(value, float)} for item in figures["items"]
        ]
    return figures
