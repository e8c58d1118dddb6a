"""Tests of the scoring functions behind the `medical_vqa` metric."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logramed.eval.metrics.medical_vqa import vqa_scoring
from logramed.eval.metrics.medical_vqa.vqa_scoring import (
    CONTRACTIONS,
    bleu_scores,
    bootstrap_intervals,
    evaluate_answers,
    normalize_release,
    normalize_strict,
    score_closed_strict,
    score_open_strict,
    strip_role_words,
)


FIXTURE = Path(__file__).parents[4] / "shared" / "fixtures" / "evaluation_parity.json"
PARITY_NAMES = {
    "exact_match_score": "open_exact_match",
    "f1_score": "open_f1",
    "precision": "open_precision",
    "recall": "open_recall",
    "open_accuracy": "open_accuracy",
    "bleu_score_1": "open_bleu_1",
    "bleu_score_2": "open_bleu_2",
    "bleu_score_3": "open_bleu_3",
    "bleu_score": "open_bleu_4",
}


@pytest.fixture(scope="module")
def parity():
    if not FIXTURE.is_file():
        pytest.skip(f"needs the recorded outputs of the release, {FIXTURE}")
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def evaluate_one(prediction, reference, answer_type, **options):
    return evaluate_answers([prediction], [reference], [answer_type], num_resamples=0, **options)


# Release protocol


def test_release_protocol_gives_the_recorded_figures_of_each_pair(parity):
    assert len(parity["pairs"]) == 44
    for pair in parity["pairs"]:
        options = {"protocol": "release", "candidates": parity["meta"]["candidates"]["0"]}
        figures = evaluate_one(pair["prediction"], pair["reference"], "OPEN", **options)
        for recorded_name, expected in pair["open"].items():
            name = PARITY_NAMES[recorded_name]
            tolerance = 1e-6 if "bleu" in name else 1e-9
            assert figures[name] == pytest.approx(expected, abs=tolerance), (pair["id"], name)
        closed = evaluate_one(pair["prediction"], pair["reference"], "CLOSED", protocol="release")
        assert closed["closed_accuracy"] == pair["closed"]["accuracy"], pair["id"]


def test_release_protocol_gives_the_mean_of_the_recorded_figures_over_all_pairs(parity):
    pairs = parity["pairs"]
    figures = evaluate_answers(
        [pair["prediction"] for pair in pairs] * 2,
        [pair["reference"] for pair in pairs] * 2,
        ["OPEN"] * len(pairs) + ["CLOSED"] * len(pairs),
        protocol="release",
        candidates=parity["meta"]["candidates"],
        num_resamples=0,
    )
    for recorded_name, name in PARITY_NAMES.items():
        expected = np.mean([pair["open"][recorded_name] for pair in pairs])
        assert figures[name] == pytest.approx(expected, abs=1e-9), name
    assert figures["closed_accuracy"] == pytest.approx(np.mean([pair["closed"]["accuracy"] for pair in pairs]))


def test_release_normalization_gives_the_recorded_texts(parity):
    for pair in parity["pairs"]:
        assert normalize_release(pair["reference"].lower()) == pair["normalized_reference"], pair["id"]
        assert normalize_release(pair["prediction"].lower()) == pair["normalized_prediction"], pair["id"]


def test_release_normalization_restores_contractions_and_keeps_the_lists_slip():
    assert normalize_release("it doesnt show, couldnt've been") == "it doesn't show couldn't've been"
    assert normalize_release("somebody'd") == "somebodyd"
    assert len(CONTRACTIONS) == 113


@pytest.mark.filterwarnings("ignore:\\nThe hypothesis contains 0 counts")
@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_nltk_on_random_words(seed):
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    generator = np.random.default_rng(seed)
    weights = {1: (1, 0, 0, 0), 2: (0, 1, 0, 0), 3: (0, 0, 1, 0), 4: (0.25, 0.25, 0.25, 0.25)}
    for _ in range(40):
        prediction, reference = (
            [f"w{word}" for word in generator.integers(4, size=generator.integers(1, 12))] for _ in range(2)
        )
        ours = bleu_scores(prediction, reference)
        for order in weights:
            theirs = nltk_bleu.sentence_bleu([reference], prediction, weights=weights[order])
            assert ours[f"open_bleu_{order}"] == pytest.approx(theirs, abs=1e-12)


# Strict protocol, open questions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Assistant: Left lung", "left lung"),
        ("### ASSISTANT :\n**Answer:** left lung ### Human: and now?", "left lung"),
        ("The X-ray", "x ray"),
        ("3.5cm", "3.5 cm"),
        ("1,000 left-lung nodules", "1000 left lung nodules"),
        ("Crohn\u2019s disease", "crohns disease"),
        ("\uff39\uff25\uff33", "yes"),
        ("x\u2013ray.", "x ray"),
        ("hepatitis A", "hepatitis a"),
        ("None", "0"),
        ("T2_FLAIR", "t2 flair"),
        ("a. " * 40 + "pneumonia.", "pneumonia"),
        ("...", ""),
    ],
)
def test_strict_normalization(text, words):
    assert " ".join(normalize_strict(text)) == words


def test_role_words_inside_an_answer_stay():
    assert strip_role_words("The answer is left: the assistant said so") == "The answer is left: the assistant said so"


def test_strict_recall_counts_a_repeated_word_as_often_as_both_have_it():
    scores = score_open_strict("left lobe", "left left lobe")
    assert scores["open_recall"] == pytest.approx(2 / 3)
    assert scores["open_precision"] == 1.0
    assert scores["open_f1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))


def test_strict_exact_match_minds_order_and_role_words_do_not_lower_it():
    assert score_open_strict("right left", "left right")["open_exact_match"] == 0.0
    assert score_open_strict("Assistant: left, right.", "left right")["open_exact_match"] == 1.0


@pytest.mark.parametrize(
    ("prediction", "accuracy"),
    [
        ("in the right lung", 1.0),
        ("left lung", 0.0),
        ("lung", 0.0),
        ("left or right lung", 0.0),
        ("brain", 0.0),
        ("", 0.0),
    ],
)
def test_strict_candidate_accuracy_wants_the_reference_as_the_one_best_candidate(prediction, accuracy):
    scores = score_open_strict(prediction, "right lung", ["right lung", "left lung", "liver", "Right lung."])
    assert scores["open_accuracy"] == accuracy


# Strict protocol, closed questions


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Yes", "yes", 1.0),
        ("Assistant: Yes.", "Yes", 1.0),
        ("No, the image does not show it.", "no", 1.0),
        ("Yes, there is no pleural effusion", "no", 0.0),
        ("Yes, there is no pleural effusion", "yes", 0.0),
        ("The heart is abnormal", "no", 0.0),
        ("lymph node", "no", 0.0),
        ("maybe", "yes", 0.0),
        ("", "no", 0.0),
        ("yes yes yes", "yes", 1.0),
        ("No", "No, it is clear", 1.0),
        ("Yes ### Human: Is it? ### Assistant: No", "yes", 1.0),
    ],
)
def test_strict_yes_no_questions_want_one_whole_word_and_the_right_one(prediction, reference, score):
    assert score_closed_strict(prediction, reference) == score


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("the left is abnormal", "left", 1.0),
        ("Left.", "Left side", 1.0),
        ("left or right", "left", 0.0),
        ("left and right", "left", 0.0),
        ("left/right", "Left", 0.0),
        ("left, not right", "left", 1.0),
        ("right, not left", "left", 0.0),
        ("ribs", "rib", 0.0),
        ("both sides", "Both", 1.0),
        ("an abnormal image", "normal", 0.0),
        ("not normal", "normal", 0.0),
        ("without contrast", "no contrast", 1.0),
        ("Non-contrast CT", "contrast CT", 0.0),
        ("one", "1", 1.0),
        ("MRI or CT, hard to say", "MRI", 0.0),
        ("This is an MRI scan", "MRI", 1.0),
        ("no", "normal", 0.0),
        ("", "left", 0.0),
        ("B", "A", 0.0),
        ("a", "A", 1.0),
    ],
)
def test_strict_option_questions_are_scored_by_option(prediction, reference, score):
    assert score_closed_strict(prediction, reference) == score


def test_strict_and_release_differ_where_the_release_is_wrong():
    answers = (["The heart is abnormal", "Yes, there is no effusion"], ["no", "no"], ["CLOSED", "CLOSED"])
    assert evaluate_answers(*answers, protocol="release")["closed_accuracy"] == 100.0
    assert evaluate_answers(*answers)["closed_accuracy"] == 0.0


# All questions


def test_nothing_is_dropped_from_the_denominators():
    result = evaluate_answers(
        ["", "maybe", "yes", "", "lung"], ["yes"] * 3 + ["lung"] * 2, ["CLOSED"] * 3 + ["OPEN"] * 2
    )
    assert (result["num_closed"], result["num_open"]) == (3, 2)
    assert result["closed_accuracy"] == pytest.approx(100 / 3)
    assert result["open_recall"] == 50.0


def test_numbers_and_odd_spellings_of_the_type_are_accepted():
    result = evaluate_answers([2, "Two", np.int64(3)], [2, 2, 3], ["open", "CLOSED ", " Open"])
    assert (result["num_open"], result["num_closed"]) == (2, 1)
    assert result["open_recall"] == result["closed_accuracy"] == 100.0


def test_a_kind_without_questions_has_no_figures():
    only_open = evaluate_answers(["lung"], ["lung"], ["OPEN"])
    assert "closed_accuracy" not in only_open | only_open["intervals"]
    assert only_open["num_closed"] == 0
    only_closed = evaluate_answers(["yes"], ["yes"], ["CLOSED"])
    assert not [name for name in only_closed if name.startswith("open_")]


def test_candidate_accuracy_is_there_only_with_candidates():
    assert "open_accuracy" not in evaluate_one("lung", "lung", "OPEN")
    assert evaluate_one("lung", "lung", "OPEN", candidates=["lung", 5])["open_accuracy"] == 100.0


def test_every_figure_has_an_interval_around_it_that_the_seed_decides():
    predictions, references = ["yes", "no"] * 30, ["yes"] * 60
    result = evaluate_answers(predictions, references, ["CLOSED"] * 60)
    low, high = result["intervals"]["closed_accuracy"]
    # Normal approximation: 50 +- 1.96 * 50 / sqrt(60) = 37.3 .. 62.7
    assert low == pytest.approx(37.3, abs=2)
    assert high == pytest.approx(62.7, abs=2)
    assert evaluate_answers(predictions, references, ["CLOSED"] * 60) == result
    other_seed = evaluate_answers(predictions, references, ["CLOSED"] * 60, seed=1)
    assert other_seed["closed_accuracy"] == result["closed_accuracy"]
    figures = set(evaluate_answers(["a b", "no"], ["a b", "no"], ["OPEN", "CLOSED"])["intervals"])
    assert {
        "open_recall",
        "open_precision",
        "open_f1",
        "open_exact_match",
        "open_bleu_1",
        "closed_accuracy",
    } <= figures


def test_bootstrap_interval_equals_the_exact_one_of_two_questions():
    # Of the four equally likely draws of {0, 1}, the means are 0, 1/2, 1/2, 1.
    assert bootstrap_intervals(np.array([[0.0], [1.0]]), num_resamples=1000, seed=0).tolist() == [[0.0], [1.0]]


def test_items_carry_the_scores_of_each_question_and_average_to_the_figures():
    result = evaluate_answers(
        ["left", "no", "liver"], ["left lung", "no", "lung"], ["OPEN", "CLOSED", "OPEN"], return_items=True
    )
    assert [item["answer_type"] for item in result["items"]] == ["OPEN", "CLOSED", "OPEN"]
    assert result["items"][1] == {"answer_type": "CLOSED", "closed_accuracy": 100.0}
    assert result["open_recall"] == np.mean([result["items"][0]["open_recall"], result["items"][2]["open_recall"]])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((["a"], ["a"], ["yes/no"]), ValueError, r"answer_types\[0\].*OPEN.*got 'yes/no'"),
        ((["a"], ["a"], [None]), ValueError, r"answer_types\[0\].*got None"),
        ((["a"], ["a", "b"], ["OPEN"]), ValueError, r"equally long, got 1, 2 and 1"),
        (([], [], []), ValueError, r"nothing to score"),
        (([None], ["a"], ["OPEN"]), TypeError, r"predictions\[0\].*got None"),
        ((["yes"], [True], ["CLOSED"]), TypeError, r"references\[0\].*got True \(bool\)"),
        ((["a"], [" . "], ["OPEN"]), ValueError, r"references\[0\].*no words"),
        ((["a"], ["a"], ["OPEN"], "lenient"), ValueError, r"protocol.*strict.*release.*got 'lenient'"),
        ((["a"], ["a"], ["OPEN"], "strict", []), ValueError, r"candidates.*got \[\]"),
        ((["a"], ["a"], ["OPEN"], "strict", {"1": ["a"]}), ValueError, r'one key "0", got \[\'1\'\]'),
    ],
)
def test_refusals_name_what_came(arguments, error, words):
    with pytest.raises(error, match=words):
        evaluate_answers(*arguments)


def test_scoring_imports_neither_torch_nor_anything_of_ours():
    folder = Path(vqa_scoring.__file__).parent
    program = (
        "import sys, vqa_scoring; vqa_scoring.evaluate_answers(['yes'], ['yes'], ['CLOSED']); "
        "print([name for name in ('torch', 'transformers', 'evaluate', 'logramed') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
