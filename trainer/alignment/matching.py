"""Match the nodes of two graphs one to one at the least cost: the solver, and the cost of a matching."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


# Up to this many nodes every matching is tried: 720 of them, or 13,327 with unmatched nodes.
MAX_EXACT_NODES = 6
# Searches from different starts, and the swaps of each: so many, and more for every node (measured: README.md here).
NUM_STARTS = 3
NUM_SWAPS = 200
SWAPS_PER_NODE = 10

_compiling = threading.Lock()


def match_graphs(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    effort: float = 1.0,
) -> torch.Tensor:
    """
    Match the nodes of two graphs one to one, at the lowest total cost found.

    A matching costs the `node_costs` of its pairs plus the `edge_costs` of every pair of edges it lays onto each other
    (quadratic assignment). Exact without edges and for up to 6 nodes; above that a search over swaps from a
    Frank-Wolfe solution, from the best matching by node costs and from a shaken Frank-Wolfe solution. Deterministic
    for a seed. How the nodes are numbered plays no part: they are first sorted by their costs, ties at random, so no
    start is the identity other than by what the costs say. Carries no gradient (see `differentiable_matching`).

    Args:
        node_costs (`torch.Tensor` of shape `(*batch, num_nodes, num_nodes)`):
            Cost of matching source node i to target node j. Floating point, no unit; pass similarities negated.
        edge_costs (`torch.Tensor` of shape `(*batch, num_source_edges, num_target_edges)`):
            Cost of laying source edge a onto target edge b. Used in float32.
        source_edge_index, target_edge_index (`torch.Tensor` of shape `(*batch, 2, num_edges)`, int64):
            First and second node of each directed edge.
        allow_unmatched (`bool`, *optional*, defaults to `False`):
            Whether a node may stay unmatched where that is cheaper. It then costs nothing, nor do its edges.
        generator (`torch.Generator`, *optional*):
            Source of the seed for ties and shakes. Without it the seed is 0.
        effort (`float`, *optional*, defaults to 1.0):
            Length of the search, relative to the default. Below 0.5 it starts once instead of three times.

    Leading dimensions broadcast: problems that share edges or edge costs need no copies of them. All problems of a
    call are solved together, on as many threads as `torch.get_num_threads()` says.

    Returns:
        `torch.Tensor` of shape `(*batch, num_nodes)`, int64: the target node of each source node, -1 where unmatched,
        on the device of `node_costs`.

    Raises:
        ValueError: If `node_costs` is not square, `edge_costs` does not fit the edges, or a cost is not finite.

    Source: objective of Lawler 1963, "The Quadratic Assignment Problem"; Frank-Wolfe starts as in Vogelstein et al.
    2015, "Fast Approximate Quadratic Programming for Graph Matching"; the rule for forbidden swaps after Taillard
    1991, "Robust taboo search for the quadratic assignment problem". The bookkeeping of sparse prices is ours.

    Example:
        >>> edges = torch.zeros(2, 0, dtype=torch.int64)  # no edges: plain linear assignment
        >>> match_graphs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(0, 0), edges, edges)
        tensor([1, 0])
    """
    _check_problem(node_costs, edge_costs, source_edge_index, target_edge_index)
    batch = torch.broadcast_shapes(
        node_costs.shape[:-2], edge_costs.shape[:-2], source_edge_index.shape[:-2], target_edge_index.shape[:-2]
    )
    num_nodes = node_costs.shape[-1]
    costs = node_costs.detach().to("cpu", torch.float64).expand(*batch, num_nodes, num_nodes)
    costs = np.ascontiguousarray(costs.reshape(-1, num_nodes, num_nodes).numpy())
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    if num_nodes == 0 or len(costs) == 0:
        return torch.empty(*batch, num_nodes, dtype=torch.int64, device=node_costs.device)
    rows, columns = _neutral_order(costs, seed)
    if edge_costs.shape[-1] == 0 or edge_costs.shape[-2] == 0:
        labels = _assign_in_order(costs, rows, columns, allow_unmatched)
    else:
        labels = _search_in_order(
            costs,
            (rows, columns),
            edge_costs,
            (source_edge_index, target_edge_index),
            batch,
            allow_unmatched=allow_unmatched,
            effort=effort,
            seed=seed,
        )
    return torch.from_numpy(labels).reshape(*batch, num_nodes).to(node_costs.device)


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
        cost = cost + (matched_edges(labels, source_edge_index, target_edge_index) * edge_costs).sum((-2, -1))
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
    batch = torch.broadcast_shapes(labels.shape[:-1], source_edge_index.shape[:-2], target_edge_index.shape[:-2])
    labels = labels.expand(*batch, num_nodes)
    source = source_edge_index.expand(*batch, *source_edge_index.shape[-2:])
    target = target_edge_index.expand(*batch, *target_edge_index.shape[-2:])
    first, second = labels.gather(-1, source[..., 0, :]), labels.gather(-1, source[..., 1, :])
    both = (first >= 0) & (second >= 0)
    source_code = torch.where(both, first * num_nodes + second, -1)
    target_code = target[..., 0, :] * num_nodes + target[..., 1, :]
    return source_code.unsqueeze(-1) == target_code.unsqueeze(-2)


def _check_problem(node_costs, edge_costs, source_edge_index, target_edge_index):
    if node_costs.dim() < 2 or node_costs.shape[-1] != node_costs.shape[-2]:
        raise ValueError(f"`node_costs` must be square in its last two dimensions, got {tuple(node_costs.shape)}.")
    fits = (source_edge_index.shape[-1], target_edge_index.shape[-1])
    if edge_costs.dim() < 2 or tuple(edge_costs.shape[-2:]) != fits:
        raise ValueError(
            f"`edge_costs` must end in (num_source_edges, num_target_edges) = {fits}, got {tuple(edge_costs.shape)}."
        )
    for name, edge_index in (("source", source_edge_index), ("target", target_edge_index)):
        if edge_index.dim() < 2 or edge_index.shape[-2] != 2:
            raise ValueError(f"`{name}_edge_index` must end in (2, num_edges), got {tuple(edge_index.shape)}.")
        if edge_index.numel() and (edge_index.min() < 0 or edge_index.max() >= node_costs.shape[-1]):
            raise ValueError(f"`{name}_edge_index` must name nodes 0 to {node_costs.shape[-1] - 1}.")
    for name, costs in (("node_costs", node_costs), ("edge_costs", edge_costs)):
        if not torch.isfinite(costs).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")


def _neutral_order(costs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Orders of the source and of the target nodes, `(batch, num_nodes)` each, that depend on the costs alone.

    Equal nodes come in random order. Solving in these orders makes the answer independent of how nodes are numbered,
    and keeps ties from falling to the identity, which is the true matching in training.
    """
    random = np.random.default_rng(seed)
    orders = []
    for values in (costs, costs.transpose(0, 2, 1)):
        weights = np.cos(np.arange(values.shape[-1]))
        keys = (np.sort(values, axis=-1) * weights).sum(-1)
        orders.append(np.lexsort((random.random(keys.shape), keys), axis=-1))
    return orders[0], orders[1]


