"""Gradients through a matching, although it is piecewise constant in the costs."""

import math
from collections.abc import Callable

import torch

from .matching import match_graphs, matched_edges, one_hot_matching


def hamming_loss(matchings: torch.Tensor, right: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean Hamming distance per node of 0/1 matchings `(..., num_nodes, num_nodes)` from the identity, or from the pairs
    that are `right` (bool, broadcastable; several per node are fine): a wrong node counts 2, an unmatched one 1.
    """
    num_nodes = matchings.shape[-1]
    if right is None:
        right = torch.eye(num_nodes, dtype=torch.bool, device=matchings.device)
    num_right = (matchings * right).sum((-2, -1))
    return (matchings.sum((-2, -1)) - 2 * num_right + num_nodes).mean() / num_nodes


def differentiable_matching(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    step: float,
    solver: Callable[..., torch.Tensor] = match_graphs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Matchings with a gradient by blackbox differentiation. A caller who wants noise adds it to the costs.

    The gradient of the costs is `(m' - m) / step * size`, where m' is the matching of the costs plus `step` times the
    upstream gradient divided by its largest absolute value in that problem, `size`. Unlike the published form, it is
    proportional to the upstream gradient, so that loss weights, loss scaling and accumulation work correctly.

    Args:
        node_costs, edge_costs, source_edge_index, target_edge_index:
            As in `match_graphs`; `edge_costs` may lack or broadcast the leading dimensions of `node_costs`.
        step (`float`): How far the costs move, in their own unit.
        solver (*optional*): Called with these four instead of `match_graphs`.

    Returns:
        0/1 matchings `(*batch, num_nodes, num_nodes)` in the dtype of `node_costs`, and their labels as returned by
        `match_graphs` (no gradient).

    Source: arXiv:1912.02175, Algorithm 1. The division by the largest value is ours.

    Example:
        >>> edges = torch.zeros(2, 0, dtype=torch.int64)  # no edges: plain linear assignment
        >>> costs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> matching, labels = differentiable_matching(costs, torch.zeros(0, 0), edges, edges, step=4.0)
        >>> hamming_loss(matching).backward()
        >>> labels.tolist(), costs.grad.tolist()
        ([1, 0], [[0.125, -0.125], [-0.125, 0.125]])
    """
    return _Matching.apply(node_costs, edge_costs, source_edge_index, target_edge_index, solver, step)


class _Matching(torch.autograd.Function):
    """Forward: 0/1 matchings. Backward: (matching of moved costs - matching) / step: see `differentiable_matching`."""

    @staticmethod
    def forward(ctx, node_costs, edge_costs, source_edge_index, target_edge_index, solve, step):
        labels = solve(node_costs, edge_costs, source_edge_index, target_edge_index)
        ctx.save_for_backward(node_costs, edge_costs, source_edge_index, target_edge_index, labels)
        ctx.solve, ctx.step = solve, step
        ctx.mark_non_differentiable(labels)
        return one_hot_matching(labels, node_costs.shape[-1]).to(node_costs.dtype), labels

    @staticmethod
    def backward(ctx, upstream, _):
        node_costs, edge_costs, *edges, labels = ctx.saved_tensors
        upstream = upstream.to(torch.float64)  # so that any loss scale cancels exactly in the division below
        largest = upstream.abs().amax().item() if upstream.numel() else 0.0
        if largest == 0 or not math.isfinite(largest):  # non-finite: the loss scale overflowed, the step is skipped
            value = 0.0 if largest == 0 else torch.nan
            return torch.full_like(node_costs, value), torch.full_like(edge_costs, value), *[None] * 4
        size = upstream.abs().amax((-2, -1), keepdim=True)
        direction = torch.where(size > 0, upstream / size, 0)
        moved = ctx.solve(node_costs.to(torch.float64) + ctx.step * direction, edge_costs, *edges)
        weight = size / ctx.step
        num_nodes = node_costs.shape[-1]
        node_gradient = (one_hot_matching(moved, num_nodes) - one_hot_matching(labels, num_nodes)) * weight
        edge_gradient = None
        if ctx.needs_input_grad[1]:
            change = matched_edges(moved, *edges).to(torch.float32) - matched_edges(labels, *edges).to(torch.float32)
            edge_gradient = (change * weight).sum_to_size(edge_costs.shape).to(edge_costs.dtype)
        return node_gradient.to(node_costs.dtype), edge_gradient, *[None] * 4
