"""Tests of the maps of models, against the trainer's own regions and a plain computation of attention."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from logramed.eval.grounding.maps import KINDS, find_grid, read_maps
from logramed.eval.likelihood import build_answer_context
from logramed.eval.models import load_model
from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.data.collator import LoGraMedDataCollator
from tests.eval.other_families import build_tokenizer
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model
from tests.vlm_models import tiny_qwen2_5_vl_model


QUESTIONS = ["what organ is shown", "is there a mass in the left lung ?", "where"]


@pytest.fixture
def questions(tmp_path):
    generator, rows = np.random.default_rng(0), []
    for number, (question, size) in enumerate(zip(QUESTIONS, ((8, 8), (8, 16), (12, 6)), strict=True)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
        rows.append({"question_id": str(number), "question": question, "image": str(path), "answer": "yes"})
    return rows


def model_and_processor(**values):
    model = tiny_model(text_sizes={"vocab_size": 84}, **values)
    return model, tiny_processor(model.config.num_image_tokens)


def maps_of(model, processor, questions, **options):
    read = read_maps(model, processor, questions, **({"batch_size": 8, "progress": False} | options))
    return {row["question_id"]: {kind: weights[0] for kind, weights in maps.items()} for row, maps in read}


def trained_regions(model, processor, questions, **values):
    """What training with turns as nodes weighs in the same questions, one turn each."""
    config = AlignmentConfig(alignment_preset="paper", alignment_granularity="turn", **values)
    rows = [
        {
            "id": row["question_id"],
            "images": [row["image"]],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]},
            ],
            "extended_answers": ["there is a mass in the lung"],
        }
        for row in questions
    ]
    with torch.no_grad():
        outputs = AlignedModel(model, config=config)(**LoGraMedDataCollator(processor, config=config)(rows))
    return outputs.attention["regions"]


@pytest.mark.parametrize("connector", ["none", "dci", "sti"])
def test_the_map_of_the_answer_state_is_what_alignment_pools_regions_by(questions, connector):
    model, processor = model_and_processor(dense_connector=connector)
    regions = trained_regions(
        model, processor, questions, alignment_image_node="answer_state", alignment_regions=True
    )[:, :4]
    regions = regions / regions.sum(dim=1, keepdim=True)  # the tokens that a connector adds are no place of the image
    maps = maps_of(model, processor, questions)
    for place, row in enumerate(questions):
        expected = regions[place].double().reshape(2, 2).numpy()
        assert maps[row["question_id"]]["answer_state"] == pytest.approx(expected, abs=1e-6)


def test_the_map_of_the_question_is_what_turns_pool_regions_by(questions):
    model, processor = model_and_processor()
    regions = trained_regions(model, processor, questions)
    maps = maps_of(model, processor, questions)
    for place, row in enumerate(questions):
        assert maps[row["question_id"]]["question"] == pytest.approx(
            regions[place].double().reshape(2, 2).numpy(), abs=1e-6
        )


def test_attention_is_the_mean_over_heads_of_the_last_half_of_the_layers(questions):
    model = tiny_model(text_sizes={"vocab_size": 84, "num_hidden_layers": 3})
    processor = tiny_processor(model.config.num_image_tokens)
    model.set_attn_implementation("eager")
    for row in questions:
        prompt = build_answer_context(processor, row)[0]
        inputs = processor(text=[prompt], images=[[Image.open(row["image"])]], return_tensors="pt")
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().squeeze(1)
        mean = sum(layer[0, head, -1, places] for layer in attentions[1:] for head in range(4)) / 8
        expected = (mean / mean.sum()).double().reshape(2, 2).numpy()
        assert maps_of(model, processor, [row])[row["question_id"]]["attention"] == pytest.approx(expected, abs=1e-6)


def test_batches_give_what_single_questions_give_and_leave_the_model_as_it_was(questions):
    model, processor = model_and_processor()
    model.train()
    former = model.model.language_model.config._attn_implementation
    together = maps_of(model, processor, questions)
    assert model.training
    assert model.model.language_model.config._attn_implementation == former != "eager"
    for row in questions:
        alone = maps_of(model, processor, [row], batch_size=1)[row["question_id"]]
        assert set(alone) == set(KINDS)
        for kind, weights in alone.items():
            assert weights.sum() == pytest.approx(1.0)
            assert weights == pytest.approx(together[row["question_id"]][kind], abs=1e-6)


def test_several_images_share_the_weight_as_in_training(questions):
    model, processor = model_and_processor(vision_feature_select_strategy="full")
    images = [row["image"] for row in questions]
    text = "is there a mass in the left lung ?"
    rows = [{"question_id": "all", "question": f"<image> <image> <image> {text}", "images": images, "answer": "yes"}]
    rows.append(questions[0])
    conversation = [
        {"role": "user", "content": [{"type": "image"}] * 3 + [{"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    row = {"id": "all", "images": images, "messages": conversation, "extended_answers": ["a mass"]}
    config = AlignmentConfig(
        alignment_preset="paper",
        alignment_granularity="turn",
        alignment_image_node="answer_state",
        alignment_regions=True,
    )
    with torch.no_grad():
        trained = AlignedModel(model, config=config)(**LoGraMedDataCollator(processor, config=config)([row]))
    expected = trained.attention["regions"].reshape(3, 5)[:, 1:]  # without the class token
    expected = (expected / expected.sum()).double().reshape(3, 2, 2).numpy()
    read = {row["question_id"]: maps for row, maps in read_maps(model, processor, rows, batch_size=8)}
    assert read["all"]["answer_state"] == pytest.approx(expected, abs=1e-6)
    assert {maps.shape for maps in read["all"].values()} == {(3, 2, 2)}
    assert {maps.shape for maps in read["0"].values()} == {(1, 2, 2)}


def test_pooled_tokens_are_a_grid_too(questions):
    model, processor = model_and_processor(
        image_token_pooling=2, vision_sizes={"image_size": 16, "patch_size": 4, "hidden_size": 16}
    )
    processor.image_processor.size = {"height": 16, "width": 16}
    assert find_grid(model.config) == (2, 0)
    assert maps_of(model, processor, questions)["0"]["attention"].shape == (2, 2)


def test_a_full_selection_has_the_class_token_before_the_grid(questions):
    model, processor = model_and_processor(vision_feature_select_strategy="full")
    assert find_grid(model.config) == (2, 1)
    regions = trained_regions(
        model, processor, questions, alignment_image_node="answer_state", alignment_regions=True
    )[0, 1:]
    expected = (regions / regions.sum()).double().reshape(2, 2).numpy()
    assert maps_of(model, processor, questions)["0"]["answer_state"] == pytest.approx(expected, abs=1e-6)


def test_blank_images_give_other_maps_and_the_same_maps_for_all_images(questions):
    model, processor = model_and_processor()
    same = [row | {"question": QUESTIONS[0]} for row in questions]
    blank = maps_of(model, processor, same, blank_images=True)
    assert not np.allclose(maps_of(model, processor, same)["0"]["answer_state"], blank["0"]["answer_state"])
    assert blank["0"]["answer_state"] == pytest.approx(blank["1"]["answer_state"], abs=0.01)  # padding is rounded


def test_adapters_and_stock_llava_have_maps(questions, tiny_model):
    model, processor = model_and_processor()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert not np.allclose(
        maps_of(adapted, processor, questions)["1"]["answer_state"],
        maps_of(model_and_processor()[0], processor, questions)["1"]["answer_state"],
    )
    words = [row | {"question": "is there a mass"} for row in questions]
    assert maps_of(*load_model(str(tiny_model)), words)["2"]["attention"].shape == (2, 2)


def test_a_model_without_a_grid_of_tokens_is_refused(questions):
    with pytest.raises(ValueError, match="one square grid of tokens, LoGra-Med or LLaVA; got qwen2_5_vl"):
        maps_of(tiny_qwen2_5_vl_model(), build_tokenizer("<image>"), questions)
