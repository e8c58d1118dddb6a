"""The figures of answered questions, by the metric of their benchmark's task."""

from collections.abc import Callable, Mapping, Sequence

from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices
from logramed.eval.metrics.medical_report.report_scoring import evaluate_reports
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers


def images_of(rows: Sequence[dict]) -> list[str] | None:
    """The `image_id` of each row, for intervals by image; `None` where the rows name no images."""
    return [row["image_id"] for row in rows] if rows and "image_id" in rows[0] else None


def score_vqa(rows: Sequence[dict], protocol: str, candidates: Sequence | Mapping | None = None, **options) -> dict:
    """`medical_vqa` of question rows with `prediction`."""
    columns = ([row[name] for row in rows] for name in ("prediction", "answer", "answer_type"))
    return evaluate_answers(*columns, protocol=protocol, candidates=candidates, clusters=images_of(rows), **options)


def score_multiple_choice(rows: Sequence[dict], protocol: str, candidates: None = None, **options) -> dict:
    """`medical_multiple_choice` of question rows, by their `option_scores` where they have them."""
    predictions = [row.get("option_scores", row["prediction"]) for row in rows]
    references, choices = ([row[name] for row in rows] for name in ("answer", "options"))
    return evaluate_choices(predictions, references, choices, protocol=protocol, clusters=images_of(rows), **options)


def score_reports(rows: Sequence[dict], protocol: str, candidates: None = None, **options) -> dict:
    """`medical_report` of question rows with `prediction`; it has one protocol."""
    return evaluate_reports([row["prediction"] for row in rows], [row["answer"] for row in rows], **options)


def have_sections(rows: Sequence[dict]) -> bool:
    """Whether both sections of a report, findings and impression, were asked for in each row."""
    return all(row.get("section") == "both" for row in rows)


def score_sections(rows: Sequence[dict]) -> dict:
    """The figures of findings and of impression, each by itself, of report rows that have both."""
    texts = ([row[name] for row in rows] for name in ("prediction", "answer"))
    return evaluate_reports(*texts, by_section=True)["sections"]


SCORERS: dict[str, Callable[..., dict]] = {
    "vqa": score_vqa,
    "multiple_choice": score_multiple_choice,
    "report": score_reports,
}


def score_rows(
    rows: Sequence[dict],
    task: str,
    protocol: str = "strict",
    candidates: Sequence | Mapping | None = None,
    return_items: bool = False,
) -> dict:
    """
    The figures of answered questions.

    Args:
        rows: Question rows with `prediction`; at least one. Those with `image_id` get intervals by image.
        task (`str`): "vqa", "multiple_choice" or "report". Chat answers are scored by a judge (see `judging`).
        protocol (`str`): "strict", or "release" where the task has it.
        candidates (*optional*): Answers to choose from, for `open_accuracy`.
        return_items (`bool`): Also give the figures of each question by itself, in percent, under `items`; those that
            do not apply to it are absent.

    Example:
        >>> row = {"prediction": "Yes", "answer": "yes", "answer_type": "CLOSED"}
        >>> result = score_rows([row], "vqa", return_items=True)
        >>> result["closed_accuracy"], result["items"]
        (100.0, [{'closed_accuracy': 100.0}])
    """
    figures = SCORERS[task](rows, protocol, candidates, return_items=return_items)
    if return_items:
        figures["items"] = [
            {name: value for name, value in item.items() if isinstance(value, float)} for item in figures["items"]
        ]
    return figures


def has_release_protocol(rows: Sequence[dict], task: str) -> bool:
    """Whether the scripts behind published figures scored such answers: not likelihoods, and no reports."""
    return task == "vqa" or (task == "multiple_choice" and "option_scores" not in rows[0])
