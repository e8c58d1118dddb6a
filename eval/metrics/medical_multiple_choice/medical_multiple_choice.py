"""`evaluate.load("eval/metrics/medical_multiple_choice")`: accuracy of zero-shot classification asked as questions."""

import datasets
import evaluate

from .choice_scoring import checked_options, evaluate_choices
from .option_matching import choose_by_text
from .reply_reader import read_reply


# `evaluate` copies the siblings imported above, but not those that they import in turn: so each is imported here. It
# would take a comment at the end of such a line for the address of a file.
__all__ = ["MedicalMultipleChoice", "choose_by_text", "read_reply"]

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
    clusters (list of str, optional): the image of each question, say; the bootstrap then draws whole clusters.
Returns:
    accuracy, chance, num_items, num_undecided, num_clusters (with clusters), counts, intervals, groups and items
    (on request).
Example:
    >>> metric = evaluate.load("eval/metrics/medical_multiple_choice")
    >>> result = metric.compute(predictions=["B"], references=["MRI"], options=[["CT", "MRI"]])
    >>> result["accuracy"], result["chance"]
    (100.0, 50.0)
"""


class MedicalMultipleChoice(evaluate.Metric):
    """Thin `evaluate` form of `choice_scoring.evaluate_choices`."""

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

    def compute(
        self,
        *,
        predictions: list | None = None,
        references: list | None = None,
        options: list | None = None,
        protocol: str = "strict",
        groups: list | None = None,
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        clusters: list | None = None,
    ) -> dict | None:
        """`choice_scoring.evaluate_choices` of the given lists or, without them, of what `add` and `add_batch` got."""
        settings = {
            "protocol": protocol,
            "groups": groups,
            "return_items": return_items,
            "num_resamples": num_resamples,
            "seed": seed,
            "clusters": clusters,
        }
        columns = {"predictions": predictions, "references": references, "options": options}
        missing = [name for name, column in columns.items() if column is None]
        if missing and len(missing) < len(columns):
            raise ValueError(f"`compute` needs {', '.join(f'`{name}`' for name in missing)} too.")
        if not missing and len(self) == 0 and self.num_process == 1:
            # Nothing was collected before: no need for the table on disk in between.
            return evaluate_choices(predictions, references, options, **settings)
        if not missing:
            self.add_batch(**columns)
        return super().compute(**settings)

    def add_batch(self, *, predictions: list, references: list, options: list) -> None:
        """Collect answers for a later `compute()`: all of them texts, or all of them scores."""
        options = [checked_options(of_item) for of_item in options]
        super().add_batch(predictions=predictions, references=references, options=options)

    def add(self, *, prediction: str | list, reference: str, options: list) -> None:
        """Collect one answer for a later `compute()`."""
        self.add_batch(predictions=[prediction], references=[reference], options=[options])

    def _compute(self, predictions, references, options, **settings) -> dict:
        return evaluate_choices(predictions, references, options, **settings)
