"""Tests of the scoring functions behind the `medical_multiple_choice` metric."""

import itertools
import math

import numpy as np
import pytest

from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices, score_choice
from logramed.eval.metrics.medical_multiple_choice.option_matching import choose_by_text


MODALITIES = ["CT scan", "MRI scan", "X-ray", "Ultrasound"]


# Release protocol


def test_release_protocol_gives_the_recorded_choices(parity):
    assert len(parity["multiple_choice"]) == 8
    for case in parity["multiple_choice"]:
        scored = score_choice(case["model_pred"], case["gt_answer"], case["options"], "release")
        assert scored["ratios"] == case["ratios"], case["id"]
        assert scored["index"] == case["index"], case["id"]
        assert scored["accuracy"] == float(case["is_correct"] == "yes"), case["id"]


def test_release_protocol_keeps_what_it_cannot_map_in_the_denominator(parity):
    cases = parity["multiple_choice"]
    columns = [[case[name] for case in cases] for name in ("model_pred", "gt_answer", "options")]
    result = evaluate_choices(*columns, protocol="release")
    assert (result["num_items"], result["num_undecided"]) == (8, 2)
    assert result["accuracy"] == 100 * 6 / 8


def test_release_protocol_counts_a_reference_that_is_no_option_as_wrong():
    assert score_choice("CT", "ct", ["CT", "MRI"], "release")["accuracy"] == 0.0


# Strict protocol, generated text


@pytest.mark.parametrize(
    "text",
    [
        "MRI scan",
        "an MRI scan",
        "This is an mri scan.",
        "Assistant: MRI scan ### Human: Why?",
        "B",
        "b",
        "(B)",
        "B.",
        "b)",
        "**B**",
        "B: MRI scan",
        "B. MRI scan",
        "B) MRI scan",
        "B.MRI scan",
        "(B) MRI scan",
        "B - MRI scan",
        "B MRI scan",
        "B, because fat is bright",
        "The answer is B",
        "The answer is (B).",
        "The answer is b.",
        "the answer is option (b)",
        "answer is b, because fat is bright",
        "B is correct",
        "B is the correct answer",
        "\uff22",
        "<|im_start|>assistant\nB<|im_end|>",
        "B</s>",
        "The correct answer is: B",
        "Answer: B",
        "**Answer:** B. MRI scan",
        "Option B is correct",
        "I choose B.",
        "It is B.",
        "MRI scan, not CT scan",
        "This is not a CT scan but an MRI scan",
        "MRI scan rather than CT scan",
    ],
)
def test_strict_text_chooses_the_option_it_gives(text):
    assert choose_by_text(text, MODALITIES) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "MRI",
        "ultrasounds",
        "E",
        "A or B",
        "A and B",
        "The answer is A or B",
        "The answer is not B",
        "not option B",
        "The answer is a, b",
        "B is not correct",
        "B is wrong",
        "B: CT scan",
        "CT scan or MRI scan",
        "not an MRI scan",
        "MRI scan. Not an MRI scan.",
        "Both",
    ],
)
def test_strict_text_without_one_choice_is_undecided_and_wrong(text):
    assert choose_by_text(text, MODALITIES) is None
    assert score_choice(text, "MRI scan", MODALITIES) == {"accuracy": 0.0, "index": None}


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("The answer is a CT scan", MODALITIES, 0),
        ("A CT scan", MODALITIES, 0),
        ("Option A is correct", MODALITIES, 0),
        ("Abnormal", ["Normal", "Abnormal"], 1),
        ("abnormality", ["Normal", "Abnormal"], None),
        ("not normal", ["Normal", "Abnormal"], None),
        ("a CT angiography of the head", ["CT", "CT angiography"], 1),
        ("CT", ["CT", "CT angiography"], 0),
        ("CT and CT angiography", ["CT", "CT angiography"], None),
        ("No, it is not.", ["Yes", "No", None, None], 1),
        ("Yes, there is no effusion", ["Yes", "No"], None),
        ("No finding", ["No finding", "Pneumonia"], 0),
        ("no evidence of pneumonia", ["Pneumonia", "Normal"], None),
        ("E. coli infection", ["E. coli", "virus", "fungus", "worm", "none"], 0),
        ("Hepatitis B", ["Hepatitis A", "Hepatitis B"], 1),
        ("hepatitis A is likely", ["Hepatitis B", "Hepatitis A"], 1),
        ("B", ["B", "A"], 0),
        ("This is a mass", ["A", "B", "AB", "O"], None),
        ("blood group A", ["A", "B", "AB", "O"], 0),
        ("I think so", ["I", "II", "III"], None),
        ("I think it is II", ["I", "II", "III"], 1),
        ("A mass", ["Cyst", "Mass"], 1),
        ("Grade 1-", ["Grade 1+", "Grade 1-"], 1),
        ("it is grade 1", ["Grade 1+", "Grade 1-"], None),
        ("two", ["2", "3"], 0),
        ("12", ["2", "12"], 1),
        ("不健康", ["健康", "不健康"], 1),
        ("在左侧", ["左侧", "右侧"], 0),
        ("C", ["CT", "MRI", None, None], None),
        ("D", ["CT", "MRI", "", "PET"], 3),
    ],
)
def test_strict_text_is_matched_word_by_word(text, options, index):
    assert score_choice(text, next(filter(None, options)), options)["index"] == index


@pytest.mark.parametrize(
    "form", ["{letter}", "({letter})", "{letter}: {option}", "{option}", "The answer is {letter}."]
)
def test_the_order_of_the_options_changes_no_score(form):
    for order in itertools.permutations(["Normal", "Abnormal", "Pneumonia", "No finding"]):
        for place, option in enumerate(order):
            answer = form.format(letter="ABCD"[place], option=option)
            assert score_choice(answer, option, order) == {"accuracy": 1.0, "index": place}


