"""Graphs over the nodes of a batch: nearest-neighbour edges, edge features, and similarities."""

import math
import warnings

import torch
from torch import nn


# Vectors shorter than this have no meaningful direction.
SMALLEST_NORM = 1e-6


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """
    `vectors` `(..., size)` scaled to length 1. Vectors shorter than 1e-6 become zero and pass no gradient, so that
    gradients stay finite for zero vectors and for edges between equal nodes.
    """
    norm = vectors.detach().norm(dim=-1, keepdim=True)
    has_direction = norm > SMALLEST_NORM
    return torch.where(has_direction, torch.nn.functional.normalize(torch.where(has_direction, vectors, 1), dim=-1), 0)


def inner_products(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Inner products `(*batch, num_source, num_target)` in float32 at least, also under autocast."""
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(source.device.type, enabled=False):
        return source.to(dtype) @ target.to(dtype).mT


def neighbours_for(num_nodes: int, num_neighbors: int) -> int:
    """
    How many neighbours the nodes of a graph get: `num_neighbors`, or all other nodes if the batch is too small, with a
    warning the first time.
    """
    if num_nodes > num_neighbors:
        return num_neighbors
    # One text for all sizes: Python shows the same warning from the same line only once.
    warnings.warn(
        f"A batch is too small for a graph with `num_neighbors={num_neighbors}` and gets fewer neighbours. Raise "
        f"`per_device_train_batch_size` above {num_neighbors}, drop the last batch, or lower `num_neighbors`.",
        stacklevel=2,
    )
    return max(num_nodes - 1, 0)


def nearest_neighbor_edges(node_features: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """
    Edges from each node to its `num_neighbors` nearest others, by Euclidean distance, in float32 at least: `(*batch,
    2, num_nodes * num_neighbors)` int64 for `node_features` `(*batch, num_nodes, feature_size)`. Row 0 is the node,
    row 1 its neighbour; sorted by node, nearest first. A node is never its own neighbour, even among duplicates.
    """
    num_nodes = node_features.shape[-2]
    if not 0 <= num_neighbors < max(num_nodes, 1):
        raise ValueError(f"`num_neighbors` must be below the {num_nodes} nodes, got {num_neighbors}.")
    with torch.no_grad(), torch.autocast(node_features.device.type, enabled=False):
        points = node_features.detach().to(torch.promote_types(node_features.dtype, torch.float32))
        points = points - points.mean(-2, keepdim=True)  # keeps the digits of close points
        square = points.square().sum(-1)
        distance = square.unsqueeze(-1) + square.unsqueeze(-2) - 2 * points @ points.transpose(-1, -2)
        distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        neighbors = distance.topk(num_neighbors, largest=False).indices.flatten(-2)
    nodes = torch.arange(num_nodes, device=neighbors.device).repeat_interleave(num_neighbors)
    return torch.stack([nodes.expand_as(neighbors), neighbors], dim=-2)


def edge_differences(node_features: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
    """Unit-length edge features `(*batch, num_edges, feature_size)`: the node of row 0 minus that of row 1."""
    *batch, num_nodes, size = node_features.shape
    num_graphs, num_edges = math.prod(batch), edge_index.shape[-1]
    rows, edges = stack_graphs(
        node_features.reshape(num_graphs, num_nodes, size), edge_index.reshape(num_graphs, 2, num_edges)
    )
    difference = rows.index_select(0, edges[0]) - rows.index_select(0, edges[1])
    return unit_vectors(difference.reshape(*batch, num_edges, size))


def stack_graphs(node_features: torch.Tensor, edge_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Several graphs as one with unconnected parts: `(num_graphs, num_nodes, size)` and `(num_graphs, 2, num_edges)`
    become `(num_graphs * num_nodes, size)` and `(2, num_graphs * num_edges)`.
    """
    first_node = torch.arange(len(edge_index), device=edge_index.device).view(-1, 1, 1) * node_features.shape[1]
    return node_features.flatten(0, 1), (edge_index + first_node).transpose(0, 1).flatten(1)


def run_graph_network(
    graph_network: nn.Module, node_features: torch.Tensor, edge_index: torch.Tensor, share_dropout: bool = False
) -> torch.Tensor:
    """
    Runs the network on several graphs `(num_graphs, num_nodes, size)` with edges `(num_graphs, 2, num_edges)` in one
    call. The output has the dtype of the features, whatever the dtype of the weights.
    """
    nodes, edges = stack_graphs(node_features, edge_index)
    weight_dtype = next(graph_network.parameters()).dtype
    output = graph_network(nodes.to(weight_dtype), edges, share_dropout=share_dropout)
    return output.to(node_features.dtype).reshape(node_features.shape)
