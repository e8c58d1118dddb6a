"""Tests of the scoring functions behind the `medical_chat_judge` metric."""

import random

import numpy as np
import pytest

from logramed.eval.metrics.medical_chat_judge.judge_scoring import ORDERS, evaluate_judgements


RELEASE_NAMES = {
    "gpt4_score": "reference_score",
    "pred_score": "model_score",
    "pred_relative_score": "relative_score",
    "data_size": "num_items",
}


def make_rows(*questions):
    """Columns of (id, reply with the reference first, reply with the model first), all of one type and domain."""
    rows = [
        (reply, str(question_id), order)
        for question_id, *replies in questions
        for reply, order in zip(replies, ORDERS, strict=False)
    ]
    return {
        "predictions": [row[0] for row in rows],
        "question_ids": [row[1] for row in rows],
        "question_types": ["conversation"] * len(rows),
        "domains": [["mri"]] * len(rows),
        "orders": [row[2] for row in rows],
    }


# Release protocol


def test_release_protocol_gives_the_recorded_figures(parity):
    ids, types, domains, replies = zip(*parity["judge"]["rows"], strict=True)
    ids = [str(question_id) for question_id in ids]
    domains = [[name] if isinstance(name, str) else name for name in domains]
    results = evaluate_judgements(replies, ids, types, domains, ORDERS[:1] * len(ids), protocol="release")
    found = {"all": results} | results["groups"]["question_type"] | results["groups"]["domain"]
    assert set(found) == set(parity["judge"]["expected"])
    for name, expected in parity["judge"]["expected"].items():
        for recorded_name, value in expected.items():
            assert found[name][RELEASE_NAMES[recorded_name]] == pytest.approx(value, abs=1e-9), (name, recorded_name)


def test_release_protocol_averages_ratios_of_what_is_asked_with_the_reference_first():
    rows = make_rows(("1", "10 5"), ("2", "2 4"))
    results = evaluate_judgements(**rows, protocol="release")
    assert (results["relative_score"], results["model_score"], results["reference_score"]) == (125.0, 4.5, 6.0)
    assert results["intervals"]["relative_score"] == [50.0, 200.0]
    assert "position_bias" not in results


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("8, 7", "Question '7' cannot be scored as the release does: the first line is not two numbers"),
        ("0 7", "Question '7' has no relative score: the reference has 0 points in '0 7'"),
        (None, "Question '7' has no reply"),
    ],
)
def test_release_protocol_scores_nothing_if_one_reply_cannot_be_scored(reply, words):
    with pytest.raises(ValueError, match=words):
        evaluate_judgements(**make_rows(("3", "8 7"), ("7", reply)), protocol="release")


def test_release_protocol_refuses_the_other_order():
    with pytest.raises(ValueError, match="Question '1' has a \"model_first\" reply"):
        evaluate_judgements(**make_rows(("1", "8 7", "7 8")), protocol="release")


def test_release_protocol_counts_an_item_in_its_first_domain_only():
    rows = make_rows(("1", "8 4"), ("2", "8 8"), ("3", "8 2"))
    rows["domains"] = [["ct_scan", "histology", "chest_xray"], ["gross", "histology"], []]
    domains = evaluate_judgements(**rows, protocol="release")["groups"]["domain"]
    assert {name: figures["relative_score"] for name, figures in domains.items()} == {
        "chest_xray": 50.0,
        "histology": 100.0,
        "none": 25.0,
    }


def test_release_protocol_refuses_domains_it_does_not_know():
    rows = make_rows(("1", "8 4"))
    with pytest.raises(ValueError, match=r"Question '1' is of \['mammography'\]; the release knows only chest_xray"):
        evaluate_judgements(**rows | {"domains": [["mammography"]]}, protocol="release")


# Strict protocol


def test_points_are_summed_within_a_question_and_ratios_averaged_over_questions():
    # Reference first "r m", model first "m r": 1 has 8 + 6 points of the reference and 4 + 3 of the model.
    results = evaluate_judgements(**make_rows(("1", "8 4", "3 6"), ("2", "5 10", "10 5")), return_items=True)
    assert [item["relative_score"] for item in results["items"]] == [50.0, 200.0]
    assert (results["relative_score"], results["reference_score"], results["model_score"]) == (125.0, 6.0, 6.75)
    assert (results["num_items"], results["num_asked"], results["counts"]["relative_score"]) == (2, 2, 2)


@pytest.mark.parametrize("advantage", [0.0, 1.0, 2.5, -2.0])
def test_equal_answers_score_100_whatever_the_place_is_worth(advantage):
    first, second = 6 + advantage, 6
    rows = make_rows(*((number, f"{first} {second}", f"{first} {second}") for number in range(3)))
    results = evaluate_judgements(**rows)
    assert results["relative_score"] == 100.0
    bias = results["position_bias"]
    assert bias["first_place_advantage"] == advantage
    assert bias["relative_score_reference_first"] == pytest.approx(100 * second / first)
    assert bias["relative_score_model_first"] == pytest.approx(100 * first / second)


def test_position_bias_is_the_mean_over_both_answers():
    # The reference gains 3 by standing first, the model loses 1.
    bias = evaluate_judgements(**make_rows(("1", "8 5", "4 5")))["position_bias"]
    assert (bias["first_place_advantage"], bias["num_items"]) == (1.0, 1)


def test_replies_are_joined_by_id_in_any_order_of_rows():
    rows = make_rows(*((number, f"{5 + number} 4", f"3 {6 + number}") for number in range(4)))
    expected = evaluate_judgements(**rows)
    order = list(range(8))
    random.Random(0).shuffle(order)
    shuffled = evaluate_judgements(**{name: [column[i] for i in order] for name, column in rows.items()})
    assert shuffled["relative_score"] == pytest.approx(expected["relative_score"])
    assert shuffled["groups"]["domain"]["mri"]["num_items"] == 4


