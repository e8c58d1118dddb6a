"""Checks a run before it starts: reads all of its data, loads its model, and takes two steps on the longest rows."""

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from transformers import TrainerCallback

from logramed.trainer.engines.parts import describe_trained
from logramed.trainer.trainer import LoGraMedTrainer


GIB = 2**30
OPTIMIZER_BYTES = 8  # per trained weight: AdamW's two moments in float32


class StepTimes(TrainerCallback):
    """Records when each step ends."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def dry_run(training: Any, load: Callable[[Any], tuple[Dataset, torch.nn.Module, Any, Any]]) -> str:
    """
    Check a run without starting it; errors that would end the run are raised. `load` returns training rows, model,
    processor, and the configuration of the adapters to add or None, for arguments whose `output_dir` is a temporary
    folder. Returns lines about memory, time, and the size of a checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = dataclasses.replace(
            training, output_dir=folder, report_to="none", save_strategy="no", eval_strategy="no", max_steps=2,
            load_best_model_at_end=False, push_to_hub=False, disable_tqdm=True, train_sampling_strategy="sequential",
            resume_from_checkpoint=None, cache_image_features=None,
        )  # fmt: skip
        rows, model, processor, peft_config = load(arguments)
        size = training.per_device_train_batch_size * training.gradient_accumulation_steps
        trainer = LoGraMedTrainer(
            model,
            arguments,
            processing_class=processor,
            peft_config=peft_config,
            train_dataset=take_longest(rows, 2 * size),
        )
        times = StepTimes()
        trainer.add_callback(times)
        trainer.train()
    steps = training.max_steps
    if steps <= 0:
        steps = math.ceil(len(rows) / (size * training.world_size) * training.num_train_epochs)
    seconds = times.times[1] - times.times[0]
    return "\n".join(
        [
            f"Data: {len(rows):,} rows. {describe_trained(trainer.model)}",
            f"A step on the longest rows: {seconds:.2f} s; {describe_memory()}. The run: {steps:,} steps of "
            f"{size * training.world_size} rows, at most {seconds * steps / 3600:.1f} h without evaluations.",
            f"{describe_disk(trainer.model, Path(training.output_dir).absolute())}. Nothing was written.",
        ]
    )


def take_longest(rows: Dataset, number: int) -> Dataset:
    """The `number` rows with the most text, longest first, repeated if there are fewer."""
    lengths = [sum(len(part["text"] or "") for message in messages for part in message["content"])
               for messages in rows["messages"]]  # fmt: skip
    longest = sorted(range(len(rows)), key=lambda place: -lengths[place])
    return rows.select((longest * math.ceil(number / len(longest)))[:number])


def describe_memory() -> str:
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        return f"{torch.cuda.max_memory_allocated() / GIB:.2f} of {total / GIB:.0f} GiB of the GPU's memory at most"
    total = psutil.virtual_memory().total
    return f"{psutil.Process().memory_info().rss / GIB:.2f} of {total / GIB:.0f} GiB memory"


def describe_disk(model: torch.nn.Module, output_dir: Path) -> str:
    weights = list(model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    size = sum(weight.nbytes for weight in weights) + OPTIMIZER_BYTES * trained
    place = next(folder for folder in (output_dir, *output_dir.parents) if folder.exists())
    return f"A checkpoint takes about {size / GIB:.2f} GiB, and {shutil.disk_usage(place).free / GIB:.0f} GiB are free"
