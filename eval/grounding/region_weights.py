"""How a state weighs the regions of an image: the rule that alignment trains with and that grounding measures."""

import torch
from torch.nn import functional as F


# A cosine higher by this much weighs e times as much. Our choice: small enough to tell regions apart, large enough for
# features that know nothing of each other yet (cosines near 0) to give nearly the mean of all.
ATTENTION_TEMPERATURE = 0.1


def weigh_by_cosine(
    queries: torch.Tensor,
    keys: torch.Tensor,
    key_mask: torch.Tensor,
    temperature: float = ATTENTION_TEMPERATURE,
) -> torch.Tensor:
    """
    How much each query weighs each key: the softmax of their cosines over `temperature`.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_queries, hidden_size)`): What is looked for.
        keys (`torch.Tensor` of shape `(batch_size, num_keys, hidden_size)`): What is weighed.
        key_mask (`torch.Tensor` of shape `(batch_size, num_keys)` or `(batch_size, num_queries, num_keys)`, bool):
            True for keys that exist, one or more a row.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, num_keys)`: rows sum to 1, 0 where there is no key; float32
        at least.

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
