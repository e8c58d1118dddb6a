"""
The search of `search.py` as batched tensors over problems and starts, for a GPU: a fixed number of steps, no look at
a value from the host.

Costs are integers here too, so that sums do not depend on the order in which threads add. Neighbours' prices are
brought up to date as whole rows of nodes by labels, looked up through tables of the edge between any two nodes: O(N^2)
a swap, as much as the search for the cheapest swap, and no list whose length would have to be known on the host.
"""

import math
from dataclasses import dataclass

import torch

from .search import LARGEST_PRICE, RANDOM_SHARE, TOLERANCE


LARGEST = 2**31 - 1
# The annealed start: temperatures from the spread of the costs down, and normalizations at each.
TEMPERATURES = tuple(math.exp(-0.15 * step) for step in range(25))
NORMALIZATIONS = 8


@dataclass
class Problems:
    """
    Problems in neutral order, one entry a problem.

    Attributes:
        node_costs (`(batch, n, n)`): int32, edges from a node to itself included.
        edge_costs (`(batch, num_source_edges + 1, num_target_edges + 1)`): int32; a last row and column of zeros.
        source_edges, target_edges (`(batch, 2, num_edges)`): Their ends.
        source_edge, target_edge (`(batch, n + 1, n + 1)`): The edge from one node to another; the zero row or column
            where there is none, and at n, which stands for unmatched.
        scale (`(batch,)`): Integer units in one unit of cost.
    """

    node_costs: torch.Tensor
    edge_costs: torch.Tensor
    source_edges: torch.Tensor
    target_edges: torch.Tensor
    source_edge: torch.Tensor
    target_edge: torch.Tensor
    scale: torch.Tensor


