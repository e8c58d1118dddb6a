"""
Does a low alignment loss mean alignment? Trains one small encoder a modality on a toy and measures, on held-out items,
how often an item's nearest neighbour in another modality is the item itself (recall@1; chance is 1 / held-out items).

Each modality is a noisy nonlinear view of one latent vector. With `--shift` every batch and modality is moved in
latent space, so that only the geometry within a batch is shared. Prints one row an objective: the recall at several
steps, mean and half width of the 95% interval over seeds, and the last training batches' loss and matching accuracy.

    python tests/benchmarks/objective.py --objectives multi_graph infonce paper --seeds 3
"""

import argparse
import math
import os
import time


os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from logramed.graph_network_logramed import GraphNetwork
from logramed.trainer.alignment import LOSSES, AlignmentObjective, recall_at_k


LATENT_SIZE = 16
VIEW_SIZE = 64
MODALITIES = ("image", "answer", "extended")


def make_views(generator: torch.Generator):
    """A function from latents to the three modalities' views: random two-layer networks, fixed from here on."""
    weights = [
        (
            torch.randn(LATENT_SIZE, 32, generator=generator) / math.sqrt(LATENT_SIZE),
            torch.randn(32, VIEW_SIZE, generator=generator) / math.sqrt(32),
        )
        for _ in MODALITIES
    ]

    def views(latents: torch.Tensor, noise: float, shift: float) -> dict[str, torch.Tensor]:
        result = {}
        for name, (inner, outer) in zip(MODALITIES, weights, strict=True):
            moved = latents + shift * torch.randn(1, LATENT_SIZE, generator=generator)
            clean = torch.tanh(2 * moved @ inner) @ outer
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
    pairs = [(first, second) for first in features for second in features if first != second]
    return sum(recall_at_k(features[first], features[second]) for first, second in pairs) / len(pairs)


def train(objective: AlignmentObjective, seed: int, options: argparse.Namespace) -> dict:
    """Recall at every reported step, and the mean loss and matching accuracy of the last ten batches."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # initial weights and dropout
    views = make_views(generator)

    def draw(num_items):
        latents = torch.randn(num_items, LATENT_SIZE, generator=generator)
        return views(latents, options.view_noise, options.shift)

    held_out = draw(options.num_held_out)
    encoders = nn.ModuleDict({name: encoder(options.feature_size) for name in MODALITIES})
    network = None if options.no_network else GraphNetwork(options.feature_size)
    parameters = [*encoders.parameters(), *(network.parameters() if network is not None else [])]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate)
    recalls, last, seconds = [held_out_recall(encoders, held_out, options.shift > 0)], [], 0.0
    for step in range(1, options.num_steps + 1):
        batch = draw(options.batch_size)
        started = time.perf_counter()
        output = objective({name: encoders[name](view) for name, view in batch.items()}, network, generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        seconds += time.perf_counter() - started
        last = [*last[-9:], (output.loss.item(), output.matching_accuracy.item())]
        if step % options.report_every == 0:
            recalls.append(held_out_recall(encoders, held_out, options.shift > 0))
    loss, accuracy = (sum(values) / len(last) for values in zip(*last, strict=True))
    return {"recalls": recalls, "loss": loss, "accuracy": accuracy, "ms": 1000 * seconds / options.num_steps}


def interval(values: list[float]) -> str:
    """Mean and half width of the 95% interval (normal approximation)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * tensor.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{tensor.mean().item():.3f}±{half:.3f}" if len(values) > 1 else f"{tensor.mean().item():.3f}"


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--objectives", nargs="+", default=["multi_graph", "first_order", "infonce", "paper"])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--view_noise", type=float, default=0.5, help="standard deviation of the noise on the views")
    parser.add_argument("--shift", type=float, default=0.0, help="shift of each batch and view in latent space")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--feature_size", type=int, default=64)
    parser.add_argument("--num_held_out", type=int, default=200)
    parser.add_argument("--num_steps", type=int, default=300)
    parser.add_argument("--report_every", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--no_network", action="store_true", help="no message passing")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of AlignmentObjective, for all objectives"
    )
    return parser.parse_args(arguments)


def objective_options(settings: list[str]) -> dict:
    """`["noise_scale=0.2", "noise=gumbel"]` as keyword arguments."""
    result = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if value in ("True", "False"):
            result[name] = value == "True"
        else:
            try:
                result[name] = int(value) if value.isdigit() else float(value)
            except ValueError:
                result[name] = value
    return result


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    extra = objective_options(options.set)
    print(f"{'objective':<22} recall@1 every {options.report_every} steps from 0 | loss, matched (train) | ms a step")
    for name in options.objectives:
        if name not in LOSSES:
            raise SystemExit(f"--objectives must be of {', '.join(LOSSES)}, got {name!r}.")
        runs = [train(AlignmentObjective(name, **extra), seed, options) for seed in range(options.seeds)]
        recalls = " / ".join(interval(list(values)) for values in zip(*(run["recalls"] for run in runs), strict=True))
        loss, accuracy, ms = (sum(run[key] for run in runs) / len(runs) for key in ("loss", "accuracy", "ms"))
        print(f"{name:<22} {recalls} | {loss:.2f} {accuracy:.2f} | {ms:.1f}", flush=True)


if __name__ == "__main__":
    main()
