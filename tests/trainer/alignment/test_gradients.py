from itertools import permutations

import pytest
import torch

from logramed.trainer.alignment import differentiable_matching, hamming_loss, matching_cost
from logramed.trainer.alignment.matching import matched_edges, one_hot_matching


RING = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
NO_EDGES = torch.zeros(2, 0, dtype=torch.int64)
PERMUTATIONS = torch.tensor(list(permutations(range(4))))
LONG_STEP = 4.0  # past the gaps between the costs: a shorter one may change no matching, and then nothing is learnt


def ring_problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    node_costs = torch.randn(4, 4, generator=generator)
    return node_costs.requires_grad_(), torch.randn(4, 4, generator=generator).requires_grad_(), RING, RING.flip(0)


def best_by_brute_force(problem):
    return PERMUTATIONS[matching_cost(PERMUTATIONS, *problem).argmin()]


def test_gradient_is_the_change_of_the_best_matching():
    problem = ring_problem()
    upstream = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
    matching, labels = differentiable_matching(*problem, step=3.0)
    assert torch.equal(labels, best_by_brute_force(problem))
    matching.backward(upstream)
    size = upstream.abs().max().item()
    new_labels = best_by_brute_force((problem[0] + 3.0 * upstream / size, *problem[1:]))
    assert not torch.equal(labels, new_labels)  # else nothing is shown
    change = one_hot_matching(new_labels, 4) - one_hot_matching(labels, 4)
    torch.testing.assert_close(problem[0].grad, change * size / 3.0)
    edges = matched_edges(new_labels, *problem[2:]).float() - matched_edges(labels, *problem[2:]).float()
    torch.testing.assert_close(problem[1].grad, edges * size / 3.0)


def gradient_of_scaled_loss(scale):
    problem = ring_problem(seed=2)
    matching, _ = differentiable_matching(*problem, step=2.0)
    (scale * hamming_loss(matching)).backward()
    return problem[0].grad, problem[1].grad


@pytest.mark.parametrize("scale", [2.0, 65536.0, 2.0**-20])
def test_gradient_is_proportional_to_the_loss_weight(scale):
    for plain, scaled in zip(gradient_of_scaled_loss(1.0), gradient_of_scaled_loss(scale), strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(scaled / scale, plain, rtol=1e-6, atol=0)


def test_costs_that_share_edges_get_the_sum_of_their_samples_gradients():
    _, edge_costs, source, target = ring_problem()
    node_costs = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    shared = edge_costs.detach().expand(3, 1, 4, 4).clone().requires_grad_()
    apart = edge_costs.detach().expand(3, 5, 4, 4).clone().requires_grad_()
    for costs in (shared, apart):
        matching, _ = differentiable_matching(node_costs, costs, source, target, step=2.0)
        hamming_loss(matching).backward()
    assert shared.grad.abs().sum() > 0
    torch.testing.assert_close(shared.grad, apart.grad.sum(1, keepdim=True))


def test_a_right_matching_gets_no_gradient():
    node_costs = (1 - 10 * torch.eye(4)).requires_grad_()
    matching, _ = differentiable_matching(node_costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES, step=2.0)
    hamming_loss(matching).backward()
    assert torch.equal(node_costs.grad, torch.zeros(4, 4))


@pytest.mark.parametrize("num_samples", [1, 8])
def test_descent_recovers_a_hidden_matching(num_samples):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.tensor([2, 0, 3, 1])
    costs = torch.randn(4, 4, generator=generator).requires_grad_()
    optimizer = torch.optim.SGD([costs], lr=1.0)
    for _ in range(100):
        noisy = costs + 0.3 * torch.randn(num_samples, 4, 4, generator=generator)
        matching, _ = differentiable_matching(noisy, torch.zeros(0, 0), NO_EDGES, NO_EDGES, step=LONG_STEP)
        optimizer.zero_grad()
        (matching - one_hot_matching(hidden, 4)).abs().sum((-2, -1)).mean().backward()
        optimizer.step()
    _, labels = differentiable_matching(costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES, step=LONG_STEP)
    assert torch.equal(labels, hidden)


def test_an_overflowed_loss_scale_gives_a_gradient_that_is_seen_as_such():
    node_costs = torch.rand(4, 4, requires_grad=True)
    matching, _ = differentiable_matching(node_costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES, step=2.0)
    (hamming_loss(matching) * torch.inf).backward()
    assert not torch.isfinite(node_costs.grad).any()


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_the_smallest_problems_have_finite_losses_and_gradients(num_nodes):
    node_costs = torch.zeros(3, num_nodes, num_nodes, requires_grad=True)  # all ties
    matching, labels = differentiable_matching(node_costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES, step=1.0)
    loss = hamming_loss(matching)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(node_costs.grad).all()
    assert labels.shape == (3, num_nodes)


def test_several_right_partners_are_all_right():
    twins = torch.tensor([0, 0, 1, 2])
    matching = one_hot_matching(torch.tensor([1, 0, 2, 3]), 4)
    assert hamming_loss(matching, twins.unsqueeze(0) == twins.unsqueeze(1)).item() == 0.0
    assert hamming_loss(matching).item() == 1.0
