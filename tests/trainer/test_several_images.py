"""Tests of alignment where conversations have several images, in several turns, with text between them."""

import numpy as np
import pytest
import torch
from PIL import Image

from logramed.trainer.alignment import AlignmentConfig, AlignmentObjective
from logramed.trainer.alignment.aligned_model import AlignedModel, encode_images, join_image_features
from logramed.trainer.alignment.node_features import ATTENTION_TEMPERATURE
from logramed.trainer.alignment.node_inputs import images_of_turns
from logramed.trainer.data.collator import LoGraMedDataCollator
from tests import vlm_models, vlm_processors
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model
from tests.trainer.data.test_collator import message, training_row


FAMILIES = {
    "ours": (tiny_model, tiny_processor),
    "llava": (vlm_models.tiny_llava_model, vlm_processors.tiny_llava_processor),
    "qwen2_5_vl": (vlm_models.tiny_qwen2_5_vl_model, vlm_processors.tiny_qwen2_5_vl_processor),
    "smolvlm": (vlm_models.tiny_smolvlm_model, vlm_processors.tiny_smolvlm_processor),
}
# For each row, its turns' first image and the one after the last.
RANGES = {"dialogue": [(0, 2), (0, 2), (2, 3), (0, 3)], "one": [(0, 1)], "pair": [(0, 1), (1, 2)]}


