import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from logramed.trainer.alignment import match_graphs, matching_cost, search
from logramed.trainer.alignment.search import compiled, linear_assignment, uniform_edge_prices
from tests.trainer.alignment.test_matching import NO_EDGES, random_problem


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 40, 150])
@pytest.mark.parametrize("is_integer", [False, True])
def test_linear_assignment_equals_scipys(num_nodes, is_integer):
    costs = np.random.default_rng(0).normal(size=(num_nodes, num_nodes))
    costs = np.round(2 * costs) if is_integer else costs  # many ties
    labels = linear_assignment(costs, np.zeros(num_nodes))
    assert sorted(labels) == list(range(num_nodes))
    assert costs[np.arange(num_nodes), labels].sum() == pytest.approx(costs[linear_sum_assignment(costs)].sum())


def test_linear_assignment_stays_exact_from_any_dual():
    random = np.random.default_rng(0)
    column_prices = np.zeros(30)
    for _ in range(10):
        costs = random.normal(size=(30, 30))
        labels = linear_assignment(costs, column_prices)
        assert costs[np.arange(30), labels].sum() == pytest.approx(costs[linear_sum_assignment(costs)].sum())
        # The dual it leaves behind proves it: no pair costs less than its row's and column's price.
        row_prices = (costs - column_prices).min(1)
        assert row_prices.sum() + column_prices.sum() == pytest.approx(costs[np.arange(30), labels].sum())


@pytest.mark.parametrize(("num_problems", "num_nodes"), [(48, 24), (3, 200)])
def test_problems_without_edges_equal_scipys_one_by_one(num_problems, num_nodes):
    costs = torch.randn(num_problems, num_nodes, num_nodes, generator=torch.Generator().manual_seed(0))
    labels = match_graphs(costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES)
    found = matching_cost(labels, costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES)
    expected = [problem[linear_sum_assignment(problem)].sum() for problem in costs.double().numpy()]
    np.testing.assert_allclose(found.numpy(), expected)


def test_uniform_edge_prices_are_the_mean_over_all_matchings_of_one_node():
    _, edge_costs, source, target = random_problem(4, 6)
    prices = uniform_edge_prices(edge_costs.numpy(), source.numpy(), target.numpy(), 4)
    expected = np.zeros((4, 4))
    for a, (i, k) in enumerate(source.T.tolist()):
        for b, (j, m) in enumerate(target.T.tolist()):
            expected[i, j] += edge_costs[a, b] / 4
            expected[k, m] += edge_costs[a, b] / 4
    np.testing.assert_allclose(prices, expected, atol=1e-6)


def ordered_problem(num_nodes, num_edges, seed=0):
    """A random problem, and the search's form of it with the nodes as they are."""
    problem = random_problem(num_nodes, num_edges, seed)
    node_costs, edge_costs, source, target = (values.numpy() for values in problem)
    order = np.arange(num_nodes)
    return problem, search.problem_in_order(order, order, node_costs.astype(np.float64), edge_costs, source, target)[0]


@pytest.mark.parametrize("allow_unmatched", [False, True])
def test_the_cost_carried_through_the_swaps_equals_a_full_count(allow_unmatched):
    problem, ordered = ordered_problem(15, 60)
    start = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    for num_swaps in (1, 3, 10, 100, 1000):
        labels, cost, carried = search.tabu_search(
            start.numpy(), ordered, allow_unmatched, num_swaps, search.random_state(5, 0)
        )
        labels = torch.from_numpy(labels)
        expected = matching_cost(torch.where(labels == 15, -1, labels), *problem).item()
        assert cost == pytest.approx(expected, abs=1e-5)
        change = expected - matching_cost(start, *problem).item()
        assert carried / ordered[-1] == pytest.approx(change, abs=1e-4)


def test_prices_and_swap_costs_kept_up_to_date_equal_new_ones_exactly():
    problem, (node_costs, edge_costs, source, target, edge_between, parallel, scale) = ordered_problem(12, 50)
    labels = np.arange(12)

    def new_state():
        owner = np.append(np.argsort(labels), -1)
        prices = np.zeros((12, 13), np.int32)
        prices[:, :12] = scale * node_costs
        swap_costs = np.zeros((12, 12), np.int32)
        for i in range(12):
            search.shift_prices(i, labels[i], scale, owner, prices, swap_costs, edge_costs, source, target)
        fill(range(12), prices, swap_costs)
        return owner, prices, swap_costs

    def fill(nodes, prices, swap_costs):
        never = np.zeros((12, 13), np.int32)
        for i in nodes:
            search.fill_swaps(i, 12, labels, prices, never, swap_costs, np.zeros_like(swap_costs))
            search.add_edges_between(i, labels, swap_costs, scale, edge_costs, source, edge_between, parallel)

    owner, prices, swap_costs = new_state()
    random = np.random.default_rng(0)
    for _ in range(30):
        i, k = random.choice(12, 2, replace=False)
        p, q = labels[i], labels[k]
        before = matching_cost(torch.from_numpy(labels), *problem).item()
        change = swap_costs[min(i, k), max(i, k)] - prices[i, p] - prices[k, q]
        labels[i], labels[k], owner[p], owner[q] = q, p, k, i
        assert change / scale == pytest.approx(
            matching_cost(torch.from_numpy(labels), *problem).item() - before, abs=1e-5
        )
        for node, label, factor in ((i, p, -scale), (k, p, scale), (i, q, scale), (k, q, -scale)):
            search.shift_prices(node, label, factor, owner, prices, swap_costs, edge_costs, source, target)
        fill((i, k), prices, swap_costs)
    _, new_prices, new_swap_costs = new_state()
    assert np.array_equal(prices, new_prices)
    upper = np.triu_indices(12, 1)
    assert np.array_equal(swap_costs[upper], new_swap_costs[upper])


def test_a_function_without_a_place_for_its_cache_is_compiled_all_the_same():
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)  # of no file, so numba finds no cache folder beside it
    assert compiled(namespace["double"])(21) == 42


def matched_on_threads(problem, num_threads, **options):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        return match_graphs(*problem, **options)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("num_problems", [1, 5])
@pytest.mark.parametrize("is_flat", [False, True])
def test_the_number_of_threads_changes_no_matching(num_problems, is_flat):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(16, (2, 40), generator=generator)
    shapes = ((num_problems, 16, 16), (num_problems, 40, 40))
    costs = [torch.zeros(shape) if is_flat else torch.randn(shape, generator=generator) for shape in shapes]
    start = torch.randperm(16, generator=generator)
    results = [matched_on_threads((*costs, edges, edges), threads, start=start) for threads in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_several_python_threads_may_match_at_once():
    problem = random_problem(14, 50)
    expected = match_graphs(*problem)
    found = []
    threads = [threading.Thread(target=lambda: found.append(match_graphs(*problem))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(labels, expected) for labels in found)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_can_match_after_its_parent_has():
    problem = [values.unsqueeze(0).expand(4, *values.shape) for values in random_problem(12, 40)]
    matched_on_threads(problem, 2)
    process = multiprocessing.get_context("fork").Process(target=matched_on_threads, args=(problem, 2))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_other_python_threads_run_while_a_search_does():
    problem = random_problem(40, 200)
    match_graphs(*problem, effort=0.1)
    searching = threading.Thread(target=lambda: match_graphs(*problem, effort=300.0))
    searching.start()
    turns = 0
    while searching.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 3  # with the GIL held there would be none but the first
