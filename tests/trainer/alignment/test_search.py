import pytest
import torch

from logramed.trainer.alignment import matching_cost
from logramed.trainer.alignment.search import _Problem, cheapest_assignment, search_matching
from tests.trainer.alignment.test_matching import random_problem


def with_unmatched(labels):
    return torch.where(labels == 12, -1, labels)


@pytest.mark.parametrize("num_labels", [12, 24])
def test_the_cost_of_a_swap_equals_a_full_count(num_labels):
    problem = random_problem(12, 50)
    labels = torch.full((1, num_labels), 12)
    labels[0, :12] = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    if num_labels > 12:
        labels[0, 3], labels[0, 15] = 12, labels[0, 3].clone()  # node 3 is unmatched, and a spare holds its label
    changes = _Problem(*problem)._swap_costs(labels)[0]
    before = matching_cost(with_unmatched(labels[0, :12]), *problem)
    for node in range(12):
        for other in range(num_labels):
            swapped = labels[0].clone()
            swapped[node], swapped[other] = labels[0, other], labels[0, node]
            expected = matching_cost(with_unmatched(swapped[:12]), *problem) - before
            assert changes[node, other].item() == pytest.approx(expected.item(), abs=1e-4)


def test_total_costs_are_those_of_the_matchings():
    problem = random_problem(12, 50)
    labels = torch.stack([torch.randperm(12), torch.full((12,), 12)])
    torch.testing.assert_close(
        _Problem(*problem).total_costs(labels), matching_cost(with_unmatched(labels), *problem), rtol=0, atol=1e-5
    )


def test_soft_prices_of_a_matching_are_what_its_edges_cost_each_node():
    problem = node_costs, *_ = random_problem(8, 30)
    labels = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    prices = _Problem(*problem)._soft_prices(torch.nn.functional.one_hot(labels, 8).float().unsqueeze(0))[0]
    # Every edge is in the price of both its ends.
    own = prices[torch.arange(8), labels].sum().item() / 2
    expected = matching_cost(labels, *problem).item() - node_costs[torch.arange(8), labels].sum().item()
    assert own == pytest.approx(expected, abs=1e-5)


def test_swaps_end_where_no_swap_helps_and_more_starts_find_no_worse():
    problem = random_problem(16, 60)
    costs = []
    for num_starts in (1, 20):
        options = {"num_starts": num_starts, "generator": torch.Generator().manual_seed(0)}
        labels = search_matching(*problem, allow_unmatched=False, **options)
        assert _Problem(*problem)._swap_costs(labels.unsqueeze(0)).min() > -1e-4
        costs.append(matching_cost(labels, *problem).item())
    assert costs[1] <= costs[0]


def test_the_cheapest_assignment_of_several_problems_is_that_of_each():
    costs = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = cheapest_assignment(costs)
    assert labels.shape == (2, 3, 5)
    assert torch.equal(labels[1, 2], cheapest_assignment(costs[1, 2]))
