"""From hidden states to the features of graph nodes: means over tokens, pooling of image regions and spans."""

from dataclasses import dataclass

import torch

from logramed.eval.grounding.region_weights import ATTENTION_TEMPERATURE, weigh_by_cosine


@dataclass
class NodeFeatures:
    """
    `features` `(num_nodes, size)` of `"image"` and of the kinds of texts, float32 at least; and, where nodes are turns
    or spans, `attention`, what the pooling attended to: `"regions"` `(num_turns, num_regions)` and, with extended
    answers, `"spans"` `(num_turns, num_spans)`, 0 where a turn has fewer.
    """

    features: dict[str, torch.Tensor]
    attention: dict[str, torch.Tensor]


def segment_mean(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """
    Mean of the rows `(num_rows, hidden_size)` of each segment, whose numbers `segments` has: `(num_segments,
    hidden_size)`, float32 at least; zero for a segment without rows.
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
    For each query a mean of the keys, weighted by the softmax of their cosines with it over `temperature`. No weights
    to learn; the higher the temperature, the nearer to the plain mean.

    What the query knows, the result tells: of keys that have nothing to do with it, those in its direction weigh most.
    So two modalities that are to be matched must not share a query, and none may be queried by the other.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_queries, hidden_size)`): What is looked for.
        keys (`torch.Tensor` of shape `(batch_size, num_keys, hidden_size)`): What is pooled.
        key_mask (`torch.Tensor` of shape `(batch_size, num_keys)` or `(batch_size, num_queries, num_keys)`, bool):
            True for keys that exist, one or more a row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the means `(batch_size, num_queries, hidden_size)` and the weights
        `(batch_size, num_queries, num_keys)`, 0 where there is no key; float32 at least.
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
    One feature for each node and kind of text: the mean of the hidden states `text_tokens` `(num_content_tokens,
    hidden_size)` over its tokens, special tokens left out (arXiv:2410.02615, section 3, whose release averages over
    padding too). Where nodes are turns, `"extended"` is the spans of the extended answer, pooled by attention with
    that answer's own mean as query; where they are spans, it is the span's own mean, and other texts are those of its
    turn.
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
    """`"image"`, the mean of each image's `image_tokens` `(num_image_tokens, hidden_size)`."""
    image_of_token = nodes.get("image_of_token", nodes["image_sample"])
    return NodeFeatures({"image": segment_mean(image_tokens, image_of_token, num_images)}, {})


def pool_regions(image_tokens: torch.Tensor, nodes: dict[str, torch.Tensor], questions: torch.Tensor) -> NodeFeatures:
    """
    `"image"` of each turn: the regions of the images that it is about (`images_of_turns`), pooled by attention with
    what stands for the turn's *question*, `(num_turns, hidden_size)`, as query. So no modality is a function of
    another one's text, nor of a text that another one is a function of (see `pool_by_attention`).
    """
    queries = take_rows(questions, nodes["turn_index"])
    regions, is_region = take_rows(image_tokens, nodes["region_index"]), nodes["region_index"] >= 0
    is_region = nodes.get("region_mask", is_region)
    pooled, weights = pool_by_attention(queries, regions, is_region)
    image, weights = (values.flatten(0, 1).index_select(0, nodes["turn_places"]) for values in (pooled, weights))
    return NodeFeatures({"image": image}, {"regions": weights})
