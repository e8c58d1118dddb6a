"""Batches for models of other families than ours, from the processors that transformers has for them."""

import re

import pytest
import torch
from PIL import Image

from logramed.trainer.alignment import GRANULARITIES, AlignmentConfig
from logramed.trainer.data.collator import LoGraMedDataCollator
from tests.tiny import tiny_processor
from tests.trainer.data.test_collator import message, training_row
from tests.vlm_models import tiny_gemma3_model, tiny_llava_model, tiny_qwen2_5_vl_model, tiny_smolvlm_model
from tests.vlm_processors import (
    tiny_gemma3_processor,
    tiny_llava_processor,
    tiny_qwen2_5_vl_processor,
    tiny_smolvlm_processor,
)


FAMILIES = {
    "llava": (tiny_llava_processor, tiny_llava_model, "</s>"),
    "qwen2_5_vl": (tiny_qwen2_5_vl_processor, tiny_qwen2_5_vl_model, "<|im_end|>"),
    "gemma3": (tiny_gemma3_processor, tiny_gemma3_model, "<end_of_turn>"),
    "smolvlm": (tiny_smolvlm_processor, tiny_smolvlm_model, "<end_of_utterance>"),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
WIDE, HIGH = Image.new("RGB", (24, 16), (200, 10, 10)), Image.new("RGB", (16, 32), (0, 0, 255))
# Sequence-shaped values of a processor's output, and what they hold at padding.
PADDING = {"input_ids": 0, "attention_mask": 0, "labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


@pytest.fixture
def rows():
    return [
        training_row(
            "two turns",
            [WIDE],
            message("user", None, "what organ is shown?"),
            message("assistant", " left lung "),
            message("user", "left or right? left"),
            message("assistant", "left"),
        ),
        training_row("two images", [WIDE, HIGH], message("user", None, None, "compare"), message("assistant", "same")),
        training_row(
            "text", [], message("system", "be brief"), message("user", "what is CT?"), message("assistant", "X ray")
        ),
    ]


def build(family, **values):
    processor = FAMILIES[family][0]()
    return processor, LoGraMedDataCollator(processor, **values)


def labeled(processor, labels):
    """The labeled tokens, a bar between those that are not neighbours."""
    tokens = ["|" if label == -100 else processor.tokenizer.convert_ids_to_tokens(label) for label in labels.tolist()]
    return re.sub(r"( \|)+", " |", " ".join(tokens)).strip("| ")


@every_family
def test_labels_are_the_answers_and_the_ends_of_their_turns(rows, family):
    processor, collator = build(family, alignment=False)
    end = FAMILIES[family][2]
    batch = collator(rows)
    assert [labeled(processor, labels) for labels in batch["labels"]] == [
        f"left lung {end} | left {end}",
        f"same {end}",
        f"X ray {end}",
    ]


@every_family
def test_a_batch_is_its_rows_one_by_one_whatever_the_order(rows, family):
    _, collator = build(family, alignment=False)
    batch, turned = collator(rows), collator(rows[::-1])
    for index, row in enumerate(rows):
        alone = collator([row])
        length = alone["input_ids"].shape[1]
        for name in batch.keys() & PADDING.keys():
            values = batch[name][index]
            assert (values[length:] == PADDING[name]).all()
            assert torch.equal(turned[name][2 - index], values)
            assert torch.equal(values[:length], alone[name][0]) or name == "token_type_ids"
    pixels = [collator([row])["pixel_values"] for row in rows[:2]]
    if family != "smolvlm":  # whose images go by sample, filled up to the most
        assert torch.equal(batch["pixel_values"], torch.cat(pixels))


@every_family
def test_answers_follow_what_generation_begins_with(rows, family):
    """Special tokens of the tokenizer are neither doubled nor lost."""
    processor, collator = build(family, alignment=False)
    batch = collator(rows[:1])
    question = {"role": "user", "content": [{"type": "image", "image": WIDE}, *rows[0]["messages"][0]["content"][1:]]}
    prompt = processor.apply_chat_template(
        [question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    first = (batch["labels"][0] != -100).nonzero()[0].item()
    assert batch["input_ids"][0, :first].tolist() == prompt["input_ids"][0].tolist()
    for name in prompt.keys() - PADDING.keys() - {"pixel_attention_mask"}:
        assert torch.equal(prompt[name], batch[name])


@every_family
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_models_take_the_batch_and_have_a_feature_for_each_image_token(rows, family, granularity):
    _, collator = build(family, config=AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity))
    model = FAMILIES[family][1]()
    batch = collator(rows[:2])
    nodes = batch.pop("nodes")
    assert torch.isfinite(model(**batch).loss)
    images = {name: values for name, values in batch.items() if name.startswith(("pixel", "image"))}
    features = model.base_model.get_image_features(**images, return_dict=True).pooler_output
    num_tokens = [(row == model.config.image_token_id).sum().item() for row in batch["input_ids"]]
    assert sum(part.flatten(0, -2).shape[0] for part in features) == sum(num_tokens)
    assert nodes["image_sample"].bincount().tolist() == num_tokens
    assert torch.isfinite(model(**LoGraMedDataCollator(collator.processor, alignment=False)(rows)).loss)


@every_family
def test_models_generate_from_the_processor_s_own_prompt(family):
    processor = FAMILIES[family][0]()
    messages = [
        {"role": "user", "content": [{"type": "image", "image": HIGH}, {"type": "text", "text": "what organ?"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    generated = FAMILIES[family][1]().generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 2


@every_family
def test_sequences_are_cut_together_and_no_image_is_cut(rows, family):
    processor, collator = build(family, alignment=False)
    whole = collator(rows[:1])
    first = (whole["labels"][0] != -100).nonzero()[0].item()
    last_image = (whole["input_ids"][0] == 4).nonzero()[-1].item() + 1
    cut = LoGraMedDataCollator(processor, max_length=first + 2, alignment=False)(rows[:1])
    for name in whole.keys() & PADDING.keys():
        assert torch.equal(cut[name], whole[name][:, : first + 2])
    assert labeled(processor, cut["labels"][0]) == "left lung"
    with pytest.raises(ValueError, match=f"Row 'two turns' needs {last_image} tokens to keep its 1 image"):
        LoGraMedDataCollator(processor, max_length=last_image - 1, alignment=False)(rows[:1])


@every_family
def test_sequences_are_padded_to_a_multiple(rows, family):
    processor, collator = build(family, alignment=False)
    expected = collator(rows)
    batch = LoGraMedDataCollator(processor, alignment=False, pad_to_multiple_of=64)(rows)
    length = expected["input_ids"].shape[1]
    for name in batch.keys() & PADDING.keys():
        assert batch[name].shape[1] % 64 == 0
        assert torch.equal(batch[name][:, :length], expected[name])
        assert (batch[name][:, length:] == PADDING[name]).all()


@every_family
def test_without_completion_only_loss_all_tokens_but_those_of_images_are_learned(rows, family):
    processor, collator = build(family, alignment=False, completion_only_loss=False)
    batch = collator(rows)
    is_text = batch["attention_mask"].bool() & (batch["input_ids"] != 4)
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(~is_text, -100))
    answers = [
        LoGraMedDataCollator(processor, alignment=False, completion_only_loss=only)(rows) for only in (None, True)
    ]
    assert torch.equal(answers[0]["labels"], answers[1]["labels"])


def test_a_processor_that_does_not_say_where_it_put_images_is_refused(rows, monkeypatch):
    processor = tiny_processor()
    monkeypatch.setattr(type(processor), "_find_replacements", lambda self, text: [])
    with pytest.raises(ValueError, match="'two turns': LoGraMedProcessor does not say where it put the tokens"):
        LoGraMedDataCollator(processor, config=AlignmentConfig(alignment_preset="paper"))(rows[:1])


def test_text_replacements_of_ours_are_those_that_transformers_finds(rows):
    ours = tiny_processor(4, image_size=8)
    theirs = tiny_llava_processor()
    text, images = ["<image> a <image>", "no", " <image>"], [[WIDE, HIGH], [], [WIDE]]
    found = [
        processor(text=text, images=images, return_text_replacement_offsets=True)["text_replacement_offsets"]
        for processor in (ours, theirs)
    ]
    places = [[[(entry["span"], entry["new_span"]) for entry in row] for row in rows_found] for rows_found in found]
    assert places[0] == places[1]
