"""Replies as models write them, read the same way by every metric."""

from difflib import SequenceMatcher

import pytest

from logramed.eval.metrics.medical_chat_judge.reply_parsing import parse_scores
from logramed.eval.metrics.medical_multiple_choice.choice_scoring import evaluate_choices
from logramed.eval.metrics.medical_report.report_scoring import evaluate_reports
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers
from logramed.eval.metrics.reply_reader import read_reply, without_reasoning


REPLIES = {
    "plain": "B",
    "thoughts": "<think>A shows an effusion. No, C.</think>\n\nB",
    "thoughts, upper case": "<THINK>A.</THINK> B",
    "empty thoughts": "<think>\n\n</think>\n\nB",
    "thoughts that were not opened": "Is it A? It is no C.\n</think>\nB",
    "thoughts twice": "<think>A</think> <think>C</think> B",
    "thoughts behind": "B <think>Not A, because of C.</think>",
    "thinking": "<thinking>A or C</thinking>B",
    "reasoning": "<reasoning>A or C</reasoning><answer>B</answer>",
    "analysis": "<analysis>A or C</analysis>B",
    "brackets": "[THINK]A or C[/THINK]B",
    "diamonds": "◁think▷A or C◁/think▷B",
    "tokens": "<|begin_of_thought|>A or C<|end_of_thought|>B",
    "unused tokens": "<unused94>thought\nA or C<unused95>B",
    "channels": "<|channel|>analysis<|message|>A or C<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>",
    "channels without tokens": "analysisIs it A or C?assistantfinalB",
    "answer tag": "It could be A. <answer>B</answer>",
    "answer tag alone": "<answer> B </answer>",
    "answer tag that was cut off": "<think>A</think><answer>B",
    "several answer tags": "<answer>A</answer> wait, <answer>B</answer>",
    "final answer tag": "<final_answer>B</final_answer>",
    "box": r"\boxed{B}",
    "box in a sentence": r"So the answer is $\boxed{\text{B}}$.",
    "box with braces": r"\[\boxed{\mathrm{B}}\]",
    "boxes": r"\boxed{A} is wrong, so \boxed{B}",
    "box in a tag": r"<answer>\boxed{\text{B}}</answer>",
    "object in a tag": '<answer>{"answer": "B"}</answer>',
    "JSON": '{"answer": "B"}',
    "JSON with reasons": '{"reasoning": "A and C are wrong", "answer": "B"}',
    "JSON in a fence": '```json\n{"Answer": "B", "confidence": 0.9}\n```',
    "JSON as Python writes it": "{'final_answer': 'B'}",
    "JSON behind a sentence": 'Here it is: {"answer": "B"}',
    "Chinese": "正确答案是B",
    "Chinese with a colon": "答案\uff1aB",
    "Chinese, of two words": "最终答案为\uff1aB",
    "template": "<|assistant|> Answer: B</s>",
    "template and next turn": "Assistant: B ### Human: And A?",
}
WITHOUT_ANSWER = ("<think>B, or rather A", "B?</think>", "<think>B</think>", "<|channel|>analysis<|message|>B", "")


@pytest.mark.parametrize("name", REPLIES)
def test_the_answer_of_a_reply_is_read(name):
    assert read_reply(REPLIES[name]) == "B"


@pytest.mark.parametrize("reply", WITHOUT_ANSWER)
def test_what_was_only_thought_is_no_answer(reply):
    assert read_reply(reply) == ""


@pytest.mark.parametrize(
    "reply",
    [
        "Think of the left lung.",
        "The answer is left: the assistant said so",
        "a < b and c > d",
        "{left}",
        "Set {1, 2}",
        "[1, 2]",
        "2 cm in the box \\box",
        "回答是",
        "analysis of the final image",
        "<b>left</b>",
        "{['B']}",
        "{{}}",
        "The {} answer {['a']}",
    ],
)
def test_nothing_is_taken_from_an_ordinary_answer(reply):
    assert read_reply(reply) == reply


@pytest.mark.parametrize(
    ("value", "expected"), [("true", "yes"), ("false", "no"), ("2", "2"), ('"left lung"', "left lung")]
)
def test_values_of_an_object_become_text(value, expected):
    assert read_reply(f'{{"answer": {value}}}') == expected


@pytest.mark.parametrize("content", ["null", "[]", "{}", '""'])
def test_an_object_without_an_answer_is_left_as_it_is(content):
    reply = f'{{"answer": {content}}}'
    assert read_reply(reply) == reply


@pytest.mark.parametrize("name", REPLIES)
def test_multiple_choice_scores_the_answer(name):
    options = [["effusion", "mass", "fracture"]]
    assert evaluate_choices([REPLIES[name]], ["mass"], options, num_resamples=0)["accuracy"] == 100


@pytest.mark.parametrize("reply", WITHOUT_ANSWER)
def test_multiple_choice_leaves_thoughts_undecided(reply):
    assert evaluate_choices([reply], ["mass"], [["effusion", "mass"]], num_resamples=0)["num_undecided"] == 1


@pytest.mark.parametrize("name", [name for name in REPLIES if not name.startswith(("Chinese", "template"))])
@pytest.mark.parametrize(("answer", "kind"), [("yes", "CLOSED"), ("left", "CLOSED"), ("left lung", "OPEN")])
def test_answers_to_questions_are_scored_alone(name, answer, kind):
    rivals = {"yes": "no", "left": "right", "left lung": "right"}
    reply = REPLIES[name].replace("B", answer).replace(" A", f" {rivals[answer]}").replace(">A", f">{rivals[answer]}")
    scores = evaluate_answers([reply], [answer], [kind], num_resamples=0)
    assert scores["closed_accuracy" if kind == "CLOSED" else "open_exact_match"] == 100


def test_the_release_protocol_reads_the_reply_as_it_is():
    reply = "<think>left or right</think> left lung"
    assert evaluate_answers([reply], ["left lung"], ["OPEN"], protocol="release", num_resamples=0)["open_f1"] < 100
    choice = evaluate_choices([reply], ["left"], [["left", "right"]], protocol="release", return_items=True)
    assert choice["items"][0]["ratios"] == [
        SequenceMatcher(None, option, reply).ratio() for option in ("left", "right")
    ]


def test_reports_and_judges_are_read_without_their_reasoning():
    pytest.importorskip("sacrebleu", reason="needs logramed[report]")
    pytest.importorskip("pycocoevalcap", reason="needs logramed[report]")
    figures = evaluate_reports(["<think>edema?</think>No pleural effusion is seen."], ["No pleural effusion is seen."])
    assert figures["rouge_l"] == 100
    assert parse_scores("3 4 or</think>8 7") == (8.0, 7.0)


def test_a_long_reply_is_read_in_no_time():
    reply = "<think>" + "{ <answer " * 20_000 + "</think>" + "{" * 20_000
    assert without_reasoning(reply) == "{" * 20_000
    assert read_reply(reply) == "{" * 20_000
