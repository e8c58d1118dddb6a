"""
What alignment is for: retrieval between images and answers of held-out phantoms, trained with it and without it.

    python tests/benchmarks/retrieval.py --output runs/retrieval [--recipe quickstart.yaml] [--max_steps N]

Both runs are the same but for `alignment_weight`. Recall is over the validation phantoms, of which neither run has
seen an image; samples with identical answers count as one.
"""

import argparse
import json
from pathlib import Path

from logramed.trainer.phantoms import generate_phantoms
from logramed.trainer.train import main as train


FIGURES = (
    ("recall@1 image to answer", "eval_recall_at_1_image_to_answer", 100),
    ("recall@5 image to answer", "eval_recall_at_5_image_to_answer", 100),
    ("recall@1 answer to image", "eval_recall_at_1_answer_to_image", 100),
    ("recall@1 image to extended", "eval_recall_at_1_image_to_extended", 100),
    ("closed accuracy", "eval_closed_accuracy", 1),
    ("minutes", "train_runtime", 1 / 60),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Retrieval with and without the alignment loss.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart.yaml")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--losses", nargs="+", default=["multi_graph"])
    arguments = parser.parse_args()
    data = generate_phantoms(arguments.output / "data")
    runs = [(0.0, arguments.losses[0])] if 0.0 in arguments.weights else []
    runs += [(weight, loss) for weight in arguments.weights if weight for loss in arguments.losses]
    columns = {}
    for weight, loss in runs:
        name = "without" if weight == 0 else f"{loss}, weight {weight:g}"
        folder = arguments.output / name.replace(", ", "_").replace(" ", "_")
        options = {
            "first_stage_data": data / "train_descriptions.json",
            "train_data": data / "train.json",
            "validation_data": data / "validation.json",
            "output_dir": folder,
            "max_steps": arguments.max_steps,
            "alignment_weight": weight,
            "alignment_loss": loss,
        }
        train([arguments.recipe, *(text for key, value in options.items() for text in (f"--{key}", str(value)))])
        columns[name] = json.loads((folder / "train_metrics.json").read_text())["metrics"]
    print(f"\n{'':<28}" + "".join(f"{name:>28}" for name in columns))
    for title, key, factor in FIGURES:
        print(f"{title:<28}" + "".join(f"{factor * metrics[key]:>28.1f}" for metrics in columns.values()))


if __name__ == "__main__":
    main()
