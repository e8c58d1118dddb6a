"""Tests of the scoring functions behind the `medical_report` metric."""

import math
import random
import sys
from collections import Counter

import nltk.translate.bleu_score
import numpy as np
import pytest

from logramed.eval.metrics.medical_report import report_scoring as scoring


SENTENCES = [
    "The heart is normal in size.",
    "No effusion.",
    "There is a small left pneumothorax.",
    "The lungs are clear.",
    "Degenerative changes of the spine are noted.",
    "Stable cardiomegaly with mild edema.",
]


def write_reports(num_reports: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.sample(SENTENCES, generator.randint(2, 5))) for _ in range(num_reports)]


def score(predictions, references, **options):
    return scoring.evaluate_reports(predictions, references, **{"num_resamples": 0} | options)


# Word overlap


def test_corpus_bleu_equals_another_implementation():
    predictions, references = write_reports(40, seed=0), write_reports(40, seed=1)
    result = score(predictions, references)
    words = [[[scoring.split_words(text)] for text in references], [scoring.split_words(text) for text in predictions]]
    for order in range(1, 5):
        expected = nltk.translate.bleu_score.corpus_bleu(*words, weights=[1 / order] * order)
        assert result[f"bleu_{order}"] == pytest.approx(100 * expected)


def test_bleu_of_a_hand_worked_corpus():
    # Words: 5 of 6 and 2 of 2 match, pairs: 3 of 5 and 1 of 1; 8 words against 9: brevity penalty e^(1 - 9/8).
    references = ["the heart is small and fine", "no mass seen"]
    result = score(["the heart is big and fine", "no mass"], references)
    penalty = math.exp(1 - 9 / 8)
    assert result["bleu_1"] == pytest.approx(100 * penalty * 7 / 8)
    assert result["bleu_2"] == pytest.approx(100 * penalty * math.sqrt(7 / 8 * 4 / 6))


def test_bleu_of_the_corpus_is_not_the_mean_of_its_reports():
    result = score(["a b c d e", "x y"], ["a b c d e", "a b"], return_items=True)
    assert result["bleu_1"] == pytest.approx(100 * 5 / 7)
    assert not [name for item in result["items"] for name in item if name.startswith("bleu")]


def test_orders_that_no_reference_is_long_enough_for_are_absent():
    result = score(["no effusion"], ["no effusion"])
    assert result["bleu_2"] == pytest.approx(100)
    assert not {"bleu_3", "bleu_4"} & (result.keys() | result["counts"].keys())


def test_rouge_l_of_a_hand_worked_pair():
    # Longest common subsequence "no pleural effusion": 3 of 4 predicted and 3 of 5 right words.
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    result = score(["no large pleural effusion"], ["there is no pleural effusion"])
    assert result["rouge_l"] == pytest.approx(100 * expected)


def longest_common_subsequence(first, second) -> int:
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest_common_subsequence(first[1:], second[1:])
    return max(longest_common_subsequence(first[1:], second), longest_common_subsequence(first, second[1:]))


@pytest.mark.parametrize("seed", range(5))
def test_rouge_l_equals_brute_force(seed):
    generator = random.Random(seed)
    prediction, reference = (generator.choices("abc", k=generator.randint(1, 7)) for _ in range(2))
    length = longest_common_subsequence(prediction, reference)
    expected = 0.0
    if length:
        precision, recall = length / len(prediction), length / len(reference)
        expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert score([" ".join(prediction)], [" ".join(reference)])["rouge_l"] == pytest.approx(100 * expected)


def cider_d(predictions: list[list[str]], references: list[list[str]]) -> list[float]:
    """CIDEr-D of each report, from the formula of arXiv:1411.5726 instead of the library."""

    def grams(words, order):
        return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))

    scores = []
    for prediction, reference in zip(predictions, references, strict=True):
        total = 0.0
        for order in range(1, 5):
            documents = Counter(gram for words in references for gram in grams(words, order))
            weight = {gram: math.log(len(references) / max(1, documents[gram])) for gram in grams(prediction, order)}
            weight |= {gram: math.log(len(references) / documents[gram]) for gram in grams(reference, order)}
            predicted = {gram: count * weight[gram] for gram, count in grams(prediction, order).items()}
            right = {gram: count * weight[gram] for gram, count in grams(reference, order).items()}
            norms = math.hypot(*predicted.values()) * math.hypot(*right.values())
            if norms:
                total += sum(min(predicted.get(gram, 0), right[gram]) * right[gram] for gram in right) / norms
        penalty = math.exp(-((len(prediction) - len(reference)) ** 2) / (2 * 6**2))
        scores.append(10 * penalty * total / 4)
    return scores


def test_cider_equals_the_formula():
    predictions, references = write_reports(30, seed=2), write_reports(30, seed=3)
    result = score(predictions, references, return_items=True)
    expected = cider_d(*([scoring.split_words(text) for text in texts] for texts in (predictions, references)))
    assert [item["cider"] for item in result["items"]] == pytest.approx(expected)
    assert result["cider"] == pytest.approx(np.mean(expected))


def test_cider_runs_from_0_to_10():
    references = ["the heart is very large", "both lungs look quite clear"]
    assert score(references, references)["cider"] == pytest.approx(10)
    assert score(references[::-1], references)["cider"] == 0


@pytest.mark.parametrize("references", [["no effusion seen"], ["no effusion seen"] * 3])
def test_cider_is_absent_without_two_different_references(references):
    result = score(references, references, num_resamples=10)
    assert "cider" not in result.keys() | result["counts"].keys() | result["intervals"].keys()
    assert result["rouge_l"] == pytest.approx(100)


