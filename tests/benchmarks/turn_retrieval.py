"""
Turn-level alignment on held-out phantoms: recall between the modalities of turns, with the images of the turns and
with those of other samples in their place; accuracy of matching images one to one to extended answers.

    python tests/benchmarks/turn_retrieval.py --model runs/turns/model --data runs/turns/data

The model is one trained with `alignment_granularity` "turn":

    python trainer/phantoms.py --output runs/turns/data
    python trainer/train.py trainer/recipes/quickstart.yaml --alignment_granularity turn \\
        --train_data runs/turns/data/train.json --validation_data runs/turns/data/validation.json \\
        --first_stage_data runs/turns/data/train_descriptions.json --output_dir runs/turns/model

What remains with images of other samples is what questions and answers have in common by themselves.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoProcessor

from logramed import LoGraMedForConditionalGeneration
from logramed.trainer.alignment import AlignmentConfig, match_graphs, matching_accuracy, unit_vectors
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.alignment.retrieval import retrieval_metrics
from logramed.trainer.data import load_training_rows
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.data.turns import count_turns


BATCH_SIZE = 50
NO_EDGES = torch.zeros(2, 0, dtype=torch.int64)


def turn_retrieval(model, collator: LoGraMedDataCollator, rows: list[dict]) -> dict[str, float]:
    """`retrieval_metrics` of all turns of `rows`, and the share of images matched one to one to their texts."""
    aligned = AlignedModel(model, config=collator.config)
    nodes, groups, answer_keys = [], [], []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = collator(rows[start : start + BATCH_SIZE])
        with torch.no_grad():
            nodes.append(aligned(**batch).node_features)
        groups.append(batch["nodes"]["groups"])
        answer_keys.append(batch["nodes"]["answer_keys"])
    joined = {name: torch.cat([batch[name] for batch in nodes]) for name in nodes[0]}
    groups = torch.cat(groups)
    metrics = retrieval_metrics(joined, groups, torch.cat(answer_keys))
    costs = -unit_vectors(joined["image"]) @ unit_vectors(joined["extended"]).T
    labels = match_graphs(costs, torch.zeros(0, 0), NO_EDGES, NO_EDGES)
    metrics["matched_image_to_extended"] = matching_accuracy(labels, groups).item()
    return metrics


def with_images_of_others(rows: list[dict]) -> list[dict]:
    """`rows`, each with the images of the next."""
    return [{**row, "images": other["images"]} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recall between turns of held-out phantoms.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of phantoms")
    options = parser.parse_args(arguments)
    model = LoGraMedForConditionalGeneration.from_pretrained(options.model).eval()
    collator = LoGraMedDataCollator(
        AutoProcessor.from_pretrained(options.model),
        config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn"),
    )
    rows = list(load_training_rows(options.data / "validation.json").dataset)
    own, others = (turn_retrieval(model, collator, images) for images in (rows, with_images_of_others(rows)))
    print(f"{f'percent, of {sum(map(count_turns, rows))} turns':<40}{'own images':>12}{'others':>12}")
    for name, recall in own.items():
        print(f"{name:<40}{100 * recall:>12.1f}{100 * others[name]:>12.1f}")


if __name__ == "__main__":
    main()