def test_what_cannot_be_judged_is_listed_and_in_no_mean():
    rows = make_rows(("1", "8 4", "4 8"), ("2", "10 10", "No idea."), ("3", None, "0 7"), ("4", "6 6"))
    results = evaluate_judgements(**rows, return_items=True)
    assert (results["relative_score"], results["num_items"], results["num_asked"]) == (50.0, 1, 4)
    assert [item["question_id"] for item in results["items"]] == ["1"]
    assert results["not_judged"] == [
        {"question_id": "2", "order": "model_first", "reason": "no two scores in the reply: 'No idea.'"},
        {"question_id": "3", "order": "reference_first", "reason": "there is no reply in this order"},
        {
            "question_id": "3",
            "order": "model_first",
            "reason": "scores 0 and 7 are not on the scale of 1 to 10: '0 7'",
        },
        {"question_id": "4", "order": "model_first", "reason": "there is no reply in this order"},
    ]


def test_a_run_without_one_judged_question_raises():
    with pytest.raises(ValueError, match=r"None of 1 questions could be judged.*there is no reply in this order"):
        evaluate_judgements(**make_rows(("1", "8 4")))


def test_groups_hold_their_own_figures_and_a_group_without_items_is_absent():
    rows = make_rows(("1", "8 4", "4 8"), ("2", "8 8", "8 8"), ("3", "8 2", "No."), ("4", "8 2", "2 8"))
    rows["question_types"] = ["conversation"] * 4 + ["detailed_description"] * 4
    rows["domains"] = [name for names in (["mri"], ["gross", "histology"], ["ct_scan"], []) for name in [names] * 2]
    groups = evaluate_judgements(**rows)["groups"]
    assert {name: group["relative_score"] for name, group in groups["question_type"].items()} == {
        "conversation": 75.0,
        "detailed_description": 25.0,
    }
    assert groups["question_type"]["detailed_description"]["num_asked"] == 2
    assert {name: group["relative_score"] for name, group in groups["domain"].items()} == {
        "gross": 100.0,
        "histology": 100.0,
        "mri": 50.0,
        "none": 25.0,
    }


def test_intervals_are_those_of_a_bootstrap_over_questions():
    generator = np.random.default_rng(1)
    scores = generator.integers(1, 11, size=(60, 2))
    rows = make_rows(*((number, f"{r} {m}", f"{m} {r}") for number, (r, m) in enumerate(scores)))
    results = evaluate_judgements(**rows, num_resamples=4000)
    ratios = 100 * scores[:, 1] / scores[:, 0]
    assert results["relative_score"] == pytest.approx(ratios.mean())
    spread = 1.96 * ratios.std() / np.sqrt(60)
    low, high = results["intervals"]["relative_score"]
    assert low == pytest.approx(ratios.mean() - spread, abs=0.25 * spread)
    assert high == pytest.approx(ratios.mean() + spread, abs=0.25 * spread)
    assert evaluate_judgements(**rows, num_resamples=4000) == results
    assert "intervals" not in evaluate_judgements(**rows, num_resamples=0)


def test_clusters_of_equal_questions_give_the_interval_of_one_question_each():
    scores = np.random.default_rng(1).integers(1, 11, size=(40, 2)).repeat(3, axis=0)
    rows = make_rows(*((number, f"{r} {m}", f"{m} {r}") for number, (r, m) in enumerate(scores)))
    images = [str(int(question_id) // 3) for question_id in rows["question_ids"]]
    by_image, by_question = evaluate_judgements(**rows, clusters=images), evaluate_judgements(**rows)
    widths = [np.diff(results["intervals"]["relative_score"]) for results in (by_image, by_question)]
    assert widths[0] == pytest.approx(3**0.5 * widths[1], rel=0.15)
    assert (by_image["num_clusters"], by_image["num_items"]) == (40, 120)
    one_each = evaluate_judgements(**rows, clusters=[str(question_id) for question_id in rows["question_ids"]])
    assert one_each["intervals"] == by_question["intervals"]


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"clusters": ["a"]}, ValueError, r"equally long.*`clusters` 1"),
        ({"clusters": ["a", None]}, TypeError, r"`clusters\[1\]` must be text, got None"),
        ({"clusters": ["a", "b"]}, ValueError, "'1' has another type, domain or cluster in row 1"),
        ({"question_types": ["a", "b"]}, ValueError, "'1' has another type, domain or cluster in row 1"),
        ({"domains": [["mri"], ["gross"]]}, ValueError, "'1' has another type, domain or cluster in row 1"),
        ({"domains": ["mri"] * 2}, TypeError, r"`domains\[0\]` must be a list of names, got 'mri'"),
        ({"protocol": "loose"}, ValueError, r"`protocol` must be one of \['strict', 'release'\], got 'loose'"),
        ({"orders": ["reference_first", "second"]}, ValueError, r"`orders\[1\]` must be one of .*, got 'second'"),
        ({"orders": ["model_first"] * 2}, ValueError, "'1' has two replies in the order 'model_first'"),
        ({"question_ids": ["1", 1]}, TypeError, r"`question_ids\[1\]` must be text, got 1"),
    ],
)
def test_lists_that_contradict_are_refused_by_name(change, error, words):
    with pytest.raises(error, match=words):
        evaluate_judgements(**make_rows(("1", "8 7", "7 8")) | change)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate_judgements([], [], [], [], [])
