"""Packs many short texts into rows for one pass of a language model, kept apart by their position ids."""

import heapq
from collections.abc import Sequence

import torch


# With attention that needs no explicit mask, rows may have any length; otherwise a row is at most this many times the
# longest text, which bounds the memory of the mask and of the scores.
LONGEST_TEXTS_IN_A_ROW = 4


def lay_out(lengths: Sequence[int], hidden_size: int, single_row: bool = False) -> tuple[list[int], int, int]:
    """
    Packs texts of `lengths` tokens into rows of equal length so that a pass over them costs least. Returns the place
    of each text's first token, counted through all rows, the number of rows, and their length. In units of `4 *
    hidden_size` operations, a token costs about `6 * hidden_size` for a layer's weights and the length of its row for
    attention, masked or not: few rows save padding, many save attention. Texts go to the shortest row, longest first;
    `single_row` is for attention that costs nothing between texts. Raises `ValueError` if no text has a token.
    """
    total, longest = sum(lengths), max(lengths, default=0)
    if total == 0:
        raise ValueError("The texts of the graph nodes have no tokens.")
    counts = range(-(-total // (LONGEST_TEXTS_IN_A_ROW * longest)), -(-total // longest) + 1)
    layouts = [_deal_out(lengths, num_rows) for num_rows in ({1} if single_row else counts)]
    return min(layouts, key=lambda layout: layout[1] * layout[2] * (6 * hidden_size + layout[2]))


def _deal_out(lengths, num_rows):
    rows = [(0, row) for row in range(num_rows)]  # a heap of (tokens, row)
    offsets = [(0, 0)] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        filled, row = rows[0]
        offsets[text] = (row, filled)
        heapq.heapreplace(rows, (filled + lengths[text], row))
    row_length = max(filled for filled, _ in rows)
    return [row * row_length + offset for row, offset in offsets], num_rows, row_length


def fill_rows(
    tokens: torch.Tensor, lengths: torch.Tensor, starts: Sequence[int], num_rows: int, row_length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Fill the rows of `lay_out` with texts, whose `tokens` are concatenated. Returns `input_ids` and `position_ids`
    `(num_rows, row_length)`, and the place of each token, counted through all rows. The rest of a row is token 0 at
    position 0, so that each padding token is a text of its own.
    """
    ends = lengths.cumsum(0)
    position_in_text = torch.arange(len(tokens), device=tokens.device) - (ends - lengths).repeat_interleave(lengths)
    places = torch.tensor(starts, device=tokens.device).repeat_interleave(lengths) + position_in_text
    input_ids, position_ids = (tokens.new_zeros(num_rows * row_length) for _ in range(2))
    input_ids[places], position_ids[places] = tokens, position_in_text
    return input_ids.view(num_rows, -1), position_ids.view(num_rows, -1), places
