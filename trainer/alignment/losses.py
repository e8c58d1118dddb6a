"""
Losses on cosines between two modalities: entropy-smoothed matching (optimal transport), and contrastive.

All take cosines `(*batch, n, n)`, the temperature that divides them, and which pairs are `right`: bool, `(n, n)` or
`(*batch, n, n)`, by default the diagonal. An item may have several right partners.
"""

import torch
from torch import nn


# The ratio of two weights in a row can be as small as exp(-2 / temperature), which float32 holds down to this value.
MIN_TEMPERATURE = 0.03
NUM_ITERATIONS = 10


def sinkhorn_matching(
    similarity: torch.Tensor, temperature: float, num_iterations: int = NUM_ITERATIONS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The soft matching that maximizes similarity plus `temperature` times entropy, with rows and columns summing to 1.

    Args:
        similarity (`torch.Tensor` of shape `(*batch, n, n)`): Cosines, from -1 to 1.
        temperature (`float`): At least 0.03.
        num_iterations (`int`, *optional*, defaults to 10): Rounds of scaling rows, then columns. Columns are exact
            after each; 5 rounds train as well as 20.

    Returns:
        The soft matching `(*batch, n, n)`, which is `exp(similarity / temperature + row + column)`, and these
        logarithms of the row and column scales, `(*batch, n)`. No gradient.

    Source: arXiv:1306.0895, Algorithm 1.
    """
    if temperature < MIN_TEMPERATURE:
        raise ValueError(f"`temperature` must be at least {MIN_TEMPERATURE}, got {temperature}.")
    with torch.no_grad(), torch.autocast(similarity.device.type, enabled=False):
        logits = similarity.to(torch.promote_types(similarity.dtype, torch.float32)) / temperature
        highest = logits.amax(-1, keepdim=True)
        weights = (logits - highest).exp()
        columns = torch.ones_like(similarity[..., :1, :]).mT
        for _ in range(num_iterations):
            rows = 1 / (weights @ columns)
            columns = 1 / (weights.mT @ rows)
        soft = rows * weights * columns.mT
        return soft, (rows.log() - highest).squeeze(-1), columns.squeeze(-1).log()


def entropic_loss(
    similarity: torch.Tensor,
    temperature: float,
    right: torch.Tensor | None = None,
    num_iterations: int = NUM_ITERATIONS,
) -> torch.Tensor:
    """
    Fenchel-Young loss of the entropy-smoothed matching, a scalar, mean over problems and nodes.

    It is minus the mean logarithm of the right pairs' shares in `sinkhorn_matching` (for a node with several right
    partners, the relative entropy of equal shares). Its gradient by `similarity / temperature` is the soft matching
    minus the right one, over the number of nodes. `right` must be an equivalence relation with the nodes in the same
    order on both sides, so that equal shares sum to 1 in rows and columns.

    Source: arXiv:1901.02324 (Fenchel-Young losses), with the entropy of arXiv:1306.0895.

    Example:
        >>> entropic_loss(torch.eye(4), temperature=0.1) < 1e-3
        tensor(True)
    """
    size = similarity.shape[-1]
    right = _own_pairs(similarity) if right is None else right
    _, rows, columns = sinkhorn_matching(similarity.detach(), temperature, num_iterations)
    logits = similarity / temperature
    shares = right.to(similarity.dtype) / right.sum(-1, keepdim=True)
    # The dual of the smoothed matching at fixed scales: it has the value and the gradient (`soft`) of the optimum.
    smoothed = (logits + rows.unsqueeze(-1) + columns.unsqueeze(-2)).exp().sum((-2, -1)) - size
    optimum = smoothed - rows.sum(-1) - columns.sum(-1)
    entropy = -torch.xlogy(shares, shares).sum((-2, -1))
    return ((optimum - (shares * logits).sum((-2, -1)) - entropy) / max(size, 1)).mean()


def infonce_loss(similarity: torch.Tensor, temperature: float, right: torch.Tensor | None = None) -> torch.Tensor:
    """
    Symmetric InfoNCE, a scalar, mean over problems and rows: row i and column i belong together. Right pairs off the
    diagonal are excluded from the negatives.

    Source: arXiv:2103.00020, section 2.3.
    """
    size = similarity.shape[-1]
    logits = similarity / temperature
    if right is not None:
        logits = logits.masked_fill(right & ~_own_pairs(similarity), -torch.inf)
    logits = logits.reshape(-1, size, size)
    labels = torch.arange(size, device=logits.device).expand(len(logits), -1)
    cross_entropy = nn.functional.cross_entropy
    return 0.5 * (cross_entropy(logits.mT, labels) + cross_entropy(logits, labels))


def _own_pairs(similarity):
    return torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