def test_words_are_compared_without_case_punctuation_and_hyphens():
    result = score(["GROUND-GLASS opacity, left: 1.5 cm."], ["ground glass opacity (left) 1.5 cm"])
    assert result["bleu_4"] == pytest.approx(100)
    assert scoring.split_words("Crohn\u2019s ___ XXXX/left") == ["crohn's", "xxxx", "left"]


# All reports


def test_an_empty_prediction_is_wrong_and_not_dropped():
    references = ["Small effusion.", "Large mass is seen."]
    result = score(["", "Large mass is seen."], references, return_items=True)
    assert result["items"][0] == {"rouge_l": 0.0, "cider": 0.0}
    assert result["rouge_l"] == pytest.approx(50)
    assert result["num_items"] == 2
    assert set(result["counts"].values()) == {2}
    # 4 of 4 words match, but 6 were expected.
    assert result["bleu_1"] == pytest.approx(100 * math.exp(1 - 6 / 4))
    assert score(["", ""], references)["bleu_1"] == 0.0


def test_figures_without_bleu_are_the_means_of_the_items():
    result = score(write_reports(20, seed=4), write_reports(20, seed=5), return_items=True)
    for name in ("rouge_l", "cider"):
        assert result[name] == pytest.approx(np.mean([item[name] for item in result["items"]]))


def test_order_of_the_reports_changes_no_figure():
    predictions, references = write_reports(20, seed=6), write_reports(20, seed=7)
    forward, backward = score(predictions, references), score(predictions[::-1], references[::-1])
    assert {name: pytest.approx(value) for name, value in forward.items() if name != "counts"} == {
        name: value for name, value in backward.items() if name != "counts"
    }


def test_every_figure_has_an_interval_around_it_that_the_seed_decides():
    predictions, references = write_reports(40, seed=8), write_reports(40, seed=9)
    result = score(predictions, references, num_resamples=200)
    assert result["intervals"].keys() == result["counts"].keys()
    for name, (low, high) in result["intervals"].items():
        assert low < result[name] < high
    assert score(predictions, references, num_resamples=200) == result
    assert score(predictions, references, num_resamples=200, seed=1)["intervals"] != result["intervals"]


def test_bleu_intervals_resample_reports_and_not_their_scores():
    # Of two reports, a draw holds the first twice, the second twice, or both: 100, 0, or 1 of 2 words.
    result = score(["mass", "edema"], ["mass", "nodule"], num_resamples=1000)
    assert result["bleu_1"] == pytest.approx(50)
    assert result["intervals"]["bleu_1"] == pytest.approx([0, 100])
    long = score(["mass " * 98, "edema"], ["mass " * 98, "nodule"], num_resamples=1000)
    assert long["bleu_1"] == pytest.approx(100 * 98 / 99)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([], []), ValueError, r"nothing to score"),
        ((["a"], ["a", "b"]), ValueError, r"equally long, got `predictions` 1, `references` 2"),
        ((["a", "b"], ["a", " . "]), ValueError, r"references\[1\].*no words.*' \. '"),
        (([None], ["a"]), TypeError, r"predictions\[0\].*got None"),
        ((["a"], [3]), TypeError, r"references\[0\].*got 3 \(int\)"),
    ],
)
def test_refusals_name_what_came(arguments, error, words):
    with pytest.raises(error, match=words):
        score(*arguments)


def test_a_negative_number_of_resamples_is_refused():
    with pytest.raises(ValueError, match=r"`num_resamples` must be 0 or more, got -1"):
        score(["a"], ["a"], num_resamples=-1)


@pytest.mark.parametrize("package", ["sacrebleu", "pycocoevalcap"])
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="needs sacrebleu and pycocoevalcap"):
        score(["a"], ["a"])


# Sections


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        ("Findings: Clear.\nImpression: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("**IMPRESSION:** Normal.\n**FINDINGS:** Clear.", {"findings": "Clear.", "impression": "Normal."}),
        ("INDICATION: Cough. FINDINGS: Clear. CONCLUSION: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("FINDINGS: Clear.\nCOMPARISON: None.\nFINDINGS: No mass.", {"findings": "Clear. No mass."}),
        ("IMPRESSION: Normal.", {"impression": "Normal."}),
        ("No effusion.", {"findings": "No effusion."}),
        ("These are the findings: clear.", {"findings": "These are the findings: clear."}),  # no heading
        ("INDICATION: Cough.", {"findings": "INDICATION: Cough."}),
        ("", {"findings": ""}),
    ],
)
def test_sections_are_found_by_their_headings(report, sections):
    assert scoring.split_sections(report) == sections


def test_joined_sections_are_taken_apart_again():
    sections = {"findings": "The heart is large. No effusion.", "impression": "Cardiomegaly."}
    assert scoring.split_sections(scoring.join_sections(sections)) == sections


def test_each_section_is_scored_by_itself_and_a_missing_one_as_empty():
    references = ["Findings: no effusion\nImpression: normal chest", "Findings: small mass\nImpression: mass"]
    predictions = ["Findings: no effusion\nImpression: normal chest", "small mass"]
    sections = scoring.score_sections(predictions, references, num_resamples=0, seed=0)
    assert sections["findings"]["rouge_l"] == pytest.approx(100)
    assert sections["impression"]["rouge_l"] == pytest.approx(50)
    assert sections["impression"]["num_items"] == 2


def test_a_section_that_no_reference_has_is_left_out():
    assert list(scoring.score_sections(["clear"], ["no effusion"], num_resamples=0, seed=0)) == ["findings"]
