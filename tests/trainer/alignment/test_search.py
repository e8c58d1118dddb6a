import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from logramed.trainer.alignment import match_graphs
from logramed.trainer.alignment.search import compiled, linear_assignment


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 40])
def test_linear_assignment_equals_scipys(num_nodes):
    costs = np.random.default_rng(0).normal(size=(num_nodes, num_nodes))
    labels = linear_assignment(costs)
    assert sorted(labels) == list(range(num_nodes))
    assert costs[np.arange(num_nodes), labels].sum() == pytest.approx(costs[linear_sum_assignment(costs)].sum())


def test_a_function_without_a_place_for_its_cache_is_compiled_all_the_same():
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)  # of no file, so numba finds no cache folder beside it
    assert compiled(namespace["double"])(21) == 42


def test_the_number_of_threads_changes_no_matching():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(16, (2, 40), generator=generator)
    problems = (torch.randn(5, 16, 16, generator=generator), torch.randn(5, 40, 40, generator=generator), edges, edges)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            results.append(match_graphs(*problems))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
