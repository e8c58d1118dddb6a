"""Matches the nodes of two graphs one to one at the lowest cost: the solver, and the cost of a matching."""

import torch

from .search import cheapest_assignment, search_matching


def match_graphs(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    num_starts: int = 16,
) -> torch.Tensor:
    """
    Match the nodes of two graphs one to one, at the lowest total cost found.

    A matching costs the `node_costs` of its pairs plus the `edge_costs` of every pair of edges it lays onto each other
    (quadratic assignment). Exact without edges and for up to 5 nodes; else a search from several starts, each a
    Frank-Wolfe solution improved by swaps: a local optimum. Deterministic for a seed. Nodes are renumbered at random
    first, so that ties do not fall to the identity, which is the true matching in training. Carries no gradient (see
    `differentiable_matching`).

    Args:
        node_costs (`torch.Tensor` of shape `(*batch, num_nodes, num_nodes)`):
            Cost of matching source node i to target node j. Floating point, no unit; pass similarities negated.
        edge_costs (`torch.Tensor` of shape `(*batch, num_source_edges, num_target_edges)`):
            Cost of laying source edge a onto target edge b. Used in float32.
        source_edge_index, target_edge_index (`torch.Tensor` of shape `(*batch, 2, num_edges)`, int64):
            First and second node of each directed edge.
        allow_unmatched (`bool`, *optional*, defaults to `False`):
            Whether a node may stay unmatched if that is cheaper. It and its edges then cost nothing.
        generator (`torch.Generator`, *optional*):
            Source of the seed. Without it the seed is 0.
        num_starts (`int`, *optional*, defaults to 16):
            Number of starting points of the search, if there are edges.

    Leading dimensions broadcast. Costs on a GPU are copied to the CPU and back once. With edges, a problem takes
    8 x num_source_edges x num_nodes^2 bytes.

    Returns:
        `torch.Tensor` of shape `(*batch, num_nodes)`, int64: the target node of each source node, -1 where unmatched,
        on the device of `node_costs`.

    Raises:
        ValueError: If `node_costs` is not square, `edge_costs` does not fit the edges, or a cost is not finite.

    Source: objective of Lawler 1963, "The Quadratic Assignment Problem"; Frank-Wolfe as in Vogelstein et al. 2015,
    "Fast Approximate Quadratic Programming for Graph Matching". The swaps after it are ours.

    Example:
        >>> edges = torch.zeros(2, 0, dtype=torch.int64)  # no edges: plain linear assignment
        >>> match_graphs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(0, 0), edges, edges)
        tensor([1, 0])
    """
    problem = node_costs.detach(), edge_costs.detach(), source_edge_index, target_edge_index
    problem = tuple(values.to("cpu") for values in problem)
    _check_problem(*problem)
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    batch = torch.broadcast_shapes(*(values.shape[:-2] for values in problem))
    flat = [values.expand(*batch, *values.shape[-2:]).reshape(batch.numel(), *values.shape[-2:]) for values in problem]
    labels = torch.empty(batch.numel(), node_costs.shape[-1], dtype=torch.int64)
    if labels.numel() > 0:
        with torch.autocast("cpu", enabled=False):
            for number, (nodes, edges, source, target) in enumerate(zip(*flat, strict=True)):
                own_generator = torch.Generator().manual_seed(seed)
                labels[number] = _match(nodes, edges, source, target, allow_unmatched, num_starts, own_generator)
    return labels.reshape(*batch, node_costs.shape[-1]).to(node_costs.device)


def _match(node_costs, edge_costs, source_edges, target_edges, allow_unmatched, num_starts, generator):
    """Labels `(num_nodes,)` of one problem."""
    num_nodes = len(node_costs)
    rows, columns = (torch.randperm(num_nodes, generator=generator) for _ in range(2))
    node_costs = node_costs[rows][:, columns].double()
    if edge_costs.numel() > 0:
        edges = edge_costs, rows.argsort()[source_edges], columns.argsort()[target_edges]
        options = {"allow_unmatched": allow_unmatched, "num_starts": num_starts, "generator": generator}
        labels = search_matching(node_costs, *edges, **options)
        labels = torch.where(labels == num_nodes, -1, labels)
    else:
        labels = cheapest_assignment(node_costs.clamp(max=0) if allow_unmatched else node_costs)
        if allow_unmatched:  # a pair that costs more than leaving both out
            labels = torch.where(node_costs.gather(1, labels.unsqueeze(1)).squeeze(1) > 0, -1, labels)
    return torch.where(labels < 0, -1, columns[labels])[rows.argsort()]


