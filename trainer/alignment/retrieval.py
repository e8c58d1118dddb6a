"""Measures alignment: whether a sample's nearest neighbour in another modality is the sample itself."""

import itertools

import torch

from .graphs import inner_products, unit_vectors


RETRIEVAL_RANKS = (1, 5)


def retrieval_metrics(
    node_features: dict[str, torch.Tensor], groups: torch.Tensor, answer_keys: torch.Tensor | None = None
) -> dict[str, float]:
    """
    Recall at 1 and 5 for each ordered pair of modalities: the share of nodes whose own counterpart is among the 1 or 5
    with the largest cosine, from 0 to 1. Nodes of one group count as one, by the best of them. Ties count against the
    query, so identical features score 0, not 1. A rank that no node could miss is omitted.

    Args:
        node_features (`dict[str, torch.Tensor]`): `(num_nodes, hidden_size)` each.
        groups (`torch.Tensor` of shape `(num_nodes,)`): Equal for nodes that count as one.
        answer_keys (`torch.Tensor` of shape `(num_nodes,)`, *optional*): Groups for pairs with `"answer"`, if they
            differ: equal answers cannot be told apart, whatever their extended answers say.

    Example:
        >>> nodes = {"image": torch.eye(3), "answer": torch.eye(3)[[0, 2, 1]]}
        >>> [f"{name} {recall:.2f}" for name, recall in retrieval_metrics(nodes, torch.arange(3)).items()]
        ['recall_at_1_image_to_answer 0.33', 'recall_at_1_answer_to_image 0.33']
    """
    directions = {name: _directions(features, name) for name, features in node_features.items()}
    metrics = {}
    for first, second in itertools.combinations(directions, 2):
        pair_groups = groups if answer_keys is None or "answer" not in (first, second) else answer_keys
        names, group = torch.unique(pair_groups.to(directions[first].device), return_inverse=True)
        similarity = inner_products(directions[first], directions[second])
        for source, target, similar in ((first, second, similarity), (second, first, similarity.T)):
            num_ahead = _count_ahead(similar, group, len(names))
            for k in RETRIEVAL_RANKS:
                if k < len(names):
                    metrics[f"recall_at_{k}_{source}_to_{target}"] = (num_ahead < k).double().mean().item()
    return metrics


def _directions(features: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(features).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    return unit_vectors(features.detach().to(torch.promote_types(features.dtype, torch.float32)))


def _count_ahead(similarity: torch.Tensor, group: torch.Tensor, num_groups: int) -> torch.Tensor:
    """For each query (row), how many other groups' best member is at least as similar as its own group's."""
    best = similarity.new_full((len(similarity), num_groups), -torch.inf)
    best = best.scatter_reduce(1, group.expand_as(similarity), similarity, "amax")
    return (best >= best.gather(1, group.unsqueeze(1))).sum(1) - 1


def matching_accuracy(labels: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
    """
    Share of nodes matched to themselves (or to one of their group), over all problems in `labels` `(..., num_nodes)`;
    unmatched counts as wrong. On a training batch it is no evidence of alignment: see README.md here.

    Example:
        >>> matching_accuracy(torch.tensor([0, 2, -1, 3]))
        tensor(0.5000)
    """
    if labels.numel() == 0:
        raise ValueError("`labels` has no nodes.")
    own = torch.arange(labels.shape[-1], device=labels.device) if groups is None else groups.to(labels.device)
    own = own.expand_as(labels)
    hit = (labels >= 0) & (own.gather(-1, labels.clamp(min=0)) == own)
    return hit.float().mean()
