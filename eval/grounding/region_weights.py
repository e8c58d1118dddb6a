"""Weights of image regions by a state: the rule with which alignment trains and which grounding measures."""

import torch
from torch.nn import functional as F


# A cosine higher by this amount gets e times the weight. Our choice: small enough to tell regions apart, large enough
# that unrelated features before training (cosines near 0) give nearly uniform weights.
ATTENTION_TEMPERATURE = 0.1


def weigh_by_cosine(
    queries: torch.Tensor,
    keys: torch.Tensor,
    key_mask: torch.Tensor,
    temperature: float = ATTENTION_TEMPERATURE,
) -> torch.Tensor:
    """
    The weight of each key for each query: the softmax of their cosines divided by `temperature`.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_queries, hidden_size)`): States.
        keys (`torch.Tensor` of shape `(batch_size, num_keys, hidden_size)`): Features of the regions.
        key_mask (`torch.Tensor` of shape `(batch_size, num_keys)` or `(batch_size, num_queries, num_keys)`, bool):
            True for keys that exist, at least one per row.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, num_keys)`: rows sum to 1, masked keys are 0; at least
        float32.

    Example:
        >>> queries, keys = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]])
        >>> weigh_by_cosine(queries, keys, torch.tensor([[True, True, False]]), temperature=1.0).round(decimals=3)
        tensor([[[0.7310, 0.2690, 0.0000]]])
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        cosines = F.normalize(queries.to(dtype), dim=-1) @ F.normalize(keys.to(dtype), dim=-1).transpose(1, 2)
        key_mask = key_mask if key_mask.ndim == 3 else key_mask.unsqueeze(1)
        return (cosines / temperature).masked_fill(~key_mask, -torch.inf).softmax(dim=-1)
