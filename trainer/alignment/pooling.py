"""One vector a sample from its tokens."""

import torch


def mean_pool(hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    The mean of each sequence's kept tokens; padding plays no part, whatever it holds.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Token features.
        mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Nonzero where a token counts.

    Returns:
        `torch.Tensor` of shape `(batch_size, hidden_size)` in the dtype of `hidden_states`, summed in float32 at
        least. A sequence with no kept token gives zeros.
    """
    summed = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    if mask is None:
        return summed.mean(1).to(hidden_states.dtype)
    if mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"`mask` must be of shape {tuple(hidden_states.shape[:2])} like `hidden_states`, got {tuple(mask.shape)}."
        )
    kept = mask.to(torch.bool).unsqueeze(-1)
    # Not a product with the mask: padding may hold infinities or NaN.
    total = torch.where(kept, summed, 0).sum(1)
    return (total / kept.sum(1).clamp(min=1)).to(hidden_states.dtype)
