import math

import pytest
import torch

from logramed.trainer.alignment import AlignmentConfig, AlignmentObjective
from logramed.trainer.alignment.aligned_model import AlignedModel, encode_images, join_image_features
from logramed.trainer.alignment.node_features import (
    pool_by_attention,
    pool_regions,
    segment_mean,
    take_rows,
    text_features,
)
from tests.tiny_models import tiny_model
from tests.trainer.alignment.test_aligned_model import text_nodes


TEMPERATURE = 0.1  # as documented
QUESTIONS = [[7, 8, 9], [10, 11], [12, 13, 14, 15]]
ANSWERS = [[20], [21, 22, 23], [24, 25]]
EXTENDED = [[30, 31, 32, 33, 34], [35, 36], [37, 38, 39, 40]]
SPAN_IDS = [[0, 0, -1, 1, 1], [0, 0], [0, 1, 2, 2]]  # the third token of the first text belongs to no sentence


def draw(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def padded(sequences, padding=0, extra=0):
    width = max(map(len, sequences)) + extra
    return torch.tensor([sequence + [padding] * (width - len(sequence)) for sequence in sequences])


def batch(turns_of_samples=((0, 1), (2,)), num_images=(1, 2), extra_padding=0, extended=True):
    """Inputs of samples with the given turns (numbers of texts above) and images (numbered by what they show)."""
    image_tokens = [[1, *[4] * (4 * count), 7] for count in num_images]
    pixels = [draw(count, 3, 8, 8, seed=turns[0]) for count, turns in zip(num_images, turns_of_samples, strict=True)]
    input_ids = padded(image_tokens)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "labels": torch.where(input_ids == 7, 7, -100),
        "pixel_values": torch.cat(pixels),
        "nodes": turn_nodes(turns_of_samples, num_images, extra_padding, extended),
    }


def turn_nodes(turns_of_samples, num_images, extra_padding, extended):
    """The `nodes` of turns, made by hand."""
    order = [turn for turns in turns_of_samples for turn in turns]
    kinds = (QUESTIONS, ANSWERS, EXTENDED) if extended else (QUESTIONS, ANSWERS)
    nodes = text_nodes([kind[turn] for kind in kinds for turn in order], None)
    samples = [sample for sample, count in enumerate(num_images) for _ in range(4 * count)]
    nodes["image_sample"] = torch.tensor(samples)
    places = iter(range(len(samples)))
    nodes["region_index"] = padded(
        [[next(places) for _ in range(4 * count)] for count in num_images], -1, extra_padding
    )
    numbers = iter(range(len(order)))
    nodes["turn_index"] = padded([[next(numbers) for _ in turns] for turns in turns_of_samples], -1, extra_padding)
    nodes["turn_places"] = (nodes["turn_index"] >= 0).flatten().nonzero().squeeze(1)
    if not extended:
        return nodes
    counts = [max(SPAN_IDS[turn]) + 1 for turn in order]
    firsts = [sum(counts[:number]) for number in range(len(order))]
    spans = [first + span for first, turn in zip(firsts, order, strict=True) for span in SPAN_IDS[turn] if span >= 0]
    inside = [span >= 0 for turn in order for span in SPAN_IDS[turn]]
    kept = torch.tensor([True] * (len(nodes["packed_places"]) - len(inside)) + inside)
    for name in ("packed_places", "padded_places", "text_of_token"):
        nodes[name] = nodes[name][kept]
    nodes["span_of_token"] = torch.tensor(spans)
    nodes["span_index"] = padded(
        [list(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)], -1, extra_padding
    )
    nodes["turn_of_span"] = torch.arange(len(order)).repeat_interleave(torch.tensor(counts))
    return nodes


def nodes_of(model, inputs, granularity="turn", **values):
    output = AlignedModel(
        model, config=AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity, **values)
    )(**inputs)
    with torch.no_grad():
        regions = join_image_features(encode_images(model.model, inputs))
    return output.node_features, output.attention, regions


