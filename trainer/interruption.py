"""Runs that end early: a scheduler's SIGTERM, and losses or gradients that are no numbers."""

import logging
import signal
import threading

import torch
from transformers import TrainerCallback


logger = logging.getLogger(__name__)

# What a shell reports of a process that SIGTERM ended.
TERMINATED_EXIT_CODE = 128 + signal.SIGTERM
NUM_TOKENS_TOLD = 12


class EvaluationTerminatedError(Exception):
    """SIGTERM came during an evaluation, which is left out for now."""


class TerminationCallback(TrainerCallback):
    """
    On SIGTERM, let the step at hand end, save a checkpoint and stop training; a second SIGTERM changes nothing.

    All processes of a run stop at the same step, as soon as one of them was told to. An evaluation at hand, or due
    after that step, is left out, since the time that a scheduler gives is short; the checkpoint says so, and the
    resumed run makes up for it before anything else.

    Attributes:
        terminated (`bool`): Whether training was stopped so.
        has_left_out_evaluation (`bool`): Whether an evaluation of the present step is still to be made.
    """

    def __init__(self):
        self.terminated = self.has_left_out_evaluation = False
        self._told = self._is_training = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.terminated = self._told = False
        self._is_training = True
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._previous = signal.signal(signal.SIGTERM, self._be_told)

    def _be_told(self, signum, frame):
        self._told = True

    def on_step_end(self, args, state, control, **kwargs):
        if self._is_anyone_told(args):
            epoch_ends = args.eval_strategy == "epoch" and float(state.epoch).is_integer()
            self.stop(state, control, leaves_out_evaluation=control.should_evaluate or epoch_ends)
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.terminated:  # all of it was done at the end of the step
            control.should_evaluate = control.should_save = False
        return control

    def on_prediction_step(self, args, state, control, **kwargs):
        self.check_evaluation(args)

    def check_evaluation(self, args) -> None:
        """
        Called again and again in an evaluation, by all processes alike.

        Raises:
            EvaluationTerminatedError: If one of them was told to stop, in the midst of training.
        """
        if self._is_training and self._is_anyone_told(args):
            raise EvaluationTerminatedError

    def stop(self, state, control, leaves_out_evaluation: bool) -> None:
        """Have `Trainer` save a checkpoint of the step at hand and end."""
        logger.warning(f"SIGTERM: saving a checkpoint of step {state.global_step}, then stopping.")
        self.terminated, self.has_left_out_evaluation = True, leaves_out_evaluation
        control.should_save = control.should_training_stop = True
        control.should_evaluate = False

    def state_dict(self) -> dict[str, bool]:
        return {"has_left_out_evaluation": self.has_left_out_evaluation}

    def load_state_dict(self, state: dict[str, bool]) -> None:
        self.has_left_out_evaluation = state["has_left_out_evaluation"]

    def _is_anyone_told(self, args) -> bool:
        if args.world_size == 1:
            return self._told
        told = torch.tensor(int(self._told), device=args.device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told)

    def restore(self) -> None:
        """Leave SIGTERM to whatever handled it before training, also one that came too late for another step."""
        self._is_training = False
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
            if self._told and not self.terminated:
                signal.raise_signal(signal.SIGTERM)


def refuse_loss(parts: dict[str, float], step: int, inputs: dict[str, torch.Tensor], tokenizer) -> None:
    """
    Refuse a loss that is not finite, before it reaches the weights.

    Args:
        parts (`dict[str, float]`): Of the micro-batch's loss, by name.
        step (`int`): Optimizer steps taken so far.
        inputs (`dict[str, torch.Tensor]`): The micro-batch, with `labels` `(batch_size, sequence_length)`.
        tokenizer: Reads its answers.

    Raises:
        FloatingPointError: Naming the step, the part of the loss and the samples, by the beginnings of their answers.
    """
    values = ", ".join(f"`{name}` is {value:g}" for name, value in parts.items() if name.endswith("loss"))
    answers = [tokenizer.decode(row[row >= 0][:NUM_TOKENS_TOLD], skip_special_tokens=True) for row in inputs["labels"]]
    raise FloatingPointError(
        f"The loss of step {step + 1} is not finite: {values}. Its micro-batch has the answers "
        f"{', '.join(map(repr, answers))}. The weights were not changed by it. A lower `learning_rate` or "
        "`max_grad_norm`, or `bf16` in place of `fp16`, may help; look at these samples too."
    )


def check_gradient_norm(norm: torch.Tensor | float | None, step: int) -> None:
    """
    Refuse gradients that are not finite, before they reach the weights.

    Raises:
        FloatingPointError: Naming the step.
    """
    if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
        raise FloatingPointError(
            f"The gradient norm of step {step + 1} is {float(norm):g}, though its loss is finite. The weights were "
            "not changed by it. A lower `learning_rate` or `bf16` in place of `fp16` may help."
        )
