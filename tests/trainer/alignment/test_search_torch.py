import pytest
import torch
from safetensors.torch import load_file

from logramed.trainer.alignment import match_graphs, matching_cost
from logramed.trainer.alignment.search_torch import (
    greedy_labels,
    move_prices,
    prices_at,
    problems_in_order,
    search_matchings,
    swap_changes,
    total_costs,
    with_spares,
)
from tests.trainer.alignment.test_matching import FIXTURES, cheapest_by_brute_force, random_problem


def batch_of(*problems):
    return [torch.stack(values) for values in zip(*problems, strict=True)]


def ordered(batch):
    order = torch.arange(batch[0].shape[1]).expand(len(batch[0]), -1)
    return problems_in_order(order, order, *batch)


@pytest.mark.parametrize("allow_unmatched", [False, True])
def test_the_tensor_search_finds_the_best_of_few_nodes(allow_unmatched):
    problems = [random_problem(5, 12, seed) for seed in range(4)]
    batch = batch_of(*problems)
    costs = matching_cost(search_matchings(*batch, lengths=(8, 60), allow_unmatched=allow_unmatched), *batch)
    expected = [cheapest_by_brute_force(problem, allow_unmatched) for problem in problems]
    torch.testing.assert_close(costs, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("allow_unmatched", [False, True])
def test_the_tensor_search_costs_about_what_the_compiled_one_does(allow_unmatched):
    batch = batch_of(*(random_problem(12, 50, seed) for seed in range(4)))
    found = search_matchings(*batch, lengths=(8, 90), allow_unmatched=allow_unmatched)
    expected = matching_cost(match_graphs(*batch, allow_unmatched=allow_unmatched, effort=5.0), *batch)
    assert (matching_cost(found, *batch) <= expected + 0.03 * expected.abs()).all()


@pytest.mark.parametrize("allow_unmatched", [False, True])
@pytest.mark.parametrize("name", ["easy_fwd_32", "hard_bwd_32", "hard_fwd_16"])
def test_the_tensor_search_is_near_the_best_known_cost(name, allow_unmatched):
    path = FIXTURES / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"needs the recorded problem {path.name} in ../shared/fixtures/matching")
    recorded = load_file(path)
    problem = [recorded[key].unsqueeze(0) for key in ("node_costs", "edge_costs", "edge_index", "edge_index")]
    found = search_matchings(*problem, lengths=(8, 128), allow_unmatched=allow_unmatched)
    best = recorded["best_known_partial_cost" if allow_unmatched else "best_known_cost"].item()
    assert (matching_cost(found, *problem).item() - best) / abs(best) <= 0.01


def test_prices_kept_up_to_date_equal_new_ones_exactly():
    batch = batch_of(*(random_problem(9, 30, seed) for seed in range(2)))
    problems = ordered(batch)
    problem_of = torch.tensor([0, 1, 1])
    generator = torch.Generator().manual_seed(0)
    labels = with_spares(torch.stack([torch.randperm(9, generator=generator) for _ in range(3)]))
    prices = prices_at(labels[:, :9], problems, problem_of)
    for _ in range(30):
        nodes = torch.stack([torch.randperm(18, generator=generator)[:2].sort().values for _ in range(3)])
        old = labels.gather(1, nodes)
        labels = labels.scatter(1, nodes, old.flip(1))
        move_prices(prices, nodes, old, problems, problem_of)
        assert torch.equal(prices, prices_at(labels[:, :9], problems, problem_of))


def test_the_change_by_every_swap_is_the_difference_of_full_counts():
    batch = batch_of(random_problem(7, 24))
    problems = ordered(batch)
    problem_of = torch.zeros(1, dtype=torch.int64)
    labels = with_spares(torch.tensor([[3, 1, 7, 0, 6, 7, 2]]))  # nodes 2 and 5 unmatched, labels 4 and 5 free
    changes = swap_changes(labels, prices_at(labels[:, :7], problems, problem_of), problems, problem_of)
    before = total_costs(labels[:, :7], problems, problem_of)
    for i in range(7):
        for k in range(14):
            if i != k:
                swapped = labels.clone()
                swapped[0, [i, k]] = labels[0, [k, i]]
                assert changes[0, i, k] == total_costs(swapped[:, :7], problems, problem_of) - before


