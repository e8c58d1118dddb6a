import pytest
import torch

from logramed.trainer.alignment.aligned_model import encode_texts
from logramed.trainer.alignment.packing import fill_rows, lay_out
from tests.tiny_models import tiny_model
from tests.trainer.alignment.test_aligned_model import text_nodes


def encode(decoder, texts):
    """Hidden states of all tokens of texts, from a layout that `lay_out` chooses."""
    lengths, longest = [len(text) for text in texts], max(map(len, texts))
    tokens = torch.tensor([token for text in texts for token in text])
    packed_ids, positions, places = fill_rows(tokens, torch.tensor(lengths), *lay_out(lengths, 32))
    nodes = text_nodes(texts, None)
    nodes |= {"packed_input_ids": packed_ids, "packed_position_ids": positions, "packed_places": places}
    assert nodes["text_input_ids"].shape[1] == longest
    return encode_texts(decoder, nodes, "packed")


def draw_texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 99, (length,), generator=generator).tolist() for length in lengths]


ANSWERS, EXTENDED = draw_texts([1, 3, 1, 2, 1]), draw_texts([9, 4, 11, 7, 1], seed=1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("language_model", "sizes"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ],
)
def test_packed_texts_have_the_states_and_gradients_that_each_has_alone(language_model, sizes, attention):
    model = tiny_model(language_model=language_model, text_sizes=sizes).model.language_model.double()
    model.set_attn_implementation(attention)
    packed = encode(model, ANSWERS + EXTENDED)
    alone = torch.cat([model(input_ids=torch.tensor([text])).last_hidden_state[0] for text in ANSWERS + EXTENDED])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if attention == "eager" else {}  # whose softmax is in float32
    torch.testing.assert_close(packed, alone, **tolerance)
    weights = torch.randn(alone.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((states * weights).sum(), list(model.parameters())) for states in (packed, alone)]
    torch.testing.assert_close(*gradients, **tolerance)


def test_another_text_changes_nothing_in_the_states_of_the_rest():
    model = tiny_model().model.language_model
    lengths = [len(text) for text in EXTENDED]
    before = encode(model, EXTENDED).split(lengths)
    other = [EXTENDED[0], draw_texts([lengths[1]], seed=9)[0], *EXTENDED[2:]]
    after = encode(model, other).split(lengths)
    for number in (0, 2, 3, 4):
        torch.testing.assert_close(after[number], before[number])
    assert not torch.allclose(after[1], before[1])


def test_language_model_runs_once_and_on_little_but_the_tokens_themselves():
    model = tiny_model().model.language_model
    seen = []
    model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    texts = [
        draw_texts([length % 7 + 1 for length in range(16)]),
        draw_texts([3 * length + 9 for length in range(16)]),
    ]
    encode(model, [*texts[0], *texts[1]])
    num_tokens = sum(len(text) for part in texts for text in part)
    assert len(seen) == 1
    assert num_tokens <= seen[0] <= 1.06 * num_tokens  # a padded pass for each text modality takes 1.8 times as many


@pytest.mark.parametrize("hidden_size", [32, 4096])
def test_layout_overlaps_no_texts_and_keeps_each_in_one_row(hidden_size):
    lengths = [5, 0, 17, 3, 3, 9, 1, 12]
    starts, num_rows, row_length = lay_out(lengths, hidden_size)
    taken = [place for start, length in zip(starts, lengths, strict=True) for place in range(start, start + length)]
    assert len(set(taken)) == len(taken) == sum(lengths)
    assert max(taken) < num_rows * row_length
    assert all(
        start // row_length == (start + length - 1) // row_length
        for start, length in zip(starts, lengths, strict=True)
        if length
    )


def test_attention_that_costs_nothing_between_texts_gets_one_row_without_padding():
    assert lay_out([5, 17, 3, 3, 9], 4096, single_row=True)[1:] == (1, 37)


def test_narrow_models_get_more_rows_than_wide_ones():
    lengths = [7 * number % 53 + 3 for number in range(16)] + [31 * number % 200 + 40 for number in range(16)]
    assert lay_out(lengths, 32)[1] > lay_out(lengths, 4096)[1]


def test_left_over_places_are_texts_of_their_own():
    tokens, lengths = torch.tensor([11, 12, 13, 21, 31]), torch.tensor([3, 1, 1])
    input_ids, position_ids, places = fill_rows(tokens, lengths, [0, 3, 4], 2, 3)
    assert input_ids.tolist() == [[11, 12, 13], [21, 31, 0]]
    assert position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert places.tolist() == [0, 1, 2, 3, 4]


def test_texts_without_any_token_are_refused():
    with pytest.raises(ValueError, match="no tokens"):
        lay_out([0, 0], 32)
