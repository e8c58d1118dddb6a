from itertools import permutations

import pytest
import torch

from logramed.trainer.alignment import differentiable_matching, hamming_loss, match_graphs, matching_cost
from logramed.trainer.alignment.costs import normal_noise
from logramed.trainer.alignment.gradients import (
    ESTIMATORS,
    GradientEstimator,
    fenchel_young_loss,
    hamming_distance,
    right_matching,
)
from logramed.trainer.alignment.matching import matched_edges, one_hot_matching


RING = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
NO_EDGES = torch.zeros(2, 0, dtype=torch.int64)
IDENTITY = torch.eye(4, dtype=torch.bool)
PERMUTATIONS = torch.tensor(list(permutations(range(4))))
TWINS = torch.tensor([0, 0, 1, 2])  # groups: the first two nodes are one and the same
DIFFERENCES = [name for name in ESTIMATORS if name != "fenchel_young"]
LONG_STEP = 4.0  # past the gaps between the costs: a shorter one may change no matching, and then nothing is learnt


def ring_problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    node_costs = torch.randn(4, 4, generator=generator)
    return node_costs.requires_grad_(), torch.randn(4, 4, generator=generator).requires_grad_(), RING, RING.flip(0)


def best_by_brute_force(problem):
    return PERMUTATIONS[matching_cost(PERMUTATIONS, *problem).argmin()]


@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_is_the_change_of_the_best_matching(normalize):
    problem = ring_problem()
    upstream = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
    matching, labels = differentiable_matching(*problem, step=3.0, normalize=normalize)
    assert torch.equal(labels, best_by_brute_force(problem))
    matching.backward(upstream)
    size = upstream.abs().max().item() if normalize else 1.0
    new_labels = best_by_brute_force((problem[0] + 3.0 * upstream / size, *problem[1:]))
    assert not torch.equal(labels, new_labels)  # else nothing is shown
    change = one_hot_matching(new_labels, 4) - one_hot_matching(labels, 4)
    torch.testing.assert_close(problem[0].grad, change * size / 3.0)
    edges = matched_edges(new_labels, *problem[2:]).float() - matched_edges(labels, *problem[2:]).float()
    torch.testing.assert_close(problem[1].grad, edges * size / 3.0)


def gradient_of_scaled_loss(scale, **options):
    problem = ring_problem(seed=2)
    matching, _ = differentiable_matching(*problem, step=2.0, **options)
    (scale * hamming_loss(matching)).backward()
    return problem[0].grad, problem[1].grad


@pytest.mark.parametrize("scale", [2.0, 65536.0, 2.0**-20])
def test_gradient_is_proportional_to_the_loss_weight(scale):
    for plain, scaled in zip(gradient_of_scaled_loss(1.0), gradient_of_scaled_loss(scale), strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(scaled / scale, plain, rtol=1e-6, atol=0)


def test_the_published_form_is_not_proportional_to_the_loss_weight():
    plain = gradient_of_scaled_loss(1e-6, normalize=False)[0]
    assert plain.abs().sum() == 0  # too small a step changes no matching
    assert gradient_of_scaled_loss(1e-6)[0].abs().sum() > 0


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


def several_problems(num_problems=2, seed=0):
    """Ring problems that share their edge costs, as an estimator takes them."""
    _, edge_costs, source, target = ring_problem(seed)
    node_costs = torch.randn(num_problems, 4, 4, generator=torch.Generator().manual_seed(seed + 1))
    return node_costs.requires_grad_(), edge_costs, source, target


def loss_and_gradients(estimator, problem, right=IDENTITY, scale=1.0, **options):
    generator = torch.Generator().manual_seed(3)
    loss, labels = estimator(*problem, right, generator=generator, **options)
    (scale * loss).backward()
    return loss.item(), labels, problem[0].grad, problem[1].grad


def noisy_problems(estimator, problem):
    """For each problem and sample the costs with the noise that `loss_and_gradients` draws."""
    node_costs, *edges = (values.detach() for values in problem)
    num_samples = 1 if estimator.name == "blackbox" else estimator.num_samples
    shape = (len(node_costs), num_samples, 4, 4)
    noise = normal_noise(shape, estimator.noise_scale, generator=torch.Generator().manual_seed(3))
    noisy = node_costs.unsqueeze(1) - noise
    return [[(sample, *edges) for sample in samples] for samples in noisy]


def gradients_by_brute_force(problems, step, symmetric):
    """The definition of I-MLE, matching by matching, for the mean of the Hamming loss."""
    num_problems, num_samples = len(problems), len(problems[0])
    weight = 1 / (4 * num_problems * num_samples * step * (2 if symmetric else 1))
    nodes, edges = torch.zeros(num_problems, 4, 4), torch.zeros(4, 4)
    move = step * (1 - 2 * torch.eye(4))
    for number, samples in enumerate(problems):
        for node_costs, *rest in samples:
            ahead = best_by_brute_force((node_costs + move, *rest))
            behind = best_by_brute_force((node_costs - move if symmetric else node_costs, *rest))
            nodes[number] += weight * (one_hot_matching(ahead, 4) - one_hot_matching(behind, 4))
            edges += weight * (matched_edges(ahead, *rest[1:]).float() - matched_edges(behind, *rest[1:]).float())
    return nodes, edges


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["blackbox", "imle"])
def test_finite_differences_are_those_of_the_best_matchings(name, symmetric):
    estimator = GradientEstimator(name, noise_scale=0.5, num_samples=5, step=0.6, symmetric=symmetric)
    problem = several_problems()
    loss, labels, nodes, edges = loss_and_gradients(estimator, problem)
    problems = noisy_problems(estimator, problem)
    best = torch.stack([torch.stack([best_by_brute_force(sample) for sample in samples]) for samples in problems])
    assert torch.equal(labels, best)
    assert loss == pytest.approx(2 * (best != torch.arange(4)).float().mean().item())
    expected_nodes, expected_edges = gradients_by_brute_force(problems, 0.6, symmetric)
    assert expected_nodes.abs().sum() > 0
    torch.testing.assert_close(nodes, expected_nodes)
    torch.testing.assert_close(edges, expected_edges)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("target", [0.25, 0.8])
