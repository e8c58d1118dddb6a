"""The figures of answered questions, by the metric of their benchmark's task."""

from collections.abc import Sequence

from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices
from logramed.eval.metrics.medical_report.report_scoring import evaluate_reports
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers


def images_of(rows: Sequence[dict]) -> list[str] | None:
    """The `image_id` of each row, for intervals by image; `None` where the rows name no images."""
    return [row["image_id"] for row in rows] if rows and "image_id" in rows[0] else None


def score_rows(rows: Sequence[dict], task: str, protocol: str = "strict", return_items: bool = False) -> dict:
    """
    The figures of question rows with `prediction`, by the metric of their task (chat answers are scored by a judge,
    see `judging`), under "strict" or, where the task has it, "release"; with `image_id` intervals are by image. With
    `return_items`, `items` has the figures of each question by itself, in percent, without those that do not apply to
    it.

    Example:
        >>> row = {"prediction": "Yes", "answer": "yes", "answer_type": "CLOSED"}
        >>> result = score_rows([row], "vqa", return_items=True)
        >>> result["closed_accuracy"], result["items"]
        (100.0, [{'closed_accuracy': 100.0}])
    """
    predictions, references = ([row[name] for row in rows] for name in ("prediction", "answer"))
    options = {"protocol": protocol, "clusters": images_of(rows), "return_items": return_items}
    if task == "report":  # it has one protocol, and reports are drawn one by one
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


def has_release_protocol(rows: Sequence[dict], task: str) -> bool:
    """Whether the scripts behind published figures scored such answers: not likelihoods, and no reports."""
    return task == "vqa" or (task == "multiple_choice" and "option_scores" not in rows[0])