def test_self_loops_and_repeated_edges_are_priced_in_tensors_too():
    node_costs, _, source, target = random_problem(6, 15)
    source = torch.cat([source, source[:, :4], torch.tensor([[1, 3], [1, 3]])], 1)
    target = torch.cat([target, target[:, :6], torch.tensor([[0, 2, 5], [0, 2, 5]])], 1)
    edge_costs = torch.randn(source.shape[1], target.shape[1], generator=torch.Generator().manual_seed(3))
    batch = batch_of((node_costs, edge_costs, source, target))
    problems = ordered(batch)
    for seed in range(5):
        labels = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).unsqueeze(0)
        counted = total_costs(labels, problems, torch.zeros(1, dtype=torch.int64)) / problems.scale
        torch.testing.assert_close(counted, matching_cost(labels, *batch), atol=1e-4, rtol=0)


def test_a_tensor_search_from_a_start_finds_nothing_dearer():
    batch = batch_of(*(random_problem(12, 40, seed) for seed in range(2)))
    for allow_unmatched in (False, True):
        start = match_graphs(*batch, allow_unmatched=allow_unmatched, effort=10.0)
        found = search_matchings(*batch, lengths=(1, 2), allow_unmatched=allow_unmatched, start=start)
        assert (matching_cost(found, *batch) <= matching_cost(start, *batch) + 1e-4).all()


def test_the_tensor_search_is_deterministic_for_a_seed():
    batch = batch_of(random_problem(10, 40))
    found = [search_matchings(*batch, lengths=(3, 20), generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*found)


def test_renumbering_the_nodes_changes_no_cost_of_the_tensor_search():
    node_costs, edge_costs, source, target = random_problem(12, 50)
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    columns = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    moved_costs = torch.empty_like(node_costs)
    moved_costs[rows.unsqueeze(1), columns] = node_costs
    batch = batch_of(
        (node_costs, edge_costs, source, target), (moved_costs, edge_costs, rows[source], columns[target])
    )
    costs = matching_cost(search_matchings(*batch, lengths=(8, 90)), *batch)
    torch.testing.assert_close(costs[0], costs[1], atol=1e-4, rtol=0)


def test_ties_do_not_fall_to_the_identity_in_the_tensor_search():
    _, _, source, target = random_problem(12, 20)
    batch = batch_of((torch.zeros(12, 12), torch.zeros(20, 20), source, target))
    found = [
        search_matchings(*batch, lengths=(2, 5), generator=torch.Generator().manual_seed(seed)) for seed in range(40)
    ]
    assert (torch.cat(found) == torch.arange(12)).float().mean() < 2.5 / 12  # by chance 1 / 12


def test_greedy_labels_take_the_largest_entry_first():
    point = torch.tensor([[[0.5, 0.9, 0.1], [0.8, 0.95, 0.2], [0.3, 0.1, 0.05]]])
    assert greedy_labels(point).tolist() == [[0, 1, 2]]


@pytest.mark.gpu
def test_costs_on_a_gpu_are_searched_there_without_a_round_trip():
    batch = [values.to("cuda") for values in batch_of(*(random_problem(24, 100, seed) for seed in range(3)))]
    search_matchings(*batch, lengths=(2, 3))
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        search_matchings(*batch, lengths=(2, 3))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    found = match_graphs(*batch)
    assert found.is_cuda
    expected = matching_cost(match_graphs(*(values.cpu() for values in batch)), *(values.cpu() for values in batch))
    assert (matching_cost(found, *batch).cpu() <= expected + 0.05 * expected.abs()).all()