def attend(query, keys):
    """The definition, key by key."""
    cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
    exponentials = [math.exp(cosine / TEMPERATURE) for cosine in cosines]
    weights = [value / sum(exponentials) for value in exponentials]
    return sum(weight * key for weight, key in zip(weights, keys, strict=True)), weights


def expected_turn(model, turn, regions):
    """Image, answer, extended, region weights, span weights and spans of one turn, its texts encoded one by one."""
    encode = model.model.language_model
    question, answer, extended = (
        encode(torch.tensor([texts[turn]])).last_hidden_state[0] for texts in (QUESTIONS, ANSWERS, EXTENDED)
    )
    image, region_weights = attend(question.mean(0), regions)
    numbers = torch.tensor(SPAN_IDS[turn])
    spans = [extended[numbers == number].mean(0) for number in range(max(SPAN_IDS[turn]) + 1)]
    pooled, span_weights = attend(extended[numbers >= 0].mean(0), spans)
    return image, answer.mean(0), pooled, region_weights, span_weights, spans


@torch.no_grad()
def test_turn_nodes_equal_those_worked_out_turn_by_turn():
    model = tiny_model()
    features, attention, regions = nodes_of(model, batch())
    regions = regions.split([4, 8])
    for turn, sample in ((0, 0), (1, 0), (2, 1)):
        image, answer, extended, region_weights, span_weights, _ = expected_turn(model, turn, regions[sample])
        torch.testing.assert_close(features["image"][turn], image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features["answer"][turn], answer, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features["extended"][turn], extended, rtol=1e-4, atol=1e-5)
        for name, weights in (("regions", region_weights), ("spans", span_weights)):
            found = attention[name][turn]
            torch.testing.assert_close(found[: len(weights)], torch.tensor(weights), rtol=1e-3, atol=1e-5)
            assert not found[len(weights) :].any()
    assert attention["regions"].shape == (3, 8)
    assert attention["spans"].shape == (3, 3)


@torch.no_grad()
def test_span_nodes_are_the_spans_with_the_image_and_the_answer_of_their_turn():
    model = tiny_model()
    turns, _, regions = nodes_of(model, batch())
    features, attention, _ = nodes_of(model, batch(), "span")
    regions = regions.split([4, 8])
    spans = [
        span for turn, sample in ((0, 0), (1, 0), (2, 1)) for span in expected_turn(model, turn, regions[sample])[5]
    ]
    torch.testing.assert_close(features["extended"], torch.stack(spans), rtol=1e-4, atol=1e-5)
    for name in ("image", "answer"):
        assert torch.equal(features[name], turns[name][[0, 0, 1, 2, 2, 2]])
    assert attention["regions"].shape == (3, 8)


@torch.no_grad()
@pytest.mark.parametrize("granularity", ["turn", "span"])
def test_padding_changes_no_node(granularity):
    model = tiny_model()
    features, attention, _ = nodes_of(model, batch(), granularity)
    more, more_attention, _ = nodes_of(model, batch(extra_padding=3), granularity)
    torch.testing.assert_close(more, features, rtol=1e-4, atol=1e-5)
    for name, weights in attention.items():
        torch.testing.assert_close(more_attention[name][:, : weights.shape[1]], weights, rtol=1e-4, atol=1e-5)
        assert not more_attention[name][:, weights.shape[1] :].any()