@pytest.mark.parametrize("seed", range(2))
def test_the_adaptive_step_is_the_shortest_that_changes_as_many_entries_a_node(seed, target, symmetric):
    estimator = GradientEstimator(
        "aimle", noise_scale=0.2, num_samples=3, step=8.0, target=target, symmetric=symmetric
    )
    problem = several_problems(seed=10 * seed)
    *_, nodes, edges = loss_and_gradients(estimator, problem)
    problems = noisy_problems(estimator, problem)
    for step in [8 / 2**halvings for halvings in range(7, -1, -1)]:
        expected = gradients_by_brute_force(problems, step, symmetric)
        if changed_entries(problems, step, symmetric) >= target * 4:
            break
    assert step < 8  # else nothing is shown
    torch.testing.assert_close(nodes, expected[0])
    torch.testing.assert_close(edges, expected[1])


def changed_entries(problems, step, symmetric):
    samples = [[sample] for samples in problems for sample in samples]
    entries = [gradients_by_brute_force([sample], step, symmetric)[0].count_nonzero() for sample in samples]
    return sum(entries) / len(entries)


def fenchel_young_by_brute_force(problems, right):
    """Loss, and gradients of nodes and edges: cheapest right matching minus cheapest matching, of all 24."""
    num_problems, num_samples = len(problems), len(problems[0])
    allowed = PERMUTATIONS[right[torch.arange(4), PERMUTATIONS].all(-1)]
    loss, nodes, edges = 0.0, torch.zeros(num_problems, 4, 4), torch.zeros(4, 4)
    for number, samples in enumerate(problems):
        for sample in samples:
            for sign, choice in ((1, allowed), (-1, PERMUTATIONS)):
                costs = matching_cost(choice, *sample)
                best = choice[costs.argmin()]
                weight = sign / (4 * num_problems * num_samples)
                loss += weight * costs.min().item()
                nodes[number] += weight * one_hot_matching(best, 4)
                edges += weight * matched_edges(best, *sample[2:])
    return loss, nodes, edges


@pytest.mark.parametrize("groups", [torch.arange(4), TWINS])
def test_fenchel_young_is_the_excess_cost_of_the_cheapest_right_matching(groups):
    estimator = GradientEstimator("fenchel_young", noise_scale=0.5, num_samples=6)
    right = groups.unsqueeze(0) == groups.unsqueeze(1)
    problem = several_problems()
    loss, _, nodes, edges = loss_and_gradients(estimator, problem, right)
    expected_loss, expected_nodes, expected_edges = fenchel_young_by_brute_force(
        noisy_problems(estimator, problem), right
    )
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert loss > 0
    torch.testing.assert_close(nodes, expected_nodes)
    torch.testing.assert_close(edges, expected_edges)


def test_fenchel_young_passes_gradcheck():
    _, edge_costs, source, target = ring_problem()
    generator = torch.Generator().manual_seed(0)
    node_costs = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    edge_costs = edge_costs.detach().double().requires_grad_()

    def loss(nodes, edges):
        return fenchel_young_loss(nodes, edges, source, target, IDENTITY)[0]

    # Edge costs are searched in float32, and costs this far from ties.
    assert torch.autograd.gradcheck(loss, (node_costs, edge_costs), eps=1e-4)


