"""
Scores that a judge model gave to two answers: join the two orders of a question, compare, aggregate.

Plain functions of strings and lists; no model, no `torch`. `medical_chat_judge.py` wraps them as an `evaluate.Metric`.

A judge reads a reference answer and a model's answer to a question and gives each 1 to 10 points. Under `strict` every
question is judged twice, with the answers in either order, and what cannot be read is listed. `release` gives the
numbers of the LLaVA-Med / ExGra-Med judge script. The card (`README.md`) lists the differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .reply_parsing import beginning, parse_scores, parse_scores_release


PROTOCOLS = ("strict", "release")
ORDERS = ("reference_first", "model_first")
# The release counts an item for the first of these that is true of it.
RELEASE_DOMAINS = ("chest_xray", "mri", "histology", "gross", "ct_scan")
NO_DOMAIN = "none"
FIGURES = ("relative_score", "model_score", "reference_score")
POSITION_FIGURES = ("first_place_advantage", "relative_score_reference_first", "relative_score_model_first")


# ---------------------------------------------------------------------------------------------------------------------
# From replies to questions
# ---------------------------------------------------------------------------------------------------------------------


def join_orders(
    predictions: Sequence[str | None],
    question_ids: Sequence[str | int],
    question_types: Sequence[str],
    domains: Sequence[Sequence[str] | str],
    orders: Sequence[str],
    clusters: Sequence[str] | None = None,
) -> list[dict]:
    """
    The questions in the order of their first reply, each with its replies by order, and its cluster if there are any.

    Raises:
        ValueError: If a question has two replies in one order, or another type, cluster or other domains there.
        TypeError: If a reply, an id, a type, a domain or a cluster is not text.

    Example:
        >>> (question,) = join_orders(["8 7", "6 8"], [1, 1], ["conversation"] * 2, ["mri", ["mri"]], ORDERS)
        >>> question["question_id"], question["domains"], question["replies"]
        ('1', ['mri'], {'reference_first': '8 7', 'model_first': '6 8'})
    """
    questions = {}
    columns = zip(predictions, question_ids, question_types, domains, orders, strict=True)
    for position, (reply, question_id, question_type, of_domains, order) in enumerate(columns):
        if not (reply is None or isinstance(reply, str)):
            raise TypeError(f"`predictions[{position}]` must be text or `None`, got {reply!r}.")
        if order not in ORDERS:
            raise ValueError(f"`orders[{position}]` must be one of {list(ORDERS)}, got {order!r}.")
        question = {
            "question_id": id_text(question_id, position),
            "question_type": question_type,
            "domains": domain_list(of_domains, position),
        }
        if not (isinstance(question_type, str) and question_type):
            raise TypeError(f"`question_types[{position}]` must be text, got {question_type!r}.")
        if clusters is not None:
            if not isinstance(clusters[position], str):
                raise TypeError(f"`clusters[{position}]` must be text, got {clusters[position]!r}.")
            question["cluster"] = clusters[position]
        former = questions.setdefault(question["question_id"], question | {"replies": {}})
        for name in ("question_type", "domains", "cluster"):
            if former.get(name) != question.get(name):
                raise ValueError(
                    f"Question {question['question_id']!r} has the {name.replace('_', ' ')} {former[name]!r} in one "
                    f"row and {question[name]!r} in row {position}."
                )
        if order in former["replies"]:
            raise ValueError(f"Question {question['question_id']!r} has two replies in the order {order!r}.")
        former["replies"][order] = reply
    return list(questions.values())


def id_text(value: str | int, position: int) -> str:
    """
    `value` as text.

    Example:
        >>> id_text(7, position=0)
        '7'
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"`question_ids[{position}]` must be text or a whole number, got {value!r}.")
    return str(value)


