"""Inputs of the alignment for one batch: texts of graph nodes, places of their tokens, keys of equal nodes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from logramed.eval.volumes import position_texts
from logramed.trainer.alignment.packing import fill_rows, lay_out


NO_SPAN = -1
NO_TOKEN = -1  # separates two texts whose token ids form one key


@dataclass(frozen=True)
class NodeTexts:
    """
    The texts of a batch's graph nodes by kind, those in use in the order `"question"` (turns only), `"answer"`
    (possibly preceded by its question), `"extended"`: one per sample or, if nodes are turns or spans, one per turn.
    `samples` is the index of each text's sample, ascending, `row_ids` the ids of the samples, and `sentences` (unless
    nodes are samples) the spans of each extended answer, as start and end in characters.
    """

    texts: dict[str, list[str]]
    samples: list[int]
    row_ids: list[str]
    sentences: list[list[tuple[int, int]]] | None = None


@dataclass(frozen=True)
class NodeImages:
    """
    Which images the nodes of a batch are about. `numbers` `(num_image_tokens,)` is the image of each image token,
    numbered within its sample (if nodes are samples, slices of one volume count as one image: see `number_volumes`);
    `of_turns` the range of images that each turn is about: the first, and the one after the last (see
    `images_of_turns`).
    """

    numbers: torch.Tensor
    of_turns: list[tuple[int, int]]


@dataclass
class EncodedText:
    """Tokens of one text: their ids, start and end in characters, and whether each counts in the text's mean."""

    input_ids: list[int]
    offsets: list[tuple[int, int]]
    is_content: list[bool]


