"""
The compiled search behind `match_graphs`: linear assignment, Frank-Wolfe starts and a tabu search over swaps.

Everything here works on NumPy arrays, holds no GIL, and is deterministic for a seed. A matching is a vector of labels:
`labels[i]` is the target node of source node i, and `num_nodes` (one past the last) stands for "unmatched". The nodes
arrive in an order that `matching.py` chose from the costs alone, so that their numbering cannot favour any answer.

The search keeps, for every node and label, the cost of putting it there given all others (`prices`), and for every
pair of nodes what they would cost with their labels swapped (`swap_costs`). A swap is then priced in O(1) and applied
in O(degree^2 + N). Unmatched nodes need no moves of their own: a spare node without edges holds each free label, and
leaving, entering and changing places are swaps with a spare.

Loops are spelled out where NumPy would have an expression: it is as fast, and compiles in a third of the time.
"""

import numba
import numpy as np


def compiled(function):
    """`numba.njit` without the GIL, kept on disk where a cache folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder it may write its cache to
        return numba.njit(nogil=True)(function)


@compiled
def linear_assignment(costs):
    """Labels (n,) of the cheapest one-to-one assignment of `costs` (n, n): shortest augmenting paths, O(n^3)."""
    n = costs.shape[0]
    row_potential = np.zeros(n)
    column_potential = np.zeros(n + 1)
    row_of = np.full(n + 1, -1, np.int64)
    previous = np.empty(n, np.int64)
    distance = np.empty(n)
    done = np.empty(n + 1, np.bool_)
    for row in range(n):
        row_of[n] = row
        column = n
        distance[:] = np.inf
        done[:] = False
        while row_of[column] >= 0:
            done[column] = True
            i = row_of[column]
            base = row_potential[i]
            shortest = np.inf
            following = -1
            for j in range(n):
                if not done[j]:
                    reduced = costs[i, j] - base - column_potential[j]
                    if reduced < distance[j]:
                        distance[j] = reduced
                        previous[j] = column
                    if distance[j] < shortest:
                        shortest = distance[j]
                        following = j
            for j in range(n):
                if done[j]:
                    row_potential[row_of[j]] += shortest
                    column_potential[j] -= shortest
                else:
                    distance[j] -= shortest
            row_potential[row] += shortest
            column = following
        while column != n:
            before = previous[column]
            row_of[column] = row_of[before]
            column = before
    labels = np.empty(n, np.int64)
    for j in range(n):
        labels[row_of[j]] = j
    return labels


@compiled
def incident_edges(num_nodes, first, second):
    """
    The edges of every node, as `(starts, other, edge, forward)`: node i has entries `starts[i]` to `starts[i + 1]`,
    each the node at the other end, the edge, and whether i is the edge's first node. Ordered by the other node;
    edges from a node to itself are left out.
    """
    starts = np.zeros(num_nodes + 1, np.int64)
    for a in range(first.shape[0]):
        if first[a] != second[a]:
            starts[first[a] + 1] += 1
            starts[second[a] + 1] += 1
    for i in range(num_nodes):
        starts[i + 1] += starts[i]
    filled = starts[:-1].copy()
    other = np.empty(starts[num_nodes], np.int64)
    edge = np.empty(starts[num_nodes], np.int64)
    forward = np.empty(starts[num_nodes], np.bool_)
    for a in range(first.shape[0]):
        if first[a] == second[a]:
            continue
        for side in range(2):
            node = first[a] if side == 0 else second[a]
            end = second[a] if side == 0 else first[a]
            place = filled[node]
            while place > starts[node] and other[place - 1] > end:
                other[place] = other[place - 1]
                edge[place] = edge[place - 1]
                forward[place] = forward[place - 1]
                place -= 1
            other[place] = end
            edge[place] = a
            forward[place] = side == 0
            filled[node] += 1
    return starts, other, edge, forward


@compiled
def pair_cost(i, k, p, q, edge_costs, source, target):
    """Cost of the edges between source nodes i and k when these lie on labels p and q."""
    source_starts, source_other, source_edge, source_forward = source
    target_starts, target_other, target_edge, target_forward = target
    cost = 0.0
    for x in range(source_starts[i], source_starts[i + 1]):
        if source_other[x] == k:
            for y in range(target_starts[p], target_starts[p + 1]):
                if target_other[y] == q and source_forward[x] == target_forward[y]:
                    cost += edge_costs[source_edge[x], target_edge[y]]
    return cost


@compiled
def shift_prices(prices, node, label, sign, edge_costs, source, target):
    """Add to (or take from) `prices` what the neighbours of `node` pay for it lying on `label`."""
    source_starts, source_other, source_edge, source_forward = source
    target_starts, target_other, target_edge, target_forward = target
    for x in range(source_starts[node], source_starts[node + 1]):
        neighbour = source_other[x]
        a = source_edge[x]
        for y in range(target_starts[label], target_starts[label + 1]):
            if source_forward[x] == target_forward[y]:
                prices[neighbour, target_other[y]] += sign * edge_costs[a, target_edge[y]]


@compiled
def prices_of(labels, node_costs, edge_costs, source, target):
    """`prices` (n, n + 1): cost of node i on label j with all others where `labels` has them; 0 for unmatched."""
    n = node_costs.shape[0]
    prices = np.zeros((n, n + 1))
    for i in range(n):
        for j in range(n):
            prices[i, j] = node_costs[i, j]
    for i in range(n):
        if labels[i] < n:
            shift_prices(prices, i, labels[i], 1.0, edge_costs, source, target)
    return prices


@compiled
def total_cost(labels, node_costs, prices):
    """The cost of a matching from its own prices, which hold every edge cost twice."""
    cost = 0.0
    for i in range(labels.shape[0]):
        if labels[i] < labels.shape[0]:
            cost += 0.5 * (node_costs[i, labels[i]] + prices[i, labels[i]])
    return cost


@compiled
def uniform_edge_prices(edge_costs, first_source, second_source, first_target, second_target, num_nodes):
    """What `prices` would add for the edges if every node lay on every label in equal shares."""
    prices = np.zeros((num_nodes, num_nodes))
    for a in range(edge_costs.shape[0]):
        i, k = first_source[a], second_source[a]
        if i != k:
            for b in range(edge_costs.shape[1]):
                j, m = first_target[b], second_target[b]
                if j != m:
                    share = edge_costs[a, b] / num_nodes
                    prices[i, j] += share
                    prices[k, m] += share
    return prices


@compiled
def mix(point, edge_prices, labels, vertex_prices, node_costs, share):
    """Move `point` and its `edge_prices` by `share` of the way to the matching `labels`, in place."""
    for i in range(point.shape[0]):
        for j in range(point.shape[0]):
            point[i, j] *= 1 - share
            edge_prices[i, j] += share * (vertex_prices[i, j] - node_costs[i, j] - edge_prices[i, j])
        point[i, labels[i]] += share


@compiled
def frank_wolfe(edge_prices, point, node_costs, edge_costs, source, target, num_iterations):
    """
    Labels from a descent in the doubly stochastic matrices, starting at `point`, whose `edge_prices` are given.

    Each step goes towards the best vertex by the linear model, at the exact step length of the quadratic. Since a
    vertex is a matching, its edge prices cost O(E degree), not O(E^2).
    """
    n = node_costs.shape[0]
    slopes = np.empty((n, n))
    for _ in range(num_iterations):
        for i in range(n):
            for j in range(n):
                slopes[i, j] = node_costs[i, j] + edge_prices[i, j]
        labels = linear_assignment(slopes)
        vertex_prices = prices_of(labels, node_costs, edge_costs, source, target)
        slope = 0.0
        curvature = 0.0
        for i in range(n):
            for j in range(n):
                step = -point[i, j]
                if labels[i] == j:
                    step += 1.0
                slope += step * slopes[i, j]
                curvature += 0.5 * step * (vertex_prices[i, j] - slopes[i, j])
        if slope > -1e-9:
            break
        length = 1.0
        if curvature > 0:
            length = min(1.0, -slope / (2 * curvature))
        mix(point, edge_prices, labels, vertex_prices, node_costs, length)
    for i in range(n):
        for j in range(n):
            slopes[i, j] = -point[i, j]
    return linear_assignment(slopes)


@compiled
def next_random(state):
    """A 31-bit random integer; `state` (1,) uint64 moves on (xorshift64*)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return np.int64((x * np.uint64(2685821657736338717)) >> np.uint64(33))


