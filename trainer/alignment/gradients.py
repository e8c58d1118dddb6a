"""Gradients through a matching, which itself is piecewise constant in the costs."""

from collections.abc import Callable

import torch

from .matching import match_graphs, matched_edges, one_hot_matching


class _Matching(torch.autograd.Function):
    """Forward: 0/1 matchings. Backward: (matching of perturbed costs - matching) / step. See the function below."""

    @staticmethod
    def forward(ctx, node_costs, edge_costs, source_edge_index, target_edge_index, solve, step, normalize):
        labels = solve(node_costs, edge_costs, source_edge_index, target_edge_index)
        ctx.save_for_backward(node_costs, edge_costs, source_edge_index, target_edge_index, labels)
        ctx.solve, ctx.step, ctx.normalize = solve, step, normalize
        ctx.mark_non_differentiable(labels)
        return one_hot_matching(labels, node_costs.shape[-1]).to(node_costs.dtype), labels

    @staticmethod
    def backward(ctx, upstream, _):
        node_costs, edge_costs, source_edge_index, target_edge_index, labels = ctx.saved_tensors
        if not torch.isfinite(upstream).all():  # a loss scale that overflowed: the optimizer step will be skipped
            return torch.full_like(node_costs, torch.nan), torch.full_like(edge_costs, torch.nan), *[None] * 5
        # In float64 the largest value of a gradient scaled by any power of two divides out exactly.
        upstream = upstream.to(torch.float64)
        if not upstream.any():
            return torch.zeros_like(node_costs), torch.zeros_like(edge_costs), *[None] * 5
        size = upstream.abs().amax((-2, -1), keepdim=True) if ctx.normalize else upstream.new_ones(())
        direction = torch.where(size > 0, upstream / size, 0)
        perturbed = node_costs.to(torch.float64) + ctx.step * direction
        new_labels = ctx.solve(perturbed, edge_costs, source_edge_index, target_edge_index)
        num_nodes = node_costs.shape[-1]
        change = one_hot_matching(new_labels, num_nodes) - one_hot_matching(labels, num_nodes)
        node_gradient = change * (size / ctx.step)
        edge_gradient = None
        if ctx.needs_input_grad[1]:
            new_edges = matched_edges(new_labels, source_edge_index, target_edge_index).to(torch.int8)
            edge_change = new_edges - matched_edges(labels, source_edge_index, target_edge_index).to(torch.int8)
            edge_gradient = (edge_change * (size / ctx.step)).sum_to_size(edge_costs.shape).to(edge_costs.dtype)
        return node_gradient.to(node_costs.dtype), edge_gradient, *[None] * 5


def differentiable_matching(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    step: float,
    normalize: bool = True,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    solver: Callable[..., torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Matchings with a gradient: blackbox differentiation, of costs as they are or with noise added by the caller.

    The gradient of the costs is `(m' - m) / step * size`, where m' is the matching of the costs plus `step` times the
    upstream gradient divided by its
    largest absolute value in that problem, `size`. It is proportional to the upstream gradient, so
    loss weights, loss scaling and accumulation act as they should. With `normalize=False` it is the published form, in
    which `size` counts as 1 and the upstream gradient changes m' alone (`step` is its lambda).

    Several noise samples of one problem are one leading dimension more in `node_costs`; averaging a loss over them is
    I-MLE with as many samples, each noise sample serving both matchings.

    Args:
        node_costs, edge_costs, source_edge_index, target_edge_index, allow_unmatched, generator:
            As in `match_graphs`; `edge_costs` may lack or broadcast the leading dimensions of `node_costs`.
        step (`float`): How far the costs move, in their own unit.
        normalize (`bool`, *optional*, defaults to `True`): Homogeneous gradient (above) or the published one.
        solver (*optional*): Takes the place of `match_graphs`, with its arguments; tests inject recorded matchings.

    Returns:
        0/1 matchings `(*batch, num_nodes, num_nodes)` in the dtype of `node_costs`, and their labels as `match_graphs`
        gives them (no gradient).

    Source: arXiv:1912.02175, Algorithm 1; arXiv:2106.01798, Algorithm 1 (perturb-and-MAP with the target
    distribution moved along the loss gradient). The division by the largest value is ours.
    """

    def solve(*problem):
        return (solver or match_graphs)(*problem, allow_unmatched=allow_unmatched, generator=generator)

    return _Matching.apply(node_costs, edge_costs, source_edge_index, target_edge_index, solve, step, normalize)
