"""The graph network of the alignment objective: trained with the model, not used to answer."""

import torch
from torch import nn


class GraphConv(nn.Module):
    """
    One layer: `lin_rel(max of the messages) + lin_root(node)`, where a message is the sending node's features.

    A node that receives no message counts as receiving zeros. Source: Morris et al. 2019, arXiv:1810.02244, with the
    maximum as the aggregation.
    """

    def __init__(self, size: int):
        super().__init__()
        self.lin_rel = nn.Linear(size, size)
        self.lin_root = nn.Linear(size, size, bias=False)

    def forward(self, node_features: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """`(num_nodes, size)` -> `(num_nodes, size)`; messages go from row 0 of `edge_index` to row 1."""
        senders, receivers = edge_index
        messages = node_features.index_select(0, senders)
        receivers = receivers.unsqueeze(-1).expand_as(messages)
        received = torch.zeros_like(node_features).scatter_reduce(0, receivers, messages, "amax", include_self=False)
        return self.lin_rel(received) + self.lin_root(node_features)


class GraphNetwork(nn.Module):
    """
    Message passing over one graph, or over several stacked into one: two layers of `GraphConv`, each followed by ReLU
    and dropout.
    """

    def __init__(self, hidden_size: int, dropout: float = 0.1):
        super().__init__()
        self.conv1 = GraphConv(hidden_size)
        self.conv2 = GraphConv(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, node_features: torch.Tensor, edge_index: torch.Tensor, share_dropout: bool = False
    ) -> torch.Tensor:
        """
        Node features `(num_nodes, hidden_size)` after message passing along `edge_index` `(2, num_edges)`, from row 0
        to row 1. `share_dropout` drops the same features in all nodes, and so in all graphs that are compared; a mask
        per node, shared between two graphs, would reveal which of their nodes belong together.
        """
        for layer in (self.conv1, self.conv2):
            node_features = torch.relu(layer(node_features, edge_index))
            if share_dropout:
                node_features = node_features * self.dropout(torch.ones_like(node_features[:1]))
            else:
                node_features = self.dropout(node_features)
        return node_features
