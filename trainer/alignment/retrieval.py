"""What alignment means, measured: whether a sample's nearest neighbour in another modality is the sample itself."""

import torch

from .costs import inner_products
from .graphs import unit_vectors


def recall_at_k(
    queries: torch.Tensor, candidates: torch.Tensor, k: int = 1, groups: torch.Tensor | None = None
) -> float:
    """
    Share of queries whose own candidate is among the `k` of largest cosine.

    Candidates of one group (say, equal answers) count as one, by the best of them, and a query is answered by its
    group. A tie counts against the query, so features that are all alike score 0, not 1.

    Args:
        queries, candidates (`torch.Tensor` of shape `(num_items, feature_size)`): Row i of both is the same item.
        k (`int`, *optional*, defaults to 1): How many groups may be named.
        groups (`torch.Tensor` of shape `(num_items,)`, int64, *optional*): Group of each item; all different without.

    Returns:
        `float` in [0, 1]. With no more than `k` groups it is refused: every answer would be right.

    Example:
        >>> recall_at_k(torch.eye(3), torch.eye(3)[[0, 2, 1]], k=1)
        0.3333333333333333
    """
    if queries.shape != candidates.shape or queries.dim() != 2:
        raise ValueError(
            f"`queries` and `candidates` must be of one shape (num_items, feature_size), got {tuple(queries.shape)} "
            f"and {tuple(candidates.shape)}."
        )
    for name, features in (("queries", queries), ("candidates", candidates)):
        if not torch.isfinite(features).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    if groups is None:
        groups = torch.arange(len(queries))
    names, group = torch.unique(groups.to(queries.device), return_inverse=True)
    if not 1 <= k < len(names):
        raise ValueError(f"recall@{k} needs more than {k} different items, got {len(names)}.")
    with torch.no_grad():
        similarity = inner_products(_directions(queries), _directions(candidates))
        best = similarity.new_full((len(queries), len(names)), -torch.inf)
        best = best.scatter_reduce(1, group.expand_as(similarity), similarity, "amax")
        own = best.gather(1, group.unsqueeze(1))
        num_at_least = (best >= own).sum(1) - 1
        return (num_at_least < k).double().mean().item()


def _directions(features):
    return unit_vectors(features.to(torch.promote_types(features.dtype, torch.float32)))


def matching_accuracy(labels: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
    """
    Share of nodes matched to themselves (or to one of their group), over all problems in `labels` `(..., num_nodes)`;
    unmatched counts as wrong. Of a training batch it is no evidence of alignment: see README.md here.

    Example:
        >>> matching_accuracy(torch.tensor([0, 2, -1, 3]))
        tensor(0.5000)
    """
    if labels.numel() == 0:
        raise ValueError("`labels` holds no node.")
    own = torch.arange(labels.shape[-1], device=labels.device) if groups is None else groups.to(labels.device)
    own = own.expand_as(labels)
    hit = (labels >= 0) & (own.gather(-1, labels.clamp(min=0)) == own)
    return hit.float().mean()
