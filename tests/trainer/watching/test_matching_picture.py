import numpy as np
import pytest
import torch
from PIL import Image

from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.watching import matching_picture
from logramed.trainer.watching.matching_picture import MatchedNodes, draw_matching, match_nodes
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


def model_and_collator(granularity="turn", **values):
    model = tiny_model(text_sizes={"vocab_size": 84}, **values)
    return model, LoGraMedDataCollator(
        tiny_processor(model.config.num_image_tokens),
        config=AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity),
    )


def fix_nodes(monkeypatch, order):
    """Makes the image of each node the text of another one: node i goes to node `order[i]`."""
    original = AlignedModel.forward

    def forward(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        texts = torch.eye(len(order))
        output.node_features = {"image": texts[order], "answer": texts, "extended": texts}
        return output

    monkeypatch.setattr(AlignedModel, "forward", forward)


def test_each_turn_is_matched_and_described(rows, monkeypatch):
    order = [2, 5, 0, 3, 4, 1, 6, 7]
    fix_nodes(monkeypatch, order)
    nodes = match_nodes(*model_and_collator(), list(rows)[:4])
    assert nodes.matching.tolist() == order
    assert nodes.answers[1] == nodes.answers[5] == "yes"
    assert nodes.is_right.tolist() == [False, True, False, True, True, True, True, True]
    to_extended = match_nodes(*model_and_collator(), list(rows)[:4], target="extended")
    assert to_extended.is_right.tolist() == [False, True, False, True, True, True, True, True]
    assert nodes.questions[:2] == ["what organ is shown", "is there a mass in the left lung"]
    assert nodes.spans[0] == ["this image is of the left lung"]
    assert len(nodes.images) == 8
    assert nodes.images[0][0].size == (8, 8)
    assert nodes.region_weights.shape == (8, 4)
    torch.testing.assert_close(nodes.region_weights.sum(1), torch.ones(8))
    assert nodes.span_weights.shape == (8, 1)


def test_samples_are_matched_too(rows, tmp_path):
    nodes = match_nodes(*model_and_collator("sample"), list(rows))
    assert sorted(nodes.matching.tolist()) == list(range(8))
    assert nodes.region_weights is None
    assert nodes.answers[0] == "left lung. yes"
    with Image.open(draw_matching(nodes, tmp_path / "samples.png")) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("granularity", ["sample", "turn"])
def test_nodes_without_extended_answers_have_no_spans(rows, granularity):
    model, collator = model_and_collator(granularity)
    collator.config.alignment_texts = "answer"
    assert not any(match_nodes(model, collator, list(rows)).spans)


@pytest.mark.parametrize("connector", ["none", "sti"])
def test_several_images_of_a_sample_are_drawn_side_by_side(rows, tmp_path, connector):
    first, second = list(rows)[:2]
    first["images"] = first["images"] + second["images"]
    first["messages"][0]["content"].insert(0, {"type": "image", "text": None})
    nodes = match_nodes(*model_and_collator(dense_connector=connector), [first, second], target="extended")
    assert [len(images) for images in nodes.images] == [2, 2, 1, 1]
    draw_matching(nodes, tmp_path / "turns.png", title="Two images")
    assert (tmp_path / "turns.png").stat().st_size > 0


def test_pooled_images_are_drawn_on_the_grid_of_their_tokens(rows, tmp_path):
    nodes = match_nodes(*model_and_collator(vision_sizes={"patch_size": 2}, image_token_pooling=3), list(rows)[:2])
    assert nodes.patches_per_side == 3
    assert nodes.region_weights.shape[1] == 9
    assert draw_matching(nodes, tmp_path / "pooled.png").stat().st_size > 0


def hand_made(matching, **values):
    """Two nodes with white images of 4 x 4 pixels and 2 x 2 patches."""
    images = [[Image.new("L", (4, 4), 255)] for _ in matching]
    matching = torch.tensor(matching)
    is_right = matching == torch.arange(len(matching))
    texts = ["a?", "b?"]
    return MatchedNodes(images, texts, ["yes", "no"], [["One.", "Two."], []], matching, is_right, 2, **values)


def pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).int()


def count_color(picture, color):
    return int((picture - torch.tensor(color)).abs().amax(-1).le(12).sum())


GREEN, RED = (40, 134, 61), (206, 61, 61)  # of the lines, on white


def test_lines_are_green_where_right_and_red_where_wrong(tmp_path):
    right = pixels(draw_matching(hand_made([0, 1]), tmp_path / "right.png"))
    wrong = pixels(draw_matching(hand_made([1, 0]), tmp_path / "wrong.png"))
    assert count_color(right, GREEN) > 100 > count_color(right, RED)
    assert count_color(wrong, RED) > 100 > count_color(wrong, GREEN)


def test_many_images_and_long_texts_stay_in_their_row_and_in_the_picture(tmp_path):
    nodes = hand_made([0, 1])
    nodes.images[0] = [Image.new("L", (4, 4), 0)] * 9
    nodes.questions[0], nodes.answers[0] = "a mass in the lung, $1 " * 20, "a mass in the lung, $1 " * 20
    nodes.spans[0] = ["a mass in the left lung. " * 20] * 9
    picture = pixels(draw_matching(nodes, tmp_path / "long.png"))
    is_white = picture.amin(-1) > 250
    assert is_white[:, :8].all()
    assert is_white[:, -8:].all()
    rows_between = slice(round(110 * 1.43), round(110 * 1.45))  # at 110 dots an inch, between the two rows
    is_image_or_text = ~is_white[rows_between]
    is_image_or_text[:, round(110 * 4.4) : round(110 * 6.0)] = False  # lines
    assert not is_image_or_text.any()


def test_weights_of_each_image_leave_out_what_a_connector_adds():
    weights = torch.tensor([1.0, 2, 3, 4, 9, 5, 6, 7, 8, 9, 0, 0])  # two images of four patches and one more token
    second = matching_picture._weights_of_image(weights, 1, 2, 2)
    assert second.tolist() == [[5, 6], [7, 8]]


def test_spans_as_nodes_and_unknown_targets_are_refused(rows):
    with pytest.raises(ValueError, match="Spans share images and answers"):
        match_nodes(*model_and_collator("span"), list(rows))
    with pytest.raises(ValueError, match=r"`target` must be a text modality of the nodes.*got 'image'"):
        match_nodes(*model_and_collator(), list(rows), target="image")