def matching_cost(
    labels: torch.Tensor,
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
) -> torch.Tensor:
    """
    The total cost of a matching, float64 of shape `(*batch,)`: the node costs of its pairs, and the edge costs of
    every source and target edge laid onto each other. Differentiable in the costs. Arguments as in `match_graphs`;
    `labels` (`(*batch, num_nodes)`, int64) is what it returns.

    Example:
        >>> edge = torch.tensor([[0], [1]])
        >>> matching_cost(torch.tensor([0, 1]), torch.eye(2), torch.tensor([[5.0]]), edge, edge)
        tensor(7., dtype=torch.float64)
    """
    _check_problem(node_costs, edge_costs, source_edge_index, target_edge_index)
    matching = one_hot_matching(labels, node_costs.shape[-1]).to(torch.float64)
    cost = (matching * node_costs).sum((-2, -1))
    if edge_costs.numel() > 0:
        # A row holds one edge, or a few parallel ones: its sum needs no float64, which would double the E x E memory.
        matched = (matched_edges(labels, source_edge_index, target_edge_index) * edge_costs).sum(-1)
        cost = cost + matched.sum(-1, dtype=torch.float64)
    return cost


def one_hot_matching(labels: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Labels `(..., num_nodes)` as 0/1 float32 matrices `(..., num_nodes, num_nodes)`; unmatched rows are empty."""
    matching = torch.zeros(*labels.shape, num_nodes + 1, device=labels.device)
    matching.scatter_(-1, torch.where(labels < 0, num_nodes, labels).unsqueeze(-1), 1.0)
    return matching[..., :num_nodes]


def matched_edges(
    labels: torch.Tensor, source_edge_index: torch.Tensor, target_edge_index: torch.Tensor
) -> torch.Tensor:
    """Bool `(..., num_source_edges, num_target_edges)`: whether `labels` lays source edge a onto target edge b."""
    num_nodes = labels.shape[-1]
    batch = torch.broadcast_shapes(labels.shape[:-1], source_edge_index.shape[:-2])
    source = source_edge_index.expand(*batch, *source_edge_index.shape[-2:])
    ends = labels.expand(*batch, num_nodes).gather(-1, source.flatten(-2))
    first, second = ends.unflatten(-1, (2, -1)).unbind(-2)
    laid_onto = torch.where((first >= 0) & (second >= 0), first * num_nodes + second, -1)
    target = target_edge_index[..., 0, :] * num_nodes + target_edge_index[..., 1, :]
    return laid_onto.unsqueeze(-1) == target.unsqueeze(-2)


def _check_problem(node_costs, edge_costs, source_edge_index, target_edge_index):
    num_nodes = node_costs.shape[-1]
    if node_costs.dim() < 2 or node_costs.shape[-2] != num_nodes:
        raise ValueError(f"`node_costs` must be square in its last two dimensions, got {tuple(node_costs.shape)}.")
    fits = (source_edge_index.shape[-1], target_edge_index.shape[-1])
    if edge_costs.dim() < 2 or tuple(edge_costs.shape[-2:]) != fits:
        raise ValueError(
            f"`edge_costs` must end in (num_source_edges, num_target_edges) = {fits}, got {tuple(edge_costs.shape)}."
        )
    for name, costs in (("node_costs", node_costs), ("edge_costs", edge_costs)):
        if not torch.isfinite(costs).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
    for name, edges in (("source", source_edge_index), ("target", target_edge_index)):
        if edges.dim() < 2 or edges.shape[-2] != 2:
            raise ValueError(f"`{name}_edge_index` must end in (2, num_edges), got {tuple(edges.shape)}.")
        if edges.numel() and (edges.min() < 0 or edges.max() >= num_nodes):
            raise ValueError(f"`{name}_edge_index` must hold nodes 0 to {num_nodes - 1}.")
