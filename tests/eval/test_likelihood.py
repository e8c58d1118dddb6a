"""Tests of scoring options by likelihood."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.likelihood import build_answer_context, score_options
from logramed.eval.prompts import build_prompt, load_question_image
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model as tiny_logramed


pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
OPTIONS = ["yes", "no", "left lung", "right lung liver mass", "in the lung"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForImageTextToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model):
    return AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def questions(tiny_vqa_rad):
    rows = load_questions(tiny_vqa_rad)[:9]
    return [row | {"options": OPTIONS[: 2 + number % 4]} for number, row in enumerate(rows)]


def score(model, processor, questions, **options):
    options = {"batch_size": 4, "progress": False} | options
    return {row["question_id"]: scores for row, scores in score_options(model, processor, questions, **options)}


@torch.no_grad()
def log_probability_token_by_token(model, processor, question, option):
    """Each token of the option fed by itself, its probability read off a softmax in double precision."""
    inputs = processor(
        text=build_prompt(processor, question),
        images=load_question_image(question["image"], processor),
        return_tensors="pt",
    )
    ids, total = inputs["input_ids"], 0.0
    tokens = processor.tokenizer(option, add_special_tokens=False)["input_ids"]
    for token in tokens:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]).logits
        total += torch.softmax(logits[0, -1].double(), dim=-1)[token].log().item()
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return total / len(tokens)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_scores_are_mean_log_probabilities_a_token(model, processor, questions, batch_size):
    scores = score(model, processor, questions, batch_size=batch_size)
    assert len(scores) == len(questions)
    for question in questions[::3]:
        expected = [log_probability_token_by_token(model, processor, question, text) for text in question["options"]]
        assert scores[question["question_id"]] == pytest.approx(expected, abs=1e-4)


def test_our_own_model_scores_options(questions):
    model, processor = tiny_logramed(text_sizes={"vocab_size": 84}), tiny_processor()
    scores = score(model, processor, questions)
    one_by_one = score(model, processor, questions, batch_size=1)
    for question_id, values in scores.items():
        assert values == pytest.approx(one_by_one[question_id], abs=1e-4)
        assert max(values) < 0


def test_all_options_of_a_batch_go_through_the_model_at_once(model, processor, questions, monkeypatch):
    shapes = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: shapes.append(len(inputs["input_ids"])) or forward(**inputs)
    )
    score(model, processor, questions, batch_size=9)
    assert shapes == [sum(len(question["options"]) for question in questions)]


def test_without_sight_the_image_does_not_matter(model, processor, questions):
    swapped = [row | {"image": questions[-1 - place]["image"]} for place, row in enumerate(questions)]
    blind, swapped_blind = (score(model, processor, rows, blank_images=True) for rows in (questions, swapped))
    for question_id, values in blind.items():
        assert values == pytest.approx(swapped_blind[question_id], abs=1e-4)
    assert blind != score(model, processor, questions)


def test_the_blank_before_an_answer_is_that_of_the_chat_template():
    processor = tiny_processor()
    question = {"question": "Is there a mass?", "image": "a.png"}
    prompt = build_prompt(processor, question)
    assert prompt.endswith("ASSISTANT:")
    assert build_answer_context(processor, question) == (prompt, " ")


def test_a_template_with_other_answered_turns_gives_the_prompt_and_the_answer(processor, monkeypatch):
    template = "{% if add_generation_prompt %}<image> ask{% else %}<image> told yes{% endif %}"
    monkeypatch.setattr(processor, "chat_template", template)
    assert build_answer_context(processor, {"question": "?", "image": "a.png"}) == ("<image> ask", "")


def test_what_a_template_writes_before_each_answer_is_no_part_of_an_option(model, processor, questions, monkeypatch):
    # "no" and "lung" stand in the template too, and an answer is followed by words.
    written = "{% if not add_generation_prompt %} no lung {{ messages[1]['content'][0]['text'] }} more lung{% endif %}"
    monkeypatch.setattr(processor, "chat_template", "user <image> assistant" + written)
    rows = [questions[0] | {"options": ["no", "lung", "left liver"]}]
    [scores] = score(model, processor, rows).values()
    monkeypatch.setattr(processor, "chat_template", "user <image> assistant no lung")
    expected = [log_probability_token_by_token(model, processor, rows[0], text) for text in rows[0]["options"]]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_options_right_after_the_image_are_scored_whole(model, processor, questions, monkeypatch):
    template = "user <image>{% if not add_generation_prompt %} {{ messages[1]['content'][0]['text'] }}{% endif %}"
    monkeypatch.setattr(processor, "chat_template", template)
    rows = [questions[0] | {"options": ["no", "left liver"]}]
    [scores] = score(model, processor, rows).values()
    expected = [log_probability_token_by_token(model, processor, rows[0], text) for text in rows[0]["options"]]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_an_option_without_tokens_is_refused_by_question(model, processor, questions):
    with pytest.raises(ValueError, match=r"Question '100': the option '' has no tokens"):
        score(model, processor, [questions[0] | {"options": ["yes", ""]}])


def test_counts_below_one_are_refused(model, processor, questions):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        score(model, processor, questions, batch_size=0)
