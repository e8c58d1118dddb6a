"""The accuracy of a model's answers during training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from logramed.eval.answering import answer_questions
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers


def score_answers(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    max_new_tokens: int,
    on_answer: Callable[[], None] | None = None,
) -> dict[str, float]:
    """
    Answer `questions` and score the answers by the strict protocol of the `medical_vqa` metric; `on_answer` is called
    after each.

    Returns:
        `dict[str, float]`: `closed_accuracy` and `open_recall`, in percent, each only where there are such questions.
    """
    asked = []
    for pair in answer_questions(
        model, processor, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=False
    ):
        asked.append(pair)
        if on_answer is not None:
            on_answer()
    rows, answers = zip(*asked, strict=True)
    scores = evaluate_answers(
        predictions=list(answers),
        references=[row["answer"] for row in rows],
        answer_types=[row["answer_type"] for row in rows],
    )
    return {name: scores[name] for name in ("closed_accuracy", "open_recall") if name in scores}
