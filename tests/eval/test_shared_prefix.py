"""Tests of reading images and the beginnings of prompts once, and of greedy decoding after them."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast
from transformers.cache_utils import Cache, DynamicLayer

from logramed.eval import greedy
from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.greedy import EndOfAnswer, GreedyRows, StopStrings
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


def test_a_prompt_that_ends_with_its_image_gives_the_same_answers_as_generate(
    model, processor, questions, monkeypatch
):
    template = "{{ messages[0]['content'][1]['text'] }} <image>"
    monkeypatch.setattr(processor, "chat_template", template)
    shared = ask(model, processor, questions, batch_size=1)
    monkeypatch.setattr("logramed.eval.answering.can_share_prefixes", lambda model: False)
    assert shared == ask(model, processor, questions, batch_size=1)


def test_pooled_images_give_the_same_answers_as_generate(questions, monkeypatch):
    model = tiny_logramed(text_sizes={"vocab_size": 84}, vision_sizes={"patch_size": 2}, image_token_pooling=3)
    processor = tiny_processor(num_image_tokens=9)
    assert can_share_prefixes(model)
    shared = ask(model, processor, questions)
    monkeypatch.setattr("logramed.eval.answering.can_share_prefixes", lambda model: False)
    assert shared == ask(model, processor, questions, batch_size=1)
    assert len(set(shared.values())) > 5


def test_a_question_that_holds_a_placeholder_is_refused_wherever_it_stands(model, processor, questions):
    rows = [questions[0], questions[0] | {"question_id": "x", "question": "where is <image>"}]
    for given in (rows, rows[::-1]):
        with pytest.raises(ValueError, match="Found total 2 <image> tokens and 1 images"):
            ask(model, processor, given)


def test_an_image_that_is_not_kept_any_more_is_read_again(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("logramed.eval.shared_prefix.NUM_KEPT_IMAGES", 2)
    rows = []
    for number in range(6):  # the last image is the first one under another name, and asked about in two batches
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (40 * (number % 5), 0, 0)).save(path)
        rows.append({"question_id": str(number), "image": str(path), "question": "more " * (9 - number)})
    rows.append(rows[-1] | {"question_id": "6", "question": "more"})
    assert ask(model, processor, rows, batch_size=6) == ask(model, processor, rows, batch_size=1)


def test_start_and_end_tokens_around_an_image_are_repeated(questions):
    processor = tiny_processor(image_start_token="chest", image_end_token="abdomen")
    reader = PrefixReader(tiny_logramed(), processor)
    two = [row for row in questions if row["image"] == questions[0]["image"]][:2]
    rows = [reader.encode([row["image"]], build_prompt(processor, row)) for row in two]
    assert reader._opened.tokens is not None
    for row, question in zip(rows, two, strict=True):
        text = build_prompt(processor, question)
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
    rows = [reader.encode([row["image"]], build_prompt(processor, row)) for row in questions[:4]]
    num_steps = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **inputs: num_steps.append(1) or forward(**inputs))
    end = EndOfAnswer(max_new_tokens=50, token_ids=frozenset(range(len(processor.tokenizer))))
    with torch.no_grad():
        rows = GreedyRows(model, "abcd", reader.read(rows))
        answers = rows.decode(end)
    assert {key: len(tokens) for key, tokens in answers.items()} == dict.fromkeys("abcd", 1)
    assert len(num_steps) == 1
    assert len(rows) == 0


def test_the_next_question_takes_the_place_of_one_that_is_answered(model, processor, questions, monkeypatch):
    model.generation_config.eos_token_id = [2, *range(7, 14)]
    one_by_one = ask(model, processor, questions, batch_size=1, max_new_tokens=20)
    monkeypatch.setattr(greedy, "LEAVING_SHARE", 0.25)
    num_rows, num_tokens, forward = [], [], model.forward

    def spy(input_ids, **inputs):
        num_rows.append(len(input_ids))
        num_tokens.append(inputs["attention_mask"].shape[1])
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", spy)
    assert ask(model, processor, questions, batch_size=6, max_new_tokens=20) == one_by_one
    assert max(num_rows) == 6
    assert num_rows.count(6) > len(num_rows) / 3
    # What no row attends to any more is dropped: a prompt and an answer of full length, and padding between the two.
    assert max(num_tokens) <= 2 * (20 + max(len(row["question"].split()) for row in questions) + 8)


def test_prompts_that_are_the_same_are_answered_once_however_far_apart(model, processor, questions, monkeypatch):
    num_begun, begin = [], greedy.GreedyRows.__init__
    monkeypatch.setattr(
        greedy.GreedyRows, "__init__", lambda self, m, keys, prefixes: num_begun.append(len(keys))
        or begin(self, m, keys, prefixes)
    )  # fmt: skip
    again = [row | {"question_id": f"again {row['question_id']}"} for row in questions]
    answers = ask(model, processor, [*questions, *again], batch_size=3)
    assert sum(num_begun) == len({(row["question"], row["image"]) for row in questions})
    assert all(answers[f"again {row['question_id']}"] == answers[row["question_id"]] for row in questions)


def test_joined_layers_hold_the_tokens_of_both_at_the_end_and_zeros_before():
    first, second = torch.randn(2, 2, 2, 3, 4), torch.randn(2, 1, 2, 5, 4)
    layers = [RoomyLayer(), RoomyLayer()]
    for layer, (keys, values) in zip(layers, (first, second), strict=True):
        layer.update(keys, values)
    layers[0].join(layers[1])
    for held, parts in ((layers[0].keys, (first[0], second[0])), (layers[0].values, (first[1], second[1]))):
        assert torch.equal(held[:2, :, 2:], parts[0])
        assert not held[:2, :, :2].any()
        assert torch.equal(held[2:], parts[1])
    layers[0].keep(torch.tensor([2, 0]), first=2)
    assert torch.equal(layers[0].keys[0], second[0][0][:, 2:])
    assert torch.equal(layers[0].keys[1], first[0][0])
    layers[0].update(torch.ones(2, 2, 1, 4), torch.ones(2, 2, 1, 4))
    assert layers[0].get_seq_length() == 4
    assert layers[0].values[:, :, 3].eq(1).all()


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


@pytest.mark.parametrize(
    ("name", "value"), [("stop_strings", ["###"]), ("remove_invalid_values", True), ("forced_eos_token_id", 2)]
)
def test_other_settings_that_change_greedy_answers_are_left_to_generate(model, name, value):
    setattr(model.generation_config, name, value)
    assert not can_share_prefixes(model)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_of_the_text_are_left_to_generate(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 8}
    assert not can_share_prefixes(tiny_logramed(text_sizes={"rope_parameters": rope}))


def test_adapters_that_put_tokens_before_the_prompt_are_left_to_generate(model):
    assert can_share_prefixes(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    sizes = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 2}
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **sizes)
    assert not can_share_prefixes(get_peft_model(tiny_logramed(), config))


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
    byte = Tokenizer(
        models.BPE({letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    byte.pre_tokenizer, byte.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    chinese = StopStrings(PreTrainedTokenizerFast(tokenizer_object=byte), ["\u7ed3\u675f"])  # three tokens a character
    assert chinese(byte.encode("yes\u7ed3\u675f").ids)
    assert not chinese(byte.encode("yes\u7ed3").ids)
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(processor.tokenizer, [""])
