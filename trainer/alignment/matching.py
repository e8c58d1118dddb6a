"""Match the nodes of two graphs one to one at the least cost: the solver, and the cost of a matching."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


# Up to this many nodes every matching is tried: 720 of them, or 13,327 with unmatched nodes.
MAX_EXACT_NODES = 6
# At effort 1: searches from different starts, and the swaps of each per node (measured: README.md here).
NUM_STARTS, SWAPS_PER_NODE = 2, 12
# Smaller problems are searched for as long as one of so many nodes.
MIN_SEARCH_NODES = 20

_pool = None


def match_graphs(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    effort: float = 1.0,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Match the nodes of two graphs one to one, at the lowest total cost found.

    A matching costs the `node_costs` of its pairs plus the `edge_costs` of every pair of edges it lays onto each other
    (quadratic assignment). Exact without edges and for up to 6 nodes; above that a search over swaps from a
    Frank-Wolfe solution and from shaken ones. Deterministic for a seed. How the nodes are numbered plays no part: they
    are first sorted by their costs, ties at random, so no start is the identity other than by what the costs say.
    Carries no gradient (see `differentiable_matching`).

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
            Length of the search, relative to the default: in time, about. At 1 it starts twice, below 0.57 once.
        start (`torch.Tensor` of shape `(*batch, num_nodes)`, *optional*):
            Matchings from which one more search begins, as this function returns them. What is found costs no more.

    Leading dimensions broadcast: problems that share edges or edge costs need no copies of them. All problems of a
    call are solved together, on as many threads as `torch.get_num_threads()` says. Several Python threads may call
    this at once, and so may processes forked from one that has. Float32 edge costs on the CPU are used in place.

    Costs on a GPU are copied to the CPU, and the matchings back: the search is compiled for CPUs.

    Returns:
        `torch.Tensor` of shape `(*batch, num_nodes)`, int64: the target node of each source node, -1 where unmatched,
        on the device of `node_costs`.

    Raises:
        ValueError: If `node_costs` is not square, `edge_costs` does not fit the edges, or a cost is not finite;
            if `start` is no matching.

    Source: objective of Lawler 1963, "The Quadratic Assignment Problem"; Frank-Wolfe starts as in Vogelstein et al.
    2015, "Fast Approximate Quadratic Programming for Graph Matching"; the rule for forbidden swaps after Taillard
    1991, "Robust taboo search for the quadratic assignment problem". The bookkeeping of sparse prices is ours.

    Example:
        >>> edges = torch.zeros(2, 0, dtype=torch.int64)  # no edges: plain linear assignment
        >>> match_graphs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(0, 0), edges, edges)
        tensor([1, 0])
    """
    problem = [values.detach().to("cpu") for values in (node_costs, edge_costs, source_edge_index, target_edge_index)]
    device, num_nodes = node_costs.device, node_costs.shape[-1]
    _check_problem(*problem)
    batch = torch.broadcast_shapes(
        node_costs.shape[:-2], edge_costs.shape[:-2], source_edge_index.shape[:-2], target_edge_index.shape[:-2]
    )
    if start is not None:
        _check_start(start, num_nodes, allow_unmatched)
    if num_nodes == 0 or batch.numel() == 0:
        labels = torch.empty(batch.numel(), num_nodes, dtype=torch.int64)
    else:
        seed = 0
        if generator is not None:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        if edge_costs.numel() > 0:
            labels = _search(*problem, start, batch, allow_unmatched, seed, effort)
        else:
            labels = _assign(_flat(problem[0].to(torch.float64), batch, 2), allow_unmatched, seed)
    return labels.reshape(*batch, num_nodes).to(device)


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
        # A row holds one edge, or a few parallel ones: its sum needs no float64, which would double all of E x E.
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
    source_code, target_code = _edge_codes(labels, source_edge_index, target_edge_index)
    return source_code.unsqueeze(-1) == target_code.unsqueeze(-2)


