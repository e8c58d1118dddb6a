"""Tests of reading two scores out of a judge's reply."""

import random

import pytest

from logramed.eval.metrics.medical_chat_judge.reply_parsing import parse_scores, parse_scores_release


EIGHT_AND_SEVEN = [
    "8 7",
    "8 7 ",
    " 8  7\r\nGood.",
    "8\t7",
    "\n\n8 7",
    "8, 7",
    "8,7",
    "8; 7",
    "8.0 7.0",
    "8/10 7/10",
    "8/10, 7/10.",
    "8 out of 10, 7 out of 10",
    "[8, 7]",
    "(8, 7)",
    "[[8]] [[7]]",
    "**8** **7**",
    "`8 7`",
    "# 8 7",
    '"8 7"',
    "8 and 7",
    "8 vs. 7",
    "8 | 7",
    "\uff18 \uff17",
    "Scores: 8 7",
    "Scores: 8 and 7",
    "Scores (1-10): 8 7",
    "Assistant 1: 8\nAssistant 2: 7",
    "**Assistant 1:** 8/10\n**Assistant 2:** 7/10",
    "- Assistant 1: 8\n- Assistant 2: 7",
    "Assistant 2: 7\nAssistant 1: 8",
    "Assistant 1: 8 Assistant 2: 7",
    "Answer A: 8; Answer B: 7",
    "Answer 1's score: 8, Answer 2\u2019s score: 7",
    "Score for Assistant 1: 8\nScore for Assistant 2: 7",
    "| Assistant 1 | 8 |\n| Assistant 2 | 7 |",
]
EXPLANATIONS = [
    "8 7\nThe second misses 2 of 3 findings, 4 cm apart.",
    "8 7\n9 6\nAccuracy: 9 6",
    "8 7\n\nAssistant 1: 3. Assistant 2: 4.",
    "8 7. The first is better, 9 out of 10 would agree.",
    "8 7 - good",
    "Assistant 1: 8\nAssistant 2: 7\nThe lesion is 3 cm wide, grade 2, in 2021.",
    "Assistant 1: 8 - names 3 lesions\nAssistant 2: 7 - names 2",
    "<think>Maybe 3 4?\n5 6</think>\n8 7",
    "Maybe 3 4?\n5 6</think>\n\n8 7",
]
UNREADABLE = [
    "",
    "\n",
    "8",
    "I cannot judge.",
    "8 7 6",
    "8\n7",
    "Accuracy: 8 7\nDetail: 6 5",
    "They are close.\n8 7\n7 8",
    '{"scores": [8, 7]}',
    "8 7 9 6",
    "8, 7, 6 and 5",
    "8 7; 9 6",
    "8-7",
    "8/7",
    "8:7",
    "-8 7",
    "8/10",
    "8,5 7,0",
    "3.5.6 7",
    "8/5 7/5",
    "80% 70%",
    "8cm 7cm",
    "8 lesions and 7 nodules",
    "2024-08-07",
    "nan nan",
    "inf 7",
    "Assistant 1: 8",
    "Assistant 1: 8-9\nAssistant 2: 7",
    "Answer 1 of 2: 8. Answer 2 of 2: 7",
    "The first is 3 cm, the second is 4 cm",
    "<think>8 7",
    "<think>\n8 7\n or rather",
]


@pytest.mark.parametrize("reply", EIGHT_AND_SEVEN)
def test_two_scores_are_read_in_any_usual_form(reply):
    assert parse_scores(reply) == (8.0, 7.0)


@pytest.mark.parametrize("reply", EXPLANATIONS)
def test_numbers_of_an_explanation_do_not_disturb(reply):
    assert parse_scores(reply) == (8.0, 7.0)


def test_halves_are_read():
    assert parse_scores("Scores: 8.5 and 7") == (8.5, 7.0)


@pytest.mark.parametrize("reply", UNREADABLE)
def test_a_reply_without_one_pair_is_refused(reply):
    with pytest.raises(ValueError, match="no two scores in the reply: "):
        parse_scores(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "Assistant 1: 8\nAssistant 2: 7\nAssistant 1: 5",
        "They are close.\nAnswer A: 8, answer B: 7. Answer A: 8, answer B: 7",
    ],
)
def test_a_reply_with_several_pairs_is_refused(reply):
    with pytest.raises(ValueError, match="more than one pair of scores in the reply: "):
        parse_scores(reply)


@pytest.mark.parametrize(
    ("reply", "scores"), [("0 7", "0 and 7"), ("7 11", "7 and 11"), ("100 85", "100 and 85"), ("0.5 7", "0.5 and 7")]
)
def test_scores_off_the_scale_are_refused(reply, scores):
    with pytest.raises(ValueError, match=f"scores {scores} are not on the scale of 1 to 10: '{reply}'"):
        parse_scores(reply)


def test_the_ends_of_the_scale_are_on_it():
    assert parse_scores("10 1") == (10.0, 1.0)


def test_a_refusal_shows_how_the_reply_begins():
    with pytest.raises(ValueError, match=r"in the reply: '(x ){40}\.\.\.'$"):
        parse_scores("x " * 500)


def test_a_pair_with_noise_around_is_read_as_it_is_or_not_at_all():
    generator = random.Random(0)
    pieces = ["8", "7", " ", ".", ",", "\n", "Assistant ", "1", "2", ":", "/10", "{", "}", '"', "a", "(", "-", "|"]
    for _ in range(3000):
        noise = "".join(generator.choices(pieces, k=generator.randrange(30)))
        assert parse_scores(f"9 6\n{noise}") == (9.0, 6.0)
        try:
            scores = parse_scores(noise)
        except ValueError:
            continue
        assert all(f"{score:g}" in noise for score in scores)


@pytest.mark.parametrize("piece", [" ", "8 ", "(", "a ", "<think>", "{", "Answer 1", "Answer 1: 8\n", "scores are "])
def test_long_replies_of_one_piece_come_to_an_end_and_hold_no_scores(piece):
    # A pattern that looks back again and again would take hours here.
    with pytest.raises(ValueError, match=r"reply"):
        parse_scores(piece * 5000)


@pytest.mark.parametrize("reply", ["8 7", "8 7\nBoth are good.", "8.5 7", "8 7\r\nGood.", "11 -2"])
def test_the_release_reads_two_numbers_on_the_first_line(reply):
    assert parse_scores_release(reply) == tuple(map(float, reply.split("\n")[0].split(" ")))


@pytest.mark.parametrize(
    "reply", ["8, 7", "8 7 ", "8  7", "8\t7", "8/10 7/10", "\n8 7", "", "8", "8 7 6", "Scores: 8 7", "nan 7", "8 inf"]
)
def test_the_release_reads_nothing_else(reply):
    with pytest.raises(ValueError, match="the first line is not two numbers with one space between: "):
        parse_scores_release(reply)
