"""
The search in `match_graphs` for one problem with edges: Frank-Wolfe from several starts, then swaps while they help.

A matching is a vector of labels: `labels[i]` is the target node of source node i, and `num_nodes` (one past the last)
means "unmatched". All starts of a problem are searched at once, one row each. Everything is float32 on the CPU.
"""

from functools import cache
from itertools import permutations

import torch
from scipy.optimize import linear_sum_assignment


# Up to this many nodes every matching is tried: 120 of them, or 1,546 with unmatched nodes.
MAX_EXACT_NODES = 5
FRANK_WOLFE_STEPS = 12
# Smallest gain that counts, relative to the largest cost: smaller ones are rounding.
TOLERANCE = 1e-5
# Limit for a search that would not end by itself; about two swaps per node are usual.
MAX_SWAPS_PER_NODE = 20


def search_matching(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edges: torch.Tensor,
    target_edges: torch.Tensor,
    *,
    allow_unmatched: bool,
    num_starts: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The best labels found, `(num_nodes,)`. Arguments as in `match_graphs`, for one problem."""
    problem = _Problem(node_costs, edge_costs, source_edges, target_edges)
    num_nodes = len(node_costs)
    if num_nodes <= MAX_EXACT_NODES:
        labels = _all_matchings(num_nodes, allow_unmatched)
    else:
        labels = problem.frank_wolfe(num_starts, generator)
        if allow_unmatched:
            # Spare labels, which cost nothing, make unmatching and rematching a node swaps too.
            labels = torch.nn.functional.pad(labels, (0, num_nodes), value=num_nodes)
        labels = problem.swap(labels)[:, :num_nodes]
    return labels[problem.total_costs(labels).argmin()]


@cache
def _all_matchings(num_nodes, allow_unmatched):
    choices = [*range(num_nodes), *[num_nodes] * num_nodes * allow_unmatched]
    return torch.tensor(sorted(set(permutations(choices, num_nodes))))


def cheapest_assignment(costs: torch.Tensor) -> torch.Tensor:
    """The cheapest matchings `(*batch, num_nodes)` by node costs only, `(*batch, num_nodes, num_nodes)`."""
    problems = costs.reshape(-1, *costs.shape[-2:]).numpy()
    labels = [torch.from_numpy(linear_sum_assignment(problem)[1]) for problem in problems]
    return torch.stack(labels).reshape(costs.shape[:-1])


class _Problem:
    """The costs of a problem as tables, in which "unmatched" costs 0."""

    def __init__(self, node_costs, edge_costs, source_edges, target_edges):
        self.num_nodes = num_nodes = len(node_costs)
        self.first, self.second = source_edges
        size = num_nodes + 1
        # (num_source_edges, size, size): cost of an edge with its first node on label j and its second on label m.
        table = torch.zeros(len(self.first), size * size)
        table.index_add_(1, target_edges[0] * size + target_edges[1], edge_costs.float())
        self.edge_table = table.view(-1, size, size)
        self.node_table = torch.nn.functional.pad(node_costs.float(), (0, 1))
        # A self-loop costs its node only, and can only be laid onto a self-loop.
        loops = self.first == self.second
        on_loops = self.edge_table.diagonal(dim1=1, dim2=2)
        self.node_table.index_add_(0, self.first[loops], on_loops[loops])
        self.edge_table[loops] = 0
        on_loops.zero_()
        self.turned_table = self.edge_table.mT.contiguous()
        self.edges = torch.arange(len(self.first))
        self.tolerance = TOLERANCE * max(edge_costs.abs().max().item(), node_costs.abs().max().item())

    def frank_wolfe(self, num_starts, generator):
        """
        Descends in the doubly stochastic matrices, with the exact step length of the quadratic; returns labels. The
        first start is the center, the last a random matching, and the others lie between the two.
        """
        node_costs = self.node_table[:, :-1]
        random = torch.rand(num_starts, self.num_nodes, generator=generator).argsort(-1)
        share = torch.linspace(0, 1, num_starts).view(-1, 1, 1)
        point = share * torch.nn.functional.one_hot(random, self.num_nodes) + (1 - share) / self.num_nodes
        edge_prices = self._soft_prices(point)
        for _ in range(FRANK_WOLFE_STEPS):
            slopes = node_costs + edge_prices
            vertex = torch.nn.functional.one_hot(cheapest_assignment(slopes), self.num_nodes).float()
            move, change = vertex - point, self._soft_prices(vertex) - edge_prices
            slope, curvature = (move * slopes).sum((1, 2)), (move * change).sum((1, 2))
            length = torch.where(curvature <= 0, 1.0, (-slope / curvature).clamp(0, 1))
            length = torch.where(slope < -self.tolerance, length, 0).view(-1, 1, 1)
            point += length * move
            edge_prices += length * change
        return cheapest_assignment(-point)

    def _soft_prices(self, point):
        """Edge cost of each node on each label, `(num_starts, n, n)`, if nodes are spread over labels by `point`."""
        table = self.edge_table[:, :-1, :-1]
        prices = torch.zeros_like(point)
        prices.index_add_(1, self.first, torch.einsum("ejm,sem->sej", table, point[:, self.second]))
        return prices.index_add_(1, self.second, torch.einsum("ejm,sej->sem", table, point[:, self.first]))

    def swap(self, labels):
        """Swaps in `labels` `(num_starts, num_nodes or, with spares, twice that)`, best first, until none helps."""
        labels = labels.clone()
        left = torch.arange(len(labels))
        for _ in range(MAX_SWAPS_PER_NODE * self.num_nodes):
            gain, place = self._swap_costs(labels[left]).flatten(1).min(1)
            left, place = left[gain < -self.tolerance], place[gain < -self.tolerance]
            if len(left) == 0:
                break
            node, other = place // labels.shape[1], place % labels.shape[1]
            labels[left, node], labels[left, other] = labels[left, other], labels[left, node]
        return labels

    def _swap_costs(self, labels):
        """Added cost of swapping a node with another, or with a spare: `(num_starts, num_nodes, num_labels)`."""
        n = self.num_nodes
        own = labels[:, :n]
        on_first, on_second = own[:, self.first], own[:, self.second]
        # The cost of each node on each label, with all others unchanged.
        prices = self.node_table.expand(len(labels), -1, -1).clone()
        prices.index_add_(1, self.first, self.turned_table[self.edges, on_second])
        prices.index_add_(1, self.second, self.edge_table[self.edges, on_first])
        changes = prices.gather(2, labels.unsqueeze(1).expand(-1, n, -1)) - prices.gather(2, own.unsqueeze(2))
        changes[:, :, :n] += changes[:, :, :n].mT.clone()
        # Both prices are wrong for edges between the two.
        between = self.edge_table[self.edges, on_first, on_second] + self.edge_table[self.edges, on_second, on_first]
        for node, other in ((self.first, self.second), (self.second, self.first)):
            changes.view(len(labels), -1).index_add_(1, node * labels.shape[1] + other, between)
        return changes

    def total_costs(self, labels):
        """The cost of each matching `(num_starts, num_nodes)`."""
        of_nodes = self.node_table[torch.arange(self.num_nodes), labels]
        of_edges = self.edge_table[self.edges, labels[:, self.first], labels[:, self.second]]
        return of_nodes.sum(1, dtype=torch.float64) + of_edges.sum(1, dtype=torch.float64)
