"""
Train and evaluate in a few minutes: `make quickstart`, or `python trainer/quickstart.py --output runs/quickstart`.

Draws phantoms, trains a tiny LoGra-Med on them with the alignment loss, answers the held-out questions with and
without sight, asks one question about one image, and leaves a model folder.
"""

import logramed  # noqa: F401  (before torch: sets how its threads wait)


# isort: split
import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoProcessor

from logramed import AutoModelForVision2Seq
from logramed.eval.command_line import run_command
from logramed.trainer.phantoms import generate_phantoms
from logramed.trainer.train import main as train
from logramed.trainer.watching.validation import answer_batch


RECIPE = "quickstart.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train and evaluate a tiny LoGra-Med on generated phantoms.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder for all output")
    parser.add_argument("--max_steps", type=int, default=-1, help="stop training early, for a quick test")
    parser.add_argument("--alignment_weight", type=float, default=1.0, help="0 for plain fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="seed of phantoms, weights and training")
    arguments = parser.parse_args(argv)
    data, model, evaluation = (arguments.output / name for name in ("data", "model", "evaluation"))
    start = time.monotonic()

    print("1/4  Drawing phantoms", flush=True)
    generate_phantoms(data, seed=arguments.seed)
    print("2/4  Training with the alignment loss", flush=True)
    code = train(training_command(arguments, data, model))
    if code:  # ended by SIGTERM: there is no model yet
        return code
    print("3/4  Answering held-out questions, with the images and with blank ones", flush=True)
    command = [sys.executable, "-m", "logramed.eval.run", *evaluation_command(model, data, evaluation)]
    subprocess.run(command, check=True)
    print("4/4  One question about one image", flush=True)
    question, answer = answer_one(model, data)
    print(closing_table(arguments.output, question, answer, (time.monotonic() - start) / 60))
    return 0


def training_command(arguments: argparse.Namespace, data: Path, model: Path) -> list[str]:
    options = {
        "first_stage_data": data / "train_descriptions.json",
        "train_data": data / "train.json",
        "validation_data": data / "validation.json",
        "output_dir": model,
        "max_steps": arguments.max_steps,
        "alignment_weight": arguments.alignment_weight,
        "seed": arguments.seed,
    }
    return [RECIPE, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def evaluation_command(model: Path, data: Path, output: Path) -> list[str]:
    options = {"model": model, "benchmark": "phantoms", "data": data, "output": output, "batch_size": 64}
    return [*(text for name, value in options.items() for text in (f"--{name}", str(value))), "--grounding"]


def answer_one(model_folder: Path, data: Path) -> tuple[dict, str]:
    """A held-out question and the model's answer, with the model loaded as a user would load it."""
    model = AutoModelForVision2Seq.from_pretrained(model_folder)
    processor = AutoProcessor.from_pretrained(model_folder)
    row = json.loads((data / "test_questions.json").read_text(encoding="utf-8"))[0]
    asked, expected = (turn["value"] for turn in row["conversations"])
    text = asked.replace("<image>", "").strip()
    question = {"image": str(data / "images" / row["image"]), "question": text, "answer": expected}
    [answer] = answer_batch(model, processor, [question], max_new_tokens=32)
    return question, answer


def closing_table(output: Path, question: dict, answer: str, minutes: float) -> str:
    """The results, read from the files that the run wrote, and what to do next."""
    data = output / "data"
    training = json.loads((output / "model" / "train_metrics.json").read_text(encoding="utf-8"))
    metrics = json.loads((output / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    sighted, blank = metrics["overall"], metrics["blank_images"]["overall"]
    validation = training["metrics"]
    recall = validation.get("eval_recall_at_1_image_to_answer")
    rows = [
        ("closed accuracy", f"{sighted['closed_accuracy']:.1f}%", f"{sighted['num_closed']} questions"),
        ("  the same without sight", f"{blank['closed_accuracy']:.1f}%", "every image blank"),
        ("open recall", f"{sighted['open_recall']:.1f}%", f"{sighted['num_open']} questions"),
        ("  the same without sight", f"{blank['open_recall']:.1f}%", "every image blank"),
        ("recall@1, image to answer", "-" if recall is None else f"{100 * recall:.1f}%", "validation phantoms"),
        ("time", f"{minutes:.1f} minutes", "without installation"),
    ]
    lines = [f"  {name:<28}{value:>14}  {note}".rstrip() for name, value, note in rows]
    return "\n".join(
        [
            "",
            "Held-out phantoms",
            *lines,
            "",
            f"  Image     {question['image']}",
            f"  Question  {question['question']}",
            f"  Answer    {answer}   (expected: {question['answer']})",
            "",
            f"Model: {output / 'model'}",
            f"The run on one page (curves, questions, what was aligned): {output / 'evaluation' / 'report.html'}",
            "Next, the same without the alignment loss: recall@1 falls, answers do not (README, Results):",
            f"  {sys.executable} {Path(__file__).with_name('train.py')} {RECIPE} --alignment_weight 0 "
            f"--first_stage_data {data / 'train_descriptions.json'} --train_data {data / 'train.json'} "
            f"--validation_data {data / 'validation.json'} "
            f"--output_dir {output / 'without_alignment'}",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
