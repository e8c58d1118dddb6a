"""`evaluate.load("eval/metrics/medical_multiple_choice")`: accuracy of zero-shot classification asked as questions."""

import datasets
import evaluate

from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices


_DESCRIPTION = """\
Answers to multiple-choice questions about medical images: by the likelihood of each option, or by the option that a
generated text names. Strict protocol (default), or that of the ExGra-Med zero-shot script. Figures are percentages.
"""

_INPUTS_DESCRIPTION = """\
Args:
    predictions (list of str, or of lists of float): generated texts, or one score for each option (higher is better).
    references (list of str): the text of the right option.
    options (list of lists of str): the options of each question; `None` or "" for a missing one.
    protocol (str): "strict" or "release" (generated texts only).
    groups (list of str, optional): one value per question, to break the figures down by.
    return_items (bool): also return the choice of every question.
    num_resamples (int), seed (int): of the bootstrap.
    clusters (list of str, optional): such as the image of each question; the bootstrap then draws whole clusters.
Returns:
    accuracy, chance, num_items, num_undecided, num_clusters (with clusters), counts, intervals, groups and items
    (on request).
"""


class MedicalMultipleChoice(evaluate.Metric):
    """`choice_scoring.evaluate_choices` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        columns = {"references": text, "options": datasets.Sequence(text)}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": text, **columns}),
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64")), **columns}),
            ],
        )

    def _compute(
        self,
        predictions: list,
        references: list[str],
        options: list[list[str]],
        protocol: str = "strict",
        groups: list[str] | None = None,
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        clusters: list[str] | None = None,
    ) -> dict:
        return evaluate_choices(
            predictions, references, options, protocol, groups, return_items, num_resamples, seed, clusters
        )
