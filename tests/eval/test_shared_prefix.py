"""Tests of reading images and the beginnings of prompts once, and of greedy decoding after them."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.cache_utils import Cache, DynamicLayer

from logramed.eval import greedy
from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.greedy import StopStrings, decode_greedily
from logramed.eval.prompts import build_prompt
from logramed.eval.shared_prefix import PrefixReader, RoomyLayer, can_share_prefixes
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model as tiny_logramed


pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")


@pytest.fixture
def model(tiny_model):
    return AutoModelForImageTextToText.from_pretrained(tiny_model)


@pytest.fixture
def processor(tiny_model):
    return AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def questions(tiny_vqa_rad):
    return load_questions(tiny_vqa_rad)


def ask(model, processor, questions, **options):
    options = {"batch_size": 5, "max_new_tokens": 8, "progress": False} | options
    return {row["question_id"]: answer for row, answer in answer_questions(model, processor, questions, **options)}


@pytest.fixture
def num_images_read(model, monkeypatch):
    """The number of images in each call of the vision tower."""
    counts = []
    get_image_features = model.get_image_features
    monkeypatch.setattr(
        model, "get_image_features", lambda pixel_values, **options: counts.append(len(pixel_values))
        or get_image_features(pixel_values=pixel_values, **options)
    )  # fmt: skip
    return counts


@pytest.mark.parametrize("batch_size", [2, 3, 24])
def test_each_image_goes_through_the_tower_once(model, processor, questions, num_images_read, batch_size):
    ask(model, processor, questions, batch_size=batch_size)
    assert sum(num_images_read) == len({row["image"] for row in questions}) == 5


def test_without_sight_all_questions_are_about_one_image_and_asked_once(
    model, processor, questions, num_images_read, monkeypatch
):
    num_rows = []
    forward = model.forward

    def spy(input_ids, **inputs):
        num_rows.append(len(input_ids))
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", spy)
    ask(model, processor, questions, batch_size=24, blank_images=True)
    assert sum(num_images_read) == 1
    assert num_rows[0] == len({row["question"] for row in questions}) < len(questions)


def test_a_question_before_its_image_gives_the_same_answers_as_generate(model, processor, questions, monkeypatch):
    template = (
        "{% for message in messages %}{% for part in message['content'] | reverse %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "assistant"
    )
    assert processor.chat_template != template
    monkeypatch.setattr(processor, "chat_template", template)
    shared = ask(model, processor, questions)
    monkeypatch.setattr("logramed.eval.answering.can_share_prefixes", lambda model: False)
    assert shared == ask(model, processor, questions, batch_size=1)
    assert len(set(shared.values())) > 5


def test_start_and_end_tokens_around_an_image_are_repeated(questions):
    processor = tiny_processor(image_start_token="chest", image_end_token="abdomen")
    reader = PrefixReader(tiny_logramed(), processor)
    two = [row for row in questions if row["image"] == questions[0]["image"]][:2]
    rows = [reader.encode(row["image"], build_prompt(processor, row["question"])) for row in two]
    assert reader._open_image.tokens is not None
    for row, question in zip(rows, two, strict=True):
        text = build_prompt(processor, question["question"])
        whole = processor(text=[text], images=[torch.zeros(3, 8, 8)])["input_ids"][0]
        assert list(row.input_ids) == list(whole)
    start, end = processor.tokenizer.convert_tokens_to_ids(["chest", "abdomen"])
    assert rows[1].input_ids.count(start) == rows[1].input_ids.count(end) == 1


def test_rows_leave_the_batch_when_they_end_without_changing_the_others(model, processor, questions, monkeypatch):
    # Many end tokens, so that answers end at different steps.
    model.generation_config.eos_token_id = [2, *range(7, 14)]
    one_by_one = ask(model, processor, questions, batch_size=1, max_new_tokens=20)
    lengths = {len(answer.split()) for answer in one_by_one.values()}
    assert len(lengths) > 3
    for leaving_share in (0.01, 0.5, 1.0):
        monkeypatch.setattr(greedy, "LEAVING_SHARE", leaving_share)
        assert ask(model, processor, questions, batch_size=24, max_new_tokens=20) == one_by_one


def test_no_step_is_made_after_the_last_row_has_ended(model, processor, questions, monkeypatch):
    reader = PrefixReader(model, processor)
    rows = [reader.encode(row["image"], build_prompt(processor, row["question"])) for row in questions[:4]]
    num_steps = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: num_steps.append(1) or forward(**inputs))
    with torch.no_grad():
        [*answers] = decode_greedily(
            model, reader.read(rows), max_new_tokens=50, end_token_ids=frozenset(range(len(processor.tokenizer)))
        )
    assert [len(answer) for answer in answers] == [1, 1, 1, 1]
    assert len(num_steps) == 1


def test_a_roomy_layer_holds_what_a_dynamic_one_holds():
    generator = torch.Generator().manual_seed(0)
    roomy, dynamic = Cache(layer_class_to_replicate=RoomyLayer), Cache(layer_class_to_replicate=DynamicLayer)
    rows = 3
    for num_tokens, selected in ((5, [0, 0, 2, 1]), (70, None), (1, [3, 1]), (1, None), (100, None)):
        keys, values = torch.randn(2, rows, 2, num_tokens, 4, generator=generator)
        for given, expected in zip(roomy.update(keys, values, 0), dynamic.update(keys, values, 0), strict=True):
            assert torch.equal(given, expected)
        assert roomy.get_seq_length() == dynamic.get_seq_length()
        if selected is not None:
            for cache in (roomy, dynamic):
                cache.batch_select_indices(torch.tensor(selected))
            rows = len(selected)


def test_models_that_do_not_read_strictly_forward_or_greedily_go_through_generate(model):
    assert can_share_prefixes(model)
    assert can_share_prefixes(tiny_logramed())
    assert not can_share_prefixes(torch.nn.Linear(1, 1))
    assert not can_share_prefixes(tiny_logramed(language_model="mistral", text_sizes={"sliding_window": 16}))
    model.generation_config.repetition_penalty = 1.3
    assert not can_share_prefixes(model)


def test_a_penalty_of_the_model_is_kept(model, processor, questions):
    plain = ask(model, processor, questions)
    model.generation_config.repetition_penalty = 50.0
    assert ask(model, processor, questions) != plain


def test_stop_strings_are_found_across_tokens_and_cut(processor):
    stop = StopStrings(processor.tokenizer, ["lung liver"])
    ids = processor.tokenizer("yes in the lung liver")["input_ids"]
    assert [stop(ids[:end]) for end in (1, len(ids) - 1, len(ids))] == [False, False, True]
    assert stop.cut("yes in the lung liver no") == "yes in the "
    assert stop.cut("yes") == "yes"
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(processor.tokenizer, [""])
