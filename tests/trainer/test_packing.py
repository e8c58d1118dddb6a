import pytest
import torch

from logramed.trainer.packing import fill_rows, lay_out


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
    with pytest.raises(ValueError, match="have no tokens"):
        lay_out([0, 0], 32)