def add_matched_edges(
    values: torch.Tensor,
    labels: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    weight: torch.Tensor,
) -> None:
    """
    Add `weight` `(*batch, 1, 1)` to `values` `(*batch, num_source_edges, num_target_edges)`, in place, wherever
    `labels` lays source edge a onto target edge b: `values += weight * matched_edges(...)`, at a fraction of the time
    where no two target edges are parallel.
    """
    source_code, target_code = _edge_codes(labels, source_edge_index, target_edge_index)
    sorted_code = target_code.sort(-1).values
    if values.shape[-1] == 0 or (sorted_code[..., 1:] == sorted_code[..., :-1]).any():
        values += weight * matched_edges(labels, source_edge_index, target_edge_index)
        return
    num_codes = labels.shape[-1] ** 2
    edges = torch.arange(target_code.shape[-1], device=labels.device).expand_as(target_code)
    # The table has one more code, which no target edge has and -1 is turned into.
    edge_of_code = torch.full((*target_code.shape[:-1], num_codes + 1), -1, device=labels.device)
    edge_of_code.scatter_(-1, target_code, edges)
    partner = edge_of_code.gather(-1, source_code % (num_codes + 1))
    amount = (weight.squeeze(-1) * (partner >= 0)).to(values.dtype)
    values.scatter_add_(-1, partner.clamp(min=0).unsqueeze(-1), amount.unsqueeze(-1))


def _edge_codes(labels, source_edge_index, target_edge_index):
    """
    Numbers `(*batch, num_edges)` of where `labels` lays each source edge, -1 if nowhere, and of where each target edge
    lies: equal where one is laid onto the other.
    """
    num_nodes = labels.shape[-1]
    batch = torch.broadcast_shapes(labels.shape[:-1], source_edge_index.shape[:-2], target_edge_index.shape[:-2])
    labels = labels.expand(*batch, num_nodes)
    source = source_edge_index.expand(*batch, *source_edge_index.shape[-2:])
    target = target_edge_index.expand(*batch, *target_edge_index.shape[-2:])
    first, second = labels.gather(-1, source[..., 0, :]), labels.gather(-1, source[..., 1, :])
    source_code = torch.where((first >= 0) & (second >= 0), first * num_nodes + second, -1)
    return source_code, target[..., 0, :] * num_nodes + target[..., 1, :]


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
    _check_values(node_costs, edge_costs, {"source": source_edge_index, "target": target_edge_index})


def _check_values(node_costs, edge_costs, edges):
    """The part of `_check_problem` that looks at values: on a GPU one wait, if nothing is wrong."""
    num_nodes = node_costs.shape[-1]
    # A sum is several times sooner than a look at every value; finite values whose sum is not get that look.
    doubts = [~costs.detach().sum().isfinite() for costs in (node_costs, edge_costs) if costs.numel()]
    doubts += [(values.min() < 0) | (values.max() >= num_nodes) for values in edges.values() if values.numel()]
    if not doubts or not torch.stack(doubts).any():
        return
    for name, values in edges.items():
        if values.numel() and (values.min() < 0 or values.max() >= num_nodes):
            raise ValueError(f"`{name}_edge_index` must name nodes 0 to {num_nodes - 1}.")
    for name, costs in (("node_costs", node_costs), ("edge_costs", edge_costs)):
        if not torch.isfinite(costs).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")


def _check_start(start, num_nodes, allow_unmatched):
    if start.shape[-1:] != (num_nodes,) or start.is_floating_point():
        raise ValueError(
            f"`start` must be int64 labels that end in ({num_nodes},), got {start.dtype} {tuple(start.shape)}."
        )
    labels = start.sort(-1).values
    repeated = (labels[..., 1:] == labels[..., :-1]) & (labels[..., 1:] >= 0)
    unknown = (labels >= num_nodes) | (labels < (-1 if allow_unmatched else 0))
    if repeated.any() | unknown.any():
        unmatched = " or -1" if allow_unmatched else " (-1 needs `allow_unmatched`)"
        raise ValueError(f"`start` must name every target node 0 to {num_nodes - 1} at most once{unmatched}.")