def noise(seed, shape=(16, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_rows(changed=None):
    """Three conversations; of the first, the image at place `changed` is another one."""
    images = [noise(1), noise(2, (16, 24)), noise(3)]
    if changed is not None:
        images[changed] = noise(99, images[changed].size[::-1])
    return [
        training_row(
            "dialogue",
            images,
            message("user", "compare", None, "with", None, "which organ?"),
            message("assistant", "left lung"),
            message("user", "is there a mass?"),
            message("assistant", "no"),
            message("user", None, "and in this image?"),
            message("assistant", "yes"),
            message("user", "where is the liver?"),
            message("assistant", "right lobe"),
            extended=[
                "the left lung is shown. no mass.",
                "there is no mass",
                "yes. a mass is shown",
                "right. lower lobe",
            ],
        ),
        training_row("one", [noise(4)], message("user", None, "what is CT?"), message("assistant", "X ray")),
        training_row(
            "pair",
            [noise(5), noise(6)],
            message("user", None, "which modality?"),
            message("assistant", "CT"),
            message("user", None, "which modality?"),
            message("assistant", "MRI"),
            extended=["it is CT", "it is MRI"],
        ),
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Model and processor of a family."""
    build_model, build_processor = FAMILIES[request.param]
    return build_model(), build_processor()


def collate(processor, rows, granularity, **values):
    config = AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity, **values)
    return LoGraMedDataCollator(processor, config=config)(rows), config


@torch.no_grad()
def nodes_of(pair, rows, granularity, **values):
    """Features and attention of nodes, and the projected features of each image, encoded alone."""
    model, processor = pair
    batch, config = collate(processor, rows, granularity, **values)
    output = AlignedModel(model, config=config)(**batch)
    return output, batch, [[encode_alone(pair, row, image) for image in row["images"]] for row in rows]


def encode_alone(pair, row, image):
    model, processor = pair
    alone = training_row("alone", [image], message("user", None, "what?"), message("assistant", "no"))
    inputs, _ = collate(processor, [alone], "sample")
    return join_image_features(encode_images(model.base_model, inputs))


def attend(query, keys):
    """The definition of pooling by attention, for one query."""
    cosines = torch.nn.functional.cosine_similarity(query.unsqueeze(0), keys, dim=-1)
    weights = (cosines / ATTENTION_TEMPERATURE).exp() / (cosines / ATTENTION_TEMPERATURE).exp().sum()
    return weights @ keys, weights


def test_each_image_of_a_sample_is_a_node_with_the_texts_of_its_sample(pair):
    rows = make_rows()
    output, batch, alone = nodes_of(pair, rows, "sample")
    expected = torch.stack([features.mean(0) for of_row in alone for features in of_row])
    torch.testing.assert_close(output.node_features["image"], expected, rtol=1e-3, atol=1e-4)
    one_image, _, _ = nodes_of(pair, [row | first_image_only(row) for row in rows], "sample")
    for kind in ("answer", "extended"):
        texts = one_image.node_features[kind][[0, 0, 0, 1, 2, 2]]
        torch.testing.assert_close(output.node_features[kind], texts, rtol=1e-4, atol=1e-5)
    groups = batch["nodes"]["groups"].tolist()
    assert [groups.index(group) for group in groups] == [0, 0, 0, 3, 4, 4]
    objective = AlignmentObjective(
        AlignmentConfig(alignment_preset="paper", alignment_loss="first_order", message_weight=0.0)
    )
    found = objective(output.node_features, training=False, groups=batch["nodes"]["groups"])
    assert torch.isfinite(found.loss)


def test_a_volume_of_a_sample_is_one_node_the_mean_of_its_slices(pair):
    texts = ["Slice 1 of 2, 0.0 mm", "Slice 2 of 2, 5.0 mm\n", "Slice 1 of 1, 0.0 mm\n"]
    content = [None, texts[0], None, texts[1], None, None, texts[2], "is there a mass?"]
    images = [noise(seed) for seed in range(4)]
    volumes = training_row("volumes", images, message("user", *content), message("assistant", "no"))
    one = training_row("one", [noise(4)], message("user", None, "what is CT?"), message("assistant", "X ray"))
    output, batch, alone = nodes_of(pair, [volumes, one], "sample", alignment_texts="answer")
    (first, second, third, fourth), (last,) = alone
    expected = [torch.cat([first, second]).mean(0), third.mean(0), fourth.mean(0), last.mean(0)]
    torch.testing.assert_close(output.node_features["image"], torch.stack(expected), rtol=1e-3, atol=1e-4)
    assert batch["nodes"]["sample_of_image"].tolist() == [0, 0, 0, 1]


def first_image_only(row):
    """The same texts with the first image alone, in the first turn."""
    messages = [
        {**turn, "content": [part for part in turn["content"] if part["type"] != "image"]} for turn in row["messages"]
    ]
    messages[0]["content"].insert(0, {"type": "image", "text": None})
    return {"images": row["images"][:1], "messages": messages}


@pytest.mark.parametrize("granularity", ["turn", "span"])
def test_turns_are_pooled_over_the_regions_of_the_images_that_they_are_about(pair, granularity):
    rows = make_rows()
    output, batch, alone = nodes_of(pair, rows, granularity)
    turn = 0
    for row, of_row in zip(rows, alone, strict=True):
        for start, end in RANGES[row["id"]]:
            regions = torch.cat(of_row[start:end])
            before = sum(map(len, of_row[:start]))
            weights = output.attention["regions"][turn]
            is_seen = torch.zeros_like(weights, dtype=torch.bool)
            is_seen[before : before + len(regions)] = True
            assert not weights[~is_seen].any()
            query = question_feature(pair[0], batch["nodes"], turn)
            pooled, expected = attend(query, regions)
            torch.testing.assert_close(weights[is_seen], expected, rtol=1e-3, atol=1e-4)
            nodes = [turn] if granularity == "turn" else (batch["nodes"]["turn_of_span"] == turn).nonzero().flatten()
            for node in nodes:
                torch.testing.assert_close(output.node_features["image"][node], pooled, rtol=1e-3, atol=1e-4)
            turn += 1
    assert turn == 7


def question_feature(model, nodes, turn):
    """The mean of the language model's states over a question's tokens, encoded alone."""
    ids, mask = nodes["text_input_ids"][turn], nodes["text_attention_mask"][turn].bool()
    is_content = (nodes["text_of_token"] == turn).nonzero().flatten()
    places = nodes["padded_places"][is_content] - turn * nodes["text_input_ids"].shape[1]
    return model.get_decoder()(input_ids=ids[mask].unsqueeze(0), use_cache=False).last_hidden_state[0, places].mean(0)


@pytest.mark.parametrize("changed", range(3))
def test_another_image_changes_the_nodes_of_the_turns_that_are_about_it_alone(pair, changed):
    before, _, _ = nodes_of(pair, make_rows(), "turn")
    after, _, _ = nodes_of(pair, make_rows(changed), "turn")
    moved = [
        not torch.allclose(old, new, rtol=1e-4, atol=1e-5)
        for old, new in zip(before.node_features["image"], after.node_features["image"], strict=True)
    ]
    about = [start <= changed < end for start, end in RANGES["dialogue"]]
    assert moved == [*about, False, False, False]


def test_regions_beside_answer_states_are_those_of_the_turns_images():
    pair = tiny_model(text_sizes={"vocab_size": 84}), tiny_processor()
    values = {"alignment_image_node": "answer_state", "alignment_regions": True, "alignment_head": "none"}
    output, _, alone = nodes_of(pair, make_rows(), "turn", **values)
    states = output.node_features["image"]
    pooled, _ = attend(states[2], alone[0][2])
    torch.testing.assert_close(output.node_features["region"][2], pooled, rtol=1e-3, atol=1e-4)
    pooled, _ = attend(states[3], torch.cat(alone[0]))
    torch.testing.assert_close(output.node_features["region"][3], pooled, rtol=1e-3, atol=1e-4)


def test_gradients_of_nodes_with_masked_regions_are_finite_and_stay_in_their_image():
    model, processor = tiny_model(), tiny_processor()
    batch, config = collate(processor, make_rows(), "turn")
    assert batch["nodes"]["region_mask"].shape == (3, 4, 12)
    pixels = batch["pixel_values"].requires_grad_()
    nodes = AlignedModel(model, config=config)(**batch).node_features["image"]
    (gradient,) = torch.autograd.grad(nodes[2].sum(), pixels)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).any(1).tolist() == [False, False, True, False, False, False]


def test_where_every_turn_is_about_all_images_there_is_no_mask():
    batch, _ = collate(tiny_processor(), make_rows()[1:2], "turn")
    assert "region_mask" not in batch["nodes"]


def test_a_batch_is_as_its_rows_one_by_one(pair):
    rows = make_rows()
    together, _, _ = nodes_of(pair, rows, "turn")
    apart = [nodes_of(pair, [row], "turn")[0].node_features["image"] for row in rows]
    torch.testing.assert_close(together.node_features["image"], torch.cat(apart), rtol=1e-3, atol=1e-4)


def test_a_turn_before_the_first_image_gets_all_of_them():
    messages = [
        message("user", "a?"),
        message("assistant", "a"),
        message("user", None, "b?"),
        message("assistant", "b"),
    ]
    assert images_of_turns(messages) == [(0, 1), (0, 1)]
