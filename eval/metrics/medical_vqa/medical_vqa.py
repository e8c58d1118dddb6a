"""`evaluate.load("eval/metrics/medical_vqa")`: open recall, closed accuracy and their companions for medical VQA."""

import datasets
import evaluate

from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers


_DESCRIPTION = """\
Answers to open and closed questions about medical images, scored under a strict protocol (default) or as the research
release of LLaVA-Med and ExGra-Med scores them. All figures are percentages and come with a bootstrap 95% interval.
"""

_INPUTS_DESCRIPTION = """\
Args:
    predictions (list of str): answers of the model.
    references (list of str): right answers.
    answer_types (list of str): "OPEN" or "CLOSED" for each question.
    protocol (str): "strict" or "release".
    candidates (list of str, optional): answers to choose from, for `open_accuracy`.
    return_items (bool): also return the scores of every question.
    num_resamples (int), seed (int): of the bootstrap.
    clusters (list of str, optional): such as the image of each question; the bootstrap then draws whole clusters.
Returns:
    open_recall, open_precision, open_f1, open_exact_match, open_accuracy (with candidates), open_bleu_1 to
    open_bleu_4, closed_accuracy, average, num_open, num_closed, num_clusters (with clusters), counts, intervals,
    items (on request). A kind without questions has no figures, and `average` needs both kinds.
"""


class MedicalVQA(evaluate.Metric):
    """`vqa_scoring.evaluate_answers` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": text, "answer_types": text}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        answer_types: list[str],
        protocol: str = "strict",
        candidates: list | dict | None = None,
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        clusters: list[str] | None = None,
    ) -> dict:
        return evaluate_answers(
            predictions, references, answer_types, protocol, candidates, return_items, num_resamples, seed, clusters
        )