def search_matchings(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    lengths: tuple[int, int],
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Labels `(batch, num_nodes)`, -1 where unmatched, on the device of the costs: what `match_graphs` does on a GPU.

    Args:
        node_costs (`torch.Tensor` of shape `(batch, num_nodes, num_nodes)`): Floating point.
        edge_costs (`torch.Tensor` of shape `(batch, num_source_edges, num_target_edges)`): Used as int32, one copy.
        source_edge_index, target_edge_index (`torch.Tensor` of shape `(batch, 2, num_edges)`, int64): The edges.
        allow_unmatched, generator, start: As in `match_graphs`; `generator` on the device of the costs.
        lengths (`tuple[int, int]`): How many starts, and the swaps of each.

    Starts are annealed soft matchings (graduated assignment) from the middle and from points towards random matchings.
    A tabu search over swaps follows, in all starts of all problems at once.

    Source: Gold and Rangarajan 1996, "A graduated assignment algorithm for graph matching"; the search as in
    `search.py`.
    """
    if generator is None:
        generator = torch.Generator(node_costs.device).manual_seed(0)
    batch_size, num_nodes = node_costs.shape[:2]
    rows, columns = neutral_orders(node_costs, generator)
    problems = problems_in_order(rows, columns, node_costs, edge_costs, source_edge_index, target_edge_index)
    num_starts, num_swaps = lengths
    starts = annealed_starts(problems, num_starts, generator)
    if start is not None:
        starts = torch.cat([starts, labels_in_order(start, rows, columns).unsqueeze(1)], 1)
    labels, costs = tabu_search(starts, problems, allow_unmatched, num_swaps, generator)
    best = costs.argmin(1)[:, None, None].expand(-1, 1, num_nodes)
    labels = labels.gather(1, best).squeeze(1)
    placed = torch.cat([columns, columns.new_full((batch_size, 1), -1)], 1).gather(1, labels)
    return torch.empty_like(placed).scatter_(1, rows, placed)


def neutral_orders(node_costs: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Orders `(batch, n)` of source and target nodes that depend on the costs alone, equal nodes at random."""
    costs = node_costs.to(torch.float64)
    costs = costs - costs.mean((1, 2), keepdim=True)
    costs = costs / costs.abs().mean((1, 2), keepdim=True).clamp(min=1e-300)
    weighed = costs * (1 + costs.square())
    orders = []
    for keys in (weighed.sum(2), weighed.sum(1)):
        shuffled = torch.rand(keys.shape[1], generator=generator, device=keys.device).argsort().expand_as(keys)
        keys = (keys * 1e6).round().gather(1, shuffled)
        orders.append(shuffled.gather(1, keys.argsort(dim=1, stable=True)))
    return orders[0], orders[1]


def inverse(order: torch.Tensor) -> torch.Tensor:
    """Where each number stands in the permutations `order` `(batch, n)`."""
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


def labels_in_order(labels, rows, columns):
    """`labels` `(batch, n)` with nodes numbered by their places in `rows` and `columns`, n for unmatched."""
    place_of = torch.cat([inverse(columns), torch.full_like(columns[:, :1], columns.shape[1])], 1)
    labels = labels.gather(1, rows)
    return place_of.gather(1, torch.where(labels < 0, columns.shape[1], labels))


def problems_in_order(rows, columns, node_costs, edge_costs, source_edge_index, target_edge_index) -> Problems:
    """The [`Problems`] with source nodes in the order of `rows` and target nodes in that of `columns`."""
    batch_size, num_nodes = rows.shape
    edge_costs = edge_costs.float()
    costs = node_costs.to(torch.float64).gather(1, rows.unsqueeze(2).expand_as(node_costs))
    costs = costs.gather(2, columns.unsqueeze(1).expand_as(node_costs))
    source, source_edge, source_first = edge_table(source_edge_index, inverse(rows))
    target, target_edge, target_first = edge_table(target_edge_index, inverse(columns))
    degree = torch.zeros(batch_size, num_nodes, device=rows.device)
    degree.scatter_add_(1, source.flatten(1), torch.ones_like(source.flatten(1), dtype=degree.dtype))
    num_parallel = torch.zeros(batch_size, target.shape[2], device=rows.device)
    num_parallel.scatter_add_(1, target_first, torch.ones_like(target_first, dtype=degree.dtype))
    bound = costs.abs().amax((1, 2))
    bound = bound + degree.amax(1) * num_parallel.amax(1) * edge_costs.abs().amax((1, 2))
    scale = LARGEST_PRICE / bound.clamp(min=1e-9)
    units = (edge_costs * scale.to(edge_costs.dtype)[:, None, None]).to(torch.int32)
    # Edges between the same two nodes are one edge, the first of them, at the sum of their costs.
    padded = units.new_zeros(batch_size, source.shape[2] + 1, target.shape[2] + 1)
    joined = torch.zeros_like(units).scatter_add_(1, source_first.unsqueeze(2).expand_as(units), units)
    padded[:, :-1, :-1].scatter_add_(2, target_first.unsqueeze(1).expand_as(units), joined)
    node_units = (costs * scale[:, None, None]).to(torch.int32)
    node_units += loop_costs(padded, source_edge, target_edge)
    return Problems(node_units, padded, source, target, without_loops(source_edge), without_loops(target_edge), scale)


def edge_table(edge_index, place_of):
    """
    The edges `(batch, 2, num_edges)` between places; the first edge from any node to any other, or `num_edges`,
    `(batch, n + 1, n + 1)`; and for each edge the first that is parallel to it.
    """
    batch_size, num_nodes = place_of.shape
    num_edges = edge_index.shape[2]
    edges = place_of.unsqueeze(1).expand(-1, 2, -1).gather(2, edge_index)
    cells = edges[:, 0] * (num_nodes + 1) + edges[:, 1]
    numbers = torch.arange(num_edges, device=edges.device).expand(batch_size, -1)
    table = numbers.new_full((batch_size, (num_nodes + 1) ** 2), num_edges)
    table.scatter_reduce_(1, cells, numbers, "amin")
    return edges, table.reshape(batch_size, num_nodes + 1, num_nodes + 1), table.gather(1, cells)


def loop_costs(edge_costs, source_edge, target_edge):
    """What edges from a node to itself cost, a matter of that node alone: `(batch, n, n)`."""
    source = source_edge.diagonal(dim1=1, dim2=2)[:, :-1, None]
    target = target_edge.diagonal(dim1=1, dim2=2)[:, None, :-1]
    return edge_costs[torch.arange(len(edge_costs), device=edge_costs.device)[:, None, None], source, target]


def without_loops(table):
    """An edge table in which no node has an edge to itself."""
    own = torch.eye(table.shape[1], dtype=torch.bool, device=table.device)
    return table.masked_fill(own, 0) + own * table[:, -1:, -1:]


def annealed_starts(problems: Problems, num_starts: int, generator: torch.Generator) -> torch.Tensor:
    """Matchings `(batch, num_starts, n)` to search from, the first of them from the middle."""
    scale = problems.scale[:, None, None]
    node_costs = (problems.node_costs / scale).float()
    edge_costs = (problems.edge_costs[:, :-1, :-1] / scale).float()
    batch_size, num_nodes = node_costs.shape[:2]
    ends = [
        torch.nn.functional.one_hot(edges[:, side], num_nodes).float()
        for edges in (problems.source_edges, problems.target_edges)
        for side in range(2)
    ]
    edge_costs = edge_costs * (~is_loop(problems.source_edges)[:, :, None] & ~is_loop(problems.target_edges)[:, None])
    starts = []
    for number in range(num_starts):
        point = torch.full_like(node_costs, 1 / num_nodes)
        if number > 0:
            corner = torch.rand(batch_size, num_nodes, generator=generator, device=point.device).argsort(1)
            corner = torch.nn.functional.one_hot(corner, num_nodes)
            point = (1 - RANDOM_SHARE) * point + RANDOM_SHARE * corner
        starts.append(greedy_labels(anneal(point, node_costs, edge_costs, ends)))
    return torch.stack(starts, 1)


def is_loop(edges):
    """Which edges `(batch, num_edges)` go from a node to itself."""
    return edges[:, 0] == edges[:, 1]


def anneal(point, node_costs, edge_costs, ends):
    """
    Doubly stochastic matrices `(batch, n, n)`, all but matchings: each is the softest answer to the prices at the one
    before, at falling temperature. `ends` are 0/1 matrices `(batch, num_edges, n)` of the edges' nodes.
    """
    first_source, second_source, first_target, second_target = ends
    for temperature in TEMPERATURES:
        forward = edge_costs * (first_source @ point @ first_target.transpose(1, 2))
        backward = edge_costs * (second_source @ point @ second_target.transpose(1, 2))
        prices = node_costs + second_source.transpose(1, 2) @ forward @ second_target
        prices = prices + first_source.transpose(1, 2) @ backward @ first_target
        spread = prices.std((1, 2), keepdim=True, correction=0).clamp(min=1e-9)
        logits = -prices / (temperature * spread)
        for _ in range(NORMALIZATIONS):
            logits = logits.log_softmax(2).log_softmax(1)
        point = logits.exp()
    return point


def greedy_labels(point: torch.Tensor) -> torch.Tensor:
    """Labels `(batch, n)`: the largest entry of `point` `(batch, n, n)`, then the largest in what rows are left."""
    batch_size, num_nodes = point.shape[:2]
    labels = torch.zeros(batch_size, num_nodes, dtype=torch.int64, device=point.device)
    left = point.clone()
    for _ in range(num_nodes):
        largest = left.flatten(1).argmax(1, keepdim=True)
        row, column = largest // num_nodes, largest % num_nodes
        labels.scatter_(1, row, column)
        left.scatter_(1, row.unsqueeze(2).expand(-1, 1, num_nodes), -1)
        left.scatter_(2, column.unsqueeze(1).expand(-1, num_nodes, 1), -1)
    return labels


def tabu_search(
    starts: torch.Tensor, problems: Problems, allow_unmatched: bool, num_swaps: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Best labels `(batch, num_starts, n)` from `starts` (n for unmatched), and their costs `(batch, num_starts)` in
    integer units: `num_swaps` swaps from each, chosen as in `search.py`.
    """
    batch_size, num_starts, num_nodes = starts.shape
    problem_of = torch.arange(batch_size, device=starts.device).repeat_interleave(num_starts)
    start = starts.reshape(-1, num_nodes)
    labels = with_spares(start) if allow_unmatched else start
    size = labels.shape[1]
    prices = prices_at(start, problems, problem_of)
    forbidden = torch.zeros(len(labels), size, num_nodes + 1, dtype=torch.int32, device=labels.device)
    forbidden[:, num_nodes:] = LARGEST  # spares are never forbidden: only the other node counts
    cost = total_costs(start, problems, problem_of)
    best, best_cost = start, cost
    last_gain = torch.zeros_like(cost)
    num_shakes = torch.zeros_like(cost)
    tolerance = (TOLERANCE * problems.scale).to(torch.int64)[problem_of]
    tenures = random_integers((num_swaps, len(labels), 1), 2 + min(num_nodes // 2, 16), generator)
    tenures += 2 + min(num_nodes // 4, 8)
    shakes = random_integers((num_swaps, len(labels)), 2 + num_nodes // 8, generator) + 2
    random_swaps = random_integers((num_swaps, len(labels)), num_nodes * size, generator)
    for step in range(num_swaps):
        changes = swap_changes(labels, prices, problems, problem_of)
        wanted = (best_cost - tolerance - cost).clamp(min=-(2**29)).to(torch.int32)
        is_open = open_swaps(labels, forbidden, step) | (changes < wanted[:, None, None])
        cheapest = torch.where(is_open, changes, LARGEST).flatten(1).argmin(1)
        chosen = torch.where(num_shakes > 0, random_swaps[step], cheapest).unsqueeze(1)
        nodes = torch.cat([chosen // size, chosen % size], 1)
        old = labels.gather(1, nodes)
        cost = cost + changes.flatten(1).gather(1, chosen).squeeze(1)
        rows = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        is_node = nodes < num_nodes
        until = (step + tenures[step]).to(torch.int32).expand(-1, 2)
        forbidden[rows, nodes, old] = torch.where(is_node, until, LARGEST)
        labels = labels.scatter(1, nodes, old.flip(1))
        move_prices(prices, nodes, old, problems, problem_of)
        gained = cost < best_cost - tolerance
        best = torch.where(gained.unsqueeze(1), labels[:, :num_nodes], best)
        best_cost = torch.where(gained, cost, best_cost)
        last_gain = torch.where(gained, step, last_gain)
        stuck = (step - last_gain >= 2 * num_nodes) & (num_shakes == 0)
        last_gain = torch.where(stuck, step, last_gain)
        num_shakes = torch.where(stuck, shakes[step], (num_shakes - 1).clamp(min=0))
    return best.reshape(starts.shape), best_cost.reshape(batch_size, num_starts)


def random_integers(shape, end, generator):
    """Integers from 0 to `end` - 1, int64."""
    return torch.randint(end, shape, generator=generator, device=generator.device)


def with_spares(start):
    """Labels `(..., 2 n)` of the nodes and of n spares after them, which hold the free labels, the others n."""
    num_nodes = start.shape[1]
    is_used = torch.zeros(len(start), num_nodes + 1, dtype=torch.int64, device=start.device).scatter_(1, start, 1)
    free = is_used[:, :num_nodes].argsort(dim=1, stable=True)
    num_free = num_nodes - is_used[:, :num_nodes].sum(1, keepdim=True)
    places = torch.arange(num_nodes, device=start.device)
    return torch.cat([start, torch.where(places < num_free, free, num_nodes)], 1)


def prices_at(labels, problems, problem_of):
    """`prices` `(rows, n, n + 1)`, int32: the cost of node i on label j with all others where `labels` has them."""
    num_nodes = labels.shape[1]
    prices = torch.nn.functional.pad(problems.node_costs[problem_of], (0, 1))
    for node in range(num_nodes):
        moved = torch.full((len(labels), 1), node, device=labels.device)
        add_edge_prices(prices, moved, labels[:, node : node + 1], 1, problems, problem_of)
    return prices


def move_prices(prices, nodes, old, problems, problem_of):
    """Bring `prices` up to date after both `nodes` `(rows, 2)` have swapped their `old` labels, in place."""
    for place in range(2):
        moved = nodes[:, place : place + 1]
        add_edge_prices(prices, moved, old[:, place : place + 1], -1, problems, problem_of)
        add_edge_prices(prices, moved, old[:, 1 - place : 2 - place], 1, problems, problem_of)


def add_edge_prices(prices, node, label, sign, problems, problem_of):
    """Add to `prices`, in place, `sign` times what all nodes pay for `node` `(rows, 1)` lying on `label`."""
    num_nodes = prices.shape[1]
    problem = problem_of.unsqueeze(1)
    node = node.clamp(max=num_nodes)  # a spare, which has no edges
    others = torch.arange(num_nodes, device=prices.device)
    edge_costs, rows = problems.edge_costs, problem.unsqueeze(2)
    for source, target in (
        (problems.source_edge[problem, node, others], problems.target_edge[problem, label, others]),
        (problems.source_edge[problem, others, node], problems.target_edge[problem, others, label]),
    ):
        prices[:, :, :num_nodes] += sign * edge_costs[rows, source.unsqueeze(2), target.unsqueeze(1)]


def total_costs(labels, problems, problem_of):
    """Costs `(rows,)` of matchings in integer units, int64."""
    rows = problem_of.unsqueeze(1)
    node_costs = torch.nn.functional.pad(problems.node_costs, (0, 1))[problem_of]
    cost = node_costs.gather(2, labels.unsqueeze(2)).sum((1, 2))
    first, second = (labels.gather(1, problems.source_edges[problem_of, side]) for side in range(2))
    edges = torch.arange(first.shape[1], device=labels.device).expand_as(first)
    first_is_loop = is_loop(problems.source_edges)[problem_of]
    edge_costs = problems.edge_costs[rows, edges, problems.target_edge[rows, first, second]]
    return cost + torch.where(first_is_loop, 0, edge_costs).sum(1)


def swap_changes(labels, prices, problems, problem_of):
    """The change of cost `(rows, n, size)`, int32, by each swap of a node with a node or spare."""
    num_nodes = prices.shape[1]
    size = labels.shape[1]
    current = prices.gather(2, labels[:, :num_nodes].unsqueeze(2)).squeeze(2)
    changes = prices.gather(2, labels.unsqueeze(1).expand(-1, num_nodes, -1)) - current.unsqueeze(2)
    between_nodes = changes[:, :, :num_nodes]
    changes[:, :, :num_nodes] = between_nodes + between_nodes.transpose(1, 2)
    # Neither price has the edges between the two nodes right.
    rows = problem_of.unsqueeze(1)
    ends = problems.source_edges[problem_of]
    first, second = labels.gather(1, ends[:, 0]), labels.gather(1, ends[:, 1])
    edges = torch.arange(first.shape[1], device=labels.device).expand_as(first)
    both = problems.edge_costs[rows, edges, problems.target_edge[rows, first, second]]
    both = both + problems.edge_costs[rows, edges, problems.target_edge[rows, second, first]]
    both = torch.where(ends[:, 0] == ends[:, 1], 0, both)
    flat = changes.view(len(labels), -1)
    flat.scatter_add_(1, ends[:, 0] * size + ends[:, 1], both)
    flat.scatter_add_(1, ends[:, 1] * size + ends[:, 0], both)
    return changes


def open_swaps(labels, forbidden, step):
    """Which swaps `(rows, n, size)` are not forbidden: one that moves nothing is, or that brings both back."""
    num_nodes = forbidden.shape[2] - 1
    of_node = forbidden[:, :num_nodes].gather(2, labels.unsqueeze(1).expand(-1, num_nodes, -1)) > step
    of_other = forbidden.gather(2, labels[:, None, :num_nodes].expand(-1, forbidden.shape[1], -1)).transpose(1, 2)
    moves = labels[:, :num_nodes].unsqueeze(2) != labels.unsqueeze(1)
    return moves & ~(of_node & (of_other > step))
