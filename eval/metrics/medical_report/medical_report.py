"""`evaluate.load("eval/metrics/medical_report")`: word overlap of generated reports with reference reports."""

import datasets
import evaluate

# `evaluate` brings along only the files that this one imports. It reads a comment behind an import as its address.
from .reply_reader import read_reply
from .report_scoring import evaluate_reports, report_text


__all__ = ["MedicalReport", "read_reply"]

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
Example:
    >>> metric = evaluate.load("eval/metrics/medical_report")
    >>> result = metric.compute(predictions=["No effusion."], references=["There is no pleural effusion."])
    >>> round(result["rouge_l"], 1), result["num_items"]
    (53.0, 1)
"""


class MedicalReport(evaluate.Metric):
    """Thin `evaluate` form of `report_scoring.evaluate_reports`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def compute(
        self,
        *,
        predictions: list | None = None,
        references: list | None = None,
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        by_section: bool = False,
    ) -> dict | None:
        """`report_scoring.evaluate_reports` of the given lists or, without them, of what `add` and `add_batch` got."""
        options = {"return_items": return_items, "num_resamples": num_resamples, "seed": seed}
        options["by_section"] = by_section
        columns = {"predictions": predictions, "references": references}
        missing = [name for name, column in columns.items() if column is None]
        if len(missing) == 1:
            raise ValueError(f"`compute` needs `{missing[0]}` too.")
        if not missing and len(self) == 0 and self.num_process == 1:
            # Nothing was collected before: no need for the table on disk in between.
            return evaluate_reports(predictions, references, **options)
        if not missing:
            self.add_batch(**columns)
        return super().compute(**options)

    def add_batch(self, *, predictions: list, references: list) -> None:
        """Collect reports for a later `compute()`."""
        super().add_batch(
            predictions=[report_text(text, i, "predictions") for i, text in enumerate(predictions)],
            references=[report_text(text, i, "references") for i, text in enumerate(references)],
        )

    def add(self, *, prediction: str, reference: str) -> None:
        """Collect one report for a later `compute()`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def _compute(self, predictions, references, **options) -> dict:
        return evaluate_reports(predictions, references, **options)
