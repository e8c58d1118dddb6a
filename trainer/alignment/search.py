"""
The compiled search behind `match_graphs`: linear assignment, Frank-Wolfe starts, and a tabu search over swaps.

Everything here works on NumPy arrays, holds no GIL, and is deterministic for a seed. A matching is a vector of labels:
`labels[i]` is the target node of source node i, and `num_nodes` (one past the last) stands for "unmatched". The nodes
of a problem are first put in an order that depends on its costs alone, so that their numbering cannot favour any
answer.

The search keeps, for every node and label, the cost of putting it there given all others (`prices`), and for every
pair of nodes what they would cost with their labels swapped (`swap_costs`). A swap is then priced in O(1) and applied
in O(degree^2 + N). Unmatched nodes need no moves of their own: a spare node without edges holds each free label, and
leaving, entering and changing places are swaps with a spare.

Costs are integers there, in units of the largest possible price over 2^28: sums are exact in any order, so nothing
drifts, and the compiler turns the search for the cheapest swap into vector instructions, which it does not for
floats.

Loops are spelled out where NumPy would have an expression: it is as fast, and compiles in a third of the time. It is
all one file because numba tells by a function's own file whether what it kept on disk is out of date.
"""

import numba
import numpy as np


BIDDING_ROUNDS = 3
FRANK_WOLFE_STEPS = 12
# How much of a random matching goes into the point where a descent begins that is to end elsewhere.
RANDOM_SHARE = 0.3
LARGEST = np.int32(2**31 - 1)
# A price stays below this many units, so that the change by a swap, at most four prices, fits an int32.
LARGEST_PRICE = 2.0**28
# What counts as a gain, in units of the costs.
TOLERANCE = 1e-6


