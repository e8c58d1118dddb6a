"""`evaluate.load("eval/metrics/medical_vqa")`: open recall, closed accuracy and their companions for medical VQA."""

import datasets
import evaluate

from .chinese_answers import polarities
from .release_protocol import normalize_release
from .reply_reader import read_reply
from .vqa_scoring import answer_text, answer_type, evaluate_answers
from .word_overlap import bleu_scores


# `evaluate` copies the siblings imported above, but not those that they import in turn: so each is imported here. It
# would take a comment at the end of such a line for the address of a file.
__all__ = ["MedicalVQA", "bleu_scores", "normalize_release", "polarities", "read_reply"]

_DESCRIPTION = """\
Answers to open and closed questions about medical images, scored under a strict protocol (default) or as the research
release of LLaVA-Med and ExGra-Med scores them. All figures are percentages and come with a bootstrap 95% interval.
"""

_INPUTS_DESCRIPTION = """\
Args:
    predictions (list of str or int): answers of the model.
    references (list of str or int): right answers.
    answer_types (list of str): "OPEN" or "CLOSED" for each question.
    protocol (str): "strict" or "release".
    candidates (list of str or int, optional): answers to choose from, for `open_accuracy`.
    return_items (bool): also return the scores of every question.
    num_resamples (int), seed (int): of the bootstrap.
    clusters (list of str, optional): the image of each question, say; the bootstrap then draws whole clusters.
Returns:
    open_recall, open_precision, open_f1, open_exact_match, open_accuracy (with candidates), open_bleu_1 to
    open_bleu_4, closed_accuracy, average, num_open, num_closed, num_clusters (with clusters), counts, intervals,
    items (on request). A kind without questions has no figures, and `average` needs both kinds.
Example:
    >>> metric = evaluate.load("eval/metrics/medical_vqa")
    >>> result = metric.compute(predictions=["Yes"], references=["yes"], answer_types=["CLOSED"])
    >>> result["closed_accuracy"], result["num_closed"]
    (100.0, 1)
"""


class MedicalVQA(evaluate.Metric):
    """Thin `evaluate` form of `vqa_scoring.evaluate_answers`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": text, "answer_types": text}),
        )

    def compute(
        self,
        *,
        predictions: list | None = None,
        references: list | None = None,
        answer_types: list | None = None,
        protocol: str = "strict",
        candidates: list | dict | None = None,
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        clusters: list | None = None,
    ) -> dict | None:
        """`vqa_scoring.evaluate_answers` of the given lists or, without them, of what `add` and `add_batch` got."""
        options = {
            "protocol": protocol,
            "candidates": candidates,
            "return_items": return_items,
            "num_resamples": num_resamples,
            "seed": seed,
            "clusters": clusters,
        }
        columns = {"predictions": predictions, "references": references, "answer_types": answer_types}
        missing = [name for name, column in columns.items() if column is None]
        if missing and len(missing) < len(columns):
            raise ValueError(f"`compute` needs {', '.join(f'`{name}`' for name in missing)} too.")
        if not missing and len(self) == 0 and self.num_process == 1:
            # Nothing was collected before: no need for the table on disk in between.
            return evaluate_answers(predictions, references, answer_types, **options)
        if not missing:
            self.add_batch(**columns)
        return super().compute(**options)

    def add_batch(self, *, predictions: list, references: list, answer_types: list) -> None:
        """Collect answers for a later `compute()`."""
        super().add_batch(
            predictions=[answer_text(value, i, "predictions") for i, value in enumerate(predictions)],
            references=[answer_text(value, i, "references") for i, value in enumerate(references)],
            answer_types=[answer_type(value, i) for i, value in enumerate(answer_types)],
        )

    def add(self, *, prediction: str | int, reference: str | int, answer_types: str) -> None:
        """Collect one answer for a later `compute()`."""
        self.add_batch(predictions=[prediction], references=[reference], answer_types=[answer_types])

    def _compute(self, predictions, references, answer_types, **options) -> dict:
        return evaluate_answers(predictions, references, answer_types, **options)
