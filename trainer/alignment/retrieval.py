"""What alignment means, measured: whether a sample's nearest neighbour in another modality is the sample itself."""

import itertools

import torch

from .graphs import inner_products, unit_vectors


RETRIEVAL_RANKS = (1, 5)


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
    names, group = _number_groups(torch.arange(len(queries)) if groups is None else groups, queries.device)
    if not 1 <= k < len(names):
        raise ValueError(f"recall@{k} needs more than {k} different items, got {len(names)}.")
    similarity = inner_products(_directions(queries, "queries"), _directions(candidates, "candidates"))
    return _recall(_count_ahead(similarity, group, len(names)), k)


def retrieval_metrics(
    node_features: dict[str, torch.Tensor], groups: torch.Tensor, answer_keys: torch.Tensor | None = None
) -> dict[str, float]:
    """
    Recall at 1 and 5 for each ordered pair of modalities, in 0 to 1; a rank that no node could miss is left out.

    Args:
        node_features (`dict[str, torch.Tensor]`): `(num_nodes, hidden_size)` each.
        groups (`torch.Tensor` of shape `(num_nodes,)`): Equal for nodes that count as one.
        answer_keys (`torch.Tensor` of shape `(num_nodes,)`, *optional*): The groups of pairs with `"answer"`, where
            they are others: equal answers cannot be told apart, whatever their extended answers say.

    Example:
        >>> nodes = {"image": torch.eye(3), "answer": torch.eye(3)[[0, 2, 1]]}
        >>> [f"{name} {recall:.2f}" for name, recall in retrieval_metrics(nodes, torch.arange(3)).items()]
        ['recall_at_1_image_to_answer 0.33', 'recall_at_1_answer_to_image 0.33']
    """
    directions = {name: _directions(features, name) for name, features in node_features.items()}
    metrics = {}
    for first, second in itertools.combinations(directions, 2):
        pair_groups = groups if answer_keys is None or "answer" not in (first, second) else answer_keys
        names, group = _number_groups(pair_groups, directions[first].device)
        similarity = inner_products(directions[first], directions[second])
        for source, target, similar in ((first, second, similarity), (second, first, similarity.T)):
            num_ahead = _count_ahead(similar, group, len(names))
            for k in RETRIEVAL_RANKS:
                if k < len(names):
                    metrics[f"recall_at_{k}_{source}_to_{target}"] = _recall(num_ahead, k)
    return metrics


def _number_groups(groups: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.unique(groups.to(device), return_inverse=True)


def _directions(features: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(features).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    return unit_vectors(features.detach().to(torch.promote_types(features.dtype, torch.float32)))


def _count_ahead(similarity: torch.Tensor, group: torch.Tensor, num_groups: int) -> torch.Tensor:
    """For each query (row) the number of other groups at least as similar, by their best, as its own."""
    best = similarity.new_full((len(similarity), num_groups), -torch.inf)
    best = best.scatter_reduce(1, group.expand_as(similarity), similarity, "amax")
    return (best >= best.gather(1, group.unsqueeze(1))).sum(1) - 1


def _recall(num_ahead: torch.Tensor, k: int) -> float:
    return (num_ahead < k).double().mean().item()


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
