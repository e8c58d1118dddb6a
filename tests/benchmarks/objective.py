"""
Does a low alignment loss mean alignment? Trains one small encoder a modality on a toy and measures, on held-out items,
how often an item's nearest neighbour in another modality is the item itself (recall@1; chance is 1 / held-out items).

Each modality is a noisy nonlinear view of one latent vector. With `--shift` every batch and modality is moved in
latent space, so that only the geometry within a batch is shared. Prints one row an objective: the recall at several
steps, mean and half width of the 95% interval over seeds; the difference from the first objective at the last step,
paired by seed; the last training batches' loss and matching accuracy; and milliseconds a step.

    python tests/benchmarks/objective.py --objectives infonce multi_graph paper --seeds 3
"""

import argparse
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
    retrieval_metrics,
)


LATENT_SIZE = 16
VIEW_SIZE = 64
MODALITIES = ("image", "answer", "extended")
# Rows of the table: values of `AlignmentConfig`.
OBJECTIVES = {
    "infonce": {"alignment_loss": "infonce"},
    "infonce_edges_margin": {"alignment_loss": "infonce", "edge_weight": 1.0, "alignment_margin": 0.4},
    "first_order": {"alignment_loss": "first_order"},
    "multi_graph": {"alignment_loss": "multi_graph"},
    "multi_graph_no_margin": {"alignment_loss": "multi_graph", "alignment_margin": 0.0},
    "multi_graph_no_edges": {"alignment_loss": "multi_graph", "edge_weight": 0.0},
    "multi_graph_no_messages": {"alignment_loss": "multi_graph", "message_weight": 0.0},
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
    metrics = retrieval_metrics(features, torch.arange(len(features["image"])))
    recalls = [recall for name, recall in metrics.items() if name.startswith("recall_at_1_")]
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


def seeds(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
    compare(parse_arguments(arguments))


if __name__ == "__main__":
    main()
