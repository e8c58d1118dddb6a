"""
How good are the gradients through a matching? Prints two Markdown tables.

`--part exact`: problems of a few nodes, of which every matching is tried. The gradient of the expected loss under the
noise is known there, and each estimator's bias and variance against it.

`--part learning`: three small encoders of noisy nonlinear views of one latent vector, and the number of steps until
the held-out matching accuracy reaches 0.95, for each estimator, step and noise scale.

    python -m tests.benchmarks.estimators --part exact
"""

import argparse
import math
import os
import time
from functools import partial
from itertools import combinations, permutations


os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from logramed.trainer.alignment import infonce_loss, match_graphs
from logramed.trainer.alignment.costs import centered_costs
from logramed.trainer.alignment.gradients import ESTIMATORS, GradientEstimator
from logramed.trainer.alignment.graphs import edge_differences, nearest_neighbor_edges, unit_vectors
from logramed.trainer.alignment.matching import matched_edges, one_hot_matching
from tests.benchmarks.objective import LATENT_SIZE, encoder, random_views


# Exact gradients.
COST_SIZE = 0.5
EDGE_COST_SIZE = 0.25
BATCH = 6  # problems of one call, as in a training step with three modalities: "aimle" finds one step for them

# Learning.
FEATURE_SIZE, NUM_VIEWS = 64, 3
NUM_HELD_OUT = 8
EVALUATE_EVERY = 5
SMOOTHED_OVER = 3
TARGET_ACCURACY = 0.95
SOLVER_EFFORT = 0.1  # a tenth of the full search, at which the tables were made


def exact_problem(num_nodes: int, num_edges: int, seed: int):
    """Random costs and edges, of which the identity is the right matching."""
    generator = torch.Generator().manual_seed(seed)
    node_costs = COST_SIZE * torch.randn(num_nodes, num_nodes, generator=generator)
    edge_costs = EDGE_COST_SIZE * torch.randn(num_edges, num_edges, generator=generator)
    pairs = torch.tensor(list(permutations(range(num_nodes), 2)))
    edges = [pairs[torch.randperm(len(pairs), generator=generator)[:num_edges]].T for _ in range(2)]
    return node_costs, edge_costs, *edges


def all_matchings(problem):
    """0/1 `(num_matchings, num_nodes, num_nodes)`, what each costs by its edges, and its Hamming loss."""
    node_costs, edge_costs, *edges = problem
    num_nodes = len(node_costs)
    labels = torch.tensor(list(permutations(range(num_nodes))))
    edge_part = (matched_edges(labels, *edges) * edge_costs).sum((-2, -1))
    hamming = 2 * (labels != torch.arange(num_nodes)).float().mean(-1)
    return one_hot_matching(labels, num_nodes), edge_part, hamming


