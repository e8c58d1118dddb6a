"""From hidden states to the features of graph nodes: means over tokens, pooling of image regions and spans."""

from dataclasses import dataclass

import torch

from logramed.eval.grounding.region_weights import ATTENTION_TEMPERATURE, weigh_by_cosine


@dataclass
class NodeFeatures:
    """
    `features` `(num_nodes, size)` of `"image"` and of each kind of text, float32 at least; `attention`, if nodes are
    turns or spans, the weights of the pooling: `"regions"` `(num_turns, num_regions)` and, with extended answers,
    `"spans"` `(num_turns, num_spans)`, padded with 0.
    """

    features: dict[str, torch.Tensor]
    attention: dict[str, torch.Tensor]


def segment_mean(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """
    Mean of `values` `(num_rows, hidden_size)` per segment, where `segments` `(num_rows,)` is the segment of each row:
    `(num_segments, hidden_size)`, float32 at least; zero for a segment without rows.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    total = values.new_zeros(num_segments, values.shape[1]).index_add(0, segments, values)
    count = values.new_zeros(num_segments).index_add(0, segments, values.new_ones(len(segments)))
    return total / count.clamp(min=1).unsqueeze(1)


def take_rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of `values` `(num_rows, hidden_size)` at `index` `(*shape)`: `(*shape, hidden_size)`; zero at -1."""
    taken = values.index_select(0, index.flatten().clamp(min=0)).unflatten(0, index.shape)
    return torch.where((index >= 0).unsqueeze(-1), taken, 0)


def pool_by_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    key_mask: torch.Tensor,
    temperature: float = ATTENTION_TEMPERATURE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    For each query a mean of the keys, weighted by the softmax of their cosines with it over `temperature`. Has no
    trainable weights; the higher the temperature, the closer to the plain mean.

    The result leaks the query: even among unrelated keys, those in the query's direction weigh most. So two modalities
    that are matched with each other must not share a query, and neither may be the query of the other.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_queries, hidden_size)`): What is looked for.
        keys (`torch.Tensor` of shape `(batch_size, num_keys, hidden_size)`): What is pooled.
        key_mask (`torch.Tensor` of shape `(batch_size, num_keys)` or `(batch_size, num_queries, num_keys)`, bool):
            True for keys that exist, at least one per row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the means `(batch_size, num_queries, hidden_size)` and the weights
        `(batch_size, num_queries, num_keys)`, 0 for masked keys; float32 at least.
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    weights = weigh_by_cosine(queries, keys, key_mask, temperature)
    with torch.autocast(keys.device.type, enabled=False):
        return weights @ keys.to(dtype), weights


def text_features(
    text_tokens: torch.Tensor,
    nodes: dict[str, torch.Tensor],
    granularity: str = "sample",
    kinds: tuple[str, ...] = ("answer", "extended"),
) -> NodeFeatures:
    """
    One feature per node and kind of text: the mean of the hidden states `text_tokens` `(num_content_tokens,
    hidden_size)` over its tokens, without special tokens (arXiv:2410.02615, section 3; its release also averages over
    padding). If nodes are turns, `"extended"` pools the spans of the extended answer by attention, with the mean of
    that answer as query; if they are spans, it is the mean of each span, and the other texts stay one per turn.
    """
    num_all = len(nodes["text_input_ids"])
    means = segment_mean(text_tokens, nodes["text_of_token"], num_all).split(num_all // len(kinds))
    features, attention = dict(zip(kinds, means, strict=True)), {}
    if granularity == "sample" or "extended" not in features:
        return NodeFeatures(features, attention)
    num_spans = len(nodes["turn_of_span"])
    spans = segment_mean(text_tokens[-len(nodes["span_of_token"]) :], nodes["span_of_token"], num_spans)
    keys, key_mask = take_rows(spans, nodes["span_index"]), nodes["span_index"] >= 0
    pooled, weights = pool_by_attention(features["extended"].unsqueeze(1), keys, key_mask)
    features["extended"], attention["spans"] = pooled.squeeze(1), weights.squeeze(1)
    if granularity == "span":
        features["extended"] = spans
    return NodeFeatures(features, attention)


def pool_images(image_tokens: torch.Tensor, nodes: dict[str, torch.Tensor], num_images: int) -> NodeFeatures:
    """Computes `"image"`: the mean of each image's `image_tokens` `(num_image_tokens, hidden_size)`."""
    image_of_token = nodes.get("image_of_token", nodes["image_sample"])
    return NodeFeatures({"image": segment_mean(image_tokens, image_of_token, num_images)}, {})


def pool_regions(image_tokens: torch.Tensor, nodes: dict[str, torch.Tensor], questions: torch.Tensor) -> NodeFeatures:
    """
    Computes `"image"` for each turn: pools the regions of the images that it is about (`images_of_turns`) by attention
    with a representation of its *question*, `(num_turns, hidden_size)`, as query. So no modality depends on another's
    text, nor on a text that another depends on (see `pool_by_attention`).
    """
    queries = take_rows(questions, nodes["turn_index"])
    regions, is_region = take_rows(image_tokens, nodes["region_index"]), nodes["region_index"] >= 0
    is_region = nodes.get("region_mask", is_region)
    pooled, weights = pool_by_attention(queries, regions, is_region)
    image, weights = (values.flatten(0, 1).index_select(0, nodes["turn_places"]) for values in (pooled, weights))
    return NodeFeatures({"image": image}, {"regions": weights})
