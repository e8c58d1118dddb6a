"""The graph network of the alignment objective: trained beside the model, not used to answer."""

import warnings

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

    def forward(
        self, node_features: torch.Tensor, edge_index: torch.Tensor, node_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        `(num_nodes, in_size)` -> `(num_nodes, out_size)`; messages go from row 0 of `edge_index` to row 1. With
        `node_index` `(num_nodes,)`, `node_features` holds the distinct rows, and node i starts from row
        `node_index[i]`.
        """
        senders, receivers = edge_index
        root = self.lin_root(node_features)
        if node_index is not None:
            senders = node_index.index_select(0, senders)
            root = root.index_select(0, node_index)
        received = join_messages(node_features, senders, receivers, len(root), self.aggregation)
        return self.lin_rel(received) + root


def join_messages(
    node_features: torch.Tensor, senders: torch.Tensor, receivers: torch.Tensor, num_receivers: int, aggregation: str
) -> torch.Tensor:
    """
    What each receiver gets, `(num_receivers, size)`: row `senders[e]` of `node_features` is a message to
    `receivers[e]`, and those to one receiver are joined by `aggregation`. A receiver of none gets zeros.

    On a CPU this is a product with a sparse matrix, which forms no messages: many times faster than scattering them.
    The gradient of a maximum then goes to one of several equal messages; elsewhere, and under `torch.compile`, they
    share it.
    """
    how = AGGREGATIONS[aggregation]
    if node_features.is_cpu and not torch.compiler.is_compiling():
        order = receivers.argsort(stable=True)
        values = node_features.new_ones(len(senders))
        num_messages = receivers.bincount(minlength=num_receivers)
        size = (num_receivers, len(node_features))
        return torch.sparse.mm(sparse_matrix(num_messages, senders[order], values, size), node_features, how)
    messages = node_features.index_select(0, senders)
    receivers = receivers.unsqueeze(-1).expand_as(messages)
    received = messages.new_zeros(num_receivers, messages.shape[1])
    return received.scatter_reduce(0, receivers, messages, how, include_self=False)


def sparse_matrix(
    row_lengths: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """A sparse CSR matrix: of each row so many `values`, in the given `columns`."""
    starts = torch.nn.functional.pad(row_lengths.cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


class GraphNetwork(nn.Module):
    """
    Message passing over one graph, or over several stacked into one: `num_layers` of `GraphConv`, each followed by
    ReLU and dropout. Layers are named `conv1`, `conv2`, ...

    Args:
        hidden_size (`int`): Size of a node's features, in and out.
        num_layers (`int`, *optional*, defaults to 2): Number of layers.
        aggregation (`str`, *optional*, defaults to `"max"`): How messages are joined: `"max"`, `"mean"` or `"sum"`.
        dropout (`float`, *optional*, defaults to 0.1): Share of features dropped after each layer in training.
        graph_hidden_size (`int`, *optional*): Size of a node's features between layers, `hidden_size` if not given.
            Narrower is faster. Needs two layers or more: the first leads there, the last one back.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 2,
        aggregation: str = "max",
        dropout: float = 0.1,
        graph_hidden_size: int | None = None,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1, got {num_layers}.")
        if graph_hidden_size is not None and (graph_hidden_size < 1 or num_layers < 2):
            raise ValueError(
                "`graph_hidden_size` is the size between layers: it must be at least 1 and needs two layers or more, "
                f"got {graph_hidden_size} with `num_layers={num_layers}`."
            )
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = nn.Dropout(dropout)
        sizes = [hidden_size, *[graph_hidden_size or hidden_size] * (num_layers - 1), hidden_size]
        for layer in range(1, num_layers + 1):
            self.add_module(f"conv{layer}", GraphConv(sizes[layer - 1], sizes[layer], aggregation))

    def forward(
        self,
        node_features: torch.Tensor,
        edge_index: torch.Tensor,
        share_dropout: bool = False,
        node_index: torch.Tensor | None = None,
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
            node_index (`torch.Tensor` of shape `(num_nodes,)`, int64, *optional*): For graphs that start from the same
                features: `node_features` then holds each row once, and node i starts from row `node_index[i]`.

        Returns:
            `torch.Tensor` of shape `(num_nodes, hidden_size)`.
        """
        if node_features.dim() != 2 or node_features.shape[-1] != self.hidden_size:
            raise ValueError(
                f"`node_features` must be of shape (num_nodes, {self.hidden_size}), got {tuple(node_features.shape)}."
            )
        for layer in range(1, self.num_layers + 1):
            node_features = torch.relu(self.get_submodule(f"conv{layer}")(node_features, edge_index, node_index))
            node_index = None  # from the first layer on every node has a row of its own
            if share_dropout:
                node_features = node_features * self.dropout(torch.ones_like(node_features[:1]))
            else:
                node_features = self.dropout(node_features)
        return node_features