@pytest.mark.parametrize("allow_unmatched", [False, True])
def test_fenchel_young_is_0_only_where_the_right_matching_is_the_best(allow_unmatched):
    estimator = GradientEstimator("fenchel_young", noise_scale=0.3, num_samples=8)
    best = torch.tensor([2, 0, 3, 1])
    problem = (5 - 10 * one_hot_matching(best, 4)).unsqueeze(0), torch.zeros(0, 0), NO_EDGES, NO_EDGES
    for target, is_right in ((best, True), (torch.arange(4), False)):
        loss, labels = estimator(*problem, one_hot_matching(target, 4).bool(), allow_unmatched=allow_unmatched)
        assert torch.equal(labels, best.expand(1, 8, 4))
        assert (loss.item() == 0) == is_right
        assert loss >= 0


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("scale", [2.0, 65536.0, 2.0**-20])
def test_every_estimators_gradient_is_proportional_to_the_loss_weight(name, scale):
    estimator = GradientEstimator(name, step=2.0)
    plain = loss_and_gradients(estimator, several_problems())
    scaled = loss_and_gradients(estimator, several_problems(), scale=scale)
    for one, other in zip(plain[2:], scaled[2:], strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(other / scale, one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_passes_an_overflowed_loss_scale_on(name):
    assert not torch.isfinite(
        loss_and_gradients(GradientEstimator(name), several_problems(), scale=torch.inf)[2]
    ).any()


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_the_smallest_problems_have_finite_losses_and_gradients(name, num_nodes):
    node_costs = torch.zeros(3, num_nodes, num_nodes, requires_grad=True)  # all ties
    right = torch.eye(num_nodes, dtype=torch.bool)
    loss, labels = GradientEstimator(name)(node_costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES, right)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(node_costs.grad).all()
    assert labels.shape == (3, 1 if name == "blackbox" else 4, num_nodes)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_get_half_precision_gradients(name, dtype):
    node_costs, *rest = several_problems()
    node_costs = node_costs.detach().to(dtype).requires_grad_()
    _, _, gradient, _ = loss_and_gradients(GradientEstimator(name, step=2.0), (node_costs, *rest))
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_shared_noise_is_that_of_the_first_problem_for_all(name):
    node_costs, *rest = several_problems(1)
    problem = (node_costs.detach().expand(5, 4, 4), *rest)
    options = {"noise_scale": 2.0, "num_samples": 3}
    for shared_noise in (False, True):
        estimator = GradientEstimator(name, shared_noise=shared_noise, **options)
        _, labels = estimator(*problem, IDENTITY, generator=torch.Generator().manual_seed(0))
        assert (labels == labels[:1]).all() == shared_noise


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_margin_is_how_much_each_right_pair_has_to_win_by(name):
    problem = -torch.eye(4).unsqueeze(0), torch.zeros(0, 0), NO_EDGES, NO_EDGES
    for margin, excess in ((0.8, 0.0), (1.2, 0.2)):
        loss, labels = GradientEstimator(name, noise_scale=0.0, margin=margin)(*problem, IDENTITY)
        assert (labels == torch.arange(4)).all(-1).all() == (labels == torch.arange(4)).any(-1).any() == (excess == 0)
        assert loss.item() == pytest.approx(excess if name == "fenchel_young" else 2 * (excess > 0))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_evaluation_takes_the_costs_as_they_are(name):
    problem = several_problems()
    _, labels = GradientEstimator(name, noise_scale=9.0, margin=9.0)(*problem, IDENTITY, training=False)
    assert torch.equal(labels, match_graphs(problem[0], *problem[1:]).unsqueeze(1))


@pytest.mark.parametrize("name", DIFFERENCES)
def test_settled_samples_are_not_solved_again_and_nothing_changes(name):
    hidden = one_hot_matching(torch.arange(4), 4)
    _, edge_costs, source, target = ring_problem()
    node_costs = torch.stack([-9 * hidden, torch.randn(4, 4, generator=torch.Generator().manual_seed(4))])
    sizes = []

    def count(costs, *rest, **options):
        sizes.append(costs.shape[:-2].numel())
        return match_graphs(costs, *rest, **options)

    estimator = GradientEstimator(name, noise_scale=0.1, num_samples=2, step=4.0)
    with_skip = loss_and_gradients(estimator, (node_costs.clone().requires_grad_(), edge_costs, source, target))[2]
    node_costs.requires_grad_()
    loss_and_gradients(estimator, (node_costs, edge_costs, source, target), solver=count)
    assert sizes[0] == 2 * sizes[1]  # of two problems the first is right in every sample
    noise = normal_noise((2, sizes[1], 4, 4), 0.1, generator=torch.Generator().manual_seed(3))
    plain = node_costs.detach().clone().requires_grad_()
    matchings, _ = differentiable_matching(
        plain.unsqueeze(1) - noise, edge_costs, source, target, step=4.0, target=1.0 if name == "aimle" else None
    )
    hamming_loss(matchings).backward()
    assert plain.grad.abs().sum() > 0
    torch.testing.assert_close(with_skip, plain.grad)


def test_hamming_distance_counts_wrong_pairs_and_nodes_without_a_right_one():
    right = TWINS.unsqueeze(0) == TWINS.unsqueeze(1)
    matchings = one_hot_matching(torch.tensor([[1, 0, 2, 3], [0, 2, 1, 3], [0, -1, -1, 2]]), 4)
    assert hamming_distance(matchings, right).tolist() == [0, 4, 1 + 1 + 2]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_descent_with_every_estimator_recovers_a_matching_hidden_from_it(name):
    num_nodes, generator = 7, torch.Generator().manual_seed(1)
    edges = torch.randint(num_nodes, (2, 2, 14), generator=generator)
    edge_costs = 0.2 * torch.randn(14, 14, generator=generator)
    hidden = torch.randperm(num_nodes, generator=generator)
    right = one_hot_matching(hidden, num_nodes).bool()
    costs = torch.randn(1, num_nodes, num_nodes, generator=generator).requires_grad_()
    estimator = GradientEstimator(name, noise_scale=0.3, num_samples=4, step=1.0)
    optimizer = torch.optim.Adam([costs], lr=0.05)
    for _ in range(150):
        loss, _ = estimator(costs, edge_costs, *edges, right, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noisy_loss, _ = GradientEstimator("imle", num_samples=32)(costs, edge_costs, *edges, right, generator=generator)
    assert noisy_loss < 0.1
    assert torch.equal(match_graphs(costs[0], edge_costs, *edges), hidden)


def test_the_right_matching_is_the_cheapest_of_right_pairs_also_where_wrong_ones_are_cheap():
    problem = ring_problem(seed=4)
    right = TWINS.unsqueeze(0) == TWINS.unsqueeze(1)
    allowed = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3]])
    expected = allowed[matching_cost(allowed, *problem).argmin()]
    assert torch.equal(right_matching(*problem, right), expected)


