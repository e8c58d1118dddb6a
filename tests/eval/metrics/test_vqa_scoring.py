"""Tests of the scoring functions behind the `medical_vqa` metric."""

import numpy as np
import pytest

from logramed.eval.metrics.medical_vqa import release_protocol
from logramed.eval.metrics.medical_vqa.release_protocol import CONTRACTIONS, bleu_scores, normalize_release
from logramed.eval.metrics.medical_vqa.vqa_scoring import (
    evaluate_answers,
    normalize_strict,
    score_closed_strict,
    score_open_strict,
)
from logramed.eval.metrics.reply_reader import strip_role_words


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
    assert normalize_release("ow's'at 'ows'at 'ow'sat") == " ".join(["'ow's'at"] * 3)
    assert normalize_release("shes lets im") == "shes lets im"  # in the list only with the apostrophe or a capital
    assert len(CONTRACTIONS) == 114


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("", ""),
        (" \t\n", ""),
        ("?!", ""),
        ("a an the", ""),
        ("left/right - both", "left right both"),
        ("x-ray,", "x ray"),
        ("x-ray, chest", "x ray chest"),
        ("3,5 x-ray", "35 xray"),
        ("\u0663,\u0663 x-ray", "\u0663\u0663 xray"),  # digits of any script
        ("5. .5 3.5.", "5 .5 3.5"),
        (". " * 40 + "end", ". . . . . . . . end"),  # 32 stops go
        ("the-an", ""),
        ("None two TEN eleven", "0 2 10 eleven"),
        ("\u0130 x\u2013ray \u80ba", "i\u0307 x\u2013ray \u80ba"),
        ("left\u00a0lung\u3000base", "left lung base"),
    ],
)
def test_release_normalization_of_odd_texts(text, normalized):
    assert normalize_release(text) == normalized


def test_release_scores_of_empty_answers_and_references():
    for prediction, reference, closed in (("", "", 1.0), ("", "lung", 0.0), ("lung", "", 1.0), ("...", "the", 1.0)):
        scores = release_protocol.score_open_release(prediction, reference, ["", "5"])
        assert scores.pop("open_accuracy") == float(reference in ("", "the")), (prediction, reference)
        assert set(scores.values()) == {0.0}
        assert release_protocol.score_closed_release(prediction, reference) == closed


def test_the_first_of_the_best_release_candidates_wins():
    most_similar = release_protocol.most_similar_candidate_release
    assert most_similar({"left", "lung"}, ["left", "lung", "left lung"]) == "left"
    assert most_similar(set(), ["liver", ""]) == "liver"


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
            assert ours[f"open_bleu_{order}"] == theirs


# Strict protocol, open questions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Assistant: Left lung", "left lung"),
        ("### ASSISTANT :\n**Answer:** left lung ### Human: and now?", "left lung"),
        ("<|im_start|>assistant\nleft lung<|im_end|>\n<|im_start|>user\nand now?", "left lung"),
        ("<|assistant|> left lung</s>", "left lung"),
        ("[/INST] left lung</s>USER: and now?", "left lung"),
        ("left lung\nHuman: and now?", "left lung"),
        ("ASSISTANT: left lung USER: and now?", "left lung"),
        ("Final answer: left lung", "left lung"),
        ("> Assistant: left lung", "assistant left lung"),
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
        ("Yes\nHuman: Is there no mass?", "yes", 1.0),
        ("not yes", "yes", 0.0),
        ("not yes", "no", 0.0),
        ("I can\u2019t say yes", "yes", 0.0),
        ("not no", "no", 0.0),
        ("No, it is not. No mass.", "no", 1.0),
        ("Is it not? Yes", "yes", 1.0),
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
        ("not on the left", "left", 0.0),
        ("not really left", "left", 0.0),
        ("never left", "left", 0.0),
        ("not in the bowels", "In the bowels", 0.0),
        ("without IV contrast", "contrast", 0.0),
        ("CT without contrast", "Non-contrast CT", 1.0),
        ("MRI vs PET", "MRI", 0.0),
        ("increased and decreased", "increased", 0.0),
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


# Strict protocol, Chinese


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u5de6\u80ba\uff0c\u4e0a\u53f6\u3002", "\u5de6 \u80ba \u4e0a \u53f6"),
        ("CT\u626b\u63cf", "ct \u626b \u63cf"),
        ("\u4e24\u4e2a 3.5cm", "2 \u4e2a 3.5 cm"),
        ("\u7b54\u6848\uff1a\u80ba", "\u80ba"),
        ("\uff39\uff25\uff33", "yes"),
    ],
)
def test_strict_normalization_takes_each_chinese_character_for_a_word(text, words):
    assert " ".join(normalize_strict(text)) == words


