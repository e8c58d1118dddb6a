"""From hidden states to the features of graph nodes: means over tokens, pooling of image regions and spans."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


# A cosine higher by this much weighs e times as much. Our choice: small enough to tell regions apart, large enough for
# features that know nothing of each other yet (cosines near 0) to give nearly the mean of all.
ATTENTION_TEMPERATURE = 0.1

# The texts of the nodes, in the order in which a batch holds them (see `logramed.trainer.node_inputs`).
TEXTS_OF_SAMPLES = ("answer", "extended")
TEXTS_OF_TURNS = ("question", "answer", "extended")


@dataclass
class NodeFeatures:
    """
    Attributes:
        features (`dict[str, torch.Tensor]`): `(num_nodes, hidden_size)` for `"image"`, `"answer"` and, if there are
            extended answers, `"extended"`; float32 at least.
        attention (`dict[str, torch.Tensor]`): Where nodes are turns or spans, what the pooling attended to:
            `"regions"` `(num_turns, num_regions)` and, with extended answers, `"spans"` `(num_turns, num_spans)`; 0
            where a turn has fewer.
    """

    features: dict[str, torch.Tensor]
    attention: dict[str, torch.Tensor]


def segment_mean(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
    """
    Mean of the rows of each segment.

    Args:
        values (`torch.Tensor` of shape `(num_rows, hidden_size)`): Summed in float32 at least.
        segments (`torch.Tensor` of shape `(num_rows,)`, int64): The segment of each row.
        num_segments (`int`): How many there are.

    Returns:
        `torch.Tensor` of shape `(num_segments, hidden_size)`, float32 at least; zero for a segment without rows.

    Example:
        >>> segment_mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]), 3)
        tensor([[2.],
                [0.],
                [5.]])
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
        key_mask (`torch.Tensor` of shape `(batch_size, num_keys)`, bool): True for keys that exist, one or more a row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the means `(batch_size, num_queries, hidden_size)` and the weights
        `(batch_size, num_queries, num_keys)`, 0 where there is no key; float32 at least.
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        queries, keys = queries.to(dtype), keys.to(dtype)
        cosines = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(1, 2)
        weights = (cosines / temperature).masked_fill(~key_mask.unsqueeze(1), -torch.inf).softmax(dim=-1)
        return weights @ keys, weights


def sample_features(
    image_tokens: torch.Tensor, text_tokens: torch.Tensor, nodes: dict[str, torch.Tensor], num_samples: int
) -> NodeFeatures:
    """
    One feature for each sample and modality: the mean of its projected image features, and for each text the mean of
    the language model's last hidden states over its tokens, special tokens left out.

    Args:
        image_tokens (`torch.Tensor` of shape `(num_image_tokens, hidden_size)`): Projected features of all images.
        text_tokens (`torch.Tensor` of shape `(num_content_tokens, hidden_size)`): Hidden states of the texts' tokens.
        nodes (`dict[str, torch.Tensor]`): As `logramed.trainer.node_inputs` makes them.
        num_samples (`int`): Samples of the batch.

    Source: arXiv:2410.02615, section 3; where the release averages over padding too, this does not.
    """
    features = {"image": segment_mean(image_tokens, nodes["image_sample"], num_samples)}
    features |= _text_features(text_tokens, nodes, num_samples, TEXTS_OF_SAMPLES)
    return NodeFeatures(features, {})


def turn_features(
    image_tokens: torch.Tensor, text_tokens: torch.Tensor, nodes: dict[str, torch.Tensor], granularity: str = "turn"
) -> NodeFeatures:
    """
    One feature for each turn, or for each span of the extended answers, and modality. Of a turn

    - `"answer"` is the mean over its answer's tokens, the answer encoded as a text of its own;
    - `"image"` is its sample's image regions, pooled by attention with the *question* as query;
    - `"extended"` is its extended answer's spans, pooled by attention with that answer's own mean as query.

    So no modality is a function of another one's text, nor of a text that another one is a function of: what the three
    have in common has to come from the image and the two texts (see `pool_by_attention`). A span has its own mean as
    `"extended"`, and its turn's `"image"` and `"answer"`.

    Args:
        image_tokens, text_tokens, nodes: As in `sample_features`.
        granularity (`str`, *optional*, defaults to `"turn"`): What a node is, `"turn"` or `"span"`.
    """
    texts = _text_features(text_tokens, nodes, len(nodes["turn_places"]), TEXTS_OF_TURNS)
    image, regions = _pool_regions(texts.pop("question"), image_tokens, nodes)
    features, attention = {"image": image, "answer": texts["answer"]}, {"regions": regions}
    if "extended" in texts:
        num_spans = len(nodes["turn_of_span"])
        spans = segment_mean(text_tokens[-len(nodes["span_of_token"]) :], nodes["span_of_token"], num_spans)
        keys, key_mask = take_rows(spans, nodes["span_index"]), nodes["span_index"] >= 0
        pooled, weights = pool_by_attention(texts["extended"].unsqueeze(1), keys, key_mask)
        features["extended"], attention["spans"] = pooled.squeeze(1), weights.squeeze(1)
    if granularity == "span":
        features = {name: values.index_select(0, nodes["turn_of_span"]) for name, values in features.items()}
        features["extended"] = spans
    return NodeFeatures(features, attention)


def _text_features(text_tokens, nodes, num_texts, names):
    """The mean of each text, by kind: `(num_texts, hidden_size)` each."""
    num_all = len(nodes["text_input_ids"])
    means = segment_mean(text_tokens, nodes["text_of_token"], num_all).split(num_texts)
    return dict(zip(names, means, strict=False))


def _pool_regions(questions, image_tokens, nodes):
    """For each turn its sample's image regions, pooled by attention with the turn's question as query, and weights."""
    queries = take_rows(questions, nodes["turn_index"])
    regions, is_region = take_rows(image_tokens, nodes["region_index"]), nodes["region_index"] >= 0
    pooled, weights = pool_by_attention(queries, regions, is_region)
    return tuple(values.flatten(0, 1).index_select(0, nodes["turn_places"]) for values in (pooled, weights))