def _assign_in_order(costs, rows, columns, allow_unmatched):
    """Exact labels `(batch, num_nodes)` of problems without edges."""
    ordered = np.take_along_axis(np.take_along_axis(costs, rows[:, :, None], 1), columns[:, None, :], 2)
    if allow_unmatched:
        ordered = np.minimum(ordered, 0)
    labels = np.empty(rows.shape, np.int64)
    for problem, problem_costs in enumerate(ordered):
        labels[problem, rows[problem]] = columns[problem, linear_sum_assignment(problem_costs)[1]]
    if allow_unmatched:
        # A pair that would cost more than leaving both out was priced 0: leave it out.
        worth = np.take_along_axis(costs, labels[:, :, None], 2)[:, :, 0] < 0
        labels = np.where(worth, labels, -1)
    return labels


def _search_in_order(costs, orders, edge_costs, edge_indices, batch, *, allow_unmatched, effort, seed):
    """Labels `(batch, num_nodes)` of problems with edges, by the compiled search, on all threads."""
    from . import search  # compiles, so only when it is needed

    rows, columns = orders
    num_problems, num_nodes = rows.shape
    ordered = np.take_along_axis(np.take_along_axis(costs, rows[:, :, None], 1), columns[:, None, :], 2)
    shared_costs, costs_of = _shared(edge_costs.detach().to("cpu", torch.float32), batch)
    source, target = (_renumbered(edges, order, batch) for edges, order in zip(edge_indices, orders, strict=True))
    every = np.arange(num_problems)
    labels = np.empty((num_problems, num_nodes), np.int64)
    arguments = (labels, ordered, shared_costs, costs_of, source, every, target, every)
    num_swaps = round(effort * (NUM_SWAPS + SWAPS_PER_NODE * num_nodes))
    num_starts = NUM_STARTS if effort >= 0.5 else 1
    options = (allow_unmatched, MAX_EXACT_NODES, num_starts, num_swaps, seed)
    num_threads = min(torch.get_num_threads(), num_problems)
    with _compiling:
        search.solve_range(0, 0, *arguments, *options)
    if num_threads == 1:
        search.solve_range(0, num_problems, *arguments, *options)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(lambda problem: search.solve_range(problem, problem + 1, *arguments, *options), every))
    placed = np.take_along_axis(columns, np.minimum(labels, num_nodes - 1), 1)
    placed = np.where(labels < num_nodes, placed, -1)
    result = np.empty_like(labels)
    np.put_along_axis(result, rows, placed, 1)
    return result


def _shared(values: torch.Tensor, batch: torch.Size) -> tuple[np.ndarray, np.ndarray]:
    """`values` flattened to one leading dimension, and for each problem of `batch` which of them it uses."""
    leading = values.shape[:-2]
    which = torch.arange(leading.numel()).reshape(leading).expand(batch).reshape(-1)
    return np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]).numpy()), which.numpy()


def _renumbered(edge_index: torch.Tensor, order: np.ndarray, batch: torch.Size) -> np.ndarray:
    """Edges `(batch, 2, num_edges)` with every node named by its place in `order`."""
    edges = edge_index.to("cpu").expand(*batch, *edge_index.shape[-2:]).reshape(len(order), -1).numpy()
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
    return np.take_along_axis(place, edges, 1).reshape(len(order), 2, -1)
