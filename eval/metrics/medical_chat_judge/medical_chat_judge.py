"""
Relative score of a model, from the points given by a judge model to its answers and to reference answers.

`evaluate.load("eval/metrics/medical_chat_judge")`
"""

import datasets
import evaluate

from logramed.eval.metrics.medical_chat_judge.judge_scoring import evaluate_judgements


class MedicalChatJudge(evaluate.Metric):
    """`judge_scoring.evaluate_judgements` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = dict.fromkeys(("predictions", "question_ids", "question_types", "orders"), text)
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=evaluate_judgements.__doc__,
            features=datasets.Features(features | {"domains": datasets.List(text)}),
        )

    _compute = staticmethod(evaluate_judgements)
