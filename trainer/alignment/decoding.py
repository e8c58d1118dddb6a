"""Which node of one graph belongs to which of another: matching as a decoder, whatever the training loss was."""

import torch

from .graphs import centered_costs, edge_differences, nearest_neighbor_edges, unit_vectors
from .matching import match_graphs


def decode_matching(
    source: torch.Tensor,
    target: torch.Tensor,
    *,
    edge_weight: float = 0.1,
    num_neighbors: int = 5,
    source_edge_index: torch.Tensor | None = None,
    target_edge_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Match the items of two sets one to one, by what they are and by how they lie to each other.

    Unlike retrieval, which asks each item alone, no target serves twice (first order, `edge_weight=0`) and items that
    look alike are told apart by their neighbours (second order). Edges are the nearest neighbours by an item's own
    features, compared by their direction; or given, as known relations of the items are, and then an edge laid onto an
    edge is rewarded with `edge_weight`, whatever the features.

    Args:
        source, target (`torch.Tensor` of shape `(*batch, num_nodes, feature_size)`): Features, of any length.
        edge_weight (`float`, *optional*, defaults to 0.1): Weight of an edge beside a node.
        num_neighbors (`int`, *optional*, defaults to 5): Edges of a node where none are given; fewer in small sets.
        source_edge_index, target_edge_index (`torch.Tensor` of shape `(*batch, 2, num_edges)`, int64, *optional*):
            Given edges, of both graphs or neither.

    Returns:
        `torch.Tensor` of shape `(*batch, num_nodes)`, int64: the target of each source item.

    Raises:
        ValueError: If the shapes differ, a feature is not finite, or one graph's edges are given and not the other's.

    Example:
        >>> decode_matching(torch.eye(3), torch.eye(3)[[1, 2, 0]])
        tensor([2, 0, 1])
    """
    if source.shape != target.shape or source.dim() < 2:
        raise ValueError(
            f"`source` and `target` must be of one shape (*batch, num_nodes, feature_size), got {tuple(source.shape)} "
            f"and {tuple(target.shape)}."
        )
    for name, features in (("source", source), ("target", target)):
        if not torch.isfinite(features).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    if not edge_weight >= 0:
        raise ValueError(f"`edge_weight` must not be negative, got {edge_weight}.")
    if (source_edge_index is None) != (target_edge_index is None):
        raise ValueError("`source_edge_index` and `target_edge_index` belong together: give both or neither.")
    source, target = (unit_vectors(features.detach().float()) for features in (source, target))
    if source_edge_index is not None and edge_weight > 0:
        edge_shape = (source_edge_index.shape[-1], target_edge_index.shape[-1])
        edge_costs = torch.full(edge_shape, -edge_weight, device=source.device)
    else:
        num_neighbors = min(num_neighbors if edge_weight > 0 else 0, max(source.shape[-2] - 1, 0))
        source_edge_index, target_edge_index = (
            nearest_neighbor_edges(features, num_neighbors) for features in (source, target)
        )
        edge_costs = edge_weight * centered_costs(
            edge_differences(source, source_edge_index), edge_differences(target, target_edge_index)
        )
    return match_graphs(centered_costs(source, target), edge_costs, source_edge_index, target_edge_index)
