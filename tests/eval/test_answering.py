"""Tests of asking a model in batches, with transformers' own LLaVA and with ours."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.prompts import build_prompt, load_question_image
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model as tiny_logramed


pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForImageTextToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model):
    return AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def questions(tiny_vqa_rad):
    return load_questions(tiny_vqa_rad)


def ask(model, processor, questions, **options):
    options = {"batch_size": 5, "max_new_tokens": 8, "progress": False} | options
    return {row["question_id"]: answer for row, answer in answer_questions(model, processor, questions, **options)}


def test_batched_answers_equal_answers_one_by_one(model, processor, questions):
    batched = ask(model, processor, questions, batch_size=7)
    one_by_one = ask(model, processor, questions, batch_size=1)
    assert batched == one_by_one
    assert list(batched) != [row["question_id"] for row in questions]  # asked longest first
    assert len(set(batched.values())) > len(questions) / 3  # answers that differ, or equality says little


def test_answers_are_those_of_generate_on_one_prompt(model, processor, questions):
    row = questions[3]
    inputs = processor(text=build_prompt(processor, row), images=Image.open(row["image"]), return_tensors="pt")
    sequence = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(sequence, skip_special_tokens=True).strip()
    assert expected
    assert ask(model, processor, questions)[row["question_id"]] == expected


def test_sampling_settings_of_the_model_are_overruled(model, processor, questions, monkeypatch):
    expected = ask(model, processor, questions)
    settings = {"do_sample": True, "temperature": 50.0, "top_k": 7, "max_time": 1e-6, "return_dict_in_generate": True}
    for name, value in settings.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert ask(model, processor, questions) == expected


def test_a_tokenizer_without_a_padding_token_will_do(model, tiny_model, processor, questions):
    other = AutoProcessor.from_pretrained(tiny_model)
    other.tokenizer.pad_token = None
    assert ask(model, other, questions) == ask(model, processor, questions)
    assert other.tokenizer.pad_token is None


def test_blank_images_make_answers_blind_to_the_image(model, processor, questions):
    swapped = [
        row | {"image": other["image"]} for row, other in zip(questions, questions[1:] + questions[:1], strict=True)
    ]
    assert ask(model, processor, questions, blank_images=True) == ask(model, processor, swapped, blank_images=True)
    assert ask(model, processor, questions) != ask(model, processor, swapped)


def test_blank_image_has_the_size_of_the_image_and_is_zero_after_normalization(processor, questions):
    blank = load_question_image(questions[0]["image"], processor, blank=True)
    assert blank.size == Image.open(questions[0]["image"]).size
    pixel_values = processor.image_processor(images=blank, return_tensors="pt")["pixel_values"]
    # One colour step of 255 is 1 / 255 / 0.26 after normalization; the mean colour is rounded to a step.
    assert pixel_values.abs().max() < 0.5 / 255 / 0.26 + 1e-6


def test_deep_greyscale_images_are_scaled_not_clipped(processor, tmp_path):
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    shown = np.asarray(load_question_image(str(tmp_path / "scan.png"), processor))
    assert shown.shape == (8, 8, 3)
    assert np.abs(shown[..., 0].astype(float) - ramp * 255.0 / 4095).max() <= 1


def test_a_model_in_training_stays_as_it_was(model, processor, questions):
    expected = ask(model, processor, questions)
    model.train()
    model.model.vision_tower.eval()
    processor.tokenizer.padding_side = "right"
    modes = [module.training for module in model.modules()]
    answers = {}
    for row, answer in answer_questions(model, processor, questions, batch_size=5, max_new_tokens=8, progress=False):
        answers[row["question_id"]] = answer
        assert [module.training for module in model.modules()] == modes
        assert processor.tokenizer.padding_side == "right"
    assert answers == expected
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_a_failing_batch_leaves_the_model_as_it_was(model, processor, questions):
    model.train()
    missing = [questions[0] | {"image": "nowhere.jpg"}]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        ask(model, processor, missing)
    assert model.training
    model.eval()


def test_a_template_that_writes_the_first_token_gets_no_second_one(model, processor, questions, monkeypatch):
    seen = []
    tokenize = type(processor).__call__

    def spy(self, *args, **options):
        inputs = tokenize(self, *args, **options)
        seen.append(inputs["input_ids"])
        return inputs

    monkeypatch.setattr(type(processor), "__call__", spy)
    monkeypatch.setattr(processor, "chat_template", "{{ '<s> ' }}" + processor.chat_template)
    ask(model, processor, questions[:1])
    assert (seen[0] == processor.tokenizer.bos_token_id).sum() == 1


def test_an_answer_ends_before_a_stop_string(model, processor, questions):
    answers = ask(model, processor, questions)
    longest = max(answers.values(), key=lambda answer: len(answer.split()))
    stop = longest.split()[2]
    expected = {number: answer.split(stop)[0].strip() for number, answer in answers.items()}
    assert ask(model, processor, questions, stop_strings=["never said", stop]) == expected
    assert expected != answers


def test_an_answer_ends_before_the_stop_string_of_the_processor(questions):
    model, processor = tiny_logramed(), tiny_processor()
    answers = ask(model, processor, questions)
    number, longest = max(answers.items(), key=lambda entry: len(entry[1].split()))
    stopping = tiny_processor(stop_string=longest.split()[2])
    expected = {number: stopping.cut_answer(answer) for number, answer in answers.items()}
    assert expected[number] == longest.split(stopping.stop_string)[0].strip() != longest
    assert ask(model, stopping, questions) == expected
    assert ask(model, stopping, questions, stop_strings=[stopping.stop_string]) == expected
    assert ask(model, stopping, questions, stop_strings=[]) == answers


def test_the_beginning_of_a_stop_string_at_the_end_of_an_answer_goes_if_it_is_the_processors(questions):
    model, plain = tiny_logramed(), tiny_processor()
    answers = ask(model, plain, questions, max_new_tokens=4)
    number, longest = max(answers.items(), key=lambda entry: len(entry[1].split()))
    stop_string = longest.split()[-1] + "END"  # which generation had no tokens left for
    cut = ask(model, tiny_processor(stop_string=stop_string), questions, max_new_tokens=4)[number]
    assert cut == longest.removesuffix(longest.split()[-1]).strip()
    assert ask(model, plain, questions, max_new_tokens=4, stop_strings=[stop_string]) == answers


def test_a_processor_without_a_chat_template_is_refused(model, processor, questions, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", None)
    with pytest.raises(ValueError, match="LlavaProcessor of this model has no chat template"):
        ask(model, processor, questions[:1])


@pytest.mark.parametrize("option", ["batch_size", "max_new_tokens"])
def test_counts_below_one_are_refused(model, processor, questions, option):
    with pytest.raises(ValueError, match=r"must be at least 1, got .*0"):
        ask(model, processor, questions, **{option: 0})


def test_our_own_model_answers_in_batches_as_one_by_one(questions):
    model, processor = tiny_logramed(), tiny_processor()
    batched = ask(model, processor, questions, batch_size=7)
    assert batched == ask(model, processor, questions, batch_size=1)
    assert len(set(batched.values())) > len(questions) / 4
    assert batched != ask(model, processor, questions, blank_images=True)
