"""A look at a run before it starts: data, memory, arguments, and one real step, in under a minute."""

import dataclasses
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from transformers import TrainerCallback

from logramed.trainer.checkpoints import choose_run
from logramed.trainer.collator import open_image
from logramed.trainer.length_grouping import count_tokens
from logramed.trainer.parts import count_trained, describe_trained
from logramed.trainer.trainer import LoGraMedTrainer


GIB = 2**30
MOST_IMAGES, MOST_LENGTHS = 200, 5000  # looked at; more would take long
SECONDS_FOR_A_STEP = 40.0
OPTIMIZER_BYTES = 8  # a trained weight: the two float32 means of AdamW


@dataclasses.dataclass
class Report:
    """What was found, in the order it was looked at, and what is wrong."""

    lines: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """What `function` returns, or None and an error in the report."""
        try:
            return function()
        except Exception as error:  # whatever would end the run is to be listed with all else
            self.errors.append(f"{what}: {type(error).__name__}: {error}")
            return None

    def __str__(self) -> str:
        parts = [*self.lines]
        parts += [f"Warning: {warning}" for warning in self.warnings]
        parts += [f"Error: {error}" for error in self.errors]
        verdict = f"{len(self.errors)} error(s)" if self.errors else "Nothing stands against this run"
        return "\n".join([*parts, f"{verdict}; {len(self.warnings)} warning(s). Nothing was written."])


def dry_run(
    training: Any,
    load_rows: Callable[[Any], Sequence[Dataset | None]],
    load_model: Callable[[Dataset], tuple[torch.nn.Module, Any, Any]],
) -> Report:
    """
    Look at a run without starting it.

    Args:
        training (`LoGraMedTrainingArguments`): Of the run.
        load_rows: Gives training and validation rows for arguments whose `output_dir` is a temporary folder.
        load_model: Gives model, what is not trained frozen, processor, and adapters to put on, or None.

    Returns:
        `Report`: With an error for whatever would end the run.
    """
    report = Report()
    check_output(report, training)
    with tempfile.TemporaryDirectory() as folder:
        arguments = dataclasses.replace(
            training, output_dir=folder, report_to="none", save_strategy="no", eval_strategy="no", max_steps=2,
            load_best_model_at_end=False, push_to_hub=False, disable_tqdm=True, train_sampling_strategy="sequential",
            logging_steps=1, resume_from_checkpoint=None, cache_image_features=None,
        )  # fmt: skip
        rows = report.attempt("data", lambda: load_rows(arguments))
        if rows is None:
            return report
        check_images(report, rows[0])
        loaded = report.attempt("model", lambda: load_model(rows[0]))
        if loaded is not None:
            trainer = report.attempt("trainer", lambda: build_trainer(arguments, loaded, rows[0]))
            if trainer is not None:
                check_lengths_and_step(report, training, trainer, rows[0])
                check_disk(report, training, trainer.model, len(rows[0]))
    return report


def check_output(report: Report, training) -> None:
    folder = Path(training.output_dir).absolute()
    if not os.access(find_existing(folder), os.W_OK):
        report.errors.append(f"`output_dir` {folder} cannot be written to.")
    chosen = report.attempt("checkpoint", lambda: choose_run(folder, training.resume_from_checkpoint))
    if chosen is not None and chosen[1]:
        report.warnings.append(chosen[1])


def find_existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(parent for parent in [folder, *folder.parents] if parent.exists())


def check_images(report: Report, rows: Dataset) -> None:
    """Open some images, or all if they are few."""
    names = [(image, row_id) for row_id, images in zip(rows["id"], rows["images"], strict=True) for image in images]
    names = [(image, row_id) for image, row_id in names if isinstance(image, str)]
    drawn = random.Random(0).sample(names, min(MOST_IMAGES, len(names)))
    for image, row_id in drawn:
        report.attempt("image", lambda image=image, row_id=row_id: open_image(image, row_id))
    report.lines.append(f"Data: {len(rows):,} rows with {len(names):,} images, {len(drawn):,} of them opened.")


def build_trainer(arguments, loaded, rows: Dataset) -> LoGraMedTrainer:
    model, processor, peft_config = loaded
    return LoGraMedTrainer(model, arguments, processing_class=processor, peft_config=peft_config, train_dataset=rows)