def test_missing_options_keep_their_letter():
    options = ["CT", None, "MRI", ""]
    result = evaluate_choices(["C"], ["MRI"], [options])
    assert (result["accuracy"], result["chance"]) == (100.0, 50.0)
    assert score_choice("B", "MRI", options)["index"] is None


def test_equal_options_are_one_option():
    options = ["CT", "ct ", "MRI"]
    assert score_choice("B", "CT", options) == {"accuracy": 1.0, "index": 0}
    assert score_choice([-1.0, -1.0, -2.0], "ct", options)["accuracy"] == 1.0
    assert evaluate_choices(["B"], ["CT"], [options])["chance"] == 50.0


# Likelihood


def test_likelihood_chooses_the_highest_score_whatever_is_added_to_all():
    for shift in (0.0, -100.0, 3.5):
        scores = [-2.0 + shift, -0.5 + shift, -3.0 + shift]
        assert score_choice(scores, "MRI", ["CT", "MRI", None, "PET"]) == {"accuracy": 1.0, "index": 1}
    assert score_choice(np.array([-1.0, -2.0]), "MRI", ["CT", "MRI"])["accuracy"] == 0.0
    assert score_choice([-math.inf, -9.0], "MRI", ["CT", "MRI"])["accuracy"] == 1.0


def test_a_tie_of_scores_is_undecided_and_wrong():
    result = evaluate_choices([[-1.0, -1.0], [-1.0, -2.0]], ["CT", "CT"], [["CT", "MRI"]] * 2)
    assert (result["accuracy"], result["num_undecided"], result["num_items"]) == (50.0, 1, 2)


# All questions


def test_chance_is_the_mean_over_the_options_that_are_there():
    options = [["CT", "MRI", None, ""], ["CT", "MRI", "PET", "X-ray"]]
    assert evaluate_choices(["CT", "CT"], ["CT", "CT"], options)["chance"] == pytest.approx(100 * (1 / 2 + 1 / 4) / 2)


def choose(right, clusters=None, **options):
    columns = (["CT" if is_right else "MRI" for is_right in right], ["CT"] * len(right), [["CT", "MRI"]] * len(right))
    return evaluate_choices(*columns, clusters=clusters, **options)


def test_intervals_draw_whole_clusters():
    assert choose([1, 1, 0], ["a", "a", "b"])["intervals"]["accuracy"] == [0.0, 100.0]  # of 2/2, 2/3 and 0/1
    result = choose([1, 1, 0, 1], ["a", "a", "b", "b"], return_items=True)
    assert (result["num_clusters"], result["intervals"]["accuracy"]) == (2, [50.0, 100.0])
    assert [item["accuracy"] for item in result["items"]] == [100.0, 100.0, 0.0, 100.0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((["A"], ["PET"], [["CT", "MRI"]]), ValueError, r"Item 0: .*'PET' is not one of the options \['CT', 'MRI'\]"),
        ((["A", "A"], ["CT"] * 2, [["CT", "MRI"], ["CT", None]]), ValueError, r"Item 1: .*two different options"),
        ((["A"], ["CT"], [["CT", "ct"]]), ValueError, r"Item 0: .*two different options"),
        (([[-1.0]], ["CT"], [["CT", "MRI"]]), ValueError, r"Item 0: There are 2 options, but 1 scores"),
        (([[-1.0, math.nan]], ["CT"], [["CT", "MRI"]]), ValueError, r"Item 0: A score is not a number"),
        (([None], ["CT"], [["CT", "MRI"]]), ValueError, r"Item 0: There are 2 options"),
        ((["A"], [1], [["CT", "MRI"]]), TypeError, r"references\[0\]` must be text, got 1"),
        (([[-1.0, 0.0]], ["CT"], [["CT", "MRI"]], "release"), ValueError, r"Item 0: .*takes generated texts"),
        ((["A"], ["CT"], [["CT", "MRI"]], "lenient"), ValueError, r"`protocol`.*got 'lenient'"),
        ((["A"], ["CT", "CT"], [["CT", "MRI"]]), ValueError, r"equally long, got `predictions` 1, `references` 2"),
        (([], [], []), ValueError, r"nothing to score"),
        (
            (["A"], ["CT"], [["CT", "MRI"]], "strict", False, 0, 0, ["a", "b"]),
            ValueError,
            r"equally long, .*`clusters` 2",
        ),
        (
            (["A"] * 2, ["CT"] * 2, [["CT", "MRI"]] * 2, "strict", False, 0, 0, ["a", None]),
            TypeError,
            r"`clusters\[1\]` must be text, got None",
        ),
        (
            (["A"], ["CT"], [["CT", "MRI"]], "strict", False, 0, 0, [math.nan]),
            TypeError,
            r"`clusters\[0\]` must be text, got nan \(float\)",
        ),
        ((["A"], ["CT"], [["CT", "MRI"]], "strict", False, -1), ValueError, r"num_resamples.*got -1"),
    ],
)
def test_refusals_name_the_item(arguments, error, words):
    with pytest.raises(error, match=words):
        evaluate_choices(*arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("选A", 0), ("应该选择B", 1), ("答案是 C", 2), ("不选A", None), ("不应该选择B", None), ("非答案A", None)],
)
def test_letters_in_chinese_are_chosen_unless_they_are_ruled_out(text, expected):
    assert score_choice(text, "lung", ["liver", "lung", "heart"])["index"] == expected
