"""Steps of training whose gradients are compared: by one process in tests, or by two as a program of `torchrun`."""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate import state as accelerate_state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.data import load_training_rows
from logramed.trainer.data.turns import with_turns
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


LOGGED = ("loss", "language_modeling_loss", "alignment_loss", "matching_accuracy")
UNITS = ["LlamaDecoderLayer", "CLIPEncoderLayer", "LoGraMedProjector"]


class KeepGradients(TrainerCallback):
    """Keeps the full gradient of every parameter of each step, and whether parameters are sharded."""

    def __init__(self):
        self.gradients, self.are_sharded = [], False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = {name.removeprefix("module."): value for name, value in model.named_parameters()}
        self.are_sharded = all(isinstance(value, DTensor) for value in parameters.values())
        found = {}
        for name, value in parameters.items():
            gradient = value.grad
            if gradient is not None:
                found[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).detach().clone()
        self.gradients.append(found)


def small_model(tied=False, dtype=torch.float32, **values):
    text_sizes = {"vocab_size": 84, "tie_word_embeddings": tied}
    values = {"graph_num_neighbors": 2, "graph_dropout": 0.0, **values}
    return tiny_model(text_sizes=text_sizes, tie_word_embeddings=tied, **values).to(dtype)


def uneven_turns(rows):
    """`rows` of which every third has one turn instead of two."""
    return rows.map(lambda row, index: row if index % 3 else with_turns(row, [0]), with_indices=True)


def take_steps(folder, rows, model=None, dealt=None, prepare=None, **values):
    """Train on `rows` in the order of the indices `dealt`; returns the trainer, the gradients and what was logged."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "train_sampling_strategy": "sequential",
    }
    keep = KeepGradients()
    trainer = LoGraMedTrainer(
        model or small_model(),
        LoGraMedTrainingArguments(**{**defaults, **values}),
        processing_class=tiny_processor(),
        train_dataset=rows if dealt is None else rows.select(dealt),
        callbacks=[keep],
    )
    if prepare is not None:
        prepare(trainer)
    trainer.train()
    logged = {name: [entry[name] for entry in trainer.state.log_history if name in entry] for name in LOGGED}
    return trainer, keep, logged


def allow_fsdp_on_cpu():
    """accelerate takes FSDP for several CPU processes to mean DDP; this makes it mean FSDP, until stopped."""
    start = accelerate_state.AcceleratorState.__init__

    def begin(self, *args, fsdp_plugin=None, **kwargs):
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    return mock.patch.object(accelerate_state.AcceleratorState, "__init__", begin)


def main(data_file, folder, plan_file):
    """Take each step of a plan, `{name: {"values", "dealt", "fsdp", "uneven", "tied"}}`, and write what came out."""
    rows, folder = load_training_rows(data_file).dataset, Path(folder)
    for name, step in json.loads(Path(plan_file).read_text()).items():
        values = dict(step["values"])
        if step.get("fsdp"):
            values |= {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": UNITS}}
            values["fsdp_config"] |= {"state_dict_type": "FULL_STATE_DICT"}
        with allow_fsdp_on_cpu(), mock.patch.dict(os.environ):  # FSDP leaves variables behind
            trainer, keep, logged = take_steps(
                folder / name,
                uneven_turns(rows) if step.get("uneven") else rows,
                model=small_model(tied=step.get("tied", False)),
                dealt=step["dealt"],
                **values,
            )
        if trainer.is_world_process_zero():
            torch.save((keep.gradients, keep.are_sharded, logged), folder / f"{name}.pt")
        trainer.accelerator.wait_for_everyone()
        accelerate_state.AcceleratorState._reset_state()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