@compiled
def random_labels(n, state):
    """A random one-to-one matching."""
    labels = np.arange(n)
    for i in range(n - 1, 0, -1):
        k = next_random(state) % (i + 1)
        labels[i], labels[k] = labels[k], labels[i]
    return labels


@compiled
def fill_swap_costs(swap_costs, node, labels, num_active, prices, edge_costs, source, target):
    """Row and column `node` of `swap_costs`: the two new prices, and twice the cost of the edges between the two."""
    n = prices.shape[0]
    p = labels[node]
    for k in range(num_active):
        new_price = 0.0
        if node < n:
            new_price += prices[node, labels[k]]
        if k < n:
            new_price += prices[k, p]
        swap_costs[node, k] = new_price
        swap_costs[k, node] = new_price
    if node < n and p < n:
        source_starts, source_other = source[0], source[1]
        before = -1
        for x in range(source_starts[node], source_starts[node + 1]):
            k = source_other[x]
            if k != before and labels[k] < n:
                both = pair_cost(node, k, p, labels[k], edge_costs, source, target)
                both += pair_cost(node, k, labels[k], p, edge_costs, source, target)
                swap_costs[node, k] += both
                swap_costs[k, node] += both
            before = k


@compiled
def move_node(node, old, new, owner, current, prices, swap_costs, edge_costs, source, target):
    """Carry `node`'s change of label into the prices, swap costs and current costs of its neighbours."""
    n = prices.shape[0]
    source_starts, source_other, source_edge, source_forward = source
    target_starts, target_other, target_edge, target_forward = target
    for turn in range(2):
        label = old if turn == 0 else new
        sign = -1.0 if turn == 0 else 1.0
        if label == n:
            continue
        for x in range(source_starts[node], source_starts[node + 1]):
            neighbour = source_other[x]
            a = source_edge[x]
            for y in range(target_starts[label], target_starts[label + 1]):
                if source_forward[x] == target_forward[y]:
                    place = target_other[y]
                    change = sign * edge_costs[a, target_edge[y]]
                    prices[neighbour, place] += change
                    holder = owner[place]
                    if holder == neighbour:
                        current[neighbour] += change
                    else:
                        swap_costs[neighbour, holder] += change
                        swap_costs[holder, neighbour] += change


