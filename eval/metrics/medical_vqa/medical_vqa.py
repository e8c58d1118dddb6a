"""
Score answers to open and closed questions about medical images, under a strict protocol (default) or that of the
research release of LLaVA-Med and ExGra-Med.

`evaluate.load("eval/metrics/medical_vqa")`
"""

import datasets
import evaluate

from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers


class MedicalVQA(evaluate.Metric):
    """`vqa_scoring.evaluate_answers` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=evaluate_answers.__doc__,
            features=datasets.Features({"predictions": text, "references": text, "answer_types": text}),
        )

    _compute = staticmethod(evaluate_answers)
