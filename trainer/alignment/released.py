"""
The research release's objective: its graphs, its costs and its constants.

Every modality is matched with the barycenter, the mean of all, in both directions. Both graphs of a pair get the edges
of the source, from its nearest neighbours, and messages go from a node to its neighbours.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from .gradients import differentiable_matching
from .graphs import (
    edge_differences,
    inner_products,
    nearest_neighbor_edges,
    neighbours_for,
    run_graph_network,
    unit_vectors,
)
from .matching import match_graphs


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
    generator: torch.Generator | None = None,
    training: bool = True,
    solver: Callable[..., torch.Tensor] = match_graphs,
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """
    Match every modality with the barycenter in both directions, as the research release (of arXiv:2410.02615) does,
    with a gradient. Returns the names "source>target" of the pairs; their 0/1 matchings `(num_pairs, num_nodes,
    num_nodes)` in the dtype of the features; and their labels `(num_pairs, num_nodes)`, -1 where unmatched. Unlike the
    release's, the gradient is proportional to the upstream gradient (see `differentiable_matching`), and evaluation
    has no noise. The step is the release's lambda times its gradient of 1 / (pairs x nodes), however the loss is
    scaled. README.md here lists the release's faults.
    """
    nodes = torch.stack(list(features.values()))
    num_pairs, num_nodes = 2 * len(nodes), nodes.shape[1]
    num_neighbors = neighbours_for(num_nodes, num_neighbors)
    noise: tuple[torch.Tensor, ...] = ()
    if training:
        noise = draw_noise(num_pairs, num_nodes, num_nodes * num_neighbors, generator, nodes.device)
    node_costs, edge_costs, edge_index = released_problems(nodes, graph_network, num_neighbors, *noise)
    solve = partial(solver, allow_unmatched=True, generator=generator)
    step = LAMBDA / (num_pairs * num_nodes)
    matchings, labels = differentiable_matching(node_costs, edge_costs, *[edge_index] * 2, step=step, solver=solve)
    return released_pairs(list(features)), matchings, labels


def draw_noise(
    num_pairs: int,
    num_nodes: int,
    num_edges: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The release's Gumbel noise, float32: one sample of node noise for all pairs, edge noise for each pair."""

    def draw(*shape):
        uniform = torch.rand(shape, generator=generator, device=device)
        return -NOISE_SCALE * (-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()

    return draw(num_nodes, num_nodes), draw(num_pairs, num_edges, num_edges)


def released_pairs(modalities: list[str]) -> list[str]:
    """The pairs "source>target" in the order of `released_problems`."""
    return [f"{name}>barycenter" for name in modalities] + [f"barycenter>{name}" for name in modalities]


def released_problems(
    modality_features: torch.Tensor,
    graph_network: nn.Module | None,
    num_neighbors: int,
    node_noise: torch.Tensor | float = 0.0,
    edge_noise: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Turns features `(num_modalities, num_nodes, size)`, in float32 at least, into matching problems: the part that
    autograd differentiates. Node costs `(num_pairs, num_nodes, num_nodes)` and edge costs `(num_pairs, num_edges,
    num_edges)` are `-weight * (cosine + noise - 0.5)`, with weight 1 and one noise for all pairs for nodes, and weight
    0.5 for edges. Also returns the edges `(num_pairs, 2, num_edges)` that source and target share. Pairs are in the
    order of `released_pairs`.
    """
    barycenter = modality_features.mean(0, keepdim=True).expand_as(modality_features)
    source = torch.cat([modality_features, barycenter])
    target = torch.cat([barycenter, modality_features])
    edge_index = nearest_neighbor_edges(source, num_neighbors)
    if graph_network is not None:
        graphs = run_graph_network(graph_network, torch.cat([source, target]), torch.cat([edge_index, edge_index]))
        source, target = graphs.chunk(2)
    node_cosines = inner_products(unit_vectors(source), unit_vectors(target))
    edge_cosines = inner_products(edge_differences(source, edge_index), edge_differences(target, edge_index))
    node_costs = NEUTRAL_COSINE - node_cosines - node_noise
    edge_costs = EDGE_WEIGHT * (NEUTRAL_COSINE - edge_cosines - edge_noise)
    return node_costs, edge_costs, edge_index
