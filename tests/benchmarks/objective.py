"""
Does a low alignment loss mean alignment? Trains one small encoder a modality on a toy and measures, on held-out items,
how often an item's nearest neighbour in another modality is the item itself (recall@1; chance is 1 / held-out items).

Each modality is a noisy nonlinear view of one latent vector. With `--shift` every batch and modality is moved in
latent space, so that only the geometry within a batch is shared. Prints one row an objective: the recall at several
steps, mean and half width of the 95% interval over seeds; the difference from the first objective at the last step,
paired by seed; the last training batches' loss and matching accuracy; and milliseconds a step.

    python tests/benchmarks/objective.py --objectives infonce multi_graph paper --seeds 3
    python tests/benchmarks/objective.py --part causes    # one fault of the paper's form at a time
"""

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence


os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy.stats import t as student_t
from torch import nn

from logramed.trainer.alignment import (
    AlignmentConfig,
    AlignmentObjective,
    GraphNetwork,
    nearest_neighbor_edges,
    recall_at_k,
    unit_vectors,
)
from logramed.trainer.alignment.graphs import edge_differences, run_graph_network
from logramed.trainer.alignment.objective import GraphPairs
from logramed.trainer.alignment.objectives import MultiGraph


LATENT_SIZE = 16
VIEW_SIZE = 64
MODALITIES = ("image", "answer", "extended")
COUPLED = {"edge_matching": "coupled", "gradient_estimator": "imle", "edge_weight": 0.3}
# Rows of the table: values of `AlignmentConfig`.
OBJECTIVES = {
    "infonce": {"alignment_loss": "infonce"},
    "infonce_edges_margin": {"alignment_loss": "infonce", "edge_weight": 1.0, "alignment_margin": 0.4},
    "siglip": {"alignment_loss": "siglip"},
    "first_order": {"alignment_loss": "first_order"},
    "multi_graph": {"alignment_loss": "multi_graph"},
    "multi_graph_no_margin": {"alignment_loss": "multi_graph", "alignment_margin": 0.0},
    "multi_graph_no_edges": {"alignment_loss": "multi_graph", "edge_weight": 0.0},
    "multi_graph_no_messages": {"alignment_loss": "multi_graph", "message_weight": 0.0},
    "multi_graph_imle": {"alignment_loss": "multi_graph", "gradient_estimator": "imle"},
    "multi_graph_coupled": {"alignment_loss": "multi_graph", **COUPLED},
    "paper": {"alignment_loss": "paper"},
}


def random_views(generator: torch.Generator, num_views: int) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """So many nonlinear views of latents `(num_items, LATENT_SIZE)`, without noise: random two-layer networks."""
    weights = [
        (
            torch.randn(LATENT_SIZE, 32, generator=generator) / math.sqrt(LATENT_SIZE),
            torch.randn(32, VIEW_SIZE, generator=generator) / math.sqrt(32),
        )
        for _ in range(num_views)
    ]
    return [
        lambda latents, inner=inner, outer=outer: torch.tanh(2 * latents @ inner) @ outer for inner, outer in weights
    ]


def make_views(generator: torch.Generator):
    """A function from latents to the three modalities' noisy and shifted views."""
    clean_views = random_views(generator, len(MODALITIES))

    def views(latents: torch.Tensor, noise: float, shift: float) -> dict[str, torch.Tensor]:
        result = {}
        for name, view in zip(MODALITIES, clean_views, strict=True):
            clean = view(latents + shift * torch.randn(1, LATENT_SIZE, generator=generator))
            result[name] = clean + noise * torch.randn(clean.shape, generator=generator)
        return result

    return views


def encoder(feature_size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(VIEW_SIZE, 128), nn.ReLU(), nn.Linear(128, feature_size))


def held_out_recall(encoders, held_out, center: bool = False) -> float:
    """Mean recall@1 over the ordered pairs of modalities."""
    with torch.no_grad():
        features = {name: encoders[name](view) for name, view in held_out.items()}
    if center:
        features = {name: values - values.mean(0) for name, values in features.items()}
    pairs = itertools.permutations(features, 2)
    recalls = [recall_at_k(features[first], features[second]) for first, second in pairs]
    return sum(recalls) / len(recalls)


