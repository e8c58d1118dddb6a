"""The command lines of a run: build the untrained model, train and evaluate. Nothing is started here."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logramed.trainer.study.arms import MAX_TURNS, PLAIN, STEPS_FACTOR, TEXT_ENCODER, Run, arm_of
from logramed.trainer.study.settings import Settings


TEXT_CONFIG = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
}
VOCABULARY_SIZE = 2000
NUM_WARMUP_STEPS = 20
# Conversations per step; fewer for the mini, to limit memory and time.
BATCH_SIZE = {"scratch": 16, "mini": 8}
EVALUATION_BATCH_SIZE = 32
LORA = {"use_peft": "true", "lora_r": 16, "lora_alpha": 32}
# One thread per run: two runs at a time share a machine with two cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Paths:
    """
    The study's folders: its output, the `parts` that `trainer/mini.py` wrote, and the data sets.
    """

    output: Path
    parts: Path
    slake: Path
    vqa_rad: Path

    @property
    def data(self) -> Path:
        return self.output / "data"

    def untrained(self, run: Run) -> Path:
        return self.output / "untrained" / f"{run.model}_seed{run.seed}"

    def run(self, run: Run) -> Path:
        return self.output / "runs" / run.name

    def without_places(self, command: Sequence[str]) -> str:
        """A command as a line that is the same on every machine, with these folders replaced by their names."""
        line = subprocess.list2cmdline(["python", *command[1:]])
        for name in ("output", "parts", "slake", "vqa_rad"):
            line = line.replace(str(getattr(self, name)), name.upper())
        return line


def build_command(run: Run, paths: Paths, output: Path) -> list[str]:
    """The command that builds the untrained model of `run`: weights by its seed, the same tokenizer for all."""
    arguments: dict[str, Any] = {"vision": paths.parts / "tower", "image_token_pooling": 4, "seed": run.seed}
    if run.model == "mini":
        arguments["language"] = paths.parts / "language"
    else:
        arguments |= {
            "text_config": json.dumps(TEXT_CONFIG),
            "vocab_size": VOCABULARY_SIZE,
            "tokenizer_data": [paths.data / f"{name}.json" for name in ("slake", "vqa_rad", "phantoms")],
        }
    return to_command("logramed.trainer.build_model", {**arguments, "output": output})


def training_commands(run: Run, paths: Paths, settings: Settings, plain: Settings) -> dict[str, list[str]]:
    """
    The training commands of `run`, by the folder that each writes: one, or pre-training and then plain fine-tuning
    with the settings `plain`.
    """
    folder, untrained = paths.run(run), paths.untrained(run)
    if run.data != "pretraining":
        return {"model": training_command(run, run.arm, paths, settings, untrained, folder / "model")}
    pretrained = folder / "pretrained"
    plain_run = Run(run.model, "slake", 100, PLAIN, run.seed)
    return {
        "pretrained": training_command(run, run.arm, paths, settings, untrained, pretrained),
        "model": training_command(plain_run, PLAIN, paths, plain, pretrained, folder / "model"),
    }


def training_command(
    run: Run, arm_name: str, paths: Paths, settings: Settings, model: Path, output: Path
) -> list[str]:
    """The command that trains `model` on the JSON file next to `output` with the same name."""
    arm = arm_of(arm_name)
    arguments = {
        "model": model,
        **(LORA if run.model == "mini" else {"train": "projector,language"}),
        "train_data": output.with_suffix(".json"),
        "image_folder": paths.data / "images",
        "cache_image_features": paths.output / "features",
        "max_turns": MAX_TURNS,
        "shuffle_turns": "true",
        "max_steps": settings.num_steps * STEPS_FACTOR[run.share],
        "per_device_train_batch_size": BATCH_SIZE[run.model],
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_steps": NUM_WARMUP_STEPS,
        "seed": run.seed,
        **arm.arguments,
        **({arm.strength: settings.strength} if arm.strength else {}),
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 200,
        "save_total_limit": 1,
        "logging_steps": 5,
        "report_to": "none",
        "output_dir": output,
        "resume_from_checkpoint": "true",
    }
    encoder = paths.parts / "text_encoder"
    arguments = {name: encoder if value == TEXT_ENCODER else value for name, value in arguments.items()}
    return to_command("logramed.trainer.train", arguments)


def evaluation_command(run: Run, paths: Paths, split: str, num_questions: int | None = None) -> list[str]:
    """The command that evaluates `run` on "test" or "validation", with and without sight; trials only with sight."""
    benchmark = "slake" if run.data == "pretraining" else run.data
    data = {"slake": paths.slake, "vqa_rad": paths.vqa_rad, "phantoms": paths.data / "generated_phantoms"}[benchmark]
    arguments = {
        "model": paths.run(run) / "model",
        "benchmark": benchmark,
        "data": data,
        "split": f"by_image_{split}" if benchmark == "vqa_rad" else split,
        "on_bad_row": "skip",  # SLAKE's missing image has validation questions
        "limit": num_questions,
        "batch_size": EVALUATION_BATCH_SIZE,
        "images": "false",
        "blank_images": "false" if run.settings.startswith("trial") else None,
        "system": run.arm,
        "output": paths.run(run) / f"evaluation_{split}",
    }
    return to_command("logramed.eval.run", arguments)


def to_command(module: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command that runs a module with arguments; `None` omits an argument, and a list gives several values."""
    words = [sys.executable, "-m", module]
    for name, value in arguments.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words