@torch.no_grad()
def test_the_order_of_samples_only_orders_the_nodes():
    model = tiny_model()
    features, _, _ = nodes_of(model, batch())
    swapped, _, _ = nodes_of(model, batch(((2,), (0, 1)), (2, 1)))
    for name, values in features.items():
        torch.testing.assert_close(swapped[name], values[[2, 0, 1]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_extended_answers_there_are_two_modalities():
    features, attention, _ = nodes_of(tiny_model(), batch(extended=False), alignment_texts="answer")
    assert set(features) == {"image", "answer"}
    assert set(attention) == {"regions"}


@pytest.mark.parametrize("granularity", ["turn", "span"])
def test_nodes_of_bfloat16_weights_are_finite_and_pass_gradients_to_every_part(granularity):
    model = tiny_model().to(torch.bfloat16)
    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    features, attention, _ = nodes_of(model, inputs, granularity)
    assert {values.dtype for values in features.values()} == {torch.float32}
    assert {weights.dtype for weights in attention.values()} == {torch.float32}
    for weights in attention.values():
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
    sum(values.float().square().sum() for values in features.values()).backward()
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


def test_attention_at_a_high_temperature_is_the_mean_and_at_a_low_one_the_nearest():
    queries, keys = draw(2, 3, 8), draw(2, 5, 8, seed=1)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    mean, _ = pool_by_attention(queries, keys, mask, temperature=1e6)
    expected = torch.stack([keys[0].mean(0), keys[1, :3].mean(0)]).unsqueeze(1).expand(2, 3, 8)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    nearest, weights = pool_by_attention(queries, keys, mask, temperature=1e-4)
    cosines = torch.nn.functional.cosine_similarity(queries.unsqueeze(2), keys.unsqueeze(1), dim=-1)
    best = cosines.masked_fill(~mask.unsqueeze(1), -2).argmax(-1)
    assert torch.equal(weights.argmax(-1), best)
    torch.testing.assert_close(nearest, keys[torch.arange(2).unsqueeze(1), best])


def test_attention_does_not_depend_on_the_length_of_vectors_and_takes_zero_ones():
    queries, keys, mask = draw(1, 2, 4), draw(1, 3, 4, seed=1), torch.ones(1, 3, dtype=torch.bool)
    _, weights = pool_by_attention(queries, keys, mask)
    _, scaled = pool_by_attention(5 * queries, keys * torch.tensor([1.0, 2.0, 7.0]).view(1, 3, 1), mask)
    torch.testing.assert_close(scaled, weights)
    zero = torch.zeros(1, 1, 4, requires_grad=True)
    pooled, weights = pool_by_attention(zero, keys, mask)
    torch.testing.assert_close(weights, torch.full((1, 1, 3), 1 / 3))
    pooled.sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_attention_has_the_gradient_of_finite_differences():
    queries, keys = (draw(1, 2, 3, seed=seed, dtype=torch.float64).requires_grad_() for seed in (0, 1))
    mask = torch.tensor([[True, True]])
    assert torch.autograd.gradcheck(lambda *tensors: pool_by_attention(*tensors, mask)[0], (queries, keys))


def test_means_of_segments_are_those_of_a_loop():
    values, segments = draw(6, 3), torch.tensor([0, 0, 2, 1, 2, 2])
    expected = [values[segments == number].mean(0) for number in range(3)]
    torch.testing.assert_close(segment_mean(values, segments, 4), torch.stack([*expected, torch.zeros(3)]))
    assert segment_mean(values.half(), segments, 3).dtype == torch.float32


def test_rows_are_taken_by_their_numbers_and_are_zero_where_there_is_none():
    values = draw(4, 2)
    taken = take_rows(values, torch.tensor([[3, -1], [0, 3]]))
    torch.testing.assert_close(taken, torch.stack([values[3], torch.zeros(2), values[0], values[3]]).reshape(2, 2, 2))


# What a query gives away: regions, questions, answers and spans that have nothing to do with each other.
NUM_TURNS, NUM_REGIONS, NUM_SPANS, SIZE = 24, 64, 3, 64
CHANCE = 1 / NUM_TURNS


def unrelated_nodes(seed, image_query, extended_query, turns_per_image):
    """Nodes of all modalities from independent normal features; some turns share an image."""
    generator = torch.Generator().manual_seed(seed)
    questions, answers = (torch.randn(NUM_TURNS, SIZE, generator=generator) for _ in range(2))
    spans = torch.randn(NUM_TURNS, NUM_SPANS, SIZE, generator=generator)
    num_images = NUM_TURNS // turns_per_image
    regions = torch.randn(num_images, NUM_REGIONS, SIZE, generator=generator)
    texts = {"question": questions, "answer": answers}
    turns, places = torch.arange(NUM_TURNS), torch.arange(NUM_TURNS * NUM_SPANS)
    nodes = {
        "text_input_ids": torch.zeros(3 * NUM_TURNS, 1),
        "turn_index": turns.view(num_images, turns_per_image),
        "turn_places": turns,
        "region_index": torch.arange(num_images * NUM_REGIONS).view(num_images, NUM_REGIONS),
        "span_of_token": places,
        "span_index": places.view(NUM_TURNS, NUM_SPANS),
        "turn_of_span": turns.repeat_interleave(NUM_SPANS),
        "text_of_token": torch.cat([turns, NUM_TURNS + turns, 2 * NUM_TURNS + turns.repeat_interleave(NUM_SPANS)]),
    }
    tokens = torch.cat([texts[image_query], answers, spans.flatten(0, 1)])
    found = text_features(tokens, nodes, "turn", ("question", "answer", "extended")).features
    image = pool_regions(regions.flatten(0, 1), nodes, found["question"]).features["image"]
    extended = found["extended"]
    if extended_query != "own":
        every_span = torch.ones(NUM_TURNS, NUM_SPANS).bool()
        extended = pool_by_attention(texts[extended_query].unsqueeze(1), spans, every_span)[0].squeeze(1)
    return {"image": image, "answer": answers, "extended": extended}


def accuracy_on_unrelated(pair, image_query, extended_query, turns_per_image, num_seeds=60):
    """Share of turns matched to themselves between two modalities, and its standard error over seeds."""
    objective, found = AlignmentObjective(AlignmentConfig(alignment_preset="paper", alignment_loss="first_order")), []
    for seed in range(num_seeds):
        nodes = unrelated_nodes(seed, image_query, extended_query, turns_per_image)
        # Of two modalities, the mean of the others is the other one.
        output = objective({name: nodes[name] for name in pair}, training=False)
        found.append(output.matching_accuracy.item())
    values = torch.tensor(found)
    return values.mean().item(), (values.std() / math.sqrt(num_seeds)).item()


@pytest.mark.parametrize("turns_per_image", [1, 4, NUM_TURNS])
@pytest.mark.parametrize("pair", [("image", "answer"), ("image", "extended"), ("answer", "extended")])
def test_the_queries_give_nothing_away(pair, turns_per_image):
    accuracy, error = accuracy_on_unrelated(pair, "question", "own", turns_per_image)
    assert abs(accuracy - CHANCE) < 3 * error + 1e-6


@pytest.mark.parametrize(
    ("pair", "queries", "least"),
    [
        (("image", "answer"), ("answer", "own"), 0.95),
        (("image", "extended"), ("question", "question"), 0.055),
        (("answer", "extended"), ("question", "answer"), 0.1),
    ],
)
def test_a_query_that_another_modality_knows_gives_the_matching_away(pair, queries, least):
    accuracy, error = accuracy_on_unrelated(pair, *queries, turns_per_image=1)
    assert accuracy - 3 * error > CHANCE
    assert accuracy > least


@pytest.mark.parametrize("loss", ["multi_graph", "first_order"])
def test_spans_that_share_an_image_and_an_answer_give_nothing_away(loss):
    """Equal nodes come in equal numbers in two modalities, which edges could have shown."""
    objective, excess = AlignmentObjective(AlignmentConfig(alignment_preset="paper", alignment_loss=loss)), []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        num_spans = torch.randint(1, 5, (10,), generator=generator)
        turns = [torch.randn(10, SIZE, generator=generator).repeat_interleave(num_spans, 0) for _ in range(2)]
        spans = torch.randn(int(num_spans.sum()), SIZE, generator=generator)
        groups = torch.arange(10).repeat_interleave(num_spans)
        nodes = dict(zip(("image", "answer", "extended"), [*turns, spans], strict=True))
        chance = (groups.unsqueeze(0) == groups.unsqueeze(1)).float().mean()
        excess.append(objective(nodes, training=False, groups=groups).matching_accuracy - chance)
    values = torch.stack(excess)
    assert values.mean() < 3 * values.std() / math.sqrt(len(values))
