"""
Whether a tiny model learns what no single slice of a volume tells, and whether it takes the other slices.

    python -m tests.benchmarks.phantom_volumes --output runs/phantom_volumes [--seeds 0 1 2]

For each seed the recipe is trained as it stands and with one slice, which always shows the lesion nearer the feet, and
both models are asked about held-out volumes; the first one with that slice alone, too.
"""

import argparse
import json
import statistics
from pathlib import Path

import yaml
from scipy.stats import binomtest

from logramed.eval.run import main as evaluate
from logramed.trainer.data.phantom_volumes import FAMILY_SIZE
from logramed.trainer.phantoms import generate_phantoms
from logramed.trainer.train import RECIPE_FOLDER
from logramed.trainer.train import main as train


RECIPE = "phantom_volumes.yaml"
SIZES = {"num_train": 2400, "num_validation": 100, "num_test": 400, "image_size": 32}
ONE_SLICE = "3"
QUESTION_TYPES = ("BOTH", "FEET", "HEAD")


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on generated volumes, with all slices shown and with one.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    data = generate_phantoms(arguments.output / "data", **SIZES, volumes=True)
    recipe = yaml.safe_load((RECIPE_FOLDER / RECIPE).read_text())
    several = recipe["slices"]
    arms = [(several, several), (several, ONE_SLICE), (ONE_SLICE, ONE_SLICE)]
    results = {arm: [run(arguments.output, data, seed, *arm) for seed in arguments.seeds] for arm in arms}
    print(table(results, arguments.seeds))


def run(output: Path, data: Path, seed: int, trained: str, asked: str) -> dict[str, float]:
    """Closed accuracy by question type, of the model trained with some slices and asked with some."""
    model = output / f"trained_{trained}_seed{seed}"
    if not (model / "train_metrics.json").is_file():
        files = {"first_stage_data": "train_descriptions", "train_data": "train", "validation_data": "validation"}
        options = {name: data / f"{file}.json" for name, file in files.items()}
        train([RECIPE, *as_words({**options, "output_dir": model, "seed": seed, "slices": trained})])
    evaluation = output / f"trained_{trained}_seed{seed}_asked_{asked}"
    if not (evaluation / "metrics.json").is_file():
        shown = {"slices": asked, "window": "soft_tissue", "blank_images": False, "batch_size": 64}
        evaluate(as_words({"model": model, "benchmark": "phantoms", "data": data, "output": evaluation, **shown}))
    groups = json.loads((evaluation / "metrics.json").read_text())["groups"]["question_type"]
    return {name: groups[name]["closed_accuracy"] for name in QUESTION_TYPES}


def as_words(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def table(results: dict[tuple[str, str], list[dict[str, float]]], seeds: list[int]) -> str:
    """One row for each way to train and to ask: of the question about both lesions each seed's accuracy."""
    header = ["trained on slices", "asked with", *(f"both, seed {seed}" for seed in seeds)]
    header += ["both, mean (95% interval)", "nearer the feet", "nearer the head"]
    rows = [header, ["---"] * len(header)]
    for arm, figures in results.items():
        values = {name: [of_seed[name] for of_seed in figures] for name in QUESTION_TYPES}
        means = [f"{statistics.mean(values[name]):.1f}" for name in ("FEET", "HEAD")]
        # With one slice half of the answers are right by construction, whatever volumes are drawn.
        mean = interval(values["BOTH"]) if "," in arm[1] else "exact"
        rows.append([*arm, *(f"{value:.1f}" for value in values["BOTH"]), mean, *means])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def interval(accuracies: list[float]) -> str:
    """
    Mean over the seeds and its 95% interval (Wilson's).

    Seeds share the test volumes, and a family of them much of what they show: as many observations as families.
    """
    mean, num_families = statistics.mean(accuracies), SIZES["num_test"] // FAMILY_SIZE
    ends = binomtest(round(mean / 100 * num_families), num_families).proportion_ci(method="wilson")
    return f"{mean:.1f} ({100 * ends.low:.1f} to {100 * ends.high:.1f})"


if __name__ == "__main__":
    main()
