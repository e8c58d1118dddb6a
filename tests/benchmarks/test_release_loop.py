"""Tests of the loop that the throughput is measured against: the same answers, at the release's costs."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from logramed.eval import prompts
from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.vqa_rad import load_questions
from tests.benchmarks.release_loop import StopWhenSaid, ask_one_at_a_time
from tests.eval.conftest import build_tiny_llava, write_tiny_vqa_rad


MAX_NEW_TOKENS = 8

pytestmark = pytest.mark.filterwarnings("ignore:This .* test split has")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return load_questions(write_tiny_vqa_rad(tmp_path_factory.mktemp("vqa_rad") / "data"))


@pytest.fixture(scope="module")
def model_and_processor(tmp_path_factory):
    folder = build_tiny_llava(tmp_path_factory.mktemp("model"))
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def answers_of(pairs):
    return {question["question_id"]: answer for question, answer in pairs}


def ask_in_batches(model_and_processor, questions, **options):
    return answers_of(
        answer_questions(
            *model_and_processor, questions, batch_size=5, max_new_tokens=MAX_NEW_TOKENS, progress=False, **options
        )
    )


def test_answers_are_those_of_asking_in_batches(model_and_processor, questions):
    pairs = ask_one_at_a_time(*model_and_processor, questions, MAX_NEW_TOKENS)
    assert [question for question, _ in pairs] == questions
    assert len({answer for _, answer in pairs}) > 3
    assert answers_of(pairs) == ask_in_batches(model_and_processor, questions)


def test_a_stop_string_cuts_what_the_model_says(model_and_processor, questions):
    whole = ask_one_at_a_time(*model_and_processor, questions, MAX_NEW_TOKENS)
    words = [word for _, answer in whole for word in answer.split()[1:]]
    stop_string = max(set(words), key=words.count)
    stopped = ask_one_at_a_time(*model_and_processor, questions, MAX_NEW_TOKENS, stop_string)
    assert stopped == [(question, answer.split(stop_string)[0].strip()) for question, answer in whole]
    assert stopped != whole
    assert answers_of(stopped) == ask_in_batches(model_and_processor, questions, stop_strings=[stop_string])


def test_a_stop_string_ends_decoding(model_and_processor, questions, monkeypatch):
    whole = dict(ask_with_lengths(model_and_processor, questions, None, monkeypatch))
    words = [
        word
        for _, answer in ask_one_at_a_time(*model_and_processor, questions, MAX_NEW_TOKENS)
        for word in answer.split()
    ]
    stopped = dict(ask_with_lengths(model_and_processor, questions, max(set(words), key=words.count), monkeypatch))
    assert all(stopped[number] <= whole[number] for number in whole)
    assert sum(stopped.values()) < sum(whole.values())


def ask_with_lengths(model_and_processor, questions, stop_string, monkeypatch):
    model, processor = model_and_processor
    lengths = []
    generate = model.generate

    def spy(**inputs):
        sequences = generate(**inputs)
        lengths.append(sequences.shape[1] - inputs["input_ids"].shape[1])
        return sequences

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", spy)
        ask_one_at_a_time(model, processor, questions, MAX_NEW_TOKENS, stop_string)
    return enumerate(lengths)


def test_each_image_is_read_once_a_question(model_and_processor, questions, monkeypatch):
    model, processor = model_and_processor
    loaded, seen = [], []
    load = prompts.load_question_image
    monkeypatch.setattr(prompts, "load_question_image", lambda path, *rest: loaded.append(path) or load(path, *rest))
    hook = model.model.vision_tower.register_forward_hook(lambda module, inputs, output: seen.append(1))
    ask_one_at_a_time(model, processor, questions, MAX_NEW_TOKENS)
    hook.remove()
    assert loaded == [question["image"] for question in questions]
    assert len(seen) == len(questions) > len(set(loaded))


def test_the_first_token_is_looked_at_with_the_second():
    class Tokenizer:
        def batch_decode(self, sequences, skip_special_tokens):
            return ["".join("ab#"[token] for token in row) for row in sequences]

    criterion = StopWhenSaid(Tokenizer(), "#", num_prompt_tokens=1)
    ids = torch.tensor([[2, 2, 0, 1], [0, 0, 0, 2]])  # the prompt of the first row says it too
    assert [criterion(ids[:, :length], None).tolist() for length in (2, 3, 4)] == [[False] * 2, [True] * 2, [True] * 2]
    criterion = StopWhenSaid(Tokenizer(), "#", num_prompt_tokens=2)
    assert [criterion(ids[:, :length], None).tolist() for length in (3, 4)] == [[False] * 2, [False] * 2]
