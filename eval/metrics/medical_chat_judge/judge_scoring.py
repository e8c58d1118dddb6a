"""
Scores by a judge model for pairs of answers: join the two orders of each question, compare, aggregate.

A judge reads a reference answer and a model's answer to a question and gives each 1 to 10 points. Under `strict`,
every question is judged twice, once in each order of the answers, and unreadable replies are listed. `release`
reproduces the LLaVA-Med / ExGra-Med judge script. The card (`README.md`) lists the differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from logramed.eval.metrics.aggregation import bootstrap_intervals, check_columns, check_settings
from logramed.eval.metrics.medical_chat_judge.reply_parsing import beginning, parse_scores, parse_scores_release


ORDERS = ("reference_first", "model_first")
# The release counts an item only for the first of its domains in this order.
RELEASE_DOMAINS = ("chest_xray", "mri", "histology", "gross", "ct_scan")
NO_DOMAIN = "none"
FIGURES = ("relative_score", "model_score", "reference_score")
POSITION_FIGURES = ("first_place_advantage", "relative_score_reference_first", "relative_score_model_first")


def join_orders(
    predictions: Sequence[str | None],
    question_ids: Sequence[str],
    question_types: Sequence[str],
    domains: Sequence[Sequence[str]],
    orders: Sequence[str],
    clusters: Sequence[str] | None = None,
) -> list[dict]:
    """
    Group replies by question, in order of first reply, with the cluster if given. Raises `ValueError` if a question
    has two replies in the same order, or if its type, domains or cluster differ between replies.

    Example:
        >>> (question,) = join_orders(["8 7", "6 8"], ["1", "1"], ["conversation"] * 2, [["mri"]] * 2, ORDERS)
        >>> question["question_id"], question["domains"], question["replies"]
        ('1', ['mri'], {'reference_first': '8 7', 'model_first': '6 8'})
    """
    questions = {}
    columns = zip(predictions, question_ids, question_types, domains, orders, strict=True)
    for position, (reply, question_id, question_type, of_domains, order) in enumerate(columns):
        if order not in ORDERS:
            raise ValueError(f"`orders[{position}]` must be one of {list(ORDERS)}, got {order!r}.")
        if isinstance(of_domains, str):
            raise TypeError(f"`domains[{position}]` must be a list of names, got {of_domains!r}.")
        question = {"question_id": question_id, "question_type": question_type, "domains": list(of_domains)}
        if clusters is not None:
            question["cluster"] = clusters[position]
        replies = questions.setdefault(question_id, question | {"replies": {}})["replies"]
        if questions[question_id] != question | {"replies": replies}:
            raise ValueError(f"Question {question_id!r} has another type, domain or cluster in row {position}.")
        if order in replies:
            raise ValueError(f"Question {question_id!r} has two replies in the order {order!r}.")
        replies[order] = reply
    return list(questions.values())


def judge_question(question: dict) -> tuple[dict | None, list[dict]]:
    """
    Scores of one question from its two replies (`reference_score` and `model_score` in points, each the mean of both
    orders; `relative_score`; `POSITION_FIGURES`), or `None`; and for each unusable order its `question_id`, `order`
    and `reason`.

    Example:
        >>> question = {"question_id": "1", "question_type": "conversation", "domains": ["mri"]}
        >>> item, _ = judge_question(question | {"replies": {"reference_first": "8 4", "model_first": "6 8"}})
        >>> item["reference_score"], item["model_score"], item["relative_score"], item["first_place_advantage"]
        (8.0, 5.0, 62.5, 1.0)
        >>> judge_question(question | {"replies": {"reference_first": "8 4"}})
        (None, [{'question_id': '1', 'order': 'model_first', 'reason': 'there is no reply in this order'}])
    """
    scores, not_judged = {}, []
    for order in ORDERS:
        reply = question["replies"].get(order)
        try:
            if not reply:
                raise ValueError("there is no reply in this order")
            scores[order] = parse_scores(reply)
        except ValueError as error:
            not_judged.append({"question_id": question["question_id"], "order": order, "reason": str(error)})
    if not_judged:
        return None, not_judged
    (reference_1, model_2), (model_1, reference_2) = scores["reference_first"], scores["model_first"]
    return question | {
        "relative_score": 100 * (model_1 + model_2) / (reference_1 + reference_2),
        "model_score": (model_1 + model_2) / 2,
        "reference_score": (reference_1 + reference_2) / 2,
        "first_place_advantage": (reference_1 - reference_2 + model_1 - model_2) / 2,
        "relative_score_reference_first": 100 * model_2 / reference_1,
        "relative_score_model_first": 100 * model_1 / reference_2,
    }, []


def judge_question_release(question: dict) -> dict:
    """
    Scores of one question as the release computes them, from one reply with the reference first. Raises `ValueError`
    if it cannot be read or gives the reference 0 points, if there is another reply, or if the release knows none of
    its domains.

    Example:
        >>> question = {"question_id": "1", "question_type": "conversation", "domains": ["gross", "histology"]}
        >>> item = judge_question_release(question | {"replies": {"reference_first": "8 7"}})
        >>> item["relative_score"], item["domains"]
        (87.5, ['histology'])
    """
    where = f"Question {question['question_id']!r}"
    if "model_first" in question["replies"]:
        raise ValueError(f'{where} has a "model_first" reply: the release judges with the reference first only.')
    reply = question["replies"]["reference_first"]
    if not reply:
        raise ValueError(f"{where} has no reply: the release cannot be followed without it.")
    try:
        reference_score, model_score = parse_scores_release(reply)
    except ValueError as error:
        raise ValueError(f"{where} cannot be scored as the release does: {error}") from error
    if reference_score == 0:
        raise ValueError(f"{where} has no relative score: the reference has 0 points in {beginning(reply)}.")
    known = [domain for domain in RELEASE_DOMAINS if domain in question["domains"]]
    if question["domains"] and not known:
        raise ValueError(f"{where} is of {question['domains']}; the release knows only {', '.join(RELEASE_DOMAINS)}.")
    return question | {
        "domains": known[:1],
        "relative_score": 100 * model_score / reference_score,
        "model_score": model_score,
        "reference_score": reference_score,
    }


def evaluate_judgements(
    predictions: Sequence[str | None],
    question_ids: Sequence[str],
    question_types: Sequence[str],
    domains: Sequence[Sequence[str]],
    orders: Sequence[str],
    protocol: str = "strict",
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict:
    """
    Score a model from a judge's replies. Each list has one entry per reply: its text (`None` or "" if missing), the
    question's id, its type, the list of its image domains, and which answer the judge read first, "reference_first" or
    "model_first".

    `protocol` is "strict" (ours) or "release" (the judge script of LLaVA-Med / ExGra-Med). `return_items` adds the
    scores of every judged question, under `items`. The bootstrap draws whole `clusters`, such as the image of each
    reply's question, or questions if there are none; `num_resamples=0` leaves out `intervals`.

    Returns `relative_score` in percent, `model_score` and `reference_score` in points, `num_items` (questions judged),
    `num_asked` (questions given), `num_clusters` (of judged questions, with `clusters`), `counts` and `intervals`
    (95%) by figure, and `groups`: the same for every value of `question_type` and `domain` with a judged question.
    Under "strict" also `position_bias` and `not_judged`.

    Raises `ValueError` if the lists are empty, differ in length or contradict each other, or if no question could be
    judged (under "release": if any could not), and `TypeError` if a list holds something other than text.

    Example:
        >>> columns = (["1", "1"], ["conversation"] * 2, [["mri"]] * 2, ["reference_first", "model_first"])
        >>> result = evaluate_judgements(["8 7", "7 8"], *columns)
        >>> result["relative_score"], result["groups"]["domain"]["mri"]["num_items"], result["not_judged"]
        (87.5, 1, [])
    """
    check_settings(protocol, num_resamples)
    texts = {"question_ids": question_ids, "question_types": question_types, "orders": orders, "clusters": clusters}
    check_columns({"predictions": predictions, "domains": domains, **texts}, texts)
    questions = join_orders(predictions, question_ids, question_types, domains, orders, clusters)
    if protocol == "release":
        items, not_judged = [judge_question_release(question) for question in questions], []
    else:
        judged = [judge_question(question) for question in questions]
        items = [item for item, _ in judged if item]
        not_judged = [problem for _, problems in judged for problem in problems]
    if not items:
        raise ValueError(f"None of {len(questions)} questions could be judged. The first: {not_judged[0]}.")
    results = summarize(items, questions, FIGURES, num_resamples, seed)
    results["groups"] = {
        "question_type": group(items, questions, lambda row: [row["question_type"]], num_resamples, seed),
        "domain": group(items, questions, lambda row: row["domains"] or [NO_DOMAIN], num_resamples, seed),
    }
    if protocol == "strict":
        results["position_bias"] = summarize(items, questions, POSITION_FIGURES, num_resamples, seed)
        results["not_judged"] = not_judged
    if return_items:
        results["items"] = [{name: item[name] for name in item if name != "replies"} for item in items]
    return results


def group(items: Sequence[dict], questions: Sequence[dict], values_of, num_resamples: int, seed: int) -> dict:
    """Figures for each value that `values_of` returns for a judged question."""
    groups = {}
    for value in sorted({value for item in items for value in values_of(item)}):
        own, asked = ([row for row in rows if value in values_of(row)] for rows in (items, questions))
        groups[value] = summarize(own, asked, FIGURES, num_resamples, seed)
    return groups


def summarize(
    items: Sequence[dict], questions: Sequence[dict], figures: Sequence[str], num_resamples: int, seed: int
) -> dict:
    """
    Means over `items` with counts and 95% intervals, and the numbers of items and of questions asked.

    Example:
        >>> summary = summarize([{"relative_score": 50.0}], [{}, {}], ["relative_score"], num_resamples=10, seed=0)
        >>> summary["relative_score"], summary["num_items"], summary["num_asked"], summary["intervals"]
        (50.0, 1, 2, {'relative_score': [50.0, 50.0]})
    """
    results: dict[str, Any] = {name: math.fsum(item[name] for item in items) / len(items) for name in figures}
    results |= {"num_items": len(items), "num_asked": len(questions), "counts": dict.fromkeys(figures, len(items))}
    clusters = [item["cluster"] for item in items] if "cluster" in items[0] else None
    if clusters is not None:
        results["num_clusters"] = len(set(clusters))
    if num_resamples:
        results["intervals"] = bootstrap_intervals(items, figures, num_resamples, seed, clusters)
    return results
