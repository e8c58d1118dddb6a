"""
How long a step of the alignment loss takes, forward and backward, and where the time goes.

The step is the paper's form (`released.py`), its graph network in training mode: six problems. Prints, in milliseconds
of the fastest repeat, the parts of the forward pass (graphs, network, costs with noise, solve), the backward pass and
what the solver takes of it, the whole step with its median, what must be computed at least (the solver, and the
matrix products, timed here on the same machine) and the ratio of the whole to that. Beside it: the project's bar, the
time measured for the research release, and the default objective's whole step. "easy" modalities are noisy copies of
each other, "hard" ones independent. Feature sizes above `--graph_hidden_size` are measured with a network of that
inner size as well.

    python tests/benchmarks/alignment.py --sizes 16 64 --dims 512 --repeats 10
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial


os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch

from logramed.trainer.alignment import AlignmentObjective, hamming_loss, match_graphs
from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.alignment.graphs import nearest_neighbor_edges, run_graph_network
from logramed.trainer.alignment.released import (
    draw_noise,
    released_costs,
    released_graphs,
    released_matchings,
)


NUM_NEIGHBORS = 5
MODALITIES = ("image", "answer", "extended")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Milliseconds on two cores in float32: the whole step on hard problems of size 512 at most, and the release's.
BARS = {16: 30, 32: 60, 64: 150, 128: 550, 256: 2500}
RELEASE = {
    (512, "easy"): {16: 112, 32: 246, 64: 1128, 128: 10184, 256: 19354},
    (512, "hard"): {16: 166, 32: 588, 64: 3836, 128: 13356, 256: 18155},
    (4096, "easy"): {16: 2378, 32: 3307, 64: 5714, 128: 16060},
    (4096, "hard"): {16: 2403, 32: 3794, 64: 8560, 128: 22727},
}
COLUMNS = "N D kind inner graphs network costs solve backward (solve) total (median) least ratio | bar release default"


class Stopwatch:
    """Milliseconds a call takes, once the device has finished."""

    def __init__(self, clock: str, device: str):
        self.clock = CLOCKS[clock]
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self, function: Callable[[], object]) -> tuple[float, object]:
        self.synchronize()
        started = self.clock()
        result = function()
        self.synchronize()
        return 1000 * (self.clock() - started), result


def make_features(num_nodes: int, size: int, kind: str, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(num_nodes, size, generator=generator)
    features = {}
    for name in MODALITIES:
        own = torch.randn(num_nodes, size, generator=generator)
        features[name] = (shared + 0.1 * own if kind == "easy" else own).to(device).requires_grad_()
    return features


def matrix_products(num_nodes: int, size: int, inner_size: int, device: str) -> Callable[[], None]:
    """
    A function that computes the products a step cannot do without: distances of the 4 sets of features; the network's
    layers, where the first one's map of a node itself is that of 4 sets and all others are of 10 graphs; and the inner
    products of 6 pairs. All but the distances with their two gradients.
    """
    options = {"device": device, "dtype": torch.float32}
    sets, graphs, pairs = (torch.randn(count, num_nodes, size, **options) for count in (4, 10, 6))
    inner = torch.randn(10 * num_nodes, inner_size, **options)
    wide = graphs.flatten(0, 1)
    layers = [(sets.flatten(0, 1), inner_size), (wide, inner_size), (inner, size), (inner, size)]
    layers = [
        (rows, torch.randn(out, rows.shape[1], **options), torch.randn(len(rows), out, **options))
        for rows, out in layers
    ]

    def compute():
        sets @ sets.mT
        for rows, weight, gradient in layers:
            rows @ weight.T, gradient @ weight, gradient.T @ rows
        products = pairs @ pairs.mT
        products @ pairs, products.mT @ pairs

    return compute


def forward_parts(features, network, generator, stopwatch) -> list[float]:
    """Milliseconds of building the graphs, running the network, and computing costs with noise."""
    values = torch.stack(list(features.values()))
    nodes = torch.cat([values, values.mean(0, keepdim=True)])
    features_of, edges_of, source_of, target_of = released_graphs(len(values), values.device)
    graphs_ms, edge_index = stopwatch(lambda: nearest_neighbor_edges(nodes, NUM_NEIGHBORS).index_select(0, edges_of))
    network_ms, output = stopwatch(lambda: run_graph_network(network, nodes, edge_index, features_of=features_of))

    def costs():
        noise = draw_noise(len(source_of), nodes.shape[1], edge_index.shape[-1], generator, nodes.device)
        return released_costs(output, edge_index, source_of, target_of, *noise)

    return [graphs_ms, network_ms, stopwatch(costs)[0]]


def whole_step(features, network, generator, solver, stopwatch) -> tuple[float, float, float, float]:
    """Milliseconds of a step: in total, of its backward pass, and of the solver in either pass."""
    solves = []

    def timed_solver(*problem, **options):
        elapsed, labels = stopwatch(lambda: solver(*problem, **options))
        solves.append(elapsed)
        return labels

    def forward():
        matchings = released_matchings(features, network, generator=generator, solver=timed_solver)[1]
        return hamming_loss(matchings)

    for tensor in (*features.values(), *network.parameters()):
        tensor.grad = None
    forward_ms, loss = stopwatch(forward)
    backward_ms, _ = stopwatch(loss.backward)
    return forward_ms + backward_ms, backward_ms, solves[0], sum(solves[1:])


def default_step(features, network, generator, stopwatch) -> float:
    objective = AlignmentObjective()
    return stopwatch(lambda: objective(features, network, generator=generator).loss.backward())[0]


def measure(num_nodes: int, size: int, kind: str, inner_size: int, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one row of the table."""
    stopwatch = Stopwatch(options.clock, options.device)
    torch.manual_seed(0)
    features = make_features(num_nodes, size, kind, options.device)
    network = GraphNetwork(size, graph_hidden_size=inner_size).to(options.device)
    generator = torch.Generator(options.device).manual_seed(0)
    solver = partial(match_graphs, effort=options.effort)
    whole_step(features, network, generator, solver, stopwatch)  # compiles the solver, fills caches
    compute_products = matrix_products(num_nodes, size, inner_size, options.device)
    parts, steps, defaults, products = [], [], [], []
    for _ in range(options.repeats):  # in turns, so that none of them finds its numbers in the cache
        products.append(stopwatch(compute_products)[0])
        parts.append(forward_parts(features, network, generator, stopwatch))
        steps.append(whole_step(features, network, generator, solver, stopwatch))
        defaults.append(default_step(features, network, generator, stopwatch))
    graphs, network_ms, costs = (min(values) for values in zip(*parts, strict=True))
    total, backward, solve, backward_solve = (min(values) for values in zip(*steps, strict=True))
    return {
        "graphs": graphs,
        "network": network_ms,
        "costs": costs,
        "solve": solve,
        "backward": backward,
        "backward_solve": backward_solve,
        "total": total,
        "median": sorted(step[0] for step in steps)[len(steps) // 2],
        "least": solve + backward_solve + min(products),
        "default": min(defaults),
    }


def row(num_nodes: int, size: int, kind: str, inner_size: int, figures: dict[str, float]) -> str:
    def ms(name):
        return f"{figures[name]:.1f}"

    is_full = inner_size == size
    bar = BARS.get(num_nodes, "-") if (size, kind) == (512, "hard") and is_full else "-"
    release = RELEASE.get((size, kind), {}).get(num_nodes, "-") if is_full else "-"
    cells = [num_nodes, size, kind, inner_size, *map(ms, ("graphs", "network", "costs", "solve", "backward"))]
    cells += [f"({ms('backward_solve')})", ms("total"), f"({ms('median')})", ms("least")]
    cells += [f"{figures['total'] / figures['least']:.2f}", "|", bar, release, ms("default")]
    return " ".join(f"{cell!s:>9}" for cell in cells)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512], help="nodes of a graph"
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 4096], help="feature sizes")
    parser.add_argument("--kinds", nargs="+", choices=("easy", "hard"), default=["easy", "hard"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--effort", type=float, default=1.0, help="length of the solver's search, as in match_graphs")
    parser.add_argument("--graph_hidden_size", type=int, default=512, help="inner size of the narrower network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: time of all threads, added up")
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    print(f"{options.device}, {torch.get_num_threads()} threads, {options.clock} time in ms, effort {options.effort}")
    print(" ".join(f"{column:>9}" for column in COLUMNS.split()))
    for size in options.dims:
        for num_nodes in options.sizes:
            for kind in options.kinds:
                for inner_size in sorted({size, min(size, options.graph_hidden_size)}, reverse=True):
                    figures = measure(num_nodes, size, kind, inner_size, options)
                    print(row(num_nodes, size, kind, inner_size, figures), flush=True)


if __name__ == "__main__":
    main()
