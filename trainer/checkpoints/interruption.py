"""Runs that end early: a scheduler's SIGTERM, and non-finite losses or gradients."""

import logging
import signal
import threading

import torch
from transformers import TrainerCallback

from logramed.trainer.watching.callbacks import LoggedMeans


logger = logging.getLogger(__name__)

# Exit code that a shell reports for a process ended by SIGTERM.
TERMINATED_EXIT_CODE = 128 + signal.SIGTERM
NUM_TOKENS_SHOWN = 12


class TerminationCallback(TrainerCallback):
    """
    On SIGTERM, finishes the current step, saves a checkpoint and stops training (`terminated`); a second SIGTERM
    changes nothing. All processes of a run stop at the same step, once one of them has received the signal. An
    evaluation that is due runs first; with `save_strategy` "best", where `Trainer` decides by it whether to save,
    training stops one step later.
    """

    def __init__(self):
        self.terminated = self._received = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.terminated = self._received = False
        if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
            self._previous = signal.signal(signal.SIGTERM, self._handle_sigterm)

    def _handle_sigterm(self, signum, frame):
        self._received = True

    def on_step_end(self, args, state, control, **kwargs):
        epoch_ends = args.eval_strategy == "epoch" and float(state.epoch).is_integer()
        decides = args.save_strategy == "best" and (control.should_evaluate or epoch_ends)
        if not decides and self._any_process_received(args):
            logger.warning(f"SIGTERM: saving a checkpoint of step {state.global_step}, then stopping.")
            self.terminated = control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.terminated:  # already saved at the end of the step, but without the epoch's evaluation
            control.should_evaluate = control.should_evaluate and float(state.epoch).is_integer()
            control.should_save = control.should_evaluate
        return control

    def _any_process_received(self, args) -> bool:
        if args.world_size == 1:
            return self._received
        received = torch.tensor(int(self._received), device=args.device)
        torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
        return bool(received)

    def restore(self) -> None:
        """Restore the previous handler of SIGTERM, and pass on a signal that came after the last step."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
            if self._received and not self.terminated:
                signal.raise_signal(signal.SIGTERM)


def check_loss(loss: torch.Tensor, means: LoggedMeans, step: int, inputs: dict[str, torch.Tensor], tokenizer) -> None:
    """
    Raises `FloatingPointError` if the loss of a micro-batch after `step` optimizer steps is not finite, before the
    weights change. The message names the step, the parts of the loss (added to `means` last) and the samples, by the
    beginning of their answers.
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
        f"{', '.join(map(repr, answers))}. It did not change the weights. A lower `learning_rate` or "
        "`max_grad_norm`, or `bf16` instead of `fp16`, may help; check these samples too."
    )


def check_gradient_norm(norm: torch.Tensor | float | None, step: int) -> None:
    """Raises `FloatingPointError`, naming the step, if the norm of the gradients is not finite."""
    if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
        raise FloatingPointError(
            f"The gradient norm of step {step + 1} is {float(norm):g}, though its loss is finite. It did not change "
            "the weights. A lower `learning_rate` or `bf16` instead of `fp16` may help."
        )
