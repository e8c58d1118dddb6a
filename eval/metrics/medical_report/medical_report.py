"""`evaluate.load("eval/metrics/medical_report")`: word overlap of generated reports with reference reports."""

import datasets
import evaluate

from logramed.eval.metrics.medical_report.report_scoring import evaluate_reports


_DESCRIPTION = """\
Generated radiology reports scored against reference reports: corpus BLEU-1 to BLEU-4, ROUGE-L and CIDEr. All figures
come with their number of reports and a bootstrap 95% interval.
"""

_INPUTS_DESCRIPTION = """\
Args:
    predictions (list of str): generated reports.
    references (list of str): reference reports.
    return_items (bool): also return the scores of every report.
    num_resamples (int), seed (int): of the bootstrap.
    by_section (bool): also score findings and impression by themselves.
Returns:
    bleu_1 to bleu_4, rouge_l (percent), cider (0 to 10), num_items, counts, intervals, items and sections (on
    request). A figure that no report has a value of is absent.
"""


class MedicalReport(evaluate.Metric):
    """`report_scoring.evaluate_reports` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        by_section: bool = False,
    ) -> dict:
        return evaluate_reports(predictions, references, return_items, num_resamples, seed, by_section)
