import math

import pytest
import torch

from logramed.node_features_logramed import (
    mean_over_spans,
    mean_over_tokens,
    pool_by_attention,
    pool_regions,
    pool_spans,
)
from logramed.trainer.alignment import AlignmentObjective
from tests.tiny_models import tiny_model


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


def batch(turns_of_samples=((0, 1), (2,)), num_images=(1, 2), extra_padding=0):
    """Inputs of samples with the given turns (numbers of texts above) and images (numbered by what they show)."""
    image_tokens = [[1, *[4] * (4 * count), 7] for count in num_images]
    pixels = [draw(count, 3, 8, 8, seed=turns[0]) for count, turns in zip(num_images, turns_of_samples, strict=True)]
    order = [turn for turns in turns_of_samples for turn in turns]
    inputs = {
        "input_ids": padded(image_tokens),
        "pixel_values": torch.cat(pixels),
        "num_images": torch.tensor(num_images),
        "num_turns": torch.tensor([len(turns) for turns in turns_of_samples]),
        "extended_span_ids": padded([SPAN_IDS[turn] for turn in order], -1, extra_padding),
    }
    for name, texts in (("question", QUESTIONS), ("answer", ANSWERS), ("extended", EXTENDED)):
        inputs[f"{name}_input_ids"] = padded([texts[turn] for turn in order], 0, extra_padding)
        inputs[f"{name}_attention_mask"] = (inputs[f"{name}_input_ids"] != 0).long()
    return inputs


def nodes_of(model, inputs, granularity="turn"):
    kept = {}

    def objective(features, network, attention=None):
        kept.update(features=features, attention=attention)

    outputs = model(
        **inputs,
        attention_mask=(inputs["input_ids"] != 0).long(),
        alignment_objective=objective,
        alignment_granularity=granularity,
    )
    return kept["features"], kept["attention"], outputs


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
    features, attention, outputs = nodes_of(model, batch())
    regions = outputs.image_hidden_states.split([4, 8])
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
    turns, _, outputs = nodes_of(model, batch())
    features, attention, _ = nodes_of(model, batch(), "span")
    regions = outputs.image_hidden_states.split([4, 8])
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
    torch.testing.assert_close(more_attention, attention, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_samples_only_orders_the_nodes():
    model = tiny_model()
    features, _, _ = nodes_of(model, batch())
    swapped, _, _ = nodes_of(model, batch(((2,), (0, 1)), (2, 1)))
    for name, values in features.items():
        torch.testing.assert_close(swapped[name], values[[2, 0, 1]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samples_of_one_turn_and_one_sentence_have_the_text_nodes_of_sample_level():
    model = tiny_model()
    inputs = batch(((1,), (1,)), (1, 2))
    turns, _, _ = nodes_of(model, inputs)
    samples, attention, _ = nodes_of(model, inputs, "sample")
    assert attention is None
    for name in ("answer", "extended"):
        torch.testing.assert_close(turns[name], samples[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(turns["image"], samples["image"], atol=1e-3)  # attended, not averaged


@torch.no_grad()
def test_without_extended_answers_there_are_two_modalities():
    inputs = {name: value for name, value in batch().items() if not name.startswith("extended")}
    features, attention, _ = nodes_of(tiny_model(), inputs)
    assert set(features) == {"image", "answer"}
    assert set(attention) == {"regions"}


@pytest.mark.parametrize("granularity", ["turn", "span"])
def test_nodes_of_bfloat16_weights_are_finite_and_pass_gradients_to_every_part(granularity):
    model = tiny_model().to(torch.bfloat16)
    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    features, attention, _ = nodes_of(model, inputs, granularity)
    assert {values.dtype for values in features.values()} == {torch.bfloat16}
    assert {weights.dtype for weights in attention.values()} == {torch.float32}
    for weights in attention.values():
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
    sum(values.float().square().sum() for values in features.values()).backward()
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("missing", "granularity", "words"),
    [
        (("num_turns",), "turn", "Nodes that are turns need `num_turns` and `question_input_ids`"),
        (("question_input_ids",), "span", "Nodes that are spans need `num_turns` and `question_input_ids`"),
        (("extended_input_ids",), "span", "Nodes that are spans need extended answers"),
        (("extended_span_ids",), "turn", "`extended_input_ids` need their `extended_span_ids`"),
        ((), "word", "`alignment_granularity` must be one of sample, turn, span; got 'word'"),
    ],
)
def test_nodes_that_lack_an_input_are_refused(missing, granularity, words):
    inputs = {name: value for name, value in batch().items() if name not in missing}
    with pytest.raises(ValueError, match=words):
        nodes_of(tiny_model(), inputs, granularity)


def test_turns_of_a_sample_without_an_image_are_refused():
    inputs = batch(((0, 1),), (1,))
    inputs["num_images"] = torch.tensor([0])
    with pytest.raises(ValueError, match="an image in every sample, but sample 0 of the batch has none"):
        nodes_of(tiny_model(), inputs)


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


def test_means_over_spans_leave_out_whatever_stands_outside():
    hidden_states = draw(2, 4, 3)
    hidden_states[0, 3] = torch.nan
    means = mean_over_spans(hidden_states, torch.tensor([[0, 1, 0, -1], [-1, 0, 0, 0]]))
    expected = [hidden_states[0, [0, 2]].mean(0), hidden_states[0, 1], hidden_states[1, 1:].mean(0), torch.zeros(3)]
    torch.testing.assert_close(means, torch.stack(expected).reshape(2, 2, 3))


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
    counts, every_region = torch.full((num_images,), turns_per_image), torch.ones(num_images, NUM_REGIONS).bool()
    image, _ = pool_regions(texts[image_query], counts, regions, every_region)
    if extended_query == "own":
        extended, _, _ = pool_spans(spans, torch.arange(NUM_SPANS).expand(NUM_TURNS, NUM_SPANS))
    else:
        every_span = torch.ones(NUM_TURNS, NUM_SPANS).bool()
        extended = pool_by_attention(texts[extended_query].unsqueeze(1), spans, every_span)[0].squeeze(1)
    return {"image": image, "answer": answers, "extended": extended}


def accuracy_on_unrelated(pair, image_query, extended_query, turns_per_image, num_seeds=60):
    """Share of turns matched to themselves between two modalities, and its standard error over seeds."""
    objective, found = AlignmentObjective("first_order"), []
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
    objective, excess = AlignmentObjective(loss), []
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


def test_mean_over_tokens_is_the_mean_over_one_span():
    hidden_states, mask = draw(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    torch.testing.assert_close(mean_over_spans(hidden_states, mask - 1)[:, 0], mean_over_tokens(hidden_states, mask))