def domain_list(value: Sequence[str] | str, position: int) -> list[str]:
    """
    The domains of an item as a list; one may be given as text.

    Example:
        >>> domain_list("mri", position=0), domain_list(["histology", "gross"], position=1)
        (['mri'], ['histology', 'gross'])
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"`domains[{position}]` must be the name of a domain or a list of names, got {value!r}.")
    return list(dict.fromkeys(names))


def judge_question(question: dict) -> tuple[dict | None, list[dict]]:
    """
    The scores of one question from its two replies, or why it has none.

    Returns:
        `tuple`: the item (`reference_score` and `model_score` in points, each the mean of both orders;
        `relative_score`; `POSITION_FIGURES`) or `None`, and for each order that could not be used its `question_id`,
        `order` and `reason`.

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
            if reply is None:
                raise ValueError("there is no reply in this order")
            scores[order] = parse_scores(reply)
        except ValueError as error:
            not_judged.append({"question_id": question["question_id"], "order": order, "reason": str(error)})
    if not_judged:
        return None, not_judged
    (reference_1, model_2), (model_1, reference_2) = scores["reference_first"], scores["model_first"]
    return _identity(question) | {
        "relative_score": 100 * (model_1 + model_2) / (reference_1 + reference_2),
        "model_score": (model_1 + model_2) / 2,
        "reference_score": (reference_1 + reference_2) / 2,
        "first_place_advantage": (reference_1 - reference_2 + model_1 - model_2) / 2,
        "relative_score_reference_first": 100 * model_2 / reference_1,
        "relative_score_model_first": 100 * model_1 / reference_2,
    }, []


def _identity(question: dict) -> dict:
    return {name: value for name, value in question.items() if name != "replies"}


def judge_question_release(question: dict) -> dict:
    """
    The scores of one question as the release has them: one reply, in which the reference stands first.

    Raises:
        ValueError: If its reply cannot be read or gives the reference 0 points, if it has another reply, or if the
            release does not know any of its domains.

    Example:
        >>> replies = {"reference_first": "8 7"}
        >>> question = {"question_id": "1", "question_type": "conversation", "domains": ["gross", "histology"]}
        >>> item = judge_question_release(question | {"replies": replies})
        >>> item["relative_score"], item["domains"]
        (87.5, ['histology'])
    """
    where = f"Question {question['question_id']!r}"
    if "model_first" in question["replies"]:
        raise ValueError(f'{where} has a "model_first" reply: the release judges with the reference first only.')
    reply = question["replies"]["reference_first"]
    if reply is None:
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
    return _identity(question) | {
        "domains": known[:1],
        "relative_score": 100 * model_score / reference_score,
        "model_score": model_score,
        "reference_score": reference_score,
    }


# ---------------------------------------------------------------------------------------------------------------------
# All questions
# ---------------------------------------------------------------------------------------------------------------------