def exact_gradients(problem, noise_scale: float, num_samples: int, seed: int = 0):
    """
    Gradients of the expected Hamming loss and of the expected Fenchel-Young loss under normal noise, flat, each with
    its standard error.

    With all noise but that of one pair given, the loss is one of two values: that of the best matching with the pair,
    or of the best without it. The chance of either is a normal integral with a known derivative; the mean over the
    other noise is of `num_samples` samples and their negatives.
    """
    matchings, edge_part, hamming = all_matchings(problem)
    node_costs, num_nodes = problem[0], len(problem[0])
    flat = matchings.flatten(1)
    noise = torch.randn(num_samples // 2, num_nodes**2, generator=torch.Generator().manual_seed(seed))
    noisy = node_costs.flatten() + noise_scale * torch.cat([noise, -noise])
    costs = noisy @ flat.T + edge_part
    gradients = torch.empty_like(noisy)
    for pair in range(num_nodes**2):
        has = flat[:, pair] > 0
        with_pair, without = costs[:, has].min(-1), costs[:, ~has].min(-1)
        room = without.values - (with_pair.values - noisy[:, pair]) - node_costs.flatten()[pair]
        density = torch.exp(-0.5 * (room / noise_scale) ** 2) / (noise_scale * math.sqrt(2 * math.pi))
        gradients[:, pair] = density * (hamming[~has][without.indices] - hamming[has][with_pair.indices])
    fenchel_young = (torch.eye(num_nodes).flatten() - flat[costs.argmin(-1)]) / num_nodes
    return mean_and_error(gradients), mean_and_error(fenchel_young)


def mean_and_error(samples: torch.Tensor):
    """Mean of antithetic samples `(2 * n, size)`, and its standard error (of the whole vector)."""
    halves = 0.5 * sum(samples.chunk(2))
    return halves.mean(0), (halves.var(0).sum() / len(halves)).sqrt()


def estimated_gradients(estimator: GradientEstimator, problem, num_replicas: int, seed: int = 0) -> torch.Tensor:
    """Independent gradient estimates `(num_replicas, num_nodes ** 2)` of node costs."""
    node_costs, *rest = problem
    right = torch.eye(len(node_costs), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(math.ceil(num_replicas / BATCH)):
        replicas = node_costs.expand(BATCH, -1, -1).clone().requires_grad_()
        loss, _ = estimator(replicas, *rest, right, generator=generator)
        loss.backward()
        gradients.append(BATCH * replicas.grad.flatten(1))
    return torch.cat(gradients)[:num_replicas]


def bias_and_variance(estimator, problems, exact, num_replicas):
    """
    Relative bias, cosine of the mean with the exact gradient, and variance (its trace over the mean's squared norm),
    over all problems. What the finite number of replicas adds to bias and norm is subtracted.
    """
    bias, signal, norm, size, spread = 0.0, 0.0, 0.0, 0.0, 0.0
    for number, (problem, truth) in enumerate(zip(problems, exact, strict=True)):
        gradients = estimated_gradients(estimator, problem, num_replicas, seed=1000 + number)
        mean, variance = gradients.mean(0), gradients.var(0).sum().item()
        bias += (mean - truth).square().sum().item() - variance / num_replicas
        signal += (mean @ truth).item()
        norm += truth.square().sum().item()
        size += mean.square().sum().item() - variance / num_replicas
        spread += variance
    size = max(size, 1e-12)
    return math.sqrt(max(bias, 0) / norm), signal / math.sqrt(norm * size), spread / size


EXACT_ROWS = [
    *({"name": "blackbox", "noise_scale": 0.0, "step": step} for step in (0.3, 1.0)),
    *({"name": "imle", "num_samples": samples, "step": 0.1} for samples in (1, 4, 16)),
    *({"name": "imle", "num_samples": samples, "step": 0.3} for samples in (1, 4, 16)),
    *({"name": "imle", "num_samples": samples, "step": 1.0} for samples in (1, 4, 16)),
    {"name": "imle", "step": 3.0},
    *({"name": "imle", "step": step, "symmetric": True} for step in (0.1, 0.3, 1.0)),
    {"name": "aimle", "target": 0.25},
    {"name": "aimle"},
    *({"name": "aimle", "target": target, "symmetric": True} for target in (0.25, 1.0)),
    *({"name": "fenchel_young", "num_samples": samples} for samples in (1, 4, 16)),
]


def exact_table(options: argparse.Namespace) -> None:
    for num_nodes, num_edges in ((3, 0), (4, 0), (4, 6)):
        problems = [exact_problem(num_nodes, num_edges, seed) for seed in range(options.num_problems)]
        exact = {
            scale: [exact_gradients(problem, scale, options.num_exact) for problem in problems]
            for scale in options.noise_scales
        }
        worst = max(relative_error(losses) for gradients in exact.values() for losses in zip(*gradients, strict=True))
        print(f"\n{num_nodes} nodes, {num_edges} edges; standard error of the exact gradients at most {worst:.1%}.\n")
        print("| estimator |" + "".join(f" noise {scale}: bias | cosine | variance |" for scale in exact))
        print("| --- |" + " --- | --- | --- |" * len(exact))
        for settings in EXACT_ROWS:
            cells = [described(settings)]
            for scale, gradients in exact.items():
                estimator = GradientEstimator(**{"noise_scale": scale, **settings})
                is_own = estimator.name == "fenchel_young"
                truth = [losses[is_own][0] for losses in gradients]
                bias, cosine, variance = bias_and_variance(estimator, problems, truth, options.num_replicas)
                if is_own:  # of its own gradient it has no bias: the cosine is with that of the Hamming loss
                    hamming, own = (torch.stack([losses[which][0] for losses in gradients]) for which in (0, 1))
                    cosine = ((own * hamming).sum() / (own.norm() * hamming.norm())).item()
                cells += [f"{bias:.2f}", f"{cosine:.2f}", f"{variance:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def relative_error(gradients) -> float:
    """Standard error of the exact gradients of several problems, relative to their norm."""
    return math.sqrt(sum(error**2 for _, error in gradients) / sum(mean.square().sum() for mean, _ in gradients))


def make_views(generator: torch.Generator, noise: float):
    """A function from a number of items to as many noisy nonlinear views of latent vectors, one array a view."""
    clean_views = random_views(generator, NUM_VIEWS)

    def draw(num_items: int) -> list[torch.Tensor]:
        latents = torch.randn(num_items, LATENT_SIZE, generator=generator)
        clean = [view(latents) for view in clean_views]
        return [view + noise * torch.randn(view.shape, generator=generator) for view in clean]

    return draw


def pair_problems(features: torch.Tensor, edge_weight: float):
    """Costs and edges of every two views' matching, of unit features `(num_views, num_items, size)`."""
    first, second = (list(side) for side in zip(*combinations(range(NUM_VIEWS), 2), strict=True))
    edge_index = nearest_neighbor_edges(features, 5 if edge_weight > 0 else 0)
    edges = edge_differences(features, edge_index)
    return (
        centered_costs(features[first], features[second]),
        edge_weight * centered_costs(edges[first], edges[second]),
        edge_index[first],
        edge_index[second],
    )


def first_order_accuracy(encoders, batches) -> float:
    """Share of items matched to themselves by node costs without noise, over held-out batches and pairs of views."""
    right = []
    with torch.no_grad():
        for views in batches:
            features = unit_vectors(torch.stack([encode(view) for encode, view in zip(encoders, views, strict=True)]))
            labels = match_graphs(*pair_problems(features, 0.0))
            right.append((labels == torch.arange(labels.shape[-1])).float().mean().item())
    return sum(right) / len(right)


def steps_to_target(loss_of, seed: int, options: argparse.Namespace, edge_weight: float = 0.0) -> dict:
    """
    Steps until the smoothed held-out accuracy reaches the target (infinity if it never does), that accuracy, and the
    milliseconds of a training step in CPU time of the thread.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # initial weights
    draw = make_views(generator, options.view_noise)
    encoders = nn.ModuleList(encoder(FEATURE_SIZE) for _ in range(NUM_VIEWS))
    held_out = [draw(options.batch_size) for _ in range(NUM_HELD_OUT)]
    optimizer = torch.optim.AdamW(encoders.parameters(), lr=1e-3)
    accuracies, seconds, smoothed = [], 0.0, 0.0
    for step in range(1, options.num_steps + 1):
        views = draw(options.batch_size)
        started = time.thread_time()
        features = [encode(view) for encode, view in zip(encoders, views, strict=True)]
        loss = loss_of(unit_vectors(torch.stack(features)), edge_weight, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.thread_time() - started
        if step % EVALUATE_EVERY == 0:
            accuracies.append(first_order_accuracy(encoders, held_out))
            smoothed = sum(accuracies[-SMOOTHED_OVER:]) / SMOOTHED_OVER
            if smoothed >= TARGET_ACCURACY:
                break
    reached = step if smoothed >= TARGET_ACCURACY else math.inf
    return {"steps": reached, "accuracy": smoothed, "ms": 1000 * seconds / step}


def estimator_loss(estimator: GradientEstimator):
    def loss_of(features, edge_weight, generator):
        right = torch.eye(features.shape[1], dtype=torch.bool)
        solver = partial(match_graphs, effort=SOLVER_EFFORT)
        return estimator(*pair_problems(features, edge_weight), right, generator=generator, solver=solver)[0]

    return loss_of


def contrast(features, edge_weight, generator):
    pairs = combinations(features, 2)
    return sum(infonce_loss(first @ second.T, 0.1) for first, second in pairs)


def cell(runs: list[dict]) -> str:
    """Mean and standard deviation of the steps, or where a seed did not arrive the accuracy at the end."""
    steps = torch.tensor([run["steps"] for run in runs], dtype=torch.float64)
    if torch.isfinite(steps).all():
        return f"{steps.mean():.0f} ± {steps.std(correction=min(1, len(runs) - 1)):.0f}"
    return f"({sum(run['accuracy'] for run in runs) / len(runs):.2f})"


LEARNING_ROWS = [
    *({"name": "blackbox", "step": step} for step in (0.1, 1.0)),
    *({"name": "imle", "step": step} for step in (0.1, 0.3, 1.0)),
    {"name": "imle", "step": 1.0, "margin": 0.4},
    *({"name": "imle", "step": step, "symmetric": True} for step in (0.2, 1.0)),
    {"name": "aimle", "target": 1 / 24},
    {"name": "aimle"},
    {"name": "aimle", "symmetric": True},
    *({"name": "fenchel_young", "num_samples": samples} for samples in (1, 4, 16)),
    *({"name": "fenchel_young", "noise": noise} for noise in ("gumbel", "sum_of_gamma")),
    *({"name": "fenchel_young", "margin": margin} for margin in (0.2, 0.4, 2.0)),
    {"name": "fenchel_young", "num_samples": 16, "margin": 0.4},
]


def described(settings: dict) -> str:
    """`{"name": "imle", "step": 0.3, "symmetric": True}` as "imle, step 0.3, symmetric"."""
    words = [settings["name"]]
    for key, value in settings.items():
        if key != "name":
            number = f"{value:.2g}" if isinstance(value, int | float) else value
            words.append(key if value is True else f"{key} {number}")
    return ", ".join(words)


def learning_table(options: argparse.Namespace) -> None:
    rows = [row for row in LEARNING_ROWS if options.estimators is None or row["name"] in options.estimators]
    for edge_weight in options.edge_weights:
        print(f"\nEdge weight {edge_weight}: steps to {TARGET_ACCURACY}, mean ± deviation of {options.seeds} seeds.\n")
        print("| estimator |" + "".join(f" noise {scale} |" for scale in options.noise_scales) + " ms a step |")
        print("| --- |" + " --- |" * (len(options.noise_scales) + 1))
        for settings in rows:
            cells, times = [], []
            for scale in options.noise_scales:
                loss_of = estimator_loss(GradientEstimator(**settings, noise_scale=scale))
                runs = [steps_to_target(loss_of, seed, options, edge_weight) for seed in range(options.seeds)]
                cells.append(cell(runs))
                times += [run["ms"] for run in runs]
            print("| " + " | ".join([described(settings), *cells, f"{min(times):.1f}"]) + " |", flush=True)
    runs = [steps_to_target(contrast, seed, options) for seed in range(options.seeds)]
    print(f"\nInfoNCE, temperature 0.1: {cell(runs)}, {min(run['ms'] for run in runs):.1f} ms.")


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=("exact", "learning"), required=True)
    parser.add_argument("--noise_scales", nargs="+", type=float, help="defaults: 0.1 0.3 1; learning: 0.05 to 0.5")
    parser.add_argument("--num_problems", type=int, default=5, help="exact: problems of each size")
    parser.add_argument("--num_exact", type=int, default=200_000, help="exact: noise samples of the exact gradient")
    parser.add_argument("--num_replicas", type=int, default=300, help="exact: estimates of each problem's gradient")
    parser.add_argument("--seeds", type=int, default=3, help="learning: number of seeds")
    parser.add_argument("--view_noise", type=float, default=0.5, help="learning: noise on the views")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--num_steps", type=int, default=400, help="learning: most steps of a run")
    parser.add_argument("--edge_weights", nargs="+", type=float, default=[0.0], help="learning: 0 is first order")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, help="learning: only these")
    options = parser.parse_args(arguments)
    if options.noise_scales is None:
        options.noise_scales = [0.1, 0.3, 1.0] if options.part == "exact" else [0.05, 0.1, 0.2, 0.3, 0.5]
    return options


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    exact_table(options) if options.part == "exact" else learning_table(options)


if __name__ == "__main__":
    main()