def compiled(function):
    """`numba.njit` without the GIL, kept on disk where a cache folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder it may write its cache to
        return numba.njit(nogil=True)(function)


@compiled
def solve(
    task,
    tasks,
    labels,
    costs,
    node_costs,
    edge_costs,
    edge_costs_of,
    source_edges,
    source_edges_of,
    target_edges,
    target_edges_of,
    warm_starts,
    allow_unmatched,
    max_exact_nodes,
    num_starts,
    num_swaps,
    seed,
):
    """
    Fill in `labels[task]` and `costs[task]`: the best that searches `tasks[task, 1]` up to `tasks[task, 2]` find for
    problem `tasks[task, 0]`. `*_of` say which shared array a problem uses. Search number `num_starts`, where asked
    for, begins at `warm_starts`.
    """
    b = tasks[task, 0]
    n = node_costs.shape[1]
    rows, columns = neutral_order(node_costs[b], seed)
    problem, uniform = problem_in_order(
        rows,
        columns,
        node_costs[b],
        edge_costs[edge_costs_of[b]],
        source_edges[source_edges_of[b]],
        target_edges[target_edges_of[b]],
    )
    best = np.full(n, n)
    best_cost = np.inf
    if n <= max_exact_nodes:
        best = exhaustive_search(problem, allow_unmatched)
    else:
        for start in range(tasks[task, 1], tasks[task, 2]):
            random = random_state(seed, start)
            if start == num_starts:
                begin = labels_in_order(warm_starts[b], rows, columns)
            else:
                begin = frank_wolfe_start(start > 0, problem, uniform, random)
            found, cost, _ = tabu_search(begin, problem, allow_unmatched, num_swaps, random)
            if cost < best_cost:
                best = found
                best_cost = cost
    costs[task] = best_cost
    for place in range(n):
        labels[task, rows[place]] = columns[best[place]] if best[place] < n else -1


@compiled
def assign(b, labels, node_costs, allow_unmatched, seed):
    """Fill in `labels[b]`: exact for problem `b` of `node_costs`, which has no edges."""
    n = node_costs.shape[1]
    rows, columns = neutral_order(node_costs[b], seed)
    costs = costs_in_order(node_costs[b], rows, columns)
    if allow_unmatched:
        for i in range(n):
            for j in range(n):
                costs[i, j] = min(costs[i, j], 0.0)
    found = linear_assignment(costs, np.zeros(n))
    for place in range(n):
        # A pair that costs more than leaving both out was priced 0: leave it out.
        left_out = allow_unmatched and node_costs[b, rows[place], columns[found[place]]] > 0
        labels[b, rows[place]] = -1 if left_out else columns[found[place]]


@compiled
def problem_in_order(rows, columns, node_costs, edge_costs, source_edges, target_edges):
    """
    The problem with its nodes in the order of `rows` and `columns`, and its uniform edge prices.

    A problem is a tuple: node costs; edge costs, their edges in the order given; both graphs (see `graph_of`); for
    each two target nodes an edge from one to the other, or -1; for each target edge another one parallel to it, or -1;
    and the integer units in one unit of cost.
    """
    n = rows.shape[0]
    source_edges = renumbered(source_edges, rows)
    target_edges = renumbered(target_edges, columns)
    costs = costs_in_order(node_costs, rows, columns)
    for a in range(edge_costs.shape[0]):
        if source_edges[0, a] == source_edges[1, a]:  # an edge from a node to itself is a matter of that node alone
            for b in range(edge_costs.shape[1]):
                if target_edges[0, b] == target_edges[1, b]:
                    costs[source_edges[0, a], target_edges[0, b]] += edge_costs[a, b]
    source = graph_of(n, source_edges[0], source_edges[1])
    target = graph_of(n, target_edges[0], target_edges[1])
    edge_between = np.full((n, n), -1, np.int32)
    parallel = np.empty(target_edges.shape[1], np.int32)
    num_parallel = np.ones(target_edges.shape[1], np.int64)
    most_parallel = 1
    for b in range(target_edges.shape[1]):
        j, m = target_edges[0, b], target_edges[1, b]
        parallel[b] = edge_between[j, m]
        edge_between[j, m] = b
        if parallel[b] >= 0:
            num_parallel[b] += num_parallel[parallel[b]]
            most_parallel = max(most_parallel, num_parallel[b])
    scale = integer_scale(costs, edge_costs, source, most_parallel)
    uniform = uniform_edge_prices(edge_costs, source_edges, target_edges, n)
    return (costs, edge_costs, source, target, edge_between, parallel, scale), uniform


@compiled
def integer_scale(node_costs, edge_costs, source, most_parallel):
    """Integer units in one unit of cost, so that no node's price reaches `LARGEST_PRICE`."""
    n = node_costs.shape[0]
    node_bound = 0.0
    for i in range(n):
        for j in range(n):
            node_bound = max(node_bound, abs(node_costs[i, j]))
    edge_bound = np.float32(0.0)
    for a in range(edge_costs.shape[0]):
        for b in range(edge_costs.shape[1]):
            edge_bound = max(edge_bound, abs(edge_costs[a, b]))
    degree = 0
    for i in range(n):
        degree = max(degree, (source[2 * i + 2] - source[2 * i]) // 2)
    return np.float32(LARGEST_PRICE / max(node_bound + degree * most_parallel * edge_bound, 1e-9))


@compiled
def frank_wolfe_start(is_shaken, problem, uniform, random):
    """
    Labels of a Frank-Wolfe descent from the middle, or (`is_shaken`) of one step from a point towards a random
    matching: a whole descent there costs as much as the search after it and ends little lower.
    """
    n = uniform.shape[0]
    point = np.full((n, n), 1.0 / n)
    edge_prices = uniform.copy()
    node_costs, edge_costs, source, target = problem[:4]
    if is_shaken:
        mix_in(point, edge_prices, random_labels(n, random), RANDOM_SHARE, edge_costs, source, target)
    num_steps = 1 if is_shaken else FRANK_WOLFE_STEPS
    return frank_wolfe(point, edge_prices, num_steps, node_costs, edge_costs, source, target)


@compiled
def total_cost(labels, problem):
    """The cost of a matching, counted in full."""
    node_costs, edge_costs, source, _, edge_between, parallel, _ = problem
    n = labels.shape[0]
    cost = 0.0
    for i in range(n):
        if labels[i] < n:
            cost += node_costs[i, labels[i]]
            for x in range(source[2 * i], source[2 * i + 1], 2):
                q = labels[source[x]]
                if q < n:
                    cost += edges_cost(source[x + 1], labels[i], q, edge_costs, edge_between, parallel)
    return cost


@compiled
def edges_cost(edge, first, second, edge_costs, edge_between, parallel):
    """What source edge `edge` pays for all target edges from `first` to `second`."""
    cost = np.float32(0.0)
    b = edge_between[first, second]
    while b >= 0:
        cost += edge_costs[edge, b]
        b = parallel[b]
    return cost


@compiled
def tabu_search(start, problem, allow_unmatched, num_swaps, random):
    """
    Best labels, their cost, counted in full, and their cost less that of `start` as summed up over the swaps, in
    integer units: after `num_swaps` swaps from `start`, each the cheapest that is not forbidden.

    A swap is forbidden if it would bring both nodes back to labels they left a random number of swaps ago, unless that
    gives a new best. After 4 N swaps without a new best a few random ones follow.
    """
    node_costs, edge_costs, source, target, edge_between, parallel, scale = problem
    n = start.shape[0]
    size = 2 * n if allow_unmatched else n
    labels, owner, num_active = with_spares(start, size)
    prices = np.zeros((n, n + 1), np.int32)
    current = np.zeros(size, np.int32)
    swap_costs = np.zeros((size, size), np.int32)
    swap_forbidden = np.zeros((size, size), np.int32)
    label_forbidden = np.zeros((size, n + 1), np.int32)
    for i in range(n):
        for j in range(n):
            prices[i, j] = np.int32(scale * node_costs[i, j])
    for i in range(n):
        if labels[i] < n:
            shift_prices(i, labels[i], scale, owner, prices, swap_costs, edge_costs, source, target)
    for i in range(n):
        current[i] = prices[i, labels[i]]
    for i in range(num_active):
        fill_swaps(i, num_active, labels, prices, label_forbidden, swap_costs, swap_forbidden)
        add_edges_between(i, labels, swap_costs, scale, edge_costs, source, edge_between, parallel)
    tolerance = np.int64(TOLERANCE * scale)
    cost = np.int64(0)  # relative to the start
    best_cost = np.int64(0)
    best = start.copy()
    last_gain = 0
    num_shakes = 0
    for step in range(1, num_swaps + 1):
        if num_shakes > 0:
            num_shakes -= 1
            i, k = next_random(random) % n, next_random(random) % num_active
            if i == k or labels[i] == labels[k]:
                continue
            i, k = min(i, k), max(i, k)
        else:
            wanted = np.int32(max(best_cost - tolerance - cost, -(2**29)))
            i, k = cheapest_swap(swap_costs, current, swap_forbidden, n, num_active, np.int32(step), wanted)
            if i < 0:
                continue
        cost += swap_costs[i, k] - current[i] - current[k]
        p, q = labels[i], labels[k]
        forbidden_until = step + 2 + min(n // 2, 8) + next_random(random) % (2 + min(n // 2, 16))
        label_forbidden[i, p] = forbidden_until
        label_forbidden[k, q] = forbidden_until
        labels[i], labels[k] = q, p
        owner[q], owner[p] = i, k
        for label, factor in ((p, -scale), (q, scale)):
            if label < n:
                shift_prices(i, label, factor, owner, prices, swap_costs, edge_costs, source, target)
                if k < n:
                    shift_prices(k, label, -factor, owner, prices, swap_costs, edge_costs, source, target)
        for m in range(n):
            current[m] = prices[m, labels[m]]
        if n <= k == num_active - 1 and num_active < size:
            num_active += 1  # that spare was the last one free: bring up another
            fill_swaps(num_active - 1, num_active, labels, prices, label_forbidden, swap_costs, swap_forbidden)
        for node in (i, k):
            fill_swaps(node, num_active, labels, prices, label_forbidden, swap_costs, swap_forbidden)
            add_edges_between(node, labels, swap_costs, scale, edge_costs, source, edge_between, parallel)
        if cost < best_cost - tolerance:
            best_cost = cost
            for m in range(n):
                best[m] = labels[m]
            last_gain = step
        elif step - last_gain >= 4 * n:
            last_gain = step
            num_shakes = 2 + next_random(random) % (2 + n // 8)
    start_cost = total_cost(start, problem)
    found_cost = total_cost(best, problem)
    if start_cost < found_cost:  # by what rounding to integers hides
        return start.copy(), start_cost, np.int64(0)
    return best, found_cost, best_cost


@compiled
def with_spares(start, size):
    """
    Labels (size,) of the nodes and of the spares after them, the node or spare that holds each label, and how many are
    active: all nodes, a spare for each free label, and one more.
    """
    n = start.shape[0]
    labels = np.full(size, n)
    owner = np.full(n + 1, -1)
    for i in range(n):
        labels[i] = start[i]
        owner[start[i]] = i
    num_active = n
    if size > n:
        for j in range(n):
            if owner[j] < 0:
                owner[j] = num_active
                labels[num_active] = j
                num_active += 1
    return labels, owner, min(num_active + 1, size)


@compiled
def cheapest_swap(swap_costs, current, swap_forbidden, num_nodes, num_active, step, wanted):
    """The two nodes of the cheapest swap that is not forbidden in `step` or changes the cost by less than `wanted`."""
    best = LARGEST
    best_i = -1
    for i in range(num_nodes):
        own_wanted = np.int32(wanted + current[i])
        lowest = LARGEST
        # Most of the time is spent here. Unsigned and without a branch, it becomes vector instructions.
        row = np.uint64(i)
        for k in range(np.uint64(i + 1), np.uint64(num_active)):
            change = np.int32(swap_costs[row, k] - current[k])
            change = change if (swap_forbidden[row, k] <= step) | (change < own_wanted) else LARGEST
            lowest = min(lowest, change)
        if lowest != LARGEST and np.int32(lowest - current[i]) < best:
            best = np.int32(lowest - current[i])
            best_i = i
    if best_i >= 0:
        for k in range(best_i + 1, num_active):
            change = swap_costs[best_i, k] - current[best_i] - current[k]
            if change == best and (swap_forbidden[best_i, k] <= step or change < wanted):
                return best_i, k
    return -1, -1


@compiled
def shift_prices(node, label, factor, owner, prices, swap_costs, edge_costs, source, target):
    """Add to prices and swap costs `factor` times what the neighbours of `node` pay for it lying on `label`."""
    for side in range(2):
        for x in range(source[2 * node + side], source[2 * node + side + 1], 2):
            neighbour = source[x]
            for y in range(target[2 * label + side], target[2 * label + side + 1], 2):
                place = target[y]
                change = np.int32(factor * edge_costs[source[x + 1], target[y + 1]])
                prices[neighbour, place] += change
                holder = owner[place]
                swap_costs[min(neighbour, holder), max(neighbour, holder)] += change


@compiled
def fill_swaps(node, num_active, labels, prices, label_forbidden, swap_costs, swap_forbidden):
    """All swaps of `node` anew: the sum of both new prices, and until when it is forbidden. Spares pay nothing."""
    n = prices.shape[0]
    p = labels[node]
    for k in range(num_active):
        q = labels[k]
        cost = np.int32(0)
        forbidden = LARGEST
        if node < n:
            cost += prices[node, q]
            forbidden = label_forbidden[node, q]
        if k < n:
            cost += prices[k, p]
            forbidden = min(forbidden, label_forbidden[k, p])
        first, second = min(node, k), max(node, k)
        swap_costs[first, second] = cost
        swap_forbidden[first, second] = LARGEST if p == q else forbidden


@compiled
def add_edges_between(node, labels, swap_costs, scale, edge_costs, source, edge_between, parallel):
    """Correct the swaps of `node` with its neighbours for the edges between the two, which neither price has right."""
    n = edge_between.shape[0]
    if node >= n or labels[node] == n:
        return
    p = labels[node]
    for x in range(source[2 * node], source[2 * node + 2], 2):
        k = source[x]
        q = labels[k]
        if q < n:
            for first, second in ((p, q), (q, p)):
                b = edge_between[first, second]
                while b >= 0:
                    swap_costs[min(node, k), max(node, k)] += np.int32(scale * edge_costs[source[x + 1], b])
                    b = parallel[b]


@compiled
def exhaustive_search(problem, allow_unmatched):
    """Labels of the cheapest of all matchings, one node after the other. For a handful of nodes."""
    n = problem[0].shape[0]
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
        taken[label] = label < n
        cost_before[depth + 1] = cost_before[depth] + cost_of_adding(depth, labels, problem)
        depth += 1
        if depth < n:
            labels[depth] = -1
    return best


@compiled
def cost_of_adding(node, labels, problem):
    """What `node` on its label adds to the cost of the nodes before it."""
    node_costs, edge_costs, source, _, edge_between, parallel, _ = problem
    n = labels.shape[0]
    if labels[node] == n:
        return 0.0
    cost = node_costs[node, labels[node]]
    for side in range(2):
        for x in range(source[2 * node + side], source[2 * node + side + 1], 2):
            k = source[x]
            if k < node and labels[k] < n:
                first, second = (labels[node], labels[k]) if side == 0 else (labels[k], labels[node])
                cost += edges_cost(source[x + 1], first, second, edge_costs, edge_between, parallel)
    return cost


@compiled
def random_state(seed, stream):
    """State (1,) uint64 of a random stream of its own for each `seed` and `stream`."""
    state = np.empty(1, np.uint64)
    state[0] = np.uint64(seed) * np.uint64(2654435769) + np.uint64(stream + 2) * np.uint64(88172645463325252)
    for _ in range(4):
        next_random(state)
    return state


@compiled
def next_random(state):
    """A 31-bit random integer; `state` moves on (xorshift64*)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return np.int64((x * np.uint64(2685821657736338717)) >> np.uint64(33))


@compiled
def random_labels(n, random):
    """A random one-to-one matching."""
    labels = np.arange(n)
    for i in range(n - 1, 0, -1):
        k = next_random(random) % (i + 1)
        labels[i], labels[k] = labels[k], labels[i]
    return labels


@compiled
def neutral_order(costs, seed):
    """
    Orders (n,) of the source and of the target nodes that depend on the costs alone, equal nodes at random. They keep
    ties from falling to the identity, which is the true matching in training.
    """
    n = costs.shape[0]
    mean = 0.0
    for i in range(n):
        for j in range(n):
            mean += costs[i, j] / (n * n)
    spread = 1e-300
    for i in range(n):
        for j in range(n):
            spread += abs(costs[i, j] - mean) / (n * n)
    row_keys = np.zeros(n)
    column_keys = np.zeros(n)
    for i in range(n):
        for j in range(n):
            x = (costs[i, j] - mean) / spread
            row_keys[i] += x * (1 + x * x)
            column_keys[j] += x * (1 + x * x)
    random = random_state(seed, -1)
    return order_by(row_keys, random), order_by(column_keys, random)


@compiled
def order_by(keys, random):
    """Indices that sort `keys`, those that differ by rounding only in random order."""
    order = random_labels(keys.shape[0], random)
    for place in range(1, order.shape[0]):
        node = order[place]
        while place > 0 and round(keys[order[place - 1]] * 1e6) > round(keys[node] * 1e6):
            order[place] = order[place - 1]
            place -= 1
        order[place] = node
    return order


@compiled
def costs_in_order(costs, rows, columns):
    """A copy of `costs` with source node `rows[i]` as i and target node `columns[j]` as j."""
    n = rows.shape[0]
    ordered = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            ordered[i, j] = costs[rows[i], columns[j]]
    return ordered


@compiled
def labels_in_order(labels, rows, columns):
    """`labels` (-1 for unmatched) with source node `rows[i]` as i and target node `columns[j]` as j."""
    n = rows.shape[0]
    place_of = np.full(n + 1, n)
    for j in range(n):
        place_of[columns[j]] = j
    ordered = np.empty(n, np.int64)
    for i in range(n):
        label = labels[rows[i]]
        ordered[i] = place_of[label] if label >= 0 else n
    return ordered


@compiled
def renumbered(edges, order):
    """`edges` (2, num_edges) with every node named by its place in `order`."""
    place_of = np.empty(order.shape[0], np.int64)
    for place in range(order.shape[0]):
        place_of[order[place]] = place
    moved = np.empty(edges.shape, np.int64)
    for side in range(2):
        for a in range(edges.shape[1]):
            moved[side, a] = place_of[edges[side, a]]
    return moved


@compiled
def linear_assignment(costs, column_prices):
    """
    Labels (n,) of the cheapest one-to-one assignment of `costs` (n, n), exact.

    Rows bid for columns as long as that is quick; shortest augmenting paths place the rest. `column_prices` (n,) are
    the dual to begin with, zeros if nothing is known, and hold the dual of the answer afterwards.

    Source: Jonker and Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment
    problems": augmenting row reduction and augmentation.
    """
    n = costs.shape[0]
    row_of = np.full(n, -1, np.int64)
    column_of = np.full(n, -1, np.int64)
    waiting = np.arange(n)
    num_waiting = n
    for _ in range(BIDDING_ROUNDS):
        num_waiting = bid(costs, column_prices, row_of, column_of, waiting, num_waiting)
    for place in range(num_waiting):
        augment(waiting[place], costs, column_prices, row_of, column_of)
    return column_of


@compiled
def bid(costs, column_prices, row_of, column_of, waiting, num_waiting):
    """Each waiting row takes its cheapest column, at the price that makes the next as good. Returns how many wait."""
    n = costs.shape[0]
    num_displaced = 0
    for place in range(num_waiting):
        row = waiting[place]
        least, second = np.inf, np.inf
        column, next_column = -1, -1
        for j in range(n):
            reduced = costs[row, j] - column_prices[j]
            if reduced < least:
                second, next_column = least, column
                least, column = reduced, j
            elif reduced < second:
                second, next_column = reduced, j
        if least < second < np.inf:
            column_prices[column] -= second - least
        elif row_of[column] >= 0 and next_column >= 0:
            column = next_column
        holder = row_of[column]
        row_of[column] = row
        column_of[row] = column
        if holder >= 0:
            column_of[holder] = -1
            waiting[num_displaced] = holder
            num_displaced += 1
    return num_displaced


@compiled
def augment(row, costs, column_prices, row_of, column_of):
    """Place `row` by the cheapest chain of changes that ends at a free column, and bring the dual up to date."""
    n = costs.shape[0]
    distance = np.empty(n)
    previous = np.full(n, row)
    unseen = np.arange(n)
    num_unseen = n
    for j in range(n):
        distance[j] = costs[row, j] - column_prices[j]
    while True:
        nearest = 0
        for x in range(1, num_unseen):
            if distance[unseen[x]] < distance[unseen[nearest]]:
                nearest = x
        column = unseen[nearest]
        num_unseen -= 1
        unseen[nearest] = unseen[num_unseen]
        unseen[num_unseen] = column
        if row_of[column] < 0:
            break
        i = row_of[column]
        base = distance[column] - (costs[i, column] - column_prices[column])
        for x in range(num_unseen):
            j = unseen[x]
            through = base + (costs[i, j] - column_prices[j])
            if through < distance[j]:
                distance[j] = through
                previous[j] = i
    for x in range(num_unseen + 1, n):
        column_prices[unseen[x]] += distance[unseen[x]] - distance[column]
    i = -1
    while i != row:
        i = previous[column]
        row_of[column] = i
        column, column_of[i] = column_of[i], column


@compiled
def graph_of(num_nodes, first, second):
    """
    The edges of every node, in one array. Entries 2 i, 2 i + 1 and 2 i + 2 say where in the array the edges with node
    i as the first node begin, where those with it as the second, and where these end. Each edge takes two places: the
    node at its other end, and its number. Edges from a node to itself are left out.
    """
    starts = np.zeros(2 * num_nodes + 1, np.int64)
    starts[0] = 2 * num_nodes + 1
    for a in range(first.shape[0]):
        if first[a] != second[a]:
            starts[2 * first[a] + 1] += 2
            starts[2 * second[a] + 2] += 2
    for place in range(2 * num_nodes):
        starts[place + 1] += starts[place]
    graph = np.empty(starts[2 * num_nodes], np.int64)
    for place in range(2 * num_nodes + 1):
        graph[place] = starts[place]
    for a in range(first.shape[0]):
        if first[a] != second[a]:
            for side in range(2):
                node, other = (first[a], second[a]) if side == 0 else (second[a], first[a])
                graph[starts[2 * node + side]] = other
                graph[starts[2 * node + side] + 1] = a
                starts[2 * node + side] += 2
    return graph


@compiled
def add_edge_prices(prices, node, label, weight, edge_costs, source, target):
    """Add to `prices` (n, n) `weight` times what the neighbours of `node` pay for it lying on `label`."""
    for side in range(2):
        for x in range(source[2 * node + side], source[2 * node + side + 1], 2):
            for y in range(target[2 * label + side], target[2 * label + side + 1], 2):
                prices[source[x], target[y]] += weight * edge_costs[source[x + 1], target[y + 1]]


@compiled
def uniform_edge_prices(edge_costs, source_edges, target_edges, num_nodes):
    """Edge prices (n, n) of the matrix with 1 / n everywhere: every node on every label in equal shares."""
    prices = np.zeros((num_nodes, num_nodes))
    for a in range(edge_costs.shape[0]):
        i, k = source_edges[0, a], source_edges[1, a]
        if i != k:
            for b in range(edge_costs.shape[1]):
                j, m = target_edges[0, b], target_edges[1, b]
                if j != m:
                    share = edge_costs[a, b] / num_nodes
                    prices[i, j] += share
                    prices[k, m] += share
    return prices


@compiled
def mix_in(point, edge_prices, labels, share, edge_costs, source, target):
    """Move `point` and its `edge_prices`, both (n, n), by `share` of the way to the matching `labels`, in place."""
    n = point.shape[0]
    for i in range(n):
        for j in range(n):
            point[i, j] *= 1 - share
            edge_prices[i, j] *= 1 - share
    for i in range(n):
        point[i, labels[i]] += share
        add_edge_prices(edge_prices, i, labels[i], share, edge_costs, source, target)


@compiled
def frank_wolfe(point, edge_prices, num_steps, node_costs, edge_costs, source, target):
    """
    Labels from a descent in the doubly stochastic matrices, from `point` with its `edge_prices`, both changed.

    Each step goes towards the best vertex by the linear model, at the exact step length of the quadratic. Since a
    vertex is a matching, its edge prices cost O(E degree), not O(E^2).
    """
    n = node_costs.shape[0]
    column_prices = np.zeros(n)
    slopes = np.empty((n, n))
    for _ in range(num_steps):
        for i in range(n):
            for j in range(n):
                slopes[i, j] = node_costs[i, j] + edge_prices[i, j]
        labels = linear_assignment(slopes, column_prices)
        vertex_prices = np.zeros((n, n))
        for i in range(n):
            add_edge_prices(vertex_prices, i, labels[i], 1.0, edge_costs, source, target)
        slope = 0.0
        curvature = 0.0
        for i in range(n):
            slope += slopes[i, labels[i]]
            curvature += vertex_prices[i, labels[i]] - edge_prices[i, labels[i]]
            for j in range(n):
                slope -= point[i, j] * slopes[i, j]
                curvature -= point[i, j] * (vertex_prices[i, j] - edge_prices[i, j])
        if slope > -1e-6:
            break
        length = 1.0 if curvature <= 0 else min(1.0, -slope / curvature)
        for i in range(n):
            for j in range(n):
                point[i, j] *= 1 - length
                edge_prices[i, j] += length * (vertex_prices[i, j] - edge_prices[i, j])
            point[i, labels[i]] += length
    for i in range(n):
        for j in range(n):
            slopes[i, j] = -point[i, j]
    return linear_assignment(slopes, np.zeros(n))