def evaluate_judgements(
    predictions: Sequence[str | None],
    question_ids: Sequence[str | int],
    question_types: Sequence[str],
    domains: Sequence[Sequence[str] | str],
    orders: Sequence[str] | None = None,
    protocol: str = "strict",
    return_items: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> dict:
    """
    Score a model by a judge's replies.

    Args:
        predictions, question_ids, question_types, domains, orders:
            One entry per reply of the judge: its text (`None` if there is none), the question, its type, its image
            domains, and which answer the judge read first, "reference_first" or "model_first". Replies to one question
            are joined by its id. `orders` may be left out under "release" only.
        protocol (`str`): "strict" (ours) or "release" (the judge script of LLaVA-Med / ExGra-Med).
        return_items (`bool`): Also return the scores of every judged question, under `items`.
        num_resamples, seed: Of the bootstrap; 0 resamples leaves `intervals` out.
        clusters: What the question of each reply belongs to, such as its image: the bootstrap draws whole clusters.
            `None` draws questions.

    Returns:
        `dict`: `relative_score` in percent, `model_score` and `reference_score` in points, `num_items` (questions
        judged), `num_asked` (questions given), `num_clusters` (of those judged, with `clusters`), `counts` and
        `intervals` (95%) by figure, and `groups`: the same for every value
        of `question_type` and `domain` that has a judged question. Under "strict" also `position_bias` and
        `not_judged`.

    Raises:
        ValueError: If the lists are empty or of different length, contradict each other, or not one question could be
            judged; under "release" if one could not.
        TypeError: If a list holds something other than text.

    Example:
        >>> result = evaluate_judgements(
        ...     ["8 7", "7 8"], [1, 1], ["conversation"] * 2, ["mri"] * 2, ["reference_first", "model_first"]
        ... )
        >>> result["relative_score"], result["groups"]["domain"]["mri"]["num_items"], result["not_judged"]
        (87.5, 1, [])
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {list(PROTOCOLS)}, got {protocol!r}.")
    if orders is None:
        if protocol == "strict":
            raise ValueError('`orders` is missing: say "reference_first" or "model_first" for every reply.')
        orders = ["reference_first"] * len(predictions)
    columns = {
        "predictions": predictions,
        "question_ids": question_ids,
        "question_types": question_types,
        "domains": domains,
        "orders": orders,
    }
    if clusters is not None:
        columns["clusters"] = clusters
    check_columns(columns)
    questions = join_orders(**columns)
    not_judged = []
    if protocol == "release":
        items = [judge_question_release(question) for question in questions]
    else:
        items = []
        for question in questions:
            item, problems = judge_question(question)
            items += [item] if item else []
            not_judged += problems
    if not items:
        raise ValueError(f"None of {len(questions)} questions could be judged. The first: {not_judged[0]}.")
    results = summarize(items, questions, FIGURES, num_resamples, seed)
    results["groups"] = summarize_groups(items, questions, num_resamples, seed)
    if protocol == "strict":
        results["position_bias"] = summarize(items, questions, POSITION_FIGURES, num_resamples, seed)
        results["not_judged"] = not_judged
    if return_items:
        results["items"] = items
    return results


def check_columns(columns: dict[str, Sequence]) -> None:
    """Refuse lists that are empty or of different length."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise ValueError(f"All lists must be equally long, got {told}.")
    if lengths["predictions"] == 0:
        raise ValueError("There is nothing to score: `predictions` is empty.")


def summarize_groups(items: Sequence[dict], questions: Sequence[dict], num_resamples: int, seed: int) -> dict:
    """The figures of each question type and domain with a judged item; an item counts in each of its domains."""
    groups = {}
    for name, values_of in {
        "question_type": lambda row: [row["question_type"]],
        "domain": lambda row: row["domains"] or [NO_DOMAIN],
    }.items():
        groups[name] = {}
        for value in sorted({value for item in items for value in values_of(item)}):
            of_value = [[row for row in rows if value in values_of(row)] for rows in (items, questions)]
            groups[name][value] = summarize(*of_value, FIGURES, num_resamples, seed)
    return groups


def summarize(
    items: Sequence[dict], questions: Sequence[dict], figures: Sequence[str], num_resamples: int, seed: int
) -> dict:
    """
    Means over `items` with their counts and 95% intervals, the number of items, and that of the questions asked.

    Example:
        >>> summary = summarize([{"relative_score": 50.0}], [{}, {}], ["relative_score"], num_resamples=10, seed=0)
        >>> summary["relative_score"], summary["num_items"], summary["num_asked"], summary["intervals"]
        (50.0, 1, 2, {'relative_score': [50.0, 50.0]})
    """
    scores = np.array([[item[name] for name in figures] for item in items])
    results = {name: math.fsum(scores[:, column]) / len(items) for column, name in enumerate(figures)}
    results |= {"num_items": len(items), "num_asked": len(questions), "counts": dict.fromkeys(figures, len(items))}
    clusters = [item["cluster"] for item in items] if "cluster" in items[0] else None
    if clusters is not None:
        results["num_clusters"] = len(set(clusters))
    if num_resamples:
        low, high = bootstrap_intervals(scores, num_resamples, seed, clusters)
        results["intervals"] = {name: [float(low[i]), float(high[i])] for i, name in enumerate(figures)}
    return results


def bootstrap_intervals(
    scores: np.ndarray, num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> np.ndarray:
    """
    95% percentile bootstrap intervals of the column means of `scores`.

    Clusters are drawn with replacement (`None`: each item is one): a mean is the sum of the drawn scores / how many
    they are.

    Args:
        scores (`np.ndarray` of shape `(num_items, num_figures)`): At least one item.

    Returns:
        `np.ndarray` of shape `(2, num_figures)`: lower and upper ends, in the unit of `scores`.

    Example:
        >>> bootstrap_intervals(np.array([[8.0], [8.0]]), num_resamples=100, seed=0).tolist()
        [[8.0], [8.0]]
    """
    places = np.arange(len(scores)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.zeros((places.max() + 1, scores.shape[1] + 1))
    np.add.at(sums, places, np.column_stack([scores, np.ones(len(scores))]))
    kinds, counts = np.unique(sums, axis=0, return_counts=True)  # sorted: the order of the questions changes nothing
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=num_resamples) @ kinds
    return np.percentile(drawn[:, :-1] / drawn[:, -1:], [2.5, 97.5], axis=0)