def build_node_inputs(
    node_texts: NodeTexts,
    tokenizer: PreTrainedTokenizerBase,
    is_image: torch.Tensor,
    images: NodeImages,
    granularity: str,
    hidden_size: int,
    max_length: int | None = None,
    single_row: bool = False,
    answer_places: torch.Tensor | None = None,
    text_encoder: Callable[[list[str]], torch.Tensor] | None = None,
    places: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """
    Builds all alignment inputs of a batch on the CPU, so that nothing has to be read back from the device.

    Content tokens, over which the mean of a text is taken, are all but special tokens: a tokenizer's `<s>` is encoded,
    but has no content. In extended answers with spans, only tokens within a span are content.

    Args:
        node_texts (`NodeTexts`): The texts, T of each kind.
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        is_image (`torch.Tensor` of shape `(batch_size, sequence_length)`, bool): Which tokens are image tokens.
        images (`NodeImages`): Which images the nodes are about.
        granularity (`str`): What a node is, one of `GRANULARITIES`.
        hidden_size, single_row: For the layout of packed texts (see `lay_out`).
        max_length (`int`, *optional*): Longer texts are truncated at the end.
        answer_places (`torch.Tensor` of shape `(T,)`, int64, *optional*): If nodes are turns or spans, the place of
            the token before each turn's answer in the flattened batch.
        text_encoder (`Callable`, *optional*): Maps texts to embeddings `(num_texts, embedding_size)`; by default the
            model encodes the texts.
        places (`Sequence[int]`, *optional*): Batch indices of the samples, if others in the batch have no nodes.

    Returns:
        `dict[str, torch.Tensor]`, int64 except for embeddings:

        - `text_input_ids`, `text_attention_mask` `(num_kinds * T, longest)`: the texts, kind after kind, padded on the
          right; `packed_input_ids`, `packed_position_ids` `(num_rows, row_length)`: the same tokens packed.
        - `padded_places`, `packed_places`, `text_of_token` `(num_content_tokens,)`: the place of each content token
          in the flattened padded and packed form, and its text, ascending.
        - With a text encoder, instead of these: `answer_embeddings` and `extended_embeddings`, `(T, embedding_size)`,
          or `(num_spans, embedding_size)` for extended answers if nodes are spans.
        - `image_sample`, `image_places` `(num_image_tokens,)`: sample of each image token, and its place in the
          flattened batch; `answer_places`, as given.
        - If nodes are samples and one has several images, each image is a node (all slices of a volume count as one):
          `image_of_token` `(num_image_tokens,)`, the node of each image token, and `sample_of_image` `(num_nodes,)`.
        - `groups`, `answer_keys` `(num_nodes,)`: equal for identical nodes, and for equal answers (see `node_keys`).
        - If nodes are turns or spans: `turn_index` `(batch_size, max_turns)`, the turns of each sample; `turn_places`
          `(T,)`, the place of each turn in the flattened `turn_index`; `region_index` `(batch_size, max_regions)`, the
          image tokens of each sample. With extended answers: `span_of_token`, the span of each of their content
          tokens, numbered through the batch; `span_index` `(T, max_spans)`, the spans of each turn; `turn_of_span`
          `(num_spans,)`. Indices are padded with -1. If a turn is not about all images of its sample: `region_mask`
          `(batch_size, max_turns, max_regions)` bool, the regions that each turn is about.

    Raises:
        ValueError: If a sample has no image or a text no content token; the message names the row.
    """
    image_sample = (is_image if places is None else is_image[places]).nonzero()[:, 0]
    _check_images(node_texts.row_ids, image_sample)
    nodes = {"image_sample": image_sample, "image_places": is_image.flatten().nonzero().squeeze(1)}
    if granularity == "sample":
        nodes |= number_images(image_sample, images.numbers)
    else:
        nodes |= index_turns(torch.tensor(node_texts.samples), image_sample, len(node_texts.row_ids))
        nodes |= mask_regions(nodes, images)
        nodes["answer_places"] = answer_places
    if text_encoder is not None:
        nodes |= _embed(node_texts, text_encoder, granularity)
        keys = {kind: [list(text.encode()) for text in texts] for kind, texts in node_texts.texts.items()}
    else:
        encoded, more = _lay_out_texts(node_texts, tokenizer, hidden_size, max_length, single_row)
        nodes |= more
        keys = {kind: [text.input_ids for text in texts] for kind, texts in encoded.items()}
    turn_of_span = nodes["turn_of_span"] if granularity == "span" else None
    node_of = nodes.get("sample_of_image", turn_of_span)
    nodes["groups"], nodes["answer_keys"] = node_keys(keys, granularity, node_of)
    return nodes


def _lay_out_texts(node_texts, tokenizer, hidden_size, max_length, single_row):
    """Tokenizes the texts, and lays them out for the model."""
    encoded = {kind: encode_texts(texts, tokenizer, max_length) for kind, texts in node_texts.texts.items()}
    spans = None
    if node_texts.sentences is not None:
        spans = [
            number_spans(text.offsets, sentences)
            for text, sentences in zip(encoded["extended"], node_texts.sentences, strict=True)
        ]
        for text, numbers in zip(encoded["extended"], spans, strict=True):
            text.is_content = [number != NO_SPAN for number in numbers]
    _check_content(node_texts, encoded)
    nodes = place_tokens([text for texts in encoded.values() for text in texts], hidden_size, single_row)
    return encoded, nodes if spans is None else {**nodes, **index_spans(spans)}


def _embed(node_texts, text_encoder, granularity):
    nodes = {}
    if granularity == "span":
        counts = torch.tensor([len(places) for places in node_texts.sentences])
        nodes["turn_of_span"] = torch.arange(len(counts)).repeat_interleave(counts)
    texts = texts_to_embed(node_texts, granularity)
    return nodes | {f"{kind}_embeddings": text_encoder(own) for kind, own in texts.items()}


def texts_to_embed(node_texts: NodeTexts, granularity: str) -> dict[str, list[str]]:
    """The texts for a text encoder: extended answers are split into sentences if nodes are spans."""
    texts = dict(node_texts.texts)
    if granularity == "span":
        texts["extended"] = [
            text[start:end]
            for text, places in zip(texts["extended"], node_texts.sentences, strict=True)
            for start, end in places
        ]
    return texts


def _check_images(row_ids, image_sample):
    counts = torch.bincount(image_sample, minlength=len(row_ids)).tolist()
    if 0 in counts:
        raise ValueError(
            f"Alignment needs an image in every sample, but row {row_ids[counts.index(0)]!r} has none. Leave such "
            "rows out, or train without alignment."
        )


def _check_content(node_texts, encoded):
    for kind, texts in encoded.items():
        for place, text in enumerate(texts):
            if not any(text.is_content):
                row_id = node_texts.row_ids[node_texts.samples[place]]
                name = "extended answer" if kind == "extended" else kind
                written = node_texts.texts[kind][place]
                raise ValueError(f"Row {row_id!r}: the tokenizer finds no token in the {name} {written!r}.")


def encode_texts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> list[EncodedText]:
    """The tokens of each text, including special tokens, at most `max_length`."""
    encoding = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    columns = encoding["input_ids"], encoding["offset_mapping"], encoding["special_tokens_mask"]
    return [
        EncodedText(ids[:max_length], offsets[:max_length], [not special for special in mask[:max_length]])
        for ids, offsets, mask in zip(*columns, strict=True)
    ]


def number_spans(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """
    Finds the span of each token, -1 if it overlaps none. `offsets` of tokens (start and end are equal for special
    tokens) and `spans` are in characters. Spans without a token are not counted.
    """
    found = [
        next((n for n, (first, last) in enumerate(spans) if start < last and end > first), NO_SPAN)
        if end > start
        else NO_SPAN
        for start, end in offsets
    ]
    numbers = {span: number for number, span in enumerate(sorted(set(found) - {NO_SPAN}))}
    return [numbers.get(span, NO_SPAN) for span in found]


def place_tokens(texts: Sequence[EncodedText], hidden_size: int, single_row: bool = False) -> dict[str, torch.Tensor]:
    """The texts padded and packed, and the places of their content tokens in both (see `build_node_inputs`)."""
    sequences = [torch.tensor(text.input_ids) for text in texts]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    input_ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)
    layout = lay_out(lengths.tolist(), hidden_size, single_row)
    packed_input_ids, packed_position_ids, packed_places = fill_rows(torch.cat(sequences), lengths, *layout)
    is_content = torch.tensor([flag for text in texts for flag in text.is_content])
    return {
        "text_input_ids": input_ids,
        "text_attention_mask": mask.long(),
        "packed_input_ids": packed_input_ids,
        "packed_position_ids": packed_position_ids,
        "padded_places": mask.flatten().nonzero().squeeze(1)[is_content],
        "packed_places": packed_places[is_content],
        "text_of_token": torch.arange(len(texts)).repeat_interleave(lengths)[is_content],
    }


def index_turns(samples: torch.Tensor, image_sample: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
    """The turns and the image tokens of each sample (see `build_node_inputs`)."""
    turn_index = index_members(samples, batch_size)
    places = (turn_index.flatten() >= 0).nonzero().squeeze(1)
    return {
        "turn_index": turn_index,
        "turn_places": places,
        "region_index": index_members(image_sample, batch_size),
    }


def number_images(image_sample: torch.Tensor, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    The image of each image token, numbered through the batch, and the sample of each image; empty if every sample has
    one image.

    Example:
        >>> number_images(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
        {'image_of_token': tensor([0, 0, 1, 2]), 'sample_of_image': tensor([0, 1, 1])}
    """
    if not numbers.any():
        return {}
    pairs = torch.stack([image_sample, numbers], dim=1)
    images, image_of_token = torch.unique(pairs, dim=0, return_inverse=True)  # sorted: by sample, then by number
    return {"image_of_token": image_of_token, "sample_of_image": images[:, 0]}


def images_of_turns(messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """
    For each answer of a conversation, the range of images that its turn is about: the first, and one after the last.

    A turn whose question has images is about these, any other turn about all images so far. A turn before the first
    image is about all images of the conversation.

    Example:
        >>> image, answer = {"type": "image"}, {"role": "assistant", "content": []}
        >>> turns = [[image, image], [], [image]]
        >>> messages = [message for parts in turns for message in ({"role": "user", "content": parts}, answer)]
        >>> images_of_turns(messages)
        [(0, 2), (0, 2), (2, 3)]
    """
    found, first, seen = [], 0, 0
    for message in messages:
        if message["role"] == "assistant":
            found.append((first if seen > first else 0, seen))
            first = seen
        else:
            seen += sum(part["type"] == "image" for part in message["content"])
    return [(start, end or seen) for start, end in found]


def number_volumes(messages: list[dict[str, Any]]) -> list[int]:
    """
    Numbers the images of a conversation. Slices of one volume share a number: an answer is about the volume.

    Example:
        >>> image = {"type": "image"}
        >>> first, second = ({"type": "text", "text": f"Slice {number} of 2, 0.0 mm"} for number in (1, 2))
        >>> content = [image, image, first, image, second, image, first]
        >>> number_volumes([{"role": "user", "content": content}])
        [0, 1, 1, 2]
    """
    texts = [text for message in messages for text in position_texts(message["content"])]
    is_first = [not text or text.split()[1] == "1" for text in texts]
    return [number - 1 for number in accumulate(is_first)]


def mask_regions(nodes: dict[str, torch.Tensor], images: NodeImages) -> dict[str, torch.Tensor]:
    """`region_mask` (see `build_node_inputs`), if a turn is not about all images of its sample."""
    numbers = take_or_fill(images.numbers, nodes["region_index"], NO_TOKEN).unsqueeze(1)
    ranges = take_or_fill(torch.tensor(images.of_turns), nodes["turn_index"], 0).unsqueeze(2)
    mask = (numbers >= ranges[..., 0]) & (numbers < ranges[..., 1])
    is_turn, is_region = (nodes["turn_index"] >= 0).unsqueeze(2), (nodes["region_index"] >= 0).unsqueeze(1)
    # Padding in place of a turn attends to all regions: an empty mean has a NaN gradient.
    mask = torch.where(is_turn, mask, True) & is_region
    return {} if torch.equal(mask, is_region.expand_as(mask)) else {"region_mask": mask}


def take_or_fill(values: torch.Tensor, index: torch.Tensor, filling: int) -> torch.Tensor:
    """`values` at `index` `(*shape)`, `filling` where that is -1: `(*shape, *values.shape[1:])`."""
    taken = values[index.clamp(min=0)]
    return taken.masked_fill((index < 0).view(*index.shape, *[1] * (values.ndim - 1)), filling)


def index_spans(spans: list[list[int]]) -> dict[str, torch.Tensor]:
    """The spans of each turn, numbered through the batch, from the spans of its tokens (see `build_node_inputs`)."""
    counts = torch.tensor([max(numbers) + 1 for numbers in spans])
    firsts = (counts.cumsum(0) - counts).tolist()
    turn_of_span = torch.arange(len(spans)).repeat_interleave(counts)
    return {
        "span_of_token": torch.tensor(
            [first + n for first, numbers in zip(firsts, spans, strict=True) for n in numbers if n != NO_SPAN]
        ),
        "span_index": index_members(turn_of_span, len(spans)),
        "turn_of_span": turn_of_span,
    }


def index_members(owners: torch.Tensor, num_owners: int) -> torch.Tensor:
    """The members of each owner: `(num_owners, most members)` int64, padded with -1."""
    members = torch.arange(len(owners)).split(torch.bincount(owners, minlength=num_owners).tolist())
    return torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)


def node_keys(
    texts: dict[str, list[list[int]]], granularity: str, text_of_node: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds identical nodes of a batch by their `texts` per kind; returns two int64 `(num_nodes,)`. Nodes with equal
    numbers in the first are one group of the objective: samples with equal answers; turns with equal texts apart from
    the question, since no text tells them apart; spans of equal turns, since they share image and answer. (Many equal
    answers such as "yes" add a loss that no alignment can avoid, but no gradient: it cancels over equal nodes.) The
    second is equal for equal answers, which retrieval cannot tell apart. `text_of_node` is the text of each node that
    is a span, or an image of a sample.
    """
    aligned = [own for kind, own in texts.items() if kind != "question"]
    answer_keys = groups = text_keys(aligned[0])
    if granularity != "sample" and len(aligned) > 1:
        groups = text_keys([[*first, NO_TOKEN, *second] for first, second in zip(*aligned, strict=True)])
    if text_of_node is not None:
        return groups[text_of_node], answer_keys[text_of_node]
    return groups, answer_keys


def text_keys(sequences: list[list[int]]) -> torch.Tensor:
    """One number per sequence of token ids, equal for equal sequences: int64 `(num_sequences,)`."""
    digests = [hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=8).digest() for ids in sequences]
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests])
