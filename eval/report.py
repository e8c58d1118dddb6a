"""The figures of a run."""

from collections import Counter
from collections.abc import Sequence

from logramed.eval.metrics.medical_report.report_scoring import score_sections
from logramed.eval.metrics.medical_vqa.vqa_scoring import yes_or_no
from logramed.eval.scoring import has_release_protocol, score_rows


def compute_metrics(rows: Sequence[dict], task: str) -> dict:
    """
    The figures of answered questions of a task ("vqa", "multiple_choice" or "report"); with `image_id` intervals are
    by image.

    Returns `overall`, the figures of the task's metric under its strict protocol; `groups`, the same for each value of
    each group (of reports with findings and impression, group `section` has those of each);
    where there is such a protocol `release_protocol`, those of all rows as the scripts behind published figures
    compute them; for closed questions `constant_answer`, the best closed accuracy that one answer to all of them can
    have; and `items`, the figures of each question by itself.
    """
    overall = score_rows(rows, task, return_items=True)
    metrics = {"items": overall.pop("items"), "overall": overall, "groups": score_groups(rows, task)}
    if task == "report" and all(row.get("section") == "both" for row in rows):
        texts = ([row[name] for row in rows] for name in ("prediction", "answer"))
        metrics["groups"]["section"] = score_sections(*texts, num_resamples=1000, seed=0)
    if has_release_protocol(rows, task):
        metrics["release_protocol"] = score_rows(rows, task, "release")
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
    clean = [row for row in rows if row["question_id"] not in set(leakage["triplet_question_ids"])]
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