def test_strict_open_scores_count_chinese_characters():
    scores = score_open_strict("右肺", "右肺上叶")
    assert (scores["open_recall"], scores["open_precision"]) == (0.5, 1.0)
    assert score_open_strict("叶上肺右", "右肺上叶")["open_exact_match"] == 0.0


YES = ["是", "是的", "是的\u3002", "对", "有", "包含", "存在", "可以", "是\uff0c包含肝脏", "Yes"]
NO = ["不是", "不是的", "否", "没有", "无", "不", "不包含", "不存在", "不可以", "不是\uff0c是脾脏", "No."]
UNDECIDED = ["", "肝脏", "这是肝脏", "无法判断", "不确定", "有没有肝脏", "包含肝脏吗\uff1f", "图片中包含肝脏"]


@pytest.mark.parametrize(
    ("references", "right", "wrong"),
    [
        (["是", "有", "包含", "可以", "存在", "yes"], YES, NO),
        (["不是", "否", "没有", "不包含", "不可以", "no"], NO, YES),
    ],
)
def test_strict_chinese_yes_and_no_are_told_apart_where_they_begin_the_answer(references, right, wrong):
    for reference in references:
        assert {score_closed_strict(prediction, reference) for prediction in right} == {1.0}
        assert {score_closed_strict(prediction, reference) for prediction in wrong + UNDECIDED} == {0.0}


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("在左边", "左侧", 1.0),
        ("右肺", "左侧", 0.0),
        ("左右两侧", "左侧", 0.0),
        ("不是左侧", "左侧", 0.0),
        ("横断位", "横断面", 1.0),
        ("健康", "健康", 1.0),
        ("不健康", "健康", 0.0),
        ("不 健 康", "健康", 0.0),
        ("健康", "不健康", 0.0),
        ("不对称", "对称", 0.0),
        ("无回声", "无回声", 1.0),
        ("心脏或肺", "心脏", 0.0),
        ("", "心脏", 0.0),
        ("这是T2加权像", "T2加权", 1.0),
        ("T2", "T2加权", 1.0),
        ("T22", "T2加权", 0.0),
        ("两个", "2", 1.0),
    ],
)
def test_strict_chinese_options_are_compared_as_a_whole(prediction, reference, score):
    assert score_closed_strict(prediction, reference) == score


# All questions


def test_nothing_is_dropped_from_the_denominators():
    result = evaluate_answers(
        ["", "maybe", "yes", "", "lung"], ["yes"] * 3 + ["lung"] * 2, ["CLOSED"] * 3 + ["OPEN"] * 2
    )
    assert (result["num_closed"], result["num_open"]) == (3, 2)
    assert result["closed_accuracy"] == pytest.approx(100 / 3)
    assert result["open_recall"] == 50.0


def test_odd_spellings_of_the_type_are_accepted():
    result = evaluate_answers(["2", "Two"], ["2", "2"], ["open", "CLOSED "])
    assert (result["num_open"], result["num_closed"]) == (1, 1)
    assert result["open_recall"] == result["closed_accuracy"] == 100.0


def test_a_kind_without_questions_has_no_figures():
    only_open = evaluate_answers(["lung"], ["lung"], ["OPEN"])
    assert "closed_accuracy" not in only_open | only_open["intervals"]
    assert only_open["num_closed"] == 0
    only_closed = evaluate_answers(["yes"], ["yes"], ["CLOSED"])
    assert not [name for name in only_closed if name.startswith("open_")]


def test_candidate_accuracy_is_there_only_with_candidates():
    options = {"protocol": "release"}
    assert "open_accuracy" not in evaluate_one("lung", "lung", "OPEN", **options)
    assert evaluate_one("lung", "lung", "OPEN", candidates=["lung", 5], **options)["open_accuracy"] == 100.0


def test_counts_give_the_number_of_questions_behind_each_figure():
    answers = (["a", "b", "no"], ["a", "c", "no"], ["OPEN", "OPEN", "CLOSED"])
    result = evaluate_answers(*answers, protocol="release", candidates=["a", "c"])
    assert set(result["counts"]) == set(result["intervals"]) == {name for name in result if name in result["counts"]}
    assert result["counts"]["open_accuracy"] == result["counts"]["open_bleu_4"] == result["num_open"] == 2
    assert (result["counts"]["closed_accuracy"], result["counts"]["average"]) == (1, 3)
    assert evaluate_answers(*answers, num_resamples=0)["counts"]["closed_accuracy"] == 1


