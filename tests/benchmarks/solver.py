"""
The solver on recorded problems, and its time for the six problems of a step.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.solver [--fixtures FOLDER] [--sizes 16 32 64]

First table: cost of the release's solver, ours, and the best known. Second: CPU time of one call of `match_graphs`.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from logramed.trainer.alignment import GraphNetwork, match_graphs, matching_cost
from logramed.trainer.alignment.released import draw_noise, released_problems


FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "matching"
NUM_NEIGHBORS = 5


def step_problems(num_nodes: int, seed: int = 0, feature_size: int = 512) -> list[torch.Tensor]:
    """The six problems of a step of the paper's objective, of unrelated features."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for the network's weights and dropout
    features = torch.randn(3, num_nodes, feature_size, generator=generator)
    num_neighbors = min(NUM_NEIGHBORS, num_nodes - 1)
    noises = draw_noise(6, num_nodes, num_nodes * num_neighbors, generator)
    with torch.no_grad():
        network = GraphNetwork(feature_size).train()
        node_costs, edge_costs, edges = released_problems(features, network, num_neighbors, *noises)
    return [node_costs, edge_costs, edges, edges]


def print_costs(folder: Path, num_starts: list[int], num_seeds: int) -> None:
    """Mean over seeds, with unmatched nodes allowed, as the release allows them."""
    print("| problem | release | best known | " + " | ".join(f"{number} starts" for number in num_starts) + " |")
    print("| --- " * (3 + len(num_starts)) + "|")
    for path in sorted(folder.glob("*.safetensors")):
        recorded = load_file(path)
        problem = [recorded[key] for key in ("node_costs", "edge_costs", "edge_index", "edge_index")]
        means = [recorded["release_cost"].item(), recorded["best_known_partial_cost"].item()]
        for number in num_starts:
            costs = []
            for seed in range(num_seeds):
                options = {"allow_unmatched": True, "num_starts": number}
                labels = match_graphs(*problem, generator=torch.Generator().manual_seed(seed), **options)
                costs.append(matching_cost(labels, *problem).item())
            means.append(statistics.mean(costs))
        print(f"| {path.stem} | " + " | ".join(f"{cost:.3f}" for cost in means) + " |", flush=True)


def print_times(sizes: list[int], num_repeats: int) -> None:
    """Milliseconds of one call with the six problems of a step, the least of the repeats."""
    print("\n| N | CPU, six problems, ms |\n| --- | --- |")
    for num_nodes in sizes:
        problems, times = step_problems(num_nodes), []
        for _ in range(num_repeats):
            started = time.process_time()
            match_graphs(*problems, allow_unmatched=True)
            times.append(time.process_time() - started)
        print(f"| {num_nodes} | {1000 * min(times):.0f} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Costs and times of the matching solver.")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES)
    parser.add_argument("--num_starts", type=int, nargs="*", default=[16])
    parser.add_argument("--num_seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--num_repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    print_costs(options.fixtures, options.num_starts, options.num_seeds)
    print_times(options.sizes, options.num_repeats)


if __name__ == "__main__":
    main()