def check_lengths_and_step(report: Report, training, trainer: LoGraMedTrainer, rows: Dataset) -> None:
    some = rows.select(range(min(MOST_LENGTHS, len(rows))))
    collator, max_length = trainer.data_collator, training.max_length
    uncut = dataclasses.replace(collator, max_length=None)
    lengths = count_tokens(some, uncut)
    batch = training.per_device_train_batch_size
    cut = sum(length > (max_length or length) for length in lengths) / len(lengths)
    padded = [max(lengths[i : i + batch]) * len(lengths[i : i + batch]) for i in range(0, len(lengths), batch)]
    report.lines.append(
        f"Lengths of {len(lengths):,} rows: {min(lengths)} to {max(lengths)} tokens, {100 * cut:.1f}% above "
        f"`max_length` {max_length}; {100 * (1 - sum(lengths) / sum(padded)):.0f}% of a batch is padding."
    )
    check_graph(report, training, trainer)
    report.lines.append(describe_trained(trainer.model))
    longest = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    needed = 2 * batch * training.gradient_accumulation_steps
    trainer.train_dataset = some.select((longest * (needed // len(longest) + 1))[:needed])
    check_step(report, training, trainer, len(rows))


def check_graph(report: Report, training, trainer: LoGraMedTrainer) -> None:
    neighbours = training.num_neighbors
    num_nodes = training.per_device_train_batch_size
    if training.gather_graph:
        num_nodes *= training.world_size
    if training.accumulate_graph:
        num_nodes *= training.gradient_accumulation_steps
    if training.alignment_weight > 0 and training.alignment_granularity == "sample" and num_nodes <= neighbours:
        report.warnings.append(
            f"The alignment graph has {num_nodes} nodes, too few for `num_neighbors` {neighbours}. A larger "
            "`per_device_train_batch_size`, `gather_graph` or `accumulate_graph` gives more."
        )


class StepTimes(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())

    on_step_end = on_step_begin


def check_step(report: Report, training, trainer: LoGraMedTrainer, num_rows: int) -> None:
    """Two real steps on the longest rows, if a forward pass of one row says that they end in time."""
    seconds = report.attempt("first row", lambda: time_of_first_row(trainer))
    if seconds is None:
        return
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if 3 * 2 * size * seconds > SECONDS_FOR_A_STEP:
        report.warnings.append(
            f"A step would take about {3 * size * seconds:.0f} s here, so none was taken: memory and time of a step "
            "were not checked."
        )
        return
    times = StepTimes()
    trainer.add_callback(times)
    if report.attempt("training step", trainer.train) is None:
        return
    step_seconds = times.times[-1] - times.times[-2]
    steps = num_steps(training, num_rows)
    # The most of both steps; each log of one begins the count anew.
    memory = max(entry["memory_gib"] for entry in trainer.state.log_history if "memory_gib" in entry)
    total = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else psutil.virtual_memory().total
    report.lines.append(
        f"A step on the longest rows: {step_seconds:.2f} s, {memory:.2f} of {total / GIB:.0f} GiB memory. "
        f"The run: {steps:,} steps of {size * training.world_size} rows, at most {step_seconds * steps / 3600:.1f} h "
        "without evaluations."
    )


def time_of_first_row(trainer: LoGraMedTrainer) -> float:
    batch = trainer.data_collator([trainer.train_dataset[0]])
    model = trainer.model.to(trainer.args.device)
    inputs = {name: value.to(trainer.args.device) for name, value in batch.items() if name not in ("nodes", "labels")}
    start = time.perf_counter()
    with torch.no_grad():
        model(**inputs)
    return time.perf_counter() - start


def num_steps(training, num_rows: int) -> int:
    if training.max_steps > 0:
        return training.max_steps
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    return int(-(-num_rows // size) * training.num_train_epochs)


def check_disk(report: Report, training, model: torch.nn.Module, num_rows: int) -> None:
    """Room for the checkpoints that are kept, and for one that is being written."""
    if training.save_strategy == "no":
        return
    trained = sum(trained for trained, _ in count_trained(model).values())
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    steps = num_steps(training, num_rows)
    interval = training.save_steps if training.save_steps >= 1 else max(1, int(training.save_steps * steps))
    saves = steps // interval if training.save_strategy == "steps" else int(training.num_train_epochs)
    limit = training.save_total_limit or saves
    kept = min(saves, max(limit, 2) if training.load_best_model_at_end else limit) + 1
    needed = kept * (weights + OPTIMIZER_BYTES * trained)
    free = shutil.disk_usage(find_existing(Path(training.output_dir).absolute())).free
    said = f"{kept} checkpoints at most, {needed / GIB:.2f} GiB (computed), {free / GIB:.0f} GiB free"
    report.lines.append(f"Disk: {said}.")
    if needed > free:
        report.errors.append(f"The disk of `output_dir` is too small: {said}. `save_total_limit` keeps fewer.")
