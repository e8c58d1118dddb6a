"""Contrastive losses between two modalities, with several right partners where samples are equal."""

import math

import torch
from torch import nn


def infonce_loss(similarity: torch.Tensor, temperature: float, right: torch.Tensor | None = None) -> torch.Tensor:
    """
    Symmetric InfoNCE, a scalar, mean over problems and rows: row i and column i belong together.

    Args:
        similarity (`torch.Tensor` of shape `(*batch, n, n)`): Cosines.
        temperature (`float`): Cosines are divided by it.
        right (`torch.Tensor` of shape `(n, n)` or `(*batch, n, n)`, bool, *optional*): Which pairs are right; those of
            one index if not given. Right pairs off the diagonal, twins, are left out of the negatives.

    Source: arXiv:2103.00020, section 2.3.
    """
    size = similarity.shape[-1]
    own = torch.eye(size, dtype=torch.bool, device=similarity.device)
    logits = similarity / temperature
    if right is not None:
        logits = logits.masked_fill(right & ~own, -torch.inf)
    logits = logits.reshape(-1, size, size)
    labels = torch.arange(size, device=logits.device).expand(len(logits), -1)
    cross_entropy = nn.functional.cross_entropy
    return 0.5 * (cross_entropy(logits.mT, labels) + cross_entropy(logits, labels))


def siglip_loss(similarity: torch.Tensor, temperature: float, right: torch.Tensor | None = None) -> torch.Tensor:
    """
    Sigmoid loss, a scalar, mean over problems and rows: every pair is a yes or no of its own. Arguments as in
    `infonce_loss`; all right pairs are yes. The bias is not learned: at cosine 0 it gives a pair the share of right
    ones, `1 / n`.

    Source: arXiv:2303.15343, section 3.2.
    """
    bias = -math.log(max(similarity.shape[-1] - 1, 1))
    if right is None:
        right = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    sign = torch.where(right, 1.0, -1.0).to(similarity.dtype)
    return -nn.functional.logsigmoid(sign * (similarity / temperature + bias)).sum(-1).mean()