def _assign(node_costs, allow_unmatched, seed):
    """Exact labels `(batch, num_nodes)` of problems without edges."""
    from . import search  # compiles, so only when it is needed

    costs = node_costs.numpy()
    labels = np.empty(costs.shape[:2], np.int64)
    _run(lambda problem: search.assign(problem, labels, costs, allow_unmatched, seed), len(costs))
    return torch.from_numpy(labels)


def _search(node_costs, edge_costs, source_edge_index, target_edge_index, start, batch, allow_unmatched, seed, effort):
    """Labels `(batch, num_nodes)` of problems with edges, by the compiled search."""
    from . import search

    costs = _flat(node_costs.to(torch.float64), batch, 2).numpy()
    num_problems, num_nodes = costs.shape[:2]
    num_starts, num_swaps = _search_lengths(effort, num_nodes)
    num_searches = num_starts + (start is not None)
    # Fewer problems than threads: the searches of a problem are shared out as well.
    num_parts = min(num_searches, -(-torch.get_num_threads() // num_problems))
    bounds = [part * num_searches // num_parts for part in range(num_parts + 1)]
    tasks = np.array([(b, *bounds[part : part + 2]) for b in range(num_problems) for part in range(num_parts)])
    labels = np.empty((len(tasks), num_nodes), np.int64)
    found_costs = np.empty(len(tasks))
    if start is None:
        start = torch.empty(0, num_nodes, dtype=torch.int64)
    else:
        start = _flat(start.to("cpu", torch.int64), batch, 1)
    arguments = (
        *(tasks, labels, found_costs, costs),
        *_shared(edge_costs.to(torch.float32), batch),
        *_shared(source_edge_index.to(torch.int64), batch),
        *_shared(target_edge_index.to(torch.int64), batch),
        *(start.numpy(), allow_unmatched, MAX_EXACT_NODES, num_starts, num_swaps, seed),
    )
    _run(lambda task: search.solve(task, *arguments), len(tasks))
    best = found_costs.reshape(num_problems, num_parts).argmin(1)
    return torch.from_numpy(labels.reshape(num_problems, num_parts, num_nodes)[np.arange(num_problems), best])


def _search_lengths(effort, num_nodes):
    """How many starts a search of this effort has, and the swaps of each: both grow as the root of it."""
    num_starts = max(1, round(NUM_STARTS * math.sqrt(effort)))
    full_swaps = SWAPS_PER_NODE * max(num_nodes, MIN_SEARCH_NODES)
    return num_starts, math.ceil(effort * NUM_STARTS / num_starts * full_swaps)


def _run(function, num_tasks):
    """Call `function` with 0 to `num_tasks` - 1: in this thread, and in others that are kept for the purpose."""
    global _pool
    tasks = iter(range(num_tasks))

    def work():
        for task in tasks:  # shared: each thread takes the next
            function(task)

    num_helpers = min(torch.get_num_threads(), num_tasks) - 1
    if num_helpers > 0 and _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="match_graphs")
    helpers = [_pool.submit(work) for _ in range(num_helpers)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun finds nothing left to do
            helper.result()


def _forget_pool():
    global _pool
    _pool = None


# A forked process has none of its parent's threads: waiting for them would never end.
os.register_at_fork(after_in_child=_forget_pool)


def _flat(values: torch.Tensor, batch: torch.Size, num_own: int) -> torch.Tensor:
    """`values` for each problem of `batch`, with one leading dimension."""
    own = values.shape[-num_own:]
    return values.expand(*batch, *own).reshape(-1, *own).contiguous()


def _shared(values: torch.Tensor, batch: torch.Size) -> tuple[np.ndarray, np.ndarray]:
    """`values` flattened to one leading dimension, and for each problem of `batch` which of them it uses."""
    leading = values.shape[:-2]
    which = torch.arange(leading.numel()).reshape(leading).expand(batch).reshape(-1).contiguous()
    return values.reshape(-1, *values.shape[-2:]).contiguous().numpy(), which.numpy()
