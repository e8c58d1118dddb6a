"""`evaluate.load("eval/metrics/medical_chat_judge")`: relative score of a model, from the replies of a judge model."""

import datasets
import evaluate

from .judge_scoring import domain_list, evaluate_judgements, id_text
from .reply_parsing import parse_scores
from .reply_reader import without_reasoning


# Both functions are used in the others, but `evaluate.load` fetches only the files that this one imports.
__all__ = ["MedicalChatJudge", "parse_scores", "without_reasoning"]


_DESCRIPTION = """\
Replies of a judge model that gave 1 to 10 points to a reference answer and to a model's answer, turned into the
relative score of the model: per question type and image domain, both orders of the answers joined by question, with
95% intervals.
"""

_INPUTS_DESCRIPTION = """\
Args:
    predictions (list of str or None): replies of the judge.
    question_ids (list of str or int): the question that each reply is about.
    question_types (list of str): its type, as "conversation".
    domains (list of str or list of str): the domain or domains of its image, as ["histology", "gross"].
    orders (list of str): which answer the judge read first, "reference_first" or "model_first".
    protocol (str): "strict" or "release" (which knows "reference_first" only; `orders` may be left out then).
    return_items (bool): also return the scores of every judged question.
    num_resamples (int), seed (int): of the bootstrap.
    clusters (list of str, optional): the image of each reply's question; the bootstrap then draws images.
Returns:
    relative_score, model_score, reference_score, num_items, num_asked, num_clusters (with clusters), intervals,
    groups, items (on request); position_bias and not_judged under "strict".
Example:
    >>> metric = evaluate.load("eval/metrics/medical_chat_judge")
    >>> result = metric.compute(
    ...     predictions=["8 7", "7 8"],
    ...     question_ids=[1, 1],
    ...     question_types=["conversation"] * 2,
    ...     domains=["mri"] * 2,
    ...     orders=["reference_first", "model_first"],
    ... )
    >>> result["relative_score"], result["num_items"]
    (87.5, 1)
"""


class MedicalChatJudge(evaluate.Metric):
    """Thin `evaluate` form of `judge_scoring.evaluate_judgements`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = dict.fromkeys(("predictions", "question_ids", "question_types", "orders"), text)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(features | {"domains": datasets.List(text)}),
        )

    def compute(
        self,
        *,
        predictions: list | None = None,
        question_ids: list | None = None,
        question_types: list | None = None,
        domains: list | None = None,
        orders: list | None = None,
        protocol: str = "strict",
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        clusters: list | None = None,
    ) -> dict | None:
        """`judge_scoring.evaluate_judgements` of the lists or, without them, of what `add` and `add_batch` got."""
        options = {
            "protocol": protocol,
            "return_items": return_items,
            "num_resamples": num_resamples,
            "seed": seed,
            "clusters": clusters,
        }
        columns = {
            "predictions": predictions,
            "question_ids": question_ids,
            "question_types": question_types,
            "domains": domains,
        }
        missing = [name for name, column in columns.items() if column is None]
        if missing and (len(missing) < len(columns) or orders is not None):
            raise ValueError(f"`compute` needs {', '.join(f'`{name}`' for name in missing)} too.")
        if not missing and len(self) == 0 and self.num_process == 1:
            # Nothing was collected before: no need for the table on disk in between.
            return evaluate_judgements(**columns, orders=orders, **options)
        if not missing:
            self.add_batch(**columns, orders=orders)
        return super().compute(**options)

    def add_batch(
        self,
        *,
        predictions: list,
        question_ids: list,
        question_types: list,
        domains: list,
        orders: list | None = None,
    ) -> None:
        """Collect replies for a later `compute()`. Without `orders`, the reference was read first in all of them."""
        super().add_batch(
            predictions=predictions,
            question_ids=[id_text(value, i) for i, value in enumerate(question_ids)],
            question_types=question_types,
            domains=[domain_list(value, i) for i, value in enumerate(domains)],
            orders=["reference_first"] * len(predictions) if orders is None else orders,
        )

    def add(
        self,
        *,
        prediction: str | None,
        question_ids: str | int,
        question_types: str,
        domains: list | str,
        orders: str = "reference_first",
    ) -> None:
        """Collect one reply for a later `compute()`."""
        self.add_batch(
            predictions=[prediction],
            question_ids=[question_ids],
            question_types=[question_types],
            domains=[domains],
            orders=[orders],
        )

    def _compute(self, predictions, question_ids, question_types, domains, orders, **options) -> dict:
        return evaluate_judgements(predictions, question_ids, question_types, domains, orders, **options)