def test_a_right_that_allows_no_matching_is_refused():
    right = IDENTITY.clone()
    right[1] = right[0]
    with pytest.raises(ValueError, match=r"`right` must allow a matching.*compete"):
        right_matching(*ring_problem(), right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "straight_through"}, "`name` must be one of blackbox, imle, aimle, fenchel_young, got"),
        ({"noise": "uniform"}, "`noise` must be one of gumbel, normal, sum_of_gamma, got 'uniform'"),
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ({"step": 0.0}, "`step` must be above 0, got 0.0"),
        ({"target": 0.0}, "`target` must be above 0, got 0.0"),
        ({"margin": -1.0}, "`margin` must not be negative, got -1.0"),
        ({"noise_scale": -1.0}, "`noise_scale` must not be negative, got -1.0"),
        ({"name": "fenchel_young", "symmetric": True}, "`symmetric` is for finite differences"),
    ],
)
def test_estimators_refuse_settings_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        GradientEstimator(**options)


def test_estimators_refuse_costs_and_truths_of_another_shape():
    problem = several_problems()
    with pytest.raises(ValueError, match=r"`node_costs` must be \(num_problems, .*got \(4, 4\)"):
        GradientEstimator()(problem[0][0], *problem[1:], IDENTITY)
    with pytest.raises(ValueError, match=r"`right` must be bool.*\(2, 4, 4\), got torch.bool, \(3, 3\)"):
        GradientEstimator()(*problem, torch.eye(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`right` must be bool.*torch.float32"):
        GradientEstimator()(*problem, torch.eye(4))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_backward_search_starts_from_the_forward_matching(symmetric):
    starts = []

    def record(*problem, start, **options):
        starts.append(start)
        return match_graphs(*problem, start=start, **options)

    problem = ring_problem()
    matching, labels = differentiable_matching(*problem, step=2.0, symmetric=symmetric, solver=record)
    hamming_loss(matching).backward()
    assert starts.pop(0) is None
    assert len(starts) == 1 + symmetric
    assert all(torch.equal(start, labels) for start in starts)
