"""From hidden states to the features of graph nodes: means over tokens and spans, pooling by attention."""

import torch
from torch.nn import functional as F


GRANULARITIES = ("sample", "turn", "span")
# A cosine higher by this much weighs e times as much. Our choice: small enough to tell regions apart, large enough for
# features that know nothing of each other yet (cosines near 0) to give nearly the mean of all.
ATTENTION_TEMPERATURE = 0.1


def mean_over_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Mean of `(batch_size, sequence_length, hidden_size)` over the tokens whose mask is 1: `(batch_size, hidden_size)`,
    summed in float32 at least; zero for a row without tokens.
    """
    kept = attention_mask.bool().unsqueeze(-1)
    values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    total = torch.where(kept, values, 0).sum(dim=1)  # no product with the mask: padding may hold infinities
    return (total / kept.sum(dim=1).clamp(min=1)).to(hidden_states.dtype)


def mean_over_spans(hidden_states: torch.Tensor, span_ids: torch.Tensor) -> torch.Tensor:
    """
    Mean of `(batch_size, sequence_length, hidden_size)` over the tokens of each span, summed in float32 at least.

    Args:
        span_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64): The span of each token, counted from
            0 in each row; -1 for tokens outside all spans.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_spans, hidden_size)` for the largest number of spans; zero for a span
        that a row does not have.
    """
    inside = (span_ids >= 0).unsqueeze(-1)
    values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    places = torch.arange(int(span_ids.max()) + 1, device=span_ids.device)
    membership = (span_ids.unsqueeze(1) == places.view(1, -1, 1)).to(values)
    with torch.autocast(values.device.type, enabled=False):
        total = membership @ torch.where(inside, values, 0)
    return (total / membership.sum(dim=2, keepdim=True).clamp(min=1)).to(hidden_states.dtype)


def count_spans(span_ids: torch.Tensor) -> torch.Tensor:
    """Spans in each row of `span_ids` `(batch_size, sequence_length)`: `(batch_size,)` int64."""
    return span_ids.amax(dim=1) + 1


def first_places(counts: torch.Tensor, num_places: int) -> torch.Tensor:
    """`(len(counts), num_places)` bool: in each row, true at the first `counts` places."""
    return torch.arange(num_places, device=counts.device) < counts.unsqueeze(1)


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
        `tuple[torch.Tensor, torch.Tensor]`: the means `(batch_size, num_queries, hidden_size)` in the dtype of `keys`,
        and the weights `(batch_size, num_queries, num_keys)` in float32 at least, 0 where there is no key.
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        queries, values = queries.to(dtype), keys.to(dtype)
        cosines = F.normalize(queries, dim=-1) @ F.normalize(values, dim=-1).transpose(1, 2)
        weights = (cosines / temperature).masked_fill(~key_mask.unsqueeze(1), -torch.inf).softmax(dim=-1)
        return (weights @ values).to(keys.dtype), weights


def pool_regions(
    questions: torch.Tensor, num_turns: torch.Tensor, regions: torch.Tensor, region_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    For each turn the regions of its sample's images, pooled by attention with the turn's question as query.

    Args:
        questions (`torch.Tensor` of shape `(num_all_turns, hidden_size)`): In the order of the samples.
        num_turns (`torch.Tensor` of shape `(batch_size,)`, int64): Turns of each sample.
        regions (`torch.Tensor` of shape `(batch_size, num_regions, hidden_size)`): Of all images of a sample.
        region_mask (`torch.Tensor` of shape `(batch_size, num_regions)`, bool): True for regions that exist.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: features `(num_all_turns, hidden_size)` and weights
        `(num_all_turns, num_regions)`.
    """
    queries = torch.nn.utils.rnn.pad_sequence(questions.split(num_turns.tolist()), batch_first=True)
    pooled, weights = pool_by_attention(queries, regions, region_mask)
    is_turn = first_places(num_turns.to(queries.device), queries.shape[1])
    return pooled[is_turn], weights[is_turn]


def pool_spans(hidden_states: torch.Tensor, span_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    For each row of `hidden_states` its spans, pooled by attention with the mean of the row's own tokens as query: the
    spans nearest to what the text says as a whole weigh most. (A query from elsewhere would let that be found again.)

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Of the texts.
        span_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64): As in `mean_over_spans`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: features `(batch_size, hidden_size)`, weights
        `(batch_size, num_spans)`, and the spans themselves `(num_all_spans, hidden_size)` in the order of the rows.
    """
    spans = mean_over_spans(hidden_states, span_ids)
    span_mask = first_places(count_spans(span_ids), spans.shape[1])
    text = mean_over_tokens(hidden_states, span_ids >= 0)
    pooled, weights = pool_by_attention(text.unsqueeze(1), spans, span_mask)
    return pooled.squeeze(1), weights.squeeze(1), spans[span_mask]
