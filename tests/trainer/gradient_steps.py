"""Steps of training whose gradients are compared: by one process in tests, or by two as a program of `torchrun`."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.data import load_training_rows, questions_of_rows
from logramed.trainer.data.turns import with_turns
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


LOGGED = (
    "loss",
    "language_modeling_loss",
    "alignment_loss",
    "matching_accuracy",
    "alignment_weight",
    "gradient_ratio",
)
UNITS = ["LlamaDecoderLayer", "CLIPEncoderLayer", "LoGraMedProjector"]


class LetterEncoder:
    """In place of a frozen encoder: unit vectors of the text's own letters, the same in every process."""

    size = 12

    def __init__(self, *args):
        pass

    def __call__(self, texts):
        counts = torch.tensor([[text.count(letter) for letter in "acefghilmnor"] for text in texts])
        return torch.nn.functional.normalize(counts + torch.arange(12) / 12, dim=-1)

    def prepare(self, texts):
        return len(list(texts))


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


def small_model(tied=False, adapters=False, dtype=torch.float32, **values):
    text_sizes = {"vocab_size": 84, "tie_word_embeddings": tied}
    model = tiny_model(text_sizes=text_sizes, tie_word_embeddings=tied, **values).to(dtype)
    if not adapters:
        return model
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["multi_modal_projector"]))


def uneven_turns(rows):
    """`rows` of which every third has one turn instead of two."""
    return rows.map(lambda row, index: row if index % 3 else with_turns(row, [0]), with_indices=True)


def take_steps(folder, rows, model=None, dealt=None, prepare=None, resume=None, further=None, **values):
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
        "num_neighbors": 2,
        "graph_dropout": 0.0,
    }
    keep = KeepGradients()
    with mock.patch("logramed.trainer.trainer.TextEncoder", LetterEncoder):
        trainer = LoGraMedTrainer(
            model or small_model(),
            LoGraMedTrainingArguments(alignment_preset="paper", **{**defaults, **values}),
            processing_class=tiny_processor(),
            train_dataset=rows if dealt is None else rows.select(dealt),
            callbacks=[keep],
            **(further or {}),
        )
    if prepare is not None:
        prepare(trainer)
    trainer.train(resume_from_checkpoint=resume)
    logged = {name: [entry[name] for entry in trainer.state.log_history if name in entry] for name in LOGGED}
    return trainer, keep, logged


@contextmanager
def fsdp_on_cpu():
    """accelerate takes FSDP for several CPU processes to mean DDP; in this context it means FSDP."""
    start = AcceleratorState.__init__

    def begin(self, *args, fsdp_plugin=None, **kwargs):
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)

    with mock.patch.object(AcceleratorState, "__init__", begin), mock.patch.dict(os.environ):
        yield  # what FSDP leaves behind, in variables too, goes with the context
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    AcceleratorState._reset_state()


def main(data_file, folder, plan_file):
    """
    Take each step of a plan, a JSON object of `{name: {"values", "dealt", ...}}`, and write `NAME.pt` of what came
    out: gradients, whether parameters were sharded, what was logged, and for `"evaluate"` the metrics and weights.
    """
    rows, folder = load_training_rows(data_file).dataset, Path(folder)
    for name, step in json.loads(Path(plan_file).read_text()).items():
        with fsdp_on_cpu():
            run_step(rows, folder, name, **step)
    torch.distributed.destroy_process_group()  # by us: a group that is closed and begun anew for each step may hang


def run_step(
    rows,
    folder,
    name,
    values,
    dealt,
    fsdp=False,
    sharded=False,
    uneven=False,
    evaluate=False,
    resume=None,
    dtype="float64",
    **model_values,
):
    rows, values = uneven_turns(rows) if uneven else rows, dict(values)
    if fsdp:
        config = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT" if sharded else "FULL_STATE_DICT"}
        if fsdp != "default":
            config["transformer_layer_cls_to_wrap"] = fsdp
        values |= {"fsdp": True, "fsdp_config": config}
    further = {}
    if evaluate:
        further = {"eval_dataset": rows, "validation_questions": questions_of_rows(rows)}
    trainer, keep, logged = take_steps(
        folder / name,
        rows,
        model=small_model(dtype=getattr(torch, dtype), **model_values),
        dealt=dealt,
        resume=None if resume is None else str(folder / resume),
        further=further,
        **values,
    )
    result = {"gradients": keep.gradients, "are_sharded": keep.are_sharded, "logged": logged}
    result["weights"] = full_weights(trainer)
    if evaluate:
        result["metrics"] = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(result, folder / f"{name}.pt")
    trainer.accelerator.wait_for_everyone()


def full_weights(trainer):
    return {
        name.removeprefix("module."): (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in trainer.model.named_parameters()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
