"""Adapts the alignment weight so that its gradient stays proportional to the language-modeling loss's."""

from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback


# Steps in the running mean of the ratio's logarithm: first the mean of all steps, later an exponential mean in which a
# step has weight 1/10. Our choice: long compared with the noise of a batch, short compared with a run.
NUM_SMOOTHED = 10


class GradientNorms:
    """
    The squared norms of both losses' gradients at the answer states, summed over the backward passes of a step.

    The alignment gradient is read at the states selected for alignment, the sum of both gradients at the full hidden
    states; the difference is the language-modeling gradient. Nothing is computed twice.
    """

    def __init__(self):
        self.alignment: torch.Tensor | None = None
        self.language: torch.Tensor | None = None

    def watch(self, hidden_states: torch.Tensor, states: torch.Tensor, places: torch.Tensor) -> None:
        """
        Watch the answer states `(num_turns, hidden_size)`, used only by alignment, which were taken from
        `hidden_states` `(batch_size, sequence_length, hidden_size)` at distinct `places` in the flattened batch.
        """
        found: list[torch.Tensor] = []

        def add_both(gradient):
            both = gradient.detach().flatten(0, 1).index_select(0, places).float()
            alignment = found.pop().float() if found else torch.zeros_like(both)
            self._add(alignment.square().sum(), (both - alignment).square().sum())

        states.register_hook(lambda gradient: found.append(gradient.detach()))
        hidden_states.register_hook(add_both)

    def _add(self, alignment, language):
        self.alignment = alignment if self.alignment is None else self.alignment + alignment
        self.language = language if self.language is None else self.language + language

    def pop(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The sums since the last call, of alignment and of language modeling; None without a backward pass."""
        found = None if self.alignment is None else (self.alignment, self.language)
        self.alignment = self.language = None
        return found


class GradientRatio:
    """
    Chooses the weight at which the alignment gradient's norm is `target` times the language-modeling gradient's,
    estimated from the steps before. In the first step, and without a `target`, the weight is `first_weight`. `weight`
    is for the next step, before any schedule; `measured` is the relative norm in the last step.
    """

    def __init__(self, target: float | None, first_weight: float):
        self.target, self.first_weight = target, first_weight
        self.norms = GradientNorms()
        self.measured: torch.Tensor | None = None
        self._num_measured = torch.zeros(())
        self._log_ratio = torch.zeros(())  # of the unweighted gradient's norm, smoothed

    @property
    def weight(self) -> torch.Tensor:
        if self.target is None:
            return torch.tensor(self.first_weight)
        followed = self.target / self._log_ratio.exp()
        return torch.where(self._num_measured > 0, followed, self.first_weight)

    def update(self, weight: float | torch.Tensor, accelerator: Accelerator) -> None:
        """
        Update the estimate after a step in which the loss had `weight`, with the mean over all processes. A step in
        which either loss has no gradient, or a non-finite one, changes nothing.
        """
        squares = self.norms.pop()
        squares = torch.zeros(2, device=accelerator.device) if squares is None else torch.stack(squares)
        alignment, language = accelerator.reduce(squares, reduction="mean")
        self.measured = (alignment / language).sqrt()
        log_ratio = self.measured.log() - torch.as_tensor(weight).log()
        is_known = log_ratio.isfinite()
        self._num_measured = self._num_measured + is_known
        step = (log_ratio - self._log_ratio) / self._num_measured.clamp(1, NUM_SMOOTHED)
        self._log_ratio = self._log_ratio + torch.where(is_known, step, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"log_ratio": self._log_ratio.item(), "num_measured": self._num_measured.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._log_ratio = torch.tensor(state["log_ratio"])
        self._num_measured = torch.tensor(state["num_measured"])


class GradientRatioCallback(TrainerCallback):
    """Updates the trainer's gradient ratio at the end of a step, before logging and saving."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.follow_gradient_ratio(state.global_step - 1)