@compiled
def tabu_search(start, node_costs, edge_costs, source, target, allow_unmatched, num_steps, patience, state):
    """
    Best labels and their cost, from `start`, after `num_steps` swaps, each the cheapest that is not forbidden.

    A node may not return to a label it left for a random number of steps, unless that gives a new best. After
    `patience` steps without a new best the search goes on from the best, shaken by a few random swaps.
    """
    n = node_costs.shape[0]
    size = 2 * n if allow_unmatched else n
    labels = np.empty(size, np.int64)
    for i in range(size):
        labels[i] = start[i] if i < n else n
    prices = prices_of(start, node_costs, edge_costs, source, target)
    owner = np.empty(n, np.int64)
    current = np.zeros(size)
    swap_costs = np.zeros((size, size))
    forbidden = np.zeros((size, n + 1), np.int64)
    num_active = n + 1 if allow_unmatched else n
    for i in range(n):
        owner[labels[i]] = i
        current[i] = prices[i, labels[i]]
    for i in range(num_active):
        fill_swap_costs(swap_costs, i, labels, num_active, prices, edge_costs, source, target)
    cost = total_cost(start, node_costs, prices)
    best_cost = cost
    best = np.empty(n, np.int64)
    for i in range(n):
        best[i] = labels[i]
    last_gain = 0
    num_shakes = 0
    for step in range(1, num_steps + 1):
        chosen_i = -1
        chosen_k = -1
        if num_shakes > 0:
            num_shakes -= 1
            chosen_i = next_random(state) % n
            chosen_k = next_random(state) % num_active
            if chosen_i == chosen_k or labels[chosen_i] == labels[chosen_k]:
                continue
            change = swap_costs[chosen_i, chosen_k] - current[chosen_i] - current[chosen_k]
        else:
            change = np.inf
            for i in range(n):
                bound = change + current[i]
                for k in range(i + 1, num_active):
                    candidate = swap_costs[i, k] - current[k]
                    if candidate < bound:
                        p, q = labels[i], labels[k]
                        if p == q:
                            continue
                        is_forbidden = forbidden[i, q] > step and (k >= n or forbidden[k, p] > step)
                        if is_forbidden and cost + candidate - current[i] > best_cost - 1e-9:
                            continue
                        bound = candidate
                        chosen_i = i
                        chosen_k = k
                change = bound - current[i]
            if chosen_i < 0:
                continue
        p, q = labels[chosen_i], labels[chosen_k]
        tenure = 2 + n // 8 + next_random(state) % (2 + n // 4)
        forbidden[chosen_i, p] = step + tenure
        forbidden[chosen_k, q] = step + tenure
        labels[chosen_i] = q
        labels[chosen_k] = p
        if q < n:
            owner[q] = chosen_i
        if p < n:
            owner[p] = chosen_k
        cost += change
        move_node(chosen_i, p, q, owner, current, prices, swap_costs, edge_costs, source, target)
        if chosen_k < n:
            move_node(chosen_k, q, p, owner, current, prices, swap_costs, edge_costs, source, target)
        elif q == n and num_active < size:
            num_active += 1  # that spare was the last one free: bring up another
            fill_swap_costs(swap_costs, num_active - 1, labels, num_active, prices, edge_costs, source, target)
        current[chosen_i] = prices[chosen_i, q]
        current[chosen_k] = prices[chosen_k, p] if chosen_k < n else 0.0
        fill_swap_costs(swap_costs, chosen_i, labels, num_active, prices, edge_costs, source, target)
        fill_swap_costs(swap_costs, chosen_k, labels, num_active, prices, edge_costs, source, target)
        if cost < best_cost - 1e-9:
            best_cost = cost
            for i in range(n):
                best[i] = labels[i]
            last_gain = step
        elif step - last_gain >= patience:
            last_gain = step
            num_shakes = 2 + next_random(state) % (2 + n // 8)
    return best, best_cost


@compiled
def exhaustive_search(node_costs, edge_costs, source, target, allow_unmatched):
    """Labels of the cheapest of all matchings, one node after the other. For a handful of nodes."""
    n = node_costs.shape[0]
    labels = np.empty(n, np.int64)
    labels[0] = -1
    taken = np.zeros(n + 1, np.bool_)
    cost_before = np.zeros(n + 1)
    best = np.arange(n)
    best_cost = np.inf
    depth = 0
    num_labels = n + 1 if allow_unmatched else n
    while depth >= 0:
        if depth == n:
            if cost_before[n] < best_cost:
                best_cost = cost_before[n]
                for i in range(n):
                    best[i] = labels[i]
            depth -= 1
            continue
        if labels[depth] >= 0:
            taken[labels[depth]] = False
        label = labels[depth] + 1
        while label < num_labels and taken[label]:
            label += 1
        if label >= num_labels:
            labels[depth] = -1
            depth -= 1
            continue
        labels[depth] = label
        cost = cost_before[depth]
        if label < n:
            taken[label] = True
            cost += node_costs[depth, label]
            for k in range(depth):
                if labels[k] < n:
                    cost += pair_cost(depth, k, label, labels[k], edge_costs, source, target)
        cost_before[depth + 1] = cost
        depth += 1
        if depth < n:
            labels[depth] = -1
    return best


@compiled
def solve_one(
    node_costs, edge_costs, source_edges, target_edges, allow_unmatched, max_exact, num_starts, num_swaps, seed
):
    """
    Labels of one problem; `num_nodes` stands for unmatched. See `match_graphs` for what is searched. What edges from a
    node to itself cost is added to `node_costs` in place.
    """
    n = node_costs.shape[0]
    for a in range(edge_costs.shape[0]):
        if source_edges[0, a] == source_edges[1, a]:
            for b in range(edge_costs.shape[1]):
                if target_edges[0, b] == target_edges[1, b]:
                    node_costs[source_edges[0, a], target_edges[0, b]] += edge_costs[a, b]
    source = incident_edges(n, source_edges[0], source_edges[1])
    target = incident_edges(n, target_edges[0], target_edges[1])
    if n <= max_exact:
        return exhaustive_search(node_costs, edge_costs, source, target, allow_unmatched)
    state = np.empty(1, np.uint64)
    state[0] = np.uint64(seed) * np.uint64(2654435769) + np.uint64(88172645463325252)
    best = np.arange(n)
    best_cost = np.inf
    uniform = uniform_edge_prices(edge_costs, source_edges[0], source_edges[1], target_edges[0], target_edges[1], n)
    for start in range(num_starts):
        if start == 1:
            labels = linear_assignment(node_costs)
        else:
            point = np.empty((n, n))
            edge_prices = np.empty((n, n))
            for i in range(n):
                for j in range(n):
                    point[i, j] = 1.0 / n
                    edge_prices[i, j] = uniform[i, j]
            if start > 1:
                corner = random_labels(n, state)
                corner_prices = prices_of(corner, node_costs, edge_costs, source, target)
                mix(point, edge_prices, corner, corner_prices, node_costs, 0.3)
            labels = frank_wolfe(edge_prices, point, node_costs, edge_costs, source, target, 20)
        labels, cost = tabu_search(
            labels, node_costs, edge_costs, source, target, allow_unmatched, num_swaps, 2 * n, state
        )
        if cost < best_cost - 1e-9:
            best_cost = cost
            best = labels
    return best


@compiled
def solve_range(
    start,
    stop,
    labels,
    node_costs,
    edge_costs,
    edge_costs_of,
    source_edges,
    source_edges_of,
    target_edges,
    target_edges_of,
    allow_unmatched,
    max_exact,
    num_starts,
    num_swaps,
    seed,
):
    """Solve problems `start` to `stop` of a batch into `labels`; `*_of` say which shared array a problem uses."""
    for b in range(start, stop):
        found = solve_one(
            node_costs[b],
            edge_costs[edge_costs_of[b]],
            source_edges[source_edges_of[b]],
            target_edges[target_edges_of[b]],
            allow_unmatched,
            max_exact,
            num_starts,
            num_swaps,
            seed,
        )
        for i in range(labels.shape[1]):
            labels[b, i] = found[i]
