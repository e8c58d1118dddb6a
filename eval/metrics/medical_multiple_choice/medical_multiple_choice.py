"""
Accuracy of answers to multiple-choice questions about medical images, chosen by the likelihood of each option or
named in a generated text.

`evaluate.load("eval/metrics/medical_multiple_choice")`
"""

import datasets
import evaluate

from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices


class MedicalMultipleChoice(evaluate.Metric):
    """`choice_scoring.evaluate_choices` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        columns = {"references": text, "options": datasets.Sequence(text)}
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=evaluate_choices.__doc__,
            features=[
                datasets.Features({"predictions": text, **columns}),
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64")), **columns}),
            ],
        )

    _compute = staticmethod(evaluate_choices)
