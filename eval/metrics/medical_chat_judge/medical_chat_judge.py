"""`evaluate.load("eval/metrics/medical_chat_judge")`: relative score of a model, from the replies of a judge model."""

import datasets
import evaluate

from logramed.eval.metrics.medical_chat_judge.judge_scoring import evaluate_judgements


_DESCRIPTION = """\
Replies of a judge model that gave 1 to 10 points to a reference answer and to a model's answer, turned into the
relative score of the model: per question type and image domain, both orders of the answers joined by question, with
95% intervals.
"""

_INPUTS_DESCRIPTION = """\
Args:
    predictions (list of str): replies of the judge, "" where there is none.
    question_ids (list of str): the question that each reply is about.
    question_types (list of str): its type, as "conversation".
    domains (list of lists of str): the domains of its image, as ["histology", "gross"].
    orders (list of str): which answer the judge read first, "reference_first" or "model_first".
    protocol (str): "strict" or "release" (which knows "reference_first" only).
    return_items (bool): also return the scores of every judged question.
    num_resamples (int), seed (int): of the bootstrap.
    clusters (list of str, optional): the image of each reply's question; the bootstrap then draws images.
Returns:
    relative_score, model_score, reference_score, num_items, num_asked, num_clusters (with clusters), intervals,
    groups, items (on request); position_bias and not_judged under "strict".
"""


class MedicalChatJudge(evaluate.Metric):
    """`judge_scoring.evaluate_judgements` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = dict.fromkeys(("predictions", "question_ids", "question_types", "orders"), text)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(features | {"domains": datasets.List(text)}),
        )

    def _compute(
        self,
        predictions: list[str],
        question_ids: list[str],
        question_types: list[str],
        domains: list[list[str]],
        orders: list[str],
        protocol: str = "strict",
        return_items: bool = False,
        num_resamples: int = 1000,
        seed: int = 0,
        clusters: list[str] | None = None,
    ) -> dict:
        columns = (predictions, question_ids, question_types, domains, orders)
        return evaluate_judgements(*columns, protocol, return_items, num_resamples, seed, clusters)