def test_average_weighs_both_kinds_equally_and_needs_both():
    result = evaluate_answers(["a"] * 3 + ["no"], ["a"] * 3 + ["yes"], ["OPEN"] * 3 + ["CLOSED"])
    assert (result["open_recall"], result["closed_accuracy"], result["average"]) == (100.0, 0.0, 50.0)
    assert result["intervals"]["average"] == [50.0, 50.0]
    assert "average" not in evaluate_answers(["a"], ["a"], ["OPEN"])


def test_interval_of_the_average_is_that_of_two_independent_kinds():
    # The same scores in both kinds: drawn together, the interval would be that of one kind, wider by the root of 2.
    answers = (["a", "b"] * 50 + ["no", "yes"] * 50, ["a"] * 100 + ["no"] * 100, ["OPEN"] * 100 + ["CLOSED"] * 100)
    result = evaluate_answers(*answers, num_resamples=4000)
    low, high = result["intervals"]["average"]
    assert high - low == pytest.approx(2 * 1.96 * 50 / 200**0.5, rel=0.1)
    low, high = result["intervals"]["closed_accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * 50 / 100**0.5, rel=0.1)


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


def test_clusters_of_one_question_each_change_nothing():
    predictions, references = ["a b", "a", "c", "yes", "no", "no"] * 5, ["a b", "a b", "b", "yes", "yes", "no"] * 5
    columns = (predictions, references, (["OPEN"] * 3 + ["CLOSED"] * 3) * 5)
    clusters = [str(place) for place in range(30)]
    result = evaluate_answers(*columns, clusters=clusters)
    assert result.pop("num_clusters") == 30
    assert result == evaluate_answers(*columns)


def test_average_draws_both_kinds_of_a_cluster_together():
    # Where the open answer is right, the closed one is wrong: the average does not vary, unless drawn apart.
    columns = (["a", "no", "b", "yes"] * 20, ["a", "yes"] * 40, ["OPEN", "CLOSED"] * 40)
    clusters = [str(place // 2) for place in range(80)]
    result = evaluate_answers(*columns, clusters=clusters)
    assert result["intervals"]["average"] == [50.0, 50.0]
    low, high = evaluate_answers(*columns)["intervals"]["average"]
    assert high - low > 15
    # A kind that few clusters have is in every draw all the same.
    few = evaluate_answers(*(column[:41] for column in (columns[0], columns[1], ["CLOSED"] * 40 + ["OPEN"])))
    assert not np.isnan(few["intervals"]["average"]).any()


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
        ((["a"] * 2, ["a"] * 2, ["OPEN"] * 2, "strict", None, False, 9, 0, ["1"]), ValueError, r"`clusters` 1"),
        ((["a"], ["a"], ["OPEN"], "strict", None, False, 9, 0, [None]), TypeError, r"clusters\[0\].*text, got None"),
        ((["a"], ["a"], ["yes/no"]), ValueError, r"answer_types\[0\].*OPEN.*got 'yes/no'"),
        ((["a"], ["a", "b"], ["OPEN"]), ValueError, r"equally long, got `predictions` 1, `references` 2"),
        (([], [], []), ValueError, r"nothing to score"),
        (([None], ["a"], ["OPEN"]), TypeError, r"predictions\[0\].*got None"),
        ((["a", float("nan")], ["a"] * 2, ["OPEN"] * 2), TypeError, r"predictions\[1\].*got nan \(float\)"),
        ((["a"], ["a"], ["OPEN"], "strict", None, False, -1), ValueError, r"`num_resamples`.*0 or more, got -1"),
        ((["a"], [" . "], ["OPEN"]), ValueError, r"references\[0\].*no words"),
        ((["a"], ["a"], ["OPEN"], "lenient"), ValueError, r"protocol.*strict.*release.*got 'lenient'"),
        ((["a"], ["a"], ["OPEN"], "release", []), ValueError, r"candidates.*got \[\]"),
        ((["a"], ["a"], ["OPEN"], "release", {"lung", "liver"}), ValueError, r"must be a list of at least one answer"),
        ((["a"], ["a"], ["OPEN"], "release", ["a", None]), TypeError, r"candidates\[1\].*got None"),
        ((["a"], ["a"], [None]), TypeError, r"answer_types\[0\].*got None"),
        ((["a"], [np.float64("nan")], ["OPEN"]), TypeError, r"references\[0\].*nan"),
        ((["yes"], [True], ["CLOSED"]), TypeError, r"references\[0\].*got True \(bool\)"),
        ((["a"], ["a"], ["OPEN"], "release", {"1": ["a"]}), ValueError, r'one key "0", got \[\'1\'\]'),
        ((["a"], ["a"], ["OPEN"], "strict", ["a"]), ValueError, r"`candidates` are for .*release.*got 'strict'"),
    ],
)
def test_refusals_name_what_came(arguments, error, words):
    with pytest.raises(error, match=words):
        evaluate_answers(*arguments)
