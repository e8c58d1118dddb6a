"""
The research release's objective: its graphs, its costs and its constants, with whatever is equal computed once.

Every modality is matched with the barycenter, the mean of all, both ways. Both graphs of a pair get the edges of the
first, from its nearest neighbours, and messages go from a node to its neighbours. For three modalities that makes ten
graphs, not twelve: each modality and the barycenter with the modality's edges, and all four with the barycenter's.
"""

from collections.abc import Callable

import torch
from torch import nn

from .costs import gumbel_noise
from .gradients import differentiable_matching
from .graph_network import sparse_matrix
from .graphs import (
    SMALLEST_NORM,
    end_differences,
    nearest_neighbor_edges,
    neighbours_for,
    run_graph_network,
    stack_graphs,
)


# The release's settings (LPMP and its configuration).
NOISE_SCALE = 0.05
LAMBDA = 80.0
EDGE_WEIGHT = 0.5
NEUTRAL_COSINE = 0.5


def released_matchings(
    features: dict[str, torch.Tensor],
    graph_network: nn.Module | None = None,
    *,
    num_neighbors: int = 5,
    small_batch: str = "refuse",
    generator: torch.Generator | None = None,
    training: bool = True,
    solver: Callable[..., torch.Tensor] | None = None,
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """
    Match every modality with the barycenter, both ways, as the release does, with a gradient.

    The gradient is proportional to the upstream gradient (see `differentiable_matching`), which the release's is not.
    Its lambda times its gradient of 1 / (pairs x nodes) is the step, whatever the loss is scaled by. Unlike there,
    evaluation has no noise, and dropout is drawn once for the barycenter's own graph, not once for each pair.

    Args:
        features (`dict[str, torch.Tensor]`): Features `(num_nodes, size)` of each modality, float32 or float64.
        graph_network (`nn.Module`, *optional*): A `GraphNetwork`, or `None` for no message passing.
        num_neighbors, small_batch: As in `neighbours_for`.
        generator (`torch.Generator`, *optional*): Source of the noise, on the features' device.
        training (`bool`, *optional*, defaults to `True`): Whether noise is added.
        solver (*optional*): Takes the place of `match_graphs`.

    Returns:
        The names "source>target" of the pairs; their 0/1 matchings `(num_pairs, num_nodes, num_nodes)` with a
        gradient, in the dtype of the features; and their labels `(num_pairs, num_nodes)`, -1 where unmatched.

    Source: arXiv:2410.02615 and its research release. README.md here lists what is wrong with it.
    """
    nodes = torch.stack(list(features.values()))
    num_modalities, num_nodes = nodes.shape[:2]
    num_pairs = 2 * num_modalities
    num_neighbors = neighbours_for(num_nodes, num_neighbors, small_batch)
    noise = None, None
    if training:
        noise = draw_noise(num_pairs, num_nodes, num_nodes * num_neighbors, generator, nodes.device)
    node_costs, edge_costs, edge_index = released_problems(nodes, graph_network, num_neighbors, *noise)
    matchings, labels = differentiable_matching(
        node_costs,
        edge_costs,
        edge_index,
        edge_index,
        step=LAMBDA / (num_pairs * num_nodes),
        allow_unmatched=True,
        generator=generator,
        solver=solver,
    )
    return released_pairs(list(features)), matchings, labels


def draw_noise(
    num_pairs: int,
    num_nodes: int,
    num_edges: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The release's noise, float32: on nodes, one sample for all pairs, and on edges, one for each pair."""
    options = {"generator": generator, "device": device, "dtype": torch.float32}
    node_noise = gumbel_noise((num_nodes, num_nodes), NOISE_SCALE, **options)
    return node_noise, gumbel_noise((num_pairs, num_edges, num_edges), NOISE_SCALE, **options)


def released_pairs(modalities: list[str]) -> list[str]:
    """The pairs "source>target" in the order of `released_problems`."""
    return [f"{name}>barycenter" for name in modalities] + [f"barycenter>{name}" for name in modalities]


def released_problems(
    modality_features: torch.Tensor,
    graph_network: nn.Module | None,
    num_neighbors: int,
    node_noise: torch.Tensor | None = None,
    edge_noise: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    From features to matching problems: all that is computed with a gradient in tensors alone.

    Args:
        modality_features (`torch.Tensor` of shape `(num_modalities, num_nodes, size)`): In float32 at least.
        graph_network (`nn.Module`, *optional*): A `GraphNetwork`.
        num_neighbors (`int`): Edges of a node.
        node_noise (`torch.Tensor` of shape `(num_nodes, num_nodes)`, *optional*): One sample for all pairs.
        edge_noise (`torch.Tensor` of shape `(num_pairs, num_edges, num_edges)`, *optional*): One sample for each. On a
            CPU float32 noise is overwritten: the edge costs take its memory.

    Returns:
        Node costs `(num_pairs, num_nodes, num_nodes)` and edge costs `(num_pairs, num_edges, num_edges)`, both in the
        dtype of the features, and the edges `(num_pairs, 2, num_edges)` that source and target share. Pairs are in the
        order of `released_pairs`.
    """
    features = torch.cat([modality_features, modality_features.mean(0, keepdim=True)])
    features_of, edges_of, source_of, target_of = released_graphs(len(modality_features), features.device)
    edge_index = nearest_neighbor_edges(features, num_neighbors).index_select(0, edges_of)
    if graph_network is None:
        nodes = features.index_select(0, features_of)
    else:
        nodes = run_graph_network(graph_network, features, edge_index, features_of=features_of)
    with torch.autocast(features.device.type, enabled=False):
        costs = released_costs(nodes, edge_index, source_of, target_of, node_noise, edge_noise)
    return *costs, edge_index.index_select(0, source_of)


def released_graphs(num_modalities: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, ...]:
    """
    The distinct graphs and the pairs of them, as int64 indices. The barycenter counts as the last modality.

    Returns:
        For each graph the modality that its features and the one that its edges are of, `(num_graphs,)` each; for each
        pair its source and its target graph, `(num_pairs,)` each, in the order of `released_pairs`.
    """
    modality = torch.arange(num_modalities, device=device)
    barycenter = torch.full_like(modality, num_modalities)
    # Each modality, and the barycenter, with the modality's edges; the barycenter, and each modality, with its edges.
    features_of = torch.cat([modality, barycenter, barycenter[:1], modality])
    edges_of = torch.cat([modality, modality, barycenter[:1], barycenter])
    source_of = torch.cat([modality, 2 * barycenter])
    target_of = torch.cat([modality + num_modalities, modality + 2 * num_modalities + 1])
    return features_of, edges_of, source_of, target_of


def released_costs(
    nodes: torch.Tensor,
    edge_index: torch.Tensor,
    source_of: torch.Tensor,
    target_of: torch.Tensor,
    node_noise: torch.Tensor | None = None,
    edge_noise: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The release's costs, `-weight * (cosine + noise - 0.5)` with weight 1 for nodes and 0.5 for edges.

    An edge is the difference of its nodes, so inner products of edges come from those of nodes: no edge features are
    formed. Inner products are taken in float64, which keeps the digits of edges between close nodes. Vectors shorter
    than 1e-6, and edges shorter than 1e-6 of their nodes, have cosine 0 with everything and pass no gradient.

    Args:
        nodes (`torch.Tensor` of shape `(num_graphs, num_nodes, size)`): Nodes of each graph, of any length.
        edge_index (`torch.Tensor` of shape `(num_graphs, 2, num_edges)`, int64): Edges of each graph.
        source_of, target_of (`torch.Tensor` of shape `(num_pairs,)`, int64): The graphs of each pair.
        node_noise, edge_noise: As in `released_problems`.

    Returns:
        Node costs `(num_pairs, num_nodes, num_nodes)` and edge costs `(num_pairs, num_edges, num_edges)`, in the dtype
        of `nodes`, float32 at least.
    """
    nodes = nodes.to(torch.promote_types(nodes.dtype, torch.float32))
    node_scale, edge_scale = inverse_lengths(nodes, edge_index)
    products = InnerProducts.apply(nodes.index_select(0, source_of), nodes.index_select(0, target_of))
    cosines = products * node_scale[source_of].unsqueeze(-1) * node_scale[target_of].unsqueeze(-2)
    node_costs = NEUTRAL_COSINE - cosines.to(nodes.dtype)
    if node_noise is not None:
        node_costs = node_costs - node_noise.to(nodes.dtype)
    pair_edges = edge_index.index_select(0, source_of)
    if edge_noise is None:
        edge_noise = nodes.new_zeros(len(pair_edges), *[pair_edges.shape[-1]] * 2)
    of_edges = dense_edge_costs if torch.compiler.is_compiling() or not nodes.is_cpu else SparseEdgeCosts.apply
    edge_noise = edge_noise.to(nodes.dtype).contiguous()
    return node_costs, of_edges(products, edge_scale[source_of], edge_scale[target_of], pair_edges, edge_noise)


class InnerProducts(torch.autograd.Function):
    """
    Inner products `(*batch, num_source, num_target)` in float64, of `source` with itself where there is no `target`.
    The gradient is computed in the inputs' dtype.

    A short edge between long nodes is what is left of their products: float32 products would lose its digits.
    """

    @staticmethod
    def forward(ctx, source, target=None):
        ctx.save_for_backward(source, target)
        source = source.to(torch.float64)
        target = source if target is None else target.to(torch.float64)
        return source @ target.transpose(-1, -2)

    @staticmethod
    def backward(ctx, gradient):
        source, target = ctx.saved_tensors
        gradient = gradient.to(source.dtype)
        transposed = gradient.transpose(-1, -2)
        if target is None:
            return (gradient + transposed) @ source, None
        return gradient @ target, transposed @ source


def dense_edge_costs(
    products: torch.Tensor,
    source_scale: torch.Tensor,
    target_scale: torch.Tensor,
    edge_index: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """
    Edge costs `(num_pairs, num_edges, num_edges)` in the dtype of `noise`, as matrix products.

    Args:
        products (`torch.Tensor` of shape `(num_pairs, num_nodes, num_nodes)`): Inner products of source and target
            nodes, float64.
        source_scale, target_scale (`torch.Tensor` of shape `(num_pairs, num_edges)`): One over the edges' lengths.
        edge_index (`torch.Tensor` of shape `(num_pairs, 2, num_edges)`): Edges of both graphs of a pair.
        noise (`torch.Tensor` of shape `(num_pairs, num_edges, num_edges)`): Added to the cosines.
    """
    source = _centered(end_differences(products, edge_index) * source_scale.unsqueeze(-1))
    own_node = torch.eye(products.shape[-1], dtype=products.dtype, device=products.device).expand_as(products)
    target = end_differences(own_node, edge_index) * target_scale.unsqueeze(-1)
    source, target = source.to(noise.dtype), target.to(noise.dtype).transpose(-1, -2)
    return torch.baddbmm(noise, source, target, beta=-EDGE_WEIGHT, alpha=-EDGE_WEIGHT) + EDGE_WEIGHT * NEUTRAL_COSINE


class SparseEdgeCosts(torch.autograd.Function):
    """
    `dense_edge_costs` for a CPU: written over `noise`, with a backward pass over the nonzero entries of the gradient
    alone. A matching's gradient has at most two for each edge.
    """

    @staticmethod
    def forward(ctx, products, source_scale, target_scale, edge_index, noise):
        ctx.save_for_backward(products, source_scale, target_scale, edge_index)
        ctx.mark_dirty(noise)
        num_pairs, num_nodes = products.shape[:2]
        num_edges = edge_index.shape[-1]
        # Unit source edges as sparse rows, 1 and -1 over their length, times unit target edges by source nodes.
        target = _centered(end_differences(products.transpose(-1, -2), edge_index) * target_scale.unsqueeze(-1))
        target = target.to(noise.dtype).transpose(-1, -2).flatten(0, 1)
        columns = stack_graphs(products, edge_index)[1].T.flatten()
        values = torch.stack([source_scale, -source_scale], -1).to(noise.dtype).flatten()
        row_lengths = torch.full((num_pairs * num_edges,), 2)
        source = sparse_matrix(row_lengths, columns, values, (len(row_lengths), num_pairs * num_nodes))
        noise.view(num_pairs * num_edges, num_edges).addmm_(source, target, beta=-EDGE_WEIGHT, alpha=-EDGE_WEIGHT)
        return noise.add_(EDGE_WEIGHT * NEUTRAL_COSINE)

    @staticmethod
    def backward(ctx, gradient):
        products, source_scale, target_scale, edge_index = ctx.saved_tensors
        pair, source, target = gradient.nonzero(as_tuple=True)
        of_cosines = -EDGE_WEIGHT * gradient[pair, source, target].to(products.dtype)
        source_ends, target_ends = edge_index[pair, :, source], edge_index[pair, :, target]
        # Both ends of both edges: two with a sign of 1, two with -1.
        corners = (pair.view(-1, 1, 1), source_ends.unsqueeze(-1), target_ends.unsqueeze(-2))
        sign = products.new_tensor([[1, -1], [-1, 1]])
        unscaled = of_cosines * (products[corners] * sign).sum((-2, -1))
        source_scale, target_scale = source_scale[pair, source], target_scale[pair, target]
        of_products = (of_cosines * source_scale * target_scale).view(-1, 1, 1) * sign
        of_scales = torch.zeros(2, *edge_index[:, 0].shape, dtype=products.dtype)
        of_scales[0].index_put_((pair, source), unscaled * target_scale, accumulate=True)
        of_scales[1].index_put_((pair, target), unscaled * source_scale, accumulate=True)
        of_products = torch.zeros_like(products).index_put_(corners, of_products, accumulate=True)
        return of_products, of_scales[0], of_scales[1], None, None


def inverse_lengths(nodes: torch.Tensor, edge_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One over the length of every node `(num_graphs, num_nodes)` and edge `(num_graphs, num_edges)`, 0 where that is too
    short to have a direction (see `released_costs`).
    """
    products = InnerProducts.apply(nodes)
    square = products.diagonal(dim1=-2, dim2=-1)
    first, second = edge_index.unbind(1)
    square_sum = square.gather(-1, first) + square.gather(-1, second)
    square_edge = square_sum - 2 * products.flatten(1).gather(-1, first * nodes.shape[1] + second)
    shortest = SMALLEST_NORM**2
    return _inverse_root(square, shortest), _inverse_root(square_edge, shortest * square_sum.detach().clamp(min=1))


def _inverse_root(square, smallest):
    is_long = square > smallest
    return torch.where(is_long, torch.where(is_long, square, 1).rsqrt(), 0)


def _centered(values):
    """Less the mean over the last dimension, before float64 is left: of close values only the difference counts."""
    return values - values.mean(-1, keepdim=True)
