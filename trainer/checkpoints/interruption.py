"""Runs that end early: a scheduler's SIGTERM, and non-finite losses or gradients."""

import logging
import signal
import threading

import torch
from transformers import TrainerCallback

from logramed.trainer.watching.callbacks import LoggedMeans


logger = logging.getLogger(__name__)

# What a shell reports of a process that SIGTERM ended.
TERMINATED_EXIT_CODE = 128 + signal.SIGTERM
NUM_TOKENS_SHOWN = 12


class TerminationCallback(TrainerCallback):
    """
    On SIGTERM, let the step at hand end, save a checkpoint and stop training (`terminated`); a second SIGTERM changes
    nothing. All processes of a run stop at the same step, as soon as one of them was told to. An evaluation that is
    due is made first; with `save_strategy` "best", where `Trainer` decides by it whether to save, training stops a
    step later.
    """

    def __init__(self):
        self.terminated = self._told = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.terminated = self._told = False
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._previous = signal.signal(signal.SIGTERM, self._be_told)

    def _be_told(self, signum, frame):
        self._told = True

    def on_step_end(self, args, state, control, **kwargs):
        epoch_ends = args.eval_strategy == "epoch" and float(state.epoch).is_integer()
        decides = args.save_strategy == "best" and (control.should_evaluate or epoch_ends)
        if not decides and self._is_anyone_told(args):
            logger.warning(f"SIGTERM: saving a checkpoint of step {state.global_step}, then stopping.")
            self.terminated = control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.terminated:  # saved at the end of the step, but without an evaluation of the epoch
            control.should_evaluate = control.should_evaluate and float(state.epoch).is_integer()
            control.should_save = control.should_evaluate
        return control

    def _is_anyone_told(self, args) -> bool:
        if args.world_size == 1:
            return self._told
        told = torch.tensor(int(self._told), device=args.device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told)

    def restore(self) -> None:
        """Leave SIGTERM to whatever handled it before training, also one that came too late for another step."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
            if self._told and not self.terminated:
                signal.raise_signal(signal.SIGTERM)


def check_loss(loss: torch.Tensor, means: LoggedMeans, step: int, inputs: dict[str, torch.Tensor], tokenizer) -> None:
    """
    Raises `FloatingPointError` if the loss of a micro-batch after `step` optimizer steps is not finite, before it
    reaches the weights, naming the step, the part of the loss (added to `means` last) and the samples, by the
    beginnings of their answers.
    """
    if torch.isfinite(loss):
        return
    parts = {name: value for name, value in means.last("train").items() if name.endswith("loss")}
    values = ", ".join(f"`{name}` is {value:g}" for name, value in (parts or {"loss": float(loss)}).items())
    answers = [
        tokenizer.decode(row[row >= 0][:NUM_TOKENS_SHOWN], skip_special_tokens=True) for row in inputs["labels"]
    ]
    raise FloatingPointError(
        f"The loss of step {step + 1} is not finite: {values}. Its micro-batch has the answers "
        f"{', '.join(map(repr, answers))}. The weights were not changed by it. A lower `learning_rate` or "
        "`max_grad_norm`, or `bf16` in place of `fp16`, may help; look at these samples too."
    )


def check_gradient_norm(norm: torch.Tensor | float | None, step: int) -> None:
    """Raises `FloatingPointError`, naming the step, if the norm of the gradients is not finite."""
    if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
        raise FloatingPointError(
            f"The gradient norm of step {step + 1} is {float(norm):g}, though its loss is finite. The weights were "
            "not changed by it. A lower `learning_rate` or `bf16` in place of `fp16` may help."
        )
