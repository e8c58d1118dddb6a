"""
The solver on recorded problems, and its time for the six problems of a step.

    python tests/benchmarks/solver.py [--fixtures FOLDER] [--sizes 16 32 64 128 256] [--large_sizes 512 1024]

First table: cost of the release's solver, ours, and the best known. Second: wall time of one call of `match_graphs`,
and CPU time of all its threads together, which is what to compare where a machine is not idle. Third: peak memory of
one problem, in a process of its own.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from logramed.trainer.alignment import GraphNetwork, match_graphs, matching_cost
from logramed.trainer.alignment.released import draw_noise, released_problems


FIXTURES = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "matching"
BARS = {16: 2, 32: 6, 64: 25, 128: 150, 256: 1000}
NUM_NEIGHBORS = 5


def step_problems(kind: str, num_nodes: int, seed: int, feature_size: int = 512) -> list[torch.Tensor]:
    """The six problems of a step of the paper's objective: `"easy"` noisy copies or `"hard"` unrelated features."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for the network's weights and dropout
    features = torch.randn(3, num_nodes, feature_size, generator=generator)
    if kind == "easy":
        features = torch.randn(num_nodes, feature_size, generator=generator) + 0.3 * features
    num_edges = num_nodes * min(NUM_NEIGHBORS, num_nodes - 1)
    noises = draw_noise(6, num_nodes, num_edges, generator)
    with torch.no_grad():
        network = GraphNetwork(feature_size).train()
        node_costs, edge_costs, edges = released_problems(features, network, num_edges // num_nodes, *noises)
    return [node_costs.double(), edge_costs, edges, edges]


def print_costs(folder: Path, efforts: list[float], num_seeds: int) -> None:
    """The fixture table: mean (worst) over seeds, and the mean gap to the best known cost by kind."""
    gaps = {}
    titles = [f"effort {effort:g}, {mode}" for effort in efforts for mode in ("unmatched allowed", "all matched")]
    print("| problem | release | best known, unmatched allowed | all matched | " + " | ".join(titles) + " |")
    print("| --- " * (4 + len(titles)) + "|")
    for path in sorted(folder.glob("*.safetensors")):
        recorded = {name: values.to("cpu") for name, values in load_file(path).items()}
        problem = [recorded[key] for key in ("node_costs", "edge_costs", "edge_index", "edge_index")]
        cells = []
        for effort in efforts:
            for allow_unmatched, key in ((True, "best_known_partial_cost"), (False, "best_known_cost")):
                costs = []
                for seed in range(num_seeds):
                    generator = torch.Generator().manual_seed(seed)
                    labels = match_graphs(
                        *problem, allow_unmatched=allow_unmatched, effort=effort, generator=generator
                    )
                    costs.append(matching_cost(labels, *problem).item())
                best = recorded[key].item()
                gap = (statistics.mean(costs) - best) / abs(best)
                gaps.setdefault((path.stem.split("_")[0], effort, allow_unmatched), []).append(gap)
                cells.append(f"{statistics.mean(costs):.3f} ({max(costs):.3f})")
        known = [recorded[key].item() for key in ("release_cost", "best_known_partial_cost", "best_known_cost")]
        print(f"| {path.stem} | " + " | ".join([*(f"{cost:.3f}" for cost in known), *cells]) + " |", flush=True)
    print("\n| kind | effort | unmatched | mean gap in % |\n| --- | --- | --- | --- |")
    for (kind, effort, allow_unmatched), values in gaps.items():
        print(
            f"| {kind} | {effort:g} | {'allowed' if allow_unmatched else 'no'} | {100 * statistics.mean(values):.2f} |"
        )


def print_times(sizes: list[int], num_repeats: int) -> None:
    """Milliseconds of one call with the six problems of a step, on `torch.get_num_threads()` threads."""
    print(f"\n{torch.get_num_threads()} threads, six problems a call, milliseconds")
    print("| N | kind | unmatched | wall, least | wall, median | CPU, least | bar |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for num_nodes in sizes:
        for kind in ("easy", "hard"):
            problems = step_problems(kind, num_nodes, seed=0)
            for allow_unmatched in (True, False):
                wall, cpu = repeated_times(problems, allow_unmatched, max(1, num_repeats * 16 // num_nodes))
                cells = [f"{1000 * value:.2f}" for value in (min(wall), statistics.median(wall), min(cpu))]
                unmatched = "allowed" if allow_unmatched else "no"
                print(
                    f"| {num_nodes} | {kind} | {unmatched} | {' | '.join(cells)} | {BARS.get(num_nodes, '')} |",
                    flush=True,
                )


def repeated_times(problems: list[torch.Tensor], allow_unmatched: bool, num_repeats: int):
    """Seconds of wall and of CPU time of each of `num_repeats` calls, after one that does not count."""
    match_graphs(*(values[:2] for values in problems), allow_unmatched=allow_unmatched, effort=0.01)
    wall, cpu = [], []
    for _ in range(num_repeats):
        before = time.perf_counter(), time.process_time()
        match_graphs(*problems, allow_unmatched=allow_unmatched)
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return wall, cpu


def print_peak_memory(num_nodes: int) -> None:
    """Milliseconds and peak memory of one problem at effort 0.1, with float32 edge costs of unit normal size."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_nodes, (2, NUM_NEIGHBORS * num_nodes), generator=generator)
    node_costs = torch.randn(num_nodes, num_nodes, generator=generator)
    edge_costs = torch.randn(edges.shape[1], edges.shape[1], generator=generator)
    small = (node_costs[:8, :8], torch.zeros(1, 1), edges[:, :1] % 8, edges[:, :1] % 8)
    match_graphs(*small)  # compiles
    before = resident_memory()
    wall = time.perf_counter()
    match_graphs(node_costs, edge_costs, edges, edges, allow_unmatched=True, effort=0.1)
    wall = time.perf_counter() - wall
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(f"| {num_nodes} | {edge_costs.nbytes / 2**20:.0f} | {more:.0f} | {1000 * wall:.0f} |")


def resident_memory() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Costs, times and memory of the matching solver.")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES)
    parser.add_argument("--efforts", type=float, nargs="*", default=[1.0, 10.0])
    parser.add_argument("--num_seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(BARS))
    parser.add_argument("--num_repeats", type=int, default=100, help="At N=16; fewer for larger N.")
    parser.add_argument("--large_sizes", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--peak_memory", type=int, help="Only the peak memory at this size, in this process.")
    options = parser.parse_args(arguments)
    if options.peak_memory:
        print_peak_memory(options.peak_memory)
        return
    if options.efforts:
        print_costs(options.fixtures, options.efforts, options.num_seeds)
    if options.sizes:
        print_times(options.sizes, options.num_repeats)
    if options.large_sizes:
        print(
            "\n| N | MiB of edge costs | MiB more at the peak | ms, effort 0.1 |\n| --- | --- | --- | --- |",
            flush=True,
        )
        for num_nodes in options.large_sizes:
            subprocess.run([sys.executable, __file__, "--peak_memory", str(num_nodes)], check=True)


if __name__ == "__main__":
    main()
