"""
The graph nodes of a batch as tensors: their texts, laid out for the language model, and which tokens, regions and
spans make which node. Made on the CPU with the batch, so that a device need not be asked for lengths or numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch

from logramed.trainer.packing import fill_rows, lay_out


NONE = -1  # where there is no node, span or region


@dataclass
class NodeText:
    """
    A text of a node.

    Attributes:
        input_ids (`list[int]`): Its tokens, special ones among them.
        content (`list[int]`): For each token 0 if it is of the text, -1 if it is a special token; of an extended answer
            with spans the number of its span, counted from 0.
    """

    input_ids: list[int]
    content: list[int]


@dataclass
class BatchTexts:
    """
    The texts of a batch's nodes, each kind in the order of the samples.

    Attributes:
        answers, extended, questions (`list[NodeText]`): One a sample, or one a turn; without extended answers or, where
            nodes are samples, questions, these are empty.
        num_turns (`list[int]`, *optional*): Turns of each sample, where nodes are turns or spans.
    """

    answers: list[NodeText]
    extended: list[NodeText]
    questions: list[NodeText]
    num_turns: list[int] | None = None

    @property
    def all(self) -> list[NodeText]:
        return [*self.questions, *self.answers, *self.extended]


def build_nodes(
    texts: BatchTexts,
    image_sample: torch.Tensor,
    pad_token_id: int,
    granularity: str = "sample",
    hidden_size: int = 1024,
    packs_in_one_row: bool = False,
) -> dict[str, torch.Tensor]:
    """
    What `AlignedModel` takes as `nodes`.

    Args:
        texts (`BatchTexts`): Of the nodes.
        image_sample (`torch.Tensor` of shape `(num_image_tokens,)`, int64): The sample of each image token, ascending.
        pad_token_id (`int`): Fills up the texts.
        granularity (`str`, *optional*, defaults to `"sample"`): What a node is.
        hidden_size (`int`, *optional*, defaults to 1024): Of the language model; the layout of least cost depends on it.
        packs_in_one_row (`bool`, *optional*, defaults to `False`): For attention that costs nothing between texts.

    Returns:
        `dict[str, torch.Tensor]`, all int64, for T texts of each kind, kinds in the order question, answer, extended:

        - `text_input_ids`, `text_attention_mask` `(num_texts, longest)`: all texts, padded on the right;
        - `packed_input_ids`, `packed_position_ids` `(num_rows, row_length)`: the same in few rows;
        - `padded_places`, `packed_places` `(num_content_tokens,)`: where each token that counts stands in either form;
        - `text_of_token` `(num_content_tokens,)`: the text that it belongs to;
        - `image_sample`: as given;
        - `groups`, `answer_keys` `(num_nodes,)`: see `node_keys`;

        and where nodes are turns or spans

        - `turn_index` `(batch_size, max_turns)`: the turns of each sample; `region_index` `(batch_size, max_regions)`:
          its image tokens; -1 for none;
        - `turn_places` `(T,)`: where each turn stands in `turn_index`;
        - with extended answers `span_of_token` `(num_content_tokens of these,)`, `span_index` `(T, max_spans)`: the
          spans of each turn, -1 for none; `turn_of_span` `(num_spans,)`.
    """
    nodes = _lay_out_texts(texts.all, pad_token_id, hidden_size, packs_in_one_row)
    nodes["image_sample"] = image_sample
    nodes["groups"], nodes["answer_keys"] = node_keys(texts, granularity)
    if texts.num_turns is not None:
        nodes |= _index_turns(texts.num_turns, image_sample)
        nodes |= _index_spans(texts.extended)
    return nodes


def _lay_out_texts(texts, pad_token_id, hidden_size, packs_in_one_row):
    lengths = [len(text.input_ids) for text in texts]
    longest = max(lengths)
    ids = [torch.tensor(text.input_ids) for text in texts]
    numbers = torch.tensor([number for text in texts for number in text.content])
    text_numbers = torch.arange(len(texts)).repeat_interleave(torch.tensor(lengths))
    padded_places = torch.cat([row * longest + torch.arange(length) for row, length in enumerate(lengths)])
    layout = lay_out(lengths, hidden_size, packs_in_one_row)
    packed_ids, positions, places = fill_rows(torch.cat(ids), torch.tensor(lengths), *layout)
    counts = numbers >= 0
    return {
        "text_input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "text_attention_mask": (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).long(),
        "packed_input_ids": packed_ids,
        "packed_position_ids": positions,
        "packed_places": places[counts],
        "padded_places": padded_places[counts],
        "text_of_token": text_numbers[counts],
    }


def _index_turns(num_turns, image_sample):
    regions = torch.bincount(image_sample, minlength=len(num_turns)).tolist()
    turn_index = _number_rows(num_turns)
    return {
        "turn_index": turn_index,
        "turn_places": (turn_index >= 0).flatten().nonzero().squeeze(1),
        "region_index": _number_rows(regions),
    }


def _index_spans(extended):
    if not extended:
        return {}
    counts = [max(text.content) + 1 for text in extended]
    firsts = [0, *accumulate(counts)]
    spans = [
        first + number for first, text in zip(firsts, extended, strict=False) for number in text.content if number >= 0
    ]
    return {
        "span_of_token": torch.tensor(spans),
        "span_index": _number_rows(counts),
        "turn_of_span": torch.arange(len(extended)).repeat_interleave(torch.tensor(counts)),
    }


def _number_rows(counts: Sequence[int]) -> torch.Tensor:
    """`(len(counts), max(counts))`: numbers from 0 upwards, `counts` of them in each row, then -1."""
    numbers = torch.arange(sum(counts)).split(list(counts))
    return torch.nn.utils.rnn.pad_sequence(list(numbers), batch_first=True, padding_value=NONE)


def node_keys(texts: BatchTexts, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Which nodes of a batch are one and the same: two int64 `(num_nodes,)`, equal for equal nodes.

    The first is the groups of the objective. Samples are one if their answers are; turns if their answers and extended
    answers are, for then no text tells them apart; spans if their turns are, for they share image and answer. (That
    many a "yes" is the same answer node costs a loss that no alignment can avoid, but no gradient: it cancels over
    equal nodes.) The second is equal for equal answers: what retrieval of answers can be right about.
    """
    answer_keys = [text_key(text.input_ids) for text in texts.answers]
    groups = answer_keys
    if granularity != "sample" and texts.extended:
        pairs = zip(texts.answers, texts.extended, strict=True)
        # A number that is no token, so that both texts stay apart.
        groups = [text_key([*answer.input_ids, NONE, *extended.input_ids]) for answer, extended in pairs]
    if granularity == "span":
        counts = [max(text.content) + 1 for text in texts.extended]
        groups, answer_keys = (
            list(chain.from_iterable([key] * count for key, count in zip(keys, counts, strict=True)))
            for keys in (groups, answer_keys)
        )
    return torch.tensor(groups), torch.tensor(answer_keys)


def text_key(input_ids: Sequence[int]) -> int:
    """A number of 63 bits, equal for equal texts."""
    digest = hashlib.blake2b(",".join(map(str, input_ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