def train(objective: AlignmentObjective, seed: int, options: argparse.Namespace) -> dict:
    """Recall at every reported step, and the mean loss and matching accuracy of the last ten batches."""
    generator = torch.Generator().manual_seed(seed)
    noise_generator = torch.Generator().manual_seed(seed + 1_000_000)  # all objectives see the same batches
    torch.manual_seed(seed)  # initial weights and dropout
    views = make_views(generator)

    def draw(num_items):
        latents = torch.randn(num_items, LATENT_SIZE, generator=generator)
        return views(latents, options.view_noise, options.shift)

    held_out = draw(options.num_held_out)
    encoders = nn.ModuleDict({name: encoder(options.feature_size) for name in MODALITIES})
    network = GraphNetwork(options.feature_size) if objective.uses_graph_network else None
    parameters = [*encoders.parameters(), *(network.parameters() if network is not None else [])]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate)
    recalls, last, seconds = [held_out_recall(encoders, held_out, options.shift > 0)], [], 0.0
    for step in range(1, options.num_steps + 1):
        batch = draw(options.batch_size)
        started = time.perf_counter()
        output = objective({name: encoders[name](view) for name, view in batch.items()}, network, noise_generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - started
        last = [*last[-9:], (output.loss.item(), output.matching_accuracy.item())]
        if step % options.report_every == 0:
            recalls.append(held_out_recall(encoders, held_out, options.shift > 0))
    loss, accuracy = (sum(values) / len(last) for values in zip(*last, strict=True))
    return {"recalls": recalls, "loss": loss, "accuracy": accuracy, "ms": 1000 * seconds / options.num_steps}


class FaultyObjective(MultiGraph):
    """Quadratic assignment between a modality and the mean of the others, with some of the paper's faults."""

    def __init__(self, *faults: str):
        config = AlignmentConfig(
            alignment_preset="paper",
            edge_matching="coupled",
            edge_weight=0.5 if "costs not centered" in faults else 0.1,
            gradient_estimator="imle",
            noise_scale=0.05 if "little noise" in faults else 0.3,
            num_noise_samples=1 if "one sample" in faults else 4,
            alignment_margin=0.0,
        )
        super().__init__(config)
        self.faults = faults

    def graph_pairs(self, features, graph_network=None):
        unit = {name: unit_vectors(values) for name, values in features.items()}
        names, source, target = [], [], []
        for name, values in unit.items():
            partners = [nodes for other, nodes in unit.items() if other != name or "own share" in self.faults]
            names.append(f"{name}>mean")
            source.append(values)
            target.append(unit_vectors(torch.stack(partners).mean(0)))
        source, target = torch.stack(source), torch.stack(target)
        source_index = nearest_neighbor_edges(source, 5)
        target_index = source_index if "shared edges" in self.faults else nearest_neighbor_edges(target, 5)
        if graph_network is not None:
            source = self._hear(source, source_index, graph_network)
            target = self._hear(target, target_index, graph_network)
        edges = edge_differences(source, source_index), edge_differences(target, target_index)
        return GraphPairs(names, source, target, *edges, source_index, target_index)

    def _hear(self, nodes, edge_index, graph_network):
        heard_from = edge_index if "messages reversed" in self.faults else edge_index.flip(-2)
        share_dropout = "dropout of each node" not in self.faults
        messages = unit_vectors(run_graph_network(graph_network, nodes, heard_from, share_dropout=share_dropout))
        if "network replaces features" in self.faults:
            return messages
        return unit_vectors(nodes + self.message_weight * messages)

    def _costs(self, source, target):
        if "costs not centered" in self.faults:
            return 0.5 - source @ target.mT
        return super()._costs(source, target)


NUM_UNRELATED = 50  # batches of unrelated features
FAULTS = (
    "shared edges",
    "own share",
    "costs not centered",
    "little noise",
    "one sample",
    "network replaces features",
    "messages reversed",
    "dropout of each node",
)


def given_away(objective: AlignmentObjective, num_nodes: int = 12, size: int = 16) -> float:
    """Matching accuracy on features that have nothing to do with each other: chance is 1 / `num_nodes`."""
    accuracies = []
    for seed in range(NUM_UNRELATED):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        features = {name: torch.randn(num_nodes, size, generator=generator) for name in MODALITIES}
        accuracies.append(objective(features, GraphNetwork(size), generator).matching_accuracy.item())
    return sum(accuracies) / len(accuracies)


def interval(values: Sequence[float], sign: bool = False) -> str:
    """Mean and half width of the 95% interval (Student's t); of one value that alone."""
    tensor = torch.tensor(values, dtype=torch.float64)
    text = f"{tensor.mean().item():{'+' if sign else ''}.3f}"
    if len(values) == 1:
        return text
    half = student_t.ppf(0.975, len(values) - 1) * tensor.std().item() / math.sqrt(len(values))
    return f"{text}±{half:.3f}"


def compare(options: argparse.Namespace) -> None:
    """One row an objective, differences paired by seed against the first."""
    print(
        f"{'objective':<26} recall@1 every {options.report_every} steps from 0 | difference | loss, matched (train) | "
        "ms a step"
    )
    first = None
    for name in options.objectives:
        if name not in OBJECTIVES:
            raise SystemExit(f"--objectives must be of {', '.join(OBJECTIVES)}, got {name!r}.")
        objective = AlignmentObjective(AlignmentConfig(alignment_preset="paper", **OBJECTIVES[name]))
        runs = [train(objective, seed, options) for seed in seeds(options)]
        recalls = " / ".join(interval(list(values)) for values in zip(*(run["recalls"] for run in runs), strict=True))
        first = first or runs
        differences = [run["recalls"][-1] - base["recalls"][-1] for run, base in zip(runs, first, strict=True)]
        loss, accuracy = (sum(run[key] for run in runs) / len(runs) for key in ("loss", "accuracy"))
        fastest = min(run["ms"] for run in runs)
        print(
            f"{name:<26} {recalls} | {interval(differences, sign=True)} | {loss:.2f} {accuracy:.2f} | {fastest:.1f}",
            flush=True,
        )


def compare_causes(options: argparse.Namespace) -> None:
    """What each fault alone gives away on unrelated features, and what it costs in recall."""
    print(
        f"{'fault':<28} matched, unrelated features | recall@1 after {options.num_steps} steps | difference | matched"
    )
    variants = {"none": FaultyObjective(), **{fault: FaultyObjective(fault) for fault in FAULTS}}
    variants |= {
        "all": FaultyObjective(*FAULTS),
        "paper": AlignmentObjective(AlignmentConfig(alignment_preset="paper", alignment_loss="paper")),
    }
    first = None
    for name, objective in variants.items():
        runs = [train(objective, seed, options) for seed in seeds(options)]
        recalls = [run["recalls"][-1] for run in runs]
        first = first or recalls
        difference = interval([mine - base for mine, base in zip(recalls, first, strict=True)], sign=True)
        accuracy = sum(run["accuracy"] for run in runs) / len(runs)
        leak = given_away(objective)
        print(f"{name:<28} {leak:.3f} | {interval(recalls)} | {difference} | {accuracy:.2f}", flush=True)


def seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=["compare", "causes"], default="compare")
    parser.add_argument("--objectives", nargs="+", default=["infonce", "multi_graph", "paper"])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--view_noise", type=float, default=0.5, help="standard deviation of the noise on the views")
    parser.add_argument("--shift", type=float, default=0.0, help="shift of each batch and view in latent space")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--feature_size", type=int, default=64)
    parser.add_argument("--num_held_out", type=int, default=200)
    parser.add_argument("--num_steps", type=int, default=300)
    parser.add_argument("--report_every", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    if options.part == "causes":
        compare_causes(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
