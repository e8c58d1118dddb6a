"""
Word overlap of generated radiology reports with reference reports: corpus BLEU-1 to BLEU-4, ROUGE-L and CIDEr.

`evaluate.load("eval/metrics/medical_report")`
"""

import datasets
import evaluate

from logramed.eval.metrics.medical_report.report_scoring import evaluate_reports


class MedicalReport(evaluate.Metric):
    """`report_scoring.evaluate_reports` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=evaluate_reports.__doc__,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    _compute = staticmethod(evaluate_reports)
