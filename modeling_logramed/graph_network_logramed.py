"""The graph network of the alignment objective: trained with the model, saved in it, not used to answer."""

import torch
from torch import nn


AGGREGATIONS = {"max": "amax", "mean": "mean", "sum": "sum"}


class GraphConv(nn.Module):
    """
    One layer: `lin_rel(aggregated messages) + lin_root(node)`, where a message is the sending node's features.

    A node that receives no message counts as receiving zeros. Source: Morris et al. 2019, arXiv:1810.02244, with the
    aggregation as an argument.
    """

    def __init__(self, in_size: int, out_size: int, aggregation: str = "max"):
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"`aggregation` must be one of {sorted(AGGREGATIONS)}, got {aggregation!r}.")
        self.aggregation = aggregation
        self.lin_rel = nn.Linear(in_size, out_size)
        self.lin_root = nn.Linear(in_size, out_size, bias=False)

    def forward(self, node_features: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """`(num_nodes, in_size)` -> `(num_nodes, out_size)`; messages go from row 0 of `edge_index` to row 1."""
        messages = node_features.index_select(0, edge_index[0])
        receivers = edge_index[1].unsqueeze(-1).expand_as(messages)
        received = torch.zeros_like(node_features).scatter_reduce(
            0, receivers, messages, AGGREGATIONS[self.aggregation], include_self=False
        )
        return self.lin_rel(received) + self.lin_root(node_features)


class GraphNetwork(nn.Module):
    """
    Message passing over one graph, or over several stacked into one: `num_layers` of `GraphConv`, each followed by
    ReLU and dropout. Layers are named `conv1`, `conv2`, ...

    Args:
        hidden_size (`int`): Size of a node's features, in and out.
        num_layers (`int`, *optional*, defaults to 2): Number of layers.
        aggregation (`str`, *optional*, defaults to `"max"`): How messages are joined: `"max"`, `"mean"` or `"sum"`.
        dropout (`float`, *optional*, defaults to 0.1): Share of features dropped after each layer in training.
    """

    def __init__(self, hidden_size: int, num_layers: int = 2, aggregation: str = "max", dropout: float = 0.1):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1, got {num_layers}.")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = nn.Dropout(dropout)
        for layer in range(1, num_layers + 1):
            self.add_module(f"conv{layer}", GraphConv(hidden_size, hidden_size, aggregation))

    def forward(
        self, node_features: torch.Tensor, edge_index: torch.Tensor, share_dropout: bool = False
    ) -> torch.Tensor:
        """
        Node features after message passing.

        Args:
            node_features (`torch.Tensor` of shape `(num_nodes, hidden_size)`): Any number of nodes, of one graph or of
                several whose edges do not cross.
            edge_index (`torch.Tensor` of shape `(2, num_edges)`, int64): A message goes from row 0 to row 1.
            share_dropout (`bool`, *optional*, defaults to `False`): Drop the same features of every node instead of
                drawing for each node. Graphs that are compared with each other then lose the same features. A mask
                per node shared between two graphs would mark which of their nodes belong together.

        Returns:
            `torch.Tensor` of shape `(num_nodes, hidden_size)`.
        """
        if node_features.dim() != 2 or node_features.shape[-1] != self.hidden_size:
            raise ValueError(
                f"`node_features` must be of shape (num_nodes, {self.hidden_size}), got {tuple(node_features.shape)}."
            )
        for layer in range(1, self.num_layers + 1):
            node_features = torch.relu(self.get_submodule(f"conv{layer}")(node_features, edge_index))
            if share_dropout:
                node_features = node_features * self.dropout(torch.ones_like(node_features[:1]))
            else:
                node_features = self.dropout(node_features)
        return node_features


__all__ = ["GraphNetwork"]
