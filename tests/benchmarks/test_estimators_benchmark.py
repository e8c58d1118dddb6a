import math

import pytest
import torch

from logramed.trainer.alignment.gradients import GradientEstimator
from tests.benchmarks import estimators as benchmark


def expected_hamming_loss(problem, node_costs, noise):
    matchings, edge_part, hamming = benchmark.all_matchings(problem)
    costs = (node_costs + noise).flatten(1) @ matchings.flatten(1).T + edge_part
    return hamming[costs.argmin(-1)].mean().item()


@pytest.mark.parametrize("num_edges", [0, 4])
def test_the_exact_gradient_is_the_finite_difference_of_the_expected_loss(num_edges):
    problem = benchmark.exact_problem(3, num_edges, seed=0)
    (exact, error), _ = benchmark.exact_gradients(problem, 0.5, 40_000)
    noise = 0.5 * torch.randn(400_000, 3, 3, generator=torch.Generator().manual_seed(1))
    differences = []
    for pair in range(9):
        move = torch.zeros(9)
        move[pair] = 0.1
        move = move.reshape(3, 3)
        ahead = expected_hamming_loss(problem, problem[0] + move, noise)
        differences.append((ahead - expected_hamming_loss(problem, problem[0] - move, noise)) / 0.2)
    assert error < 0.02 * exact.norm()
    torch.testing.assert_close(exact, torch.tensor(differences), rtol=0, atol=0.03 * exact.norm().item())


def test_central_differences_of_a_short_step_are_all_but_unbiased_and_a_long_step_is_not():
    problems = [benchmark.exact_problem(3, 0, seed) for seed in range(2)]
    exact = [benchmark.exact_gradients(problem, 1.0, 20_000)[0][0] for problem in problems]
    biases = {}
    for step in (0.3, 3.0):
        estimator = GradientEstimator("imle", noise_scale=1.0, num_samples=16, step=step, symmetric=True)
        biases[step], cosine, _ = benchmark.bias_and_variance(estimator, problems, exact, 200)
        assert cosine > 0.9
    assert biases[0.3] < 0.2 < biases[3.0]


def test_the_benchmark_prints_a_table_of_bias_and_variance_for_each_size(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "EXACT_ROWS", [{"name": "imle", "step": 0.3}, {"name": "fenchel_young"}])
    options = "--num_problems 1 --num_exact 200 --num_replicas 12 --noise_scales 0.3"
    benchmark.main(["--part", "exact", *options.split()])
    lines = capsys.readouterr().out.splitlines()
    assert sum("standard error of the exact gradients" in line for line in lines) == 3
    assert sum(line.startswith("| imle, step 0.3 |") for line in lines) == 3


def test_the_benchmark_counts_the_steps_to_the_target_accuracy(capsys, monkeypatch):
    options = ["--part", "learning", "--seeds", "1", "--num_steps", "40", "--view_noise", "0.1", "--batch_size", "8"]
    settings = {"name": "fenchel_young", "margin": 0.4}
    monkeypatch.setattr(benchmark, "LEARNING_ROWS", [settings])
    benchmark.main([*options, "--noise_scales", "0.1"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| fenchel_young"))
    run = benchmark.steps_to_target(
        benchmark.estimator_loss(GradientEstimator(**settings, noise_scale=0.1)), 0, benchmark.parse_arguments(options)
    )
    assert run["accuracy"] >= 0.95
    assert f"| {run['steps']} ± 0 |" in row


def test_an_untrained_encoder_is_below_the_target_and_says_its_accuracy():
    options = benchmark.parse_arguments(["--part", "learning", "--num_steps", "15", "--batch_size", "8"])
    run = benchmark.steps_to_target(lambda features, *_: 0 * features.sum(), 0, options)
    assert run["steps"] == math.inf
    assert run["accuracy"] < 0.5
    assert benchmark.cell([run]) == f"({run['accuracy']:.2f})"
